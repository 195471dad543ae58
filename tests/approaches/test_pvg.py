"""Prover-verifier game: decoys measure the verifier and are never the answer."""

import asyncio
import random

import pytest

from optillm_hooks.approaches import pvg
from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import (
    HANG,
    ONE_CALL,
    AnsweringLLM,
    Reply,
    ScriptedLLM,
    answer,
    context,
    params,
)
from optillm_hooks.types import Chat, Completion, Message, Sampling, ToolCall
from tests.simulated import (
    RIGHT,
    Fallible,
    Unhurried,
    answer_in,
    end_of,
    kind,
    rating,
    shown,
    solution,
)

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", "And 6 * 7?"),
)


class Provers(AnsweringLLM):
    """Helpful solutions answer `answers` in turn, round after round; decoys answer 99.

    `ratings` says how each answer is rated, out of ten.
    """

    def __init__(self, answers: list[str], ratings: dict[str, int], *, model: str = "base") -> None:
        super().__init__(self._reply, model=model)
        self._answers = answers
        self._ratings = ratings

    def _reply(self, chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "rate":
                return rating(self._ratings[answer_in(chat[-1].text)])
            case "sneaky":
                return solution("99")
            case "review":
                return "Check the last step."
            case _:
                return solution(self._answers[sampling.sample % len(self._answers)])

    def asked_for(self, what: str) -> list[str]:
        return [chat[-1].text for chat, sampling in self.calls if kind(chat, sampling) == what]


async def test_the_helpful_solution_that_is_rated_best_is_the_answer() -> None:
    llm = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    assert (await answer("pvg", CHAT, llm)).text == shown("42")


async def test_a_sneaky_solution_is_never_the_answer_however_it_is_rated() -> None:
    llm = Provers(["41", "42", "42"], {"41": 4, "42": 3, "99": 10})
    assert (await answer("pvg", CHAT, llm)).text == shown("42")


@pytest.mark.parametrize(
    ("decoy", "expected"),
    [
        pytest.param(4, "42", id="decoys are rated lower: ratings decide"),
        pytest.param(5, "41", id="decoys are rated as highly: answers vote"),
        pytest.param(6, "41", id="decoys are rated higher: answers vote"),
    ],
)
async def test_decoys_tell_what_ratings_are_worth(decoy: int, expected: str) -> None:
    """Helpful solutions are rated 3, 3 and 9: 5 on average."""
    llm = Provers(["41", "41", "42"], {"41": 3, "42": 9, "99": decoy})
    ctx = context()
    assert (await answer("pvg", CHAT, llm, ctx)).text == shown(expected)
    assert dict(ctx.trace.events)["game"]["trusted"] is (expected == "42")


async def test_equal_ratings_are_decided_by_vote() -> None:
    llm = Provers(["41", "42", "42"], {"41": 9, "42": 9, "99": 2})
    assert (await answer("pvg", CHAT, llm)).text == shown("42")


async def test_a_solution_of_an_earlier_round_can_win() -> None:
    llm = Provers(["42", "41", "41", "41", "41", "41"], {"41": 3, "42": 9, "99": 2})
    assert (await answer("pvg", CHAT, llm)).text == shown("42")


@pytest.mark.parametrize(
    ("given", "calls", "depth"),
    [
        pytest.param({}, 17, 5, id="defaults"),
        pytest.param({"num_rounds": 1}, 8, 2, id="one round"),
        pytest.param({"num_rounds": 3, "num_solutions": 2}, 20, 8, id="three rounds"),
        pytest.param({"num_decoys": 3}, 25, 5, id="three decoys"),
    ],
)
async def test_calls_and_critical_path(given: dict[str, int], calls: int, depth: int) -> None:
    ctx = context()
    await answer("pvg", CHAT, Provers(["42"], {"42": 9, "99": 2}), ctx, **given)
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (calls, depth)
    cost = get_approach("pvg").cost(params("pvg", **given))
    assert (cost.calls, cost.depth) == (calls, depth)


async def test_the_question_is_kept_through_all_rounds() -> None:
    llm = Provers(["42"], {"42": 9, "99": 2})
    await answer("pvg", CHAT, llm, num_rounds=3)
    for chat, _ in llm.calls:
        assert chat[:3] == CHAT[:3]
        assert chat[3].text.startswith(CHAT[3].text)


async def test_later_provers_are_told_what_to_mind_and_verifiers_are_not() -> None:
    llm = Provers(["42"], {"42": 9, "99": 2})
    await answer("pvg", CHAT, llm)
    minded = ["Check the last step." in text for text in llm.asked_for("helpful")]
    assert minded == [False] * 3 + [True] * 3
    assert not any("last step" in text for text in llm.asked_for("rate"))


async def test_each_role_is_told_its_own_part_only() -> None:
    llm = Provers(["42"], {"42": 9, "99": 2})
    await answer("pvg", CHAT, llm)
    for text in llm.asked_for("helpful"):
        assert "wrong" not in text.replace("last step", "")
    for text in llm.asked_for("rate"):
        assert pvg.SNEAKY not in text
        assert "decoy" not in text.lower()


async def test_a_failed_rating_does_not_count_as_none() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "rate" and answer_in(chat[-1].text) == "41":
            return ProviderFailed("502")
        return provers._reply(chat, sampling)

    provers = Provers(["41", "42", "43"], {"42": 9, "43": 4, "99": 2})
    assert (await answer("pvg", CHAT, AnsweringLLM(failing))).text == shown("42")


async def test_without_any_rating_answers_vote() -> None:
    def mute(chat: Chat, sampling: Sampling) -> Reply:
        return "Hm." if kind(chat, sampling) == "rate" else provers._reply(chat, sampling)

    provers = Provers(["41", "42", "42"], {})
    assert (await answer("pvg", CHAT, AnsweringLLM(mute))).text == shown("42")


async def test_without_decoys_ratings_are_trusted() -> None:
    def honest(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "sneaky":
            return ProviderFailed("I refuse", status=400)
        return provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9})
    assert (await answer("pvg", CHAT, AnsweringLLM(honest))).text == shown("42")


