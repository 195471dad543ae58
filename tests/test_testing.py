"""The published helpers, as the author of an approach in another package uses them."""

import asyncio

import pytest
from pydantic import Field

from optillm_hooks import registry
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import DeadlineExceeded, ProviderFailed, SamplesFailed
from optillm_hooks.fanout import sample_many
from optillm_hooks.llm import LLM, FinalCall, Price
from optillm_hooks.prompts import ask
from optillm_hooks.registry import Cost, Params, approach
from optillm_hooks.testing import (
    HANG,
    ONE_CALL,
    AnsweringLLM,
    ScriptedLLM,
    StagedLLM,
    answer,
    chat,
    context,
    in_turn,
    params,
    run,
)
from optillm_hooks.types import Chat, Completion, Message, Sampling, Usage

pytestmark = pytest.mark.anyio
ASKED = chat("6 * 7?")


class LongestParams(Params):
    n: int = Field(default=2, ge=1, description="Number of drafts.")


async def longest(chat: Chat, llm: LLM, params: LongestParams, ctx: Context) -> FinalCall:
    drafts = await sample_many(llm, chat, Sampling(purpose="draft"), ctx, n=params.n)
    best = max(drafts, key=lambda draft: len(draft.text))
    ctx.trace.note("drafts", finished=len(drafts))
    return FinalCall(ask(chat, f"Polish this: {best.text}"), fallback=best)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_approaches", dict(registry._approaches))
    approach("longest", LongestParams, cost=lambda p: Cost(p.n + 1, 2))(longest)


async def test_an_approach_runs_on_a_script() -> None:
    llm, ctx = ScriptedLLM(["short", "a longer one", "polished"]), context()
    assert (await answer("longest", ASKED, llm, ctx)).text == "polished"
    llm.assert_used_up()
    assert llm.calls[-1][0][-1].text == "6 * 7?\n\nPolish this: a longer one"
    assert ctx.trace.events == [("drafts", {"finished": 2})]
    assert ctx.budget.usage == ONE_CALL + ONE_CALL + ONE_CALL


async def test_a_final_call_is_left_to_the_pipeline() -> None:
    result = await run("longest", ASKED, ScriptedLLM(["short", "a longer one"]))
    assert isinstance(result, FinalCall)
    assert result.fallback == Completion("a longer one", usage=ONE_CALL)


async def test_a_call_that_fails_or_hangs_is_part_of_a_script() -> None:
    llm = ScriptedLLM([ProviderFailed("busy", status=429), HANG])
    with pytest.raises(SamplesFailed) as caught:
        await answer("longest", ASKED, llm)
    assert [type(error) for error in caught.value.errors] == [ProviderFailed, DeadlineExceeded]


async def test_a_call_beyond_the_script_and_one_too_few_are_errors() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await answer("longest", ASKED, ScriptedLLM(["short"]))
    assert isinstance(caught.value.exceptions[0], AssertionError)
    with pytest.raises(AssertionError, match="1 scripted"):
        ScriptedLLM(["short"]).assert_used_up()


async def test_a_provider_that_honours_n_takes_several_replies() -> None:
    llm = ScriptedLLM(["a", "bb", "cc"], max_n=8)
    ctx = context()
    await answer("longest", ASKED, llm, ctx)
    assert (len(llm.calls), ctx.budget.usage.calls) == (2, 2)


async def test_replies_by_stage() -> None:
    stages = {"polish": "Polish this", "draft": ""}
    llm = StagedLLM(stages, {"draft": in_turn("a", "bb", "c"), "polish": lambda n, _: f"no. {n}"})
    assert (await answer("longest", ASKED, llm, n=5)).text == "no. 0"
    assert llm.counts == {"draft": 5, "polish": 1}
    [(asked, sampling)] = llm.at("polish")
    assert asked[-1].text.endswith("Polish this: bb")
    assert sampling.purpose == "answer"
    assert (await answer("longest", ASKED, StagedLLM(stages))).text == "polish 0"
    with pytest.raises(ExceptionGroup) as caught:
        await answer("longest", ASKED, StagedLLM({"polish": "Polish this"}))
    assert "no stage" in str(caught.value.exceptions[0])


async def test_replies_by_a_function_are_streamed_and_counted_as_others_are() -> None:
    llm = AnsweringLLM(lambda asked, sampling: f"{asked[-1].text}\n{sampling.sample}", max_n=2)
    both = await llm.complete_n(ASKED, Sampling(sample=3), 2)
    assert [(c.text, c.usage) for c in both] == [
        ("6 * 7?\n3", ONE_CALL),
        ("6 * 7?\n3", Usage(calls=0)),
    ]
    pieces = [delta async for delta in llm.stream(ASKED, Sampling())]
    assert [delta.text for delta in pieces] == ["6 * 7?\n", "0", ""]
    assert (pieces[-1].finish_reason, pieces[-1].usage) == ("stop", ONE_CALL)


async def test_cancelling_is_seen_in_the_model() -> None:
    llm = ScriptedLLM([HANG, HANG])
    task = asyncio.create_task(answer("longest", ASKED, llm, context(limits=Limits())))
    await llm.until_hanging(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert llm.inside == 0


async def test_waiting_for_calls_that_never_hang_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optillm_hooks.testing._PATIENCE_S", 0.01)
    with pytest.raises(TimeoutError):
        await ScriptedLLM([]).until_hanging(1)


def test_the_facts_of_a_scripted_model() -> None:
    llm = ScriptedLLM([], price=Price(1.0, 2.0), fields=["n"], max_output_tokens=9)
    facts = llm.facts
    assert (facts.price, facts.max_output_tokens, facts.max_n) == (Price(1.0, 2.0), 9, 1)
    assert facts.supports("n")
    assert not facts.supports("tools")
    two = (Message("system", "Be terse."), *ASKED)
    assert facts.count_tokens(two, Sampling()) == 5


def test_parameters_are_validated() -> None:
    assert params("longest") == LongestParams(n=2)
    with pytest.raises(ValueError, match="n"):
        params("longest", n=0)


async def test_only_answerers_are_run_alone() -> None:
    with pytest.raises(ValueError, match="re2 is a rewriter"):
        await run("re2", ASKED, ScriptedLLM([]))
