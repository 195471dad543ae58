"""Verified: when sampling stops, which answer is returned, and how often it is right."""

import asyncio
import random
from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context, depth_so_far
from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.registry import get_approach
from optillm_hooks.services import Services
from optillm_hooks.testing import (
    HANG,
    AnsweringLLM,
    Reply,
    ScriptedLLM,
    answer,
    chat,
    context,
    params,
)
from optillm_hooks.types import Chat, Completion, Fields, Json, Message, Sampling, ToolCall
from optillm_hooks.verifiers.sampling import proving_wave
from tests.test_catalogue import Lenient, ask

pytestmark = pytest.mark.anyio
RIGHT, WRONG = "ANSWER: 42", "ANSWER: 41"
CALL = Completion("", finish_reason="tool_calls", tool_calls=(ToolCall("1", "f", "{}"),))


async def verified(
    replies: list[Reply], request: str = "6 * 7?", ctx: Context | None = None, **given: Any
) -> tuple[str, int]:
    """Return the answer and the number of calls."""
    llm = ScriptedLLM(replies)
    result = await answer("verified", chat(request), llm, ctx or context(limits=Limits()), **given)
    llm.assert_used_up()
    assert llm.inside == 0
    return result.text, len(llm.calls)


@pytest.mark.parametrize(
    ("replies", "calls"),
    [
        pytest.param([HANG, RIGHT], 2, id="a proof ends the first wave"),
        pytest.param([WRONG, WRONG, HANG, HANG, HANG, HANG, RIGHT, HANG], 8, id="or the second"),
        pytest.param([WRONG, ProviderFailed("502"), *[HANG] * 5, RIGHT], 8, id="a failed call"),
    ],
)
async def test_the_first_proven_answer_is_returned_at_once(
    replies: list[Reply], calls: int
) -> None:
    ctx = context(limits=Limits())
    assert await verified(replies, ctx=ctx) == (RIGHT, calls)
    assert ctx.trace.calls_saved == 8 - calls
    assert "verified_answers:1/1" not in ctx.trace.lost


async def test_without_any_that_passes_the_vote_decides_and_the_report_says_so() -> None:
    ctx = context(limits=Limits())
    replies: list[Reply] = ["ANSWER: 40", *[WRONG] * 3, *["ANSWER: 40"] * 4]
    assert await verified(replies, ctx=ctx) == ("ANSWER: 40", 8)
    assert ctx.trace.lost == ("verified_answers:1/1",)
    [note] = [facts for name, facts in ctx.trace.events if name == "verified"]
    assert note == {
        "verifiers": ["calculator", "sympy"],
        "answers": 8,
        "passed": 0,
        "proven": False,
    }


async def test_of_answers_that_fail_the_best_score_wins() -> None:
    half = "6 * 7 = 41, 3 + 3 = 6. ANSWER: 41"
    assert await verified([WRONG, half, WRONG], n=3) == (half, 3)


async def test_an_answer_that_passes_in_part_is_better_than_one_that_fails() -> None:
    replies: list[Reply] = ["ANSWER: 4", "ANSWER: 4", "ANSWER: 2", "ANSWER: 4"]
    assert (await verified(replies, "Solve x^2 - 5x + 6 = 0", n=4))[0] == "ANSWER: 2"


@pytest.mark.parametrize(
    ("replies", "expected", "calls"),
    [
        pytest.param(["A", "A", "A"], "A", 3, id="three that pass and agree"),
        pytest.param(["A", "A", "b", *["A"] * 5], "A", 8, id="one that fails is no agreement"),
        pytest.param(["b", "b", "b", "A", *["b"] * 4], "A", 8, id="one that passes wins"),
        pytest.param(
            ["B", "A", "b", "A", *["b"] * 4], "A", 8, id="those that pass vote among themselves"
        ),
    ],
)
async def test_form_proves_nothing_so_answers_vote(
    replies: list[Reply], expected: str, calls: int
) -> None:
    marked = [f"ANSWER: {reply}" for reply in replies]
    found = await verified([*marked], "Which?", pattern="[A-D]$")
    assert found == (f"ANSWER: {expected}", calls)


async def test_answers_that_pass_and_agree_do_not_end_it_while_a_proof_may_come() -> None:
    replies: list[Reply] = ["x = 2", "x = 2", "x = 2", "x = 2, x = 3", *[HANG] * 4]
    found = await verified(replies, "Solve x^2 - 5x + 6 = 0", confidence=0.8)
    assert found == ("x = 2, x = 3", 8)


async def test_a_proven_answer_beats_the_kind_of_most_replies() -> None:
    assert await verified([CALL, RIGHT]) == (RIGHT, 2)


async def test_where_nothing_can_be_read_or_verified_the_model_chooses() -> None:
    end = "Thank you for asking, and for your patience. I hope that this helps you to decide."
    texts = [f"{first} {end}" for first in ("It is fine, I think.", "All seems well.", "Sure.")]
    given: dict[str, Any] = {"n": 3, "verifiers": ("calculator",)}
    text, calls = await verified([*texts, "BEST: 1"], "Is it?", **given)
    assert (text in texts, calls) == (True, 4)


async def test_tool_calls_are_returned_as_they_are() -> None:
    llm = ScriptedLLM([CALL] * 3)
    given = {"verifiers": ("calculator",)}
    result = await answer("verified", chat("6 * 7?"), llm, context(limits=Limits()), **given)
    assert result == CALL
    llm.assert_used_up()