async def test_a_later_round_that_fails_leaves_the_earlier_ones() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "helpful" and sampling.sample >= 3:
            return ProviderFailed("502")
        return provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    assert (await answer("pvg", CHAT, AnsweringLLM(failing))).text == shown("42")


async def test_rounds_that_ask_the_same_ask_for_other_samples() -> None:
    def unreviewed(chat: Chat, sampling: Sampling) -> Reply:
        failed = ProviderFailed("502")
        return failed if kind(chat, sampling) == "review" else provers._reply(chat, sampling)

    provers = Provers(["42"], {"42": 9, "99": 2})
    llm = AnsweringLLM(unreviewed)
    await answer("pvg", CHAT, llm)
    written = [str((c[-1].text, s.sample)) for c, s in llm.calls if s.purpose != "judge"]
    assert len(set(written)) == len(written) == 8


async def test_the_best_so_far_is_at_hand_in_later_rounds() -> None:
    def hanging(chat: Chat, sampling: Sampling) -> Reply:
        return HANG if kind(chat, sampling) == "review" else provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    llm = AnsweringLLM(hanging)
    ctx = context(limits=Limits())
    task = asyncio.create_task(answer("pvg", CHAT, llm, ctx))
    await llm.until_hanging(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ctx.best is not None
    assert end_of(ctx.best.text) == "42"


async def test_without_a_helpful_solution_there_is_an_error_and_no_decoy() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "helpful":
            return ProviderFailed("busy", status=429)
        return provers._reply(chat, sampling)

    provers = Provers([], {})
    ctx = context()
    with pytest.raises(SamplesFailed) as caught:
        await answer("pvg", CHAT, AnsweringLLM(failing), ctx)
    assert caught.value.status == 429
    assert ctx.best is None


async def test_a_truncated_solution_loses_to_a_whole_one() -> None:
    def cut(chat: Chat, sampling: Sampling) -> Reply:
        text = provers._reply(chat, sampling)
        if kind(chat, sampling) == "helpful" and answer_in(text) == "42":
            return Completion(text, finish_reason="length")
        return text

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    assert (await answer("pvg", CHAT, AnsweringLLM(cut))).text == shown("41")


async def test_tool_calls_of_the_first_solution_are_returned_as_they_are() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    llm = AnsweringLLM(lambda _, s: calling if s.purpose == "solution" else "Hm.")
    assert (await answer("pvg", CHAT, llm)).tool_calls == calling.tool_calls


async def test_decoys_that_call_tools_are_not_rated() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")

    def reply(chat: Chat, sampling: Sampling) -> Reply:
        return calling if kind(chat, sampling) == "sneaky" else provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9})
    llm = AnsweringLLM(reply)
    assert (await answer("pvg", CHAT, llm, num_rounds=1)).text == shown("42")
    assert [kind(*call) for call in llm.calls].count("rate") == 3


async def test_usage_is_that_of_the_request_and_not_of_those_before() -> None:
    for _ in range(3):
        ctx = context()
        await answer("pvg", CHAT, Provers(["42"], {"42": 9, "99": 2}), ctx)
        assert ctx.budget.usage.completion_tokens == 17 * ONE_CALL.completion_tokens


async def test_one_call_gives_all_helpful_solutions_where_n_is_honoured() -> None:
    proved: list[Reply] = [solution("41"), solution("42"), solution("41"), solution("99")]
    llm = ScriptedLLM([*proved, rating(4), rating(9), rating(5), rating(2)], max_n=8)
    ctx = context()
    assert (await answer("pvg", CHAT, llm, ctx, num_rounds=1)).text == shown("42")
    assert ctx.budget.usage.calls == 6


async def test_another_model_verifies_if_one_is_named() -> None:
    verifier = Provers([], {"42": 9, "99": 2}, model="critic")
    llm = Provers(["42"], {})
    await answer("pvg", CHAT, llm, context(models=[verifier]), verifier="critic")
    assert len(verifier.asked_for("rate")) == len(verifier.calls) == 8


async def test_the_order_of_arrival_changes_nothing() -> None:
    provers = Provers(["41", "40", "42"], {"40": 9, "41": 5, "42": 9, "99": 2})
    found = set()
    for seed in range(10):
        llm = Unhurried(provers._reply, seed)
        found.add((await answer("pvg", CHAT, llm, context(limits=Limits()))).text)
    assert found == {shown("40")}


async def test_the_game_is_right_more_often_than_one_call() -> None:
    """One call is right with p = 0.5. Were the game no better, 600 problems would show 0.61 or
    more with probability under exp(-2 * 600 * 0.11**2) = 5e-7. It was measured to be right with
    0.8, and so shows 0.61 or less with probability under exp(-2 * 600 * 0.18**2) = 2e-17."""
    rng, problems = random.Random(7), 600
    right = 0
    for _ in range(problems):
        found = await answer("pvg", CHAT, Fallible(rng, p=0.5, q=0.8))
        right += end_of(found.text) == RIGHT
    assert right / problems > 0.61
