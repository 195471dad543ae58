"""Cascade: when the cheap samples are enough, what the strong model is asked, what is lost."""

import asyncio
import random
from math import log, sqrt
from statistics import fmean
from typing import Any

import pytest

from optillm_hooks.approaches.cascade import CascadeParams
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.llm import FinalCall
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run as run_plan
from optillm_hooks.registry import Cost, get_approach
from optillm_hooks.testing import (
    HANG,
    ONE_CALL,
    AnsweringLLM,
    Reply,
    ScriptedLLM,
    answer,
    chat,
    context,
    params,
    run,
)
from optillm_hooks.types import Chat, Completion, Json, Message, Sampling, ToolCall
from tests.simulated import Unhurried

pytestmark = pytest.mark.anyio
ASKED: Chat = (
    Message("system", "Be terse."),
    Message("user", ({"type": "text", "text": "6 * 7?"}, {"type": "image_url", "image_url": {}})),
)
A, B, C = "ANSWER: 41", "ANSWER: 42", "ANSWER: 43"
BUSY = ProviderFailed("busy", status=429)
TOOLS: list[Json] = [{"type": "function", "function": {"name": "f"}}]


def cut(text: str) -> Completion:
    return Completion(text, "length", usage=ONE_CALL)


def calling(arguments: str) -> Completion:
    calls = (ToolCall("1", "f", arguments),)
    return Completion("", "tool_calls", tool_calls=calls, usage=ONE_CALL)


async def escalates(
    replies: list[Reply], ctx: Context | None = None, **given: Any
) -> tuple[bool, ScriptedLLM, Context]:
    """Return whether the strong model is asked after these cheap replies."""
    strong = ScriptedLLM([], model="strong")
    ctx = ctx or context(models=[strong], limits=Limits())
    llm = ScriptedLLM(replies)
    async with asyncio.timeout(10):
        result = await run("cascade", ASKED, llm, ctx, strong="strong", **given)
    return isinstance(result, FinalCall), llm, ctx


@pytest.mark.parametrize(
    ("replies", "given", "escalated"),
    [
        pytest.param([B, B, B], {}, False, id="three agree"),
        pytest.param([B, f"So. {B}", "42"], {}, False, id="in other words"),
        pytest.param([A, B, HANG], {}, True, id="two differ: the third is not awaited"),
        pytest.param([B, B, A], {}, True, id="two of three"),
        pytest.param([B, B, A], {"confidence": 0.6}, False, id="enough for the operator"),
        pytest.param([A, B, C], {"confidence": 0.6}, True, id="one alone never is"),
        pytest.param([B, BUSY, BUSY], {"confidence": 0.5}, True, id="nor where others fail"),
        pytest.param([B, B], {"n": 2}, False, id="all of two"),
        pytest.param([B, B, B, B], {"n": 4, "confidence": 1}, False, id="all of four"),
        pytest.param([B, B, B, HANG, HANG], {"n": 5}, False, id="a wave is enough"),
        pytest.param([A, B, B, B, B, B], {"n": 6}, False, id="a second wave settles it"),
        pytest.param([A, B, B, B, B, BUSY], {"n": 6}, True, id="four of five do not"),
        pytest.param([A, B, C, HANG, HANG], {"n": 5}, True, id="a second wave could not"),
        pytest.param([B, B, BUSY], {}, True, id="a failed sample does not vouch"),
        pytest.param([cut(B), B, B], {}, True, id="nor one that was cut off"),
        pytest.param([cut(B), B, B, B], {"n": 4}, True, id="which counts against the others"),
        pytest.param([cut(B), cut(B), cut(B)], {}, True, id="nor three of them"),
        pytest.param(["Fine."] * 3, {}, False, id="equal texts"),
        pytest.param([calling("{}")] * 3, {}, False, id="equal tool calls"),
        pytest.param([calling("{}"), calling('{"x":1}'), calling("{}")], {}, True, id="others"),
        pytest.param([calling("{}"), calling("{}"), B], {}, True, id="a call and a text"),
    ],
)
async def test_when_the_strong_model_is_asked(
    replies: list[Reply], given: dict[str, Any], escalated: bool
) -> None:
    done, llm, ctx = await escalates(replies, **given)
    assert done is escalated
    assert llm.inside == 0
    noted = next(facts for name, facts in ctx.trace.events if name == "cascade")
    assert noted["escalated"] is done