async def test_a_conversation_with_tools_and_images_is_not_changed() -> None:
    picture: Fields = {"type": "image_url", "image_url": {"url": "data:,x"}}
    asked: Chat = (
        Message("user", "Look."),
        Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
        Message("tool", "7", {"tool_call_id": "1"}),
        Message("user", ({"type": "text", "text": "6 * 7?"}, picture)),
    )
    llm = ScriptedLLM([RIGHT, RIGHT])
    await answer("verified", asked, llm, context(limits=Limits()))
    assert all(sent == asked for sent, _ in llm.calls)


async def test_json_is_verified_as_the_client_reads_it() -> None:
    wanted: Json = {"type": "json_object"}
    ctx = context(limits=Limits(), client=Sampling(fields={"response_format": wanted}))
    replies: list[Reply] = ["ANSWER: 42", '{"answer": 42}']
    assert await verified(replies, ctx=ctx) == ('{"answer": 42}', 2)


async def test_constraints_are_written_beside_the_first_answers() -> None:
    script = "```smt2\n(declare-const answer Int)\n(assert (= answer 42))\n```"
    llm = AnsweringLLM(lambda _, s: script if s.purpose == "draft" else RIGHT)
    depth_so_far.set(0)
    ctx = context(limits=Limits())
    result = await answer("verified", chat("Which?"), llm, ctx, verifiers=("z3",))
    assert (result.text, ctx.trace.depth) == (RIGHT, 1)
    assert ctx.trace.calls_saved == 6


async def test_the_best_so_far_is_offered() -> None:
    async def check(_: str, answer: str, /) -> tuple[bool | None, float | None]:
        return None if "39" in answer else False, 0.5 if "39" in answer else 0.1

    ctx = context(limits=Limits())
    ctx.services = Services(answer_check=check)
    llm = ScriptedLLM([WRONG, "ANSWER: 39", HANG])
    result = await answer("verified", chat("Why?"), llm, ctx, n=3, first_m=2)
    assert ctx.best is not None
    assert result.text == ctx.best.text == "ANSWER: 39"
    assert llm.inside == 0


async def test_a_verifier_that_hangs_ends_with_the_request() -> None:
    async def check(_: str, __: str, /) -> tuple[bool | None, float | None]:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    before = asyncio.all_tasks()
    services, limits = Services(answer_check=check), Limits(deadline_s=0.1)
    ended = await ask("verified", Lenient(), services=services, limits=limits)
    assert ended.answers[0].text
    assert ended.report.stopped_by == "deadline"
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("name", ["tests", "http"])
def test_a_verifier_that_is_named_and_missing_is_refused_before_any_call(name: str) -> None:
    given = get_approach("verified").params.model_validate({"verifiers": [name]})
    with pytest.raises(RequestRejected, match=f"verifier '{name}': the operator has to set"):
        given.check_services(Services())


def test_an_unknown_verifier_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown verifier 'test'; known: auto, tests"):
        params("verified", verifiers=["test"])


# ------------------------------------------------------------------------------------- laws


def test_the_first_wave_costs_fewest_calls_where_nothing_is_known() -> None:
    """The mean over p of f + (n - f)(1 - p)^f, by midpoints."""
    for n in (1, 2, 3, 5, 8, 16, 64):
        steps = [(step + 0.5) / 2000 for step in range(2000)]
        mean = {f: f + (n - f) * sum((1 - p) ** f for p in steps) / 2000 for f in range(1, n + 1)}
        assert mean[proving_wave(n)] == pytest.approx(min(mean.values()), rel=1e-3)


async def trials(p: float, passes_wrong: float) -> tuple[float, float]:
    """Return the accuracy and the mean calls of 1200 runs of at most 8 samples."""
    rng, count, calls, right = random.Random(int(10 * p)), 1200, 0, 0

    async def check(_: str, answer: str, /) -> tuple[bool | None, float | None]:
        return answer == RIGHT or rng.random() < passes_wrong, None

    for _ in range(count):
        llm = AnsweringLLM(lambda *_: RIGHT if rng.random() < p else WRONG)
        ctx = context(limits=Limits())
        ctx.services = Services(answer_check=check)
        found = await answer("verified", chat("Which?"), llm, ctx, verifiers=("http",))
        calls += len(llm.calls)
        right += found.text == RIGHT
    return right / count, calls / count


@pytest.mark.parametrize("p", [0.1, 0.3, 0.7])
async def test_accuracy_and_calls_with_a_verifier_that_is_right(p: float) -> None:
    """Accuracy 1 - (1 - p)^8, calls 2 + 6 (1 - p)^2. By Hoeffding, 1200 trials stray by 0.08 (of
    calls, which are 2 or 8, by 6 * 0.08) with probability under 2 * exp(-15.3) = 4.3e-7 each."""
    accuracy, calls = await trials(p, 0.0)
    assert abs(accuracy - (1 - (1 - p) ** 8)) < 0.08
    assert abs(calls - (2 + 6 * (1 - p) ** 2)) < 6 * 0.08


async def test_accuracy_with_a_verifier_that_passes_wrong_answers() -> None:
    """It passes right answers, and wrong ones with probability e. The first that passes is
    returned: right with probability p / (p + (1 - p) e), unless none of 8 passes, where all are
    wrong. By Hoeffding, 1200 trials stray by 0.08 with probability under 4.3e-7."""
    p, e = 0.4, 0.3
    passing = p + (1 - p) * e
    accuracy, _ = await trials(p, e)
    assert abs(accuracy - p / passing * (1 - (1 - passing) ** 8)) < 0.08