async def test_json_agrees_as_a_whole() -> None:
    client = Sampling(fields={"response_format": {"type": "json_object"}})
    strong = ScriptedLLM([], model="strong")

    def ctx() -> Context:
        return context(client=client, models=[strong])

    same: list[Reply] = ['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": 1,"b":2}']
    assert not (await escalates(same, ctx()))[0]
    other: list[Reply] = [*same[:2], '{"a": 1, "b": 3}']
    assert (await escalates(other, ctx()))[0]


FREE = [
    f"{first} Thank you for asking, and for your patience. I hope that this helps you to decide."
    for first in ("It is fine, as far as I see.", "All seems well.", "Nothing I know of is wrong.")
]


@pytest.mark.parametrize(
    ("verdicts", "escalated"),
    [
        ([' {"same": true}'], False),
        (['{"same": false}'], True),
        (["Well.", "Hm."], True),
        ([BUSY], True),
    ],
)
async def test_the_cheap_model_says_whether_free_texts_agree(
    verdicts: list[Reply], escalated: bool
) -> None:
    done, llm, _ = await escalates([*FREE, *verdicts])
    assert done is escalated
    llm.assert_used_up()
    asked, sampling = llm.calls[3]
    assert sampling.purpose == "judge"
    assert all(f"\n{text}\n" in asked[-1].text for text in FREE)


class OneAfterAnother(ScriptedLLM):
    """The replies arrive in the order of the calls, each in a later turn of the loop."""

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        reply = await super().complete(chat, sampling)
        for _ in range(10 * len(self.calls)):
            await asyncio.sleep(0)
        return reply


@pytest.mark.parametrize("n", [3, 5])
async def test_free_texts_are_compared_in_whatever_order_they_arrive(n: int) -> None:
    texts = (FREE * 2)[:n]
    strong, llm = ScriptedLLM([], model="strong"), OneAfterAnother([*texts, '{"same": true}'])
    ctx = context(models=[strong], limits=Limits())
    result = await run("cascade", ASKED, llm, ctx, strong="strong", n=n)
    assert isinstance(result, Completion)
    llm.assert_used_up()


@pytest.mark.parametrize("odd", [cut(FREE[0]), calling("{}")])
async def test_free_texts_that_cannot_agree_any_more_are_not_awaited(odd: Reply) -> None:
    strong, llm = ScriptedLLM([], model="strong"), OneAfterAnother([odd, FREE[0], HANG])
    ctx = context(models=[strong], limits=Limits(deadline_s=600))
    async with asyncio.timeout(60):
        result = await run("cascade", ASKED, llm, ctx, strong="strong", n=3)
    assert isinstance(result, FinalCall)


async def test_beside_a_call_that_failed_one_that_hangs_leaves_time_for_the_strong_model() -> None:
    strong, llm = ScriptedLLM([], model="strong"), OneAfterAnother([BUSY, FREE[0], HANG])
    ctx = context(models=[strong], limits=Limits(deadline_s=1))
    async with asyncio.timeout(30):
        result = await run("cascade", ASKED, llm, ctx, strong="strong", n=3)
    assert isinstance(result, FinalCall)


async def test_texts_that_only_end_alike_do_not_agree() -> None:
    """Two reviews that say yes may differ in all else."""
    asked = chat("Should I learn Rust or Go?")
    strong = ScriptedLLM([], model="strong")
    for verdict, escalated in (("true", False), ("false", True)):
        replies = [f"Yes. I would take {name}.\nANSWER: Yes" for name in ("Go", "Rust", "both")]
        llm, ctx = ScriptedLLM([*replies, f'{{"same": {verdict}}}']), context(models=[strong])
        result = await run("cascade", asked, llm, ctx, strong="strong")
        assert isinstance(result, FinalCall) is escalated
        llm.assert_used_up()


async def test_the_first_cheap_model_says_so_not_the_base_model() -> None:
    one = ScriptedLLM([*FREE, '{"same": true}'], model="one")
    found = await answer("cascade", ASKED, ScriptedLLM([]), context(models=[one]), models=["one"])
    assert found.text in FREE
    one.assert_used_up()


async def test_it_is_not_asked_where_a_sample_is_missing() -> None:
    done, llm, _ = await escalates([*FREE[:2], BUSY])
    assert done
    llm.assert_used_up()


async def test_the_strong_model_gets_the_plain_request() -> None:
    strong = ScriptedLLM([C], model="strong", fields=["reasoning_effort"])
    llm = ScriptedLLM([A, B, HANG])
    ctx = context(models=[strong], client=Sampling(temperature=0.2, fields={"tools": TOOLS}))
    result = await answer("cascade", ASKED, llm, ctx, strong="strong", effort="high")
    assert result.text == C
    ((asked, sampling),) = strong.calls
    assert asked == ASKED
    assert sampling.temperature == 0.2
    assert sampling.fields == {"tools": TOOLS, "reasoning_effort": "high"}
    assert all(asked == ASKED and sampling.temperature == 0.7 for asked, sampling in llm.calls)


async def test_a_higher_effort_of_the_same_model() -> None:
    llm = ScriptedLLM([A, B, HANG, C], fields=["reasoning_effort"])
    client = Sampling(fields={"reasoning_effort": "low"})
    result = await answer("cascade", ASKED, llm, context(client=client), effort="high")
    assert result.text == C
    efforts = [sampling.fields["reasoning_effort"] for _, sampling in llm.calls]
    assert efforts == ["low", "low", "low", "high"]


@pytest.mark.parametrize("given", [{"strong": "base"}, {"effort": "high"}, {"strong_n": 2}])
async def test_a_model_is_never_asked_for_the_same_sample_twice(given: dict[str, Any]) -> None:
    """Not even where the host has given fewer choices than it was asked for."""
    numbers: list[int] = []

    class GivesOne(ScriptedLLM):
        async def complete_n(self, chat: Chat, sampling: Sampling, _n: int, /) -> list[Completion]:
            return [await self.complete(chat, sampling)]

        async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
            numbers.append(sampling.sample)
            return await super().complete(chat, sampling)

    base = GivesOne([A, B, C, A, B, C], max_n=4, fields=["reasoning_effort"])
    await answer("cascade", ASKED, base, context(models=[base]), **given)
    assert len(set(numbers)) == len(numbers) >= 4


async def test_cheap_models_in_turn_and_the_base_is_the_strong_one() -> None:
    one, two = ScriptedLLM([A, HANG], model="one"), ScriptedLLM([B], model="two")
    base = ScriptedLLM([C])
    ctx = context(models=[one, two])
    assert (await answer("cascade", ASKED, base, ctx, models=["one", "two"])).text == C
    assert len(base.calls) == 1


async def test_several_strong_samples_vote() -> None:
    strong = ScriptedLLM([C, A, C], model="strong")
    llm, ctx = ScriptedLLM([A, B, HANG]), context(models=[strong])
    result = await answer("cascade", ASKED, llm, ctx, strong="strong", strong_n=3)
    assert result.text == C


async def test_without_a_stronger_model_its_samples_join_the_vote() -> None:
    llm = ScriptedLLM([A, B, C, B])
    client = Sampling(seed=5)
    assert (await answer("cascade", ASKED, llm, context(client=client))).text == B
    llm.assert_used_up()
    assert len({sampling.seed for _, sampling in llm.calls}) == 4


@pytest.mark.parametrize("seed", range(5))
async def test_and_all_cheap_samples_are_awaited(seed: int) -> None:
    answers = iter((A, B, C, B))
    ctx = context(limits=Limits())
    await answer("cascade", ASKED, Unhurried(lambda *_: next(answers), seed), ctx)
    assert [call.outcome for call in ctx.trace.calls] == ["ok"] * 4


@pytest.mark.parametrize("strong_n", [1, 2])
@pytest.mark.parametrize("bad", [BUSY, HANG, ""], ids=["failed", "hangs", "empty"])
async def test_the_best_cheap_answer_is_left_if_the_strong_model_fails(
    bad: Reply, strong_n: int
) -> None:
    groups = {
        "base": ScriptedLLM([cut(A), B, HANG]),
        "strong": ScriptedLLM([bad] * strong_n, model="strong"),
    }
    limits = Limits(deadline_s=0.0) if bad is HANG else Limits()
    outcome = await planned(f"cascade(strong=strong;strong_n={strong_n})", groups, limits)
    assert outcome.answers[0].text == B
    assert outcome.report.degraded or outcome.report.stopped_by == "deadline"


async def planned(expression: str, groups: dict[str, ScriptedLLM], limits: Limits) -> Outcome:
    plan = resolve(parse(expression))
    request = Request(plan=plan, base="base", chat=ASKED, limits=limits)
    return await run_plan(request, groups.__getitem__)


async def test_a_limit_of_calls_leaves_the_best_cheap_answer() -> None:
    groups = {"base": ScriptedLLM([B, B, A]), "strong": ScriptedLLM([], model="strong")}
    outcome = await planned("cascade(strong=strong)", groups, Limits(max_calls=3))
    assert outcome.answers[0].text == B
    assert outcome.report.stopped_by == "max_calls"


async def test_the_strong_model_answers_if_all_cheap_samples_fail() -> None:
    strong = ScriptedLLM([C], model="strong")
    llm, ctx = ScriptedLLM([BUSY] * 3), context(models=[strong])
    assert (await answer("cascade", ASKED, llm, ctx, strong="strong")).text == C
    with pytest.raises(SamplesFailed):
        await answer("cascade", ASKED, ScriptedLLM([BUSY] * 3), context())


async def test_calls_that_are_not_needed_are_counted() -> None:
    done, _, ctx = await escalates([B, B, B, HANG, HANG], n=5, strong_n=2)
    assert not done
    assert ctx.trace.calls_saved == 2 + 2
    assert ctx.trace.depth == 1


def test_what_it_costs() -> None:
    def cost(**given: Any) -> Cost:
        found: Cost = get_approach("cascade").cost(params("cascade", **given))
        return found

    assert cost() == Cost(calls=4, depth=2)
    assert cost(n=5, strong_n=2) == Cost(calls=7, depth=3)


def test_both_models_are_named_for_the_checks_of_access() -> None:
    named = CascadeParams(models=("a", "b"), strong="c")
    assert named.model_groups() == named.writers() == ("a", "b", "c")


EASY, HARD = 0.95, 0.5
"""How often the cheap model is right on the two kinds of problems, which are equally frequent."""

STRONG = {EASY: 0.98, HARD: 0.868}
PRICE = 10
"""What a call of the strong model costs, in calls of the cheap one."""

WRONG, WEIGHTS = ("40", "41", "43"), (0.6, 0.3, 0.1)
PROBLEMS = 1000
MARGIN = sqrt(log(2 / 1e-7) / (2 * PROBLEMS))
"""By Hoeffding's inequality, the mean of so many numbers from 0 to 1 is not further from its
expectation in all but one of 10 million runs: 0.092."""


def agreeing(p: float) -> float:
    """Return the probability that three samples agree."""
    return p**3 + sum(((1 - p) * weight) ** 3 for weight in WEIGHTS)


def law() -> tuple[float, float]:
    """Return the exact accuracy and the expected share of problems that are escalated."""
    right = fmean(p**3 + (1 - agreeing(p)) * STRONG[p] for p in (EASY, HARD))
    return right, fmean(1 - agreeing(p) for p in (EASY, HARD))


async def test_the_accuracy_of_the_strong_model_at_four_fifths_of_its_cost() -> None:
    rng = random.Random(7)
    right, escalated = law()
    assert right > fmean(STRONG.values())
    assert 3 + PRICE * escalated < 0.8 * PRICE

    async def solved(p: float) -> tuple[bool, bool]:
        def replies(of: float) -> AnsweringLLM:
            def reply(_: Chat, __: Sampling) -> str:
                is_right = rng.random() < of
                return f"ANSWER: {42 if is_right else rng.choices(WRONG, WEIGHTS)[0]}"

            return AnsweringLLM(reply, model="strong")

        strong = replies(STRONG[p])
        found = await answer(
            "cascade", chat("6 * 7?"), replies(p), context(models=[strong]), strong="strong"
        )
        return found.text.endswith("42"), bool(strong.calls)

    ended = [await solved((EASY, HARD)[number % 2]) for number in range(PROBLEMS)]
    assert fmean(is_right for is_right, _ in ended) == pytest.approx(right, abs=MARGIN)
    assert fmean(asked for _, asked in ended) == pytest.approx(escalated, abs=MARGIN)
