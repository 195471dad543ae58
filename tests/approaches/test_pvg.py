"""Prover-verifier game: decoys measure the verifier and are never the answer."""

import asyncio
import random
from dataclasses import replace

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.judging.decoys import SNEAKY
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
from optillm_hooks.types import Answer, Chat, Completion, Message, Sampling, ToolCall
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


async def play(llm: ScriptedLLM, ctx: Context | None = None, **given: object) -> Answer:
    """Return the answer of a game with three solutions and a decoy in each round."""
    return await answer("pvg", CHAT, llm, ctx, **{"num_solutions": 3, "num_decoys": 1, **given})


async def test_the_helpful_solution_that_is_rated_best_is_the_answer() -> None:
    llm = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    assert (await play(llm)).text == shown("42")


async def test_a_sneaky_solution_is_never_the_answer_however_it_is_rated() -> None:
    llm = Provers(["41", "42", "42"], {"41": 4, "42": 3, "99": 10})
    assert (await play(llm)).text == shown("42")


@pytest.mark.parametrize(
    ("decoy", "expected"),
    [
        pytest.param(2, "42", id="decoys are rated lower: ratings decide"),
        pytest.param(5, "41", id="decoys are rated higher than most: answers vote"),
        pytest.param(10, "41", id="decoys are rated highest: answers vote"),
    ],
)
async def test_decoys_tell_what_ratings_are_worth(decoy: int, expected: str) -> None:
    """Helpful solutions are rated 3, 3 and 9, so that ratings and votes disagree."""
    llm = Provers(["41", "41", "42"], {"41": 3, "42": 9, "99": decoy})
    ctx = context()
    assert (await play(llm, ctx)).text == shown(expected)
    assert (dict(ctx.trace.events)["game"]["trust"] == "chance") is (expected == "41")
    assert ctx.trace.lost == (() if expected == "42" else ("judge:untrusted",))


async def test_a_verifier_that_rates_all_alike_is_no_reason_for_distrust() -> None:
    ctx = context()
    await play(Provers(["41", "41", "42"], {"41": 5, "42": 5, "99": 5}), ctx)
    assert ctx.trace.lost == ()


async def test_many_that_are_rated_well_beat_one_that_is_rated_best() -> None:
    ratings = {"41": 6, "42": 9, "99": 2}
    assert (await play(Provers(["41", "41", "42"], ratings))).text == shown("41")
    by_rating = await play(Provers(["41", "41", "42"], ratings), choose_by="rating")
    assert by_rating.text == shown("42")


async def test_equal_ratings_are_decided_by_vote() -> None:
    llm = Provers(["41", "42", "42"], {"41": 9, "42": 9, "99": 2})
    assert (await play(llm)).text == shown("42")


async def test_a_solution_of_an_earlier_round_can_win() -> None:
    llm = Provers(["42", "41", "41", "41", "41", "41"], {"41": 1, "42": 9, "99": 0})
    assert (await play(llm)).text == shown("42")


@pytest.mark.parametrize(
    ("given", "calls", "depth"),
    [
        pytest.param({}, 25, 5, id="defaults"),
        pytest.param({"num_rounds": 1}, 12, 2, id="one round"),
        pytest.param({"num_rounds": 3, "num_solutions": 2}, 26, 8, id="three rounds"),
        pytest.param({"num_decoys": 3}, 29, 5, id="three decoys"),
    ],
)
async def test_calls_and_critical_path(given: dict[str, int], calls: int, depth: int) -> None:
    ctx = context()
    llm = Provers(["42", "41"], {"41": 4, "42": 9, "99": 2})
    await answer("pvg", CHAT, llm, ctx, **given)
    assert (ctx.budget.usage.calls, ctx.trace.depth, ctx.trace.calls_saved) == (calls, depth, 0)
    cost = get_approach("pvg").cost(params("pvg", **given))
    assert (cost.calls, cost.depth) == (calls, depth)


@pytest.mark.parametrize("given", [{}, {"num_rounds": 3, "num_decoys": 3}], ids=str)
async def test_solutions_that_agree_at_once_are_not_rated(given: dict[str, int]) -> None:
    ctx = context()
    llm = Provers(["42"], {})
    assert (await answer("pvg", CHAT, llm, ctx, **given)).text == shown("42")
    assert (llm.asked_for("rate"), llm.asked_for("review"), ctx.trace.depth) == ([], [], 1)
    cost = get_approach("pvg").cost(params("pvg", **given))
    assert ctx.budget.usage.calls + ctx.trace.calls_saved == cost.calls
    assert ctx.trace.lost == ()


async def test_decoys_that_are_not_needed_are_not_awaited() -> None:
    def hanging(chat: Chat, sampling: Sampling) -> Reply:
        return HANG if kind(chat, sampling) == "sneaky" else solution("42")

    llm, ctx = AnsweringLLM(hanging), context(limits=Limits())
    assert (await play(llm, ctx)).text == shown("42")
    assert (llm.inside, ctx.trace.lost) == (0, ())


async def test_a_later_round_that_agrees_is_the_last() -> None:
    # The numbers of samples that a call left out may have come to lie between the rounds.
    answers = ["41", "42", "41", "", "", "", "42", "42", "42"]
    llm = Provers(answers, {"41": 2, "42": 9, "99": 2})
    ctx = context()
    assert (await play(llm, ctx, num_rounds=4)).text == shown("42")
    assert [len(llm.asked_for(what)) for what in ("helpful", "rate", "review")] == [6, 8, 1]
    assert ctx.trace.calls_saved == 2 * 9
    assert ctx.trace.depth == 5


@pytest.mark.parametrize(
    "odd",
    [ProviderFailed("502"), Completion("ANSWER: 42", finish_reason="length")],
    ids=["lost", "truncated"],
)
async def test_a_round_without_all_of_its_solutions_settles_nothing(odd: Reply) -> None:
    def reply(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "helpful" and sampling.sample == 1:
            return odd
        return provers._reply(chat, sampling)

    provers = Provers(["42"], {"42": 9, "99": 2})
    llm = AnsweringLLM(reply)
    await play(llm, num_rounds=1)
    assert "rate" in [kind(*call) for call in llm.calls]


async def test_a_refusal_to_write_a_decoy_proves_nothing() -> None:
    """Any judge rates it low. It would make a judge seem good that is wrong."""

    def reply(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "sneaky":
            return "I will not write wrong solutions."
        return provers._reply(chat, sampling)

    provers = Provers(["41", "42", "42"], {"41": 9, "42": 5})
    llm, ctx = AnsweringLLM(reply), context()
    await play(llm, ctx)
    assert [kind(*call) for call in llm.calls].count("rate") == 6
    assert dict(ctx.trace.events)["game"]["trust"] == "unmeasured"


async def test_what_decoys_have_shown_is_remembered_for_the_caller() -> None:
    """One round of three solutions and a decoy is no proof; with those before, it is."""
    first = context()
    ctx, trust = first, list[object]()
    for _ in range(4):
        llm = Provers(["41", "41", "42"], {"41": 3, "42": 9, "99": 2})
        ctx = replace(context(), caller_cache=first.caller_cache)
        await play(llm, ctx, num_rounds=1)
        trust.append(dict(ctx.trace.events)["game"]["trust"])
    assert trust == ["unclear", "better", "better", "better"]
    other = replace(context(), caller_cache=first.caller_cache.for_caller("other"))
    await play(Provers(["41", "41", "42"], {"41": 3, "42": 9, "99": 2}), other, num_rounds=1)
    assert dict(other.trace.events)["game"]["trust"] == "unclear"


async def test_the_question_is_kept_through_all_rounds() -> None:
    llm = Provers(["42", "41"], {"41": 4, "42": 9, "99": 2})
    await play(llm, num_rounds=3)
    for chat, _ in llm.calls:
        assert chat[:3] == CHAT[:3]
        assert chat[3].text.startswith(CHAT[3].text)


async def test_later_provers_are_told_what_to_mind_and_verifiers_are_not() -> None:
    llm = Provers(["42", "41"], {"41": 4, "42": 9, "99": 2})
    await play(llm)
    minded = ["Check the last step." in text for text in llm.asked_for("helpful")]
    assert minded == [False] * 3 + [True] * 3
    assert not any("last step" in text for text in llm.asked_for("rate"))


async def test_each_role_is_told_its_own_part_only() -> None:
    llm = Provers(["42", "41"], {"41": 4, "42": 9, "99": 2})
    await play(llm)
    for text in llm.asked_for("helpful"):
        assert "wrong" not in text.replace("last step", "")
    for text in llm.asked_for("rate"):
        assert SNEAKY not in text
        assert "decoy" not in text.lower()


async def test_a_failed_rating_does_not_count_as_none() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "rate" and answer_in(chat[-1].text) == "41":
            return ProviderFailed("502")
        return provers._reply(chat, sampling)

    provers = Provers(["41", "42", "43"], {"42": 9, "43": 4, "99": 2})
    assert (await play(AnsweringLLM(failing))).text == shown("42")


async def test_without_any_rating_answers_vote() -> None:
    def mute(chat: Chat, sampling: Sampling) -> Reply:
        return "Hm." if kind(chat, sampling) == "rate" else provers._reply(chat, sampling)

    provers = Provers(["41", "42", "42"], {})
    assert (await play(AnsweringLLM(mute))).text == shown("42")


async def test_without_decoys_ratings_decide() -> None:
    def honest(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "sneaky":
            return ProviderFailed("I refuse", status=400)
        return provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9})
    assert (await play(AnsweringLLM(honest))).text == shown("42")


async def test_a_later_round_that_fails_leaves_the_earlier_ones() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "helpful" and sampling.sample >= 3:
            return ProviderFailed("502")
        return provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    assert (await play(AnsweringLLM(failing))).text == shown("42")


async def test_rounds_that_ask_the_same_ask_for_other_samples() -> None:
    def unreviewed(chat: Chat, sampling: Sampling) -> Reply:
        failed = ProviderFailed("502")
        return failed if kind(chat, sampling) == "review" else provers._reply(chat, sampling)

    provers = Provers(["42", "41"], {"41": 4, "42": 9, "99": 2})
    llm = AnsweringLLM(unreviewed)
    await play(llm)
    written = [str((c[-1].text, s.sample)) for c, s in llm.calls if s.purpose != "judge"]
    assert len(set(written)) == len(written) == 8


async def test_the_best_so_far_is_at_hand_in_later_rounds() -> None:
    def hanging(chat: Chat, sampling: Sampling) -> Reply:
        return HANG if kind(chat, sampling) == "review" else provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    llm = AnsweringLLM(hanging)
    ctx = context(limits=Limits())
    task = asyncio.create_task(play(llm, ctx))
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
        await play(AnsweringLLM(failing), ctx)
    assert caught.value.status == 429
    assert ctx.best is None


async def test_a_truncated_solution_loses_to_a_whole_one() -> None:
    def cut(chat: Chat, sampling: Sampling) -> Reply:
        text = provers._reply(chat, sampling)
        if kind(chat, sampling) == "helpful" and answer_in(text) == "42":
            return Completion(text, finish_reason="length")
        return text

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9, "99": 2})
    assert (await play(AnsweringLLM(cut))).text == shown("41")


async def test_tool_calls_of_the_first_solution_are_returned_as_they_are() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    llm = AnsweringLLM(lambda _, s: calling if s.purpose == "solution" else "Hm.")
    assert (await play(llm)).tool_calls == calling.tool_calls


async def test_decoys_that_call_tools_are_not_rated() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")

    def reply(chat: Chat, sampling: Sampling) -> Reply:
        return calling if kind(chat, sampling) == "sneaky" else provers._reply(chat, sampling)

    provers = Provers(["41", "41", "42"], {"41": 4, "42": 9})
    llm = AnsweringLLM(reply)
    assert (await play(llm, num_rounds=1)).text == shown("42")
    assert [kind(*call) for call in llm.calls].count("rate") == 3


async def test_usage_is_that_of_the_request_and_not_of_those_before() -> None:
    for _ in range(3):
        ctx = context()
        await play(Provers(["42", "41"], {"41": 4, "42": 9, "99": 2}), ctx)
        assert ctx.budget.usage.completion_tokens == 17 * ONE_CALL.completion_tokens


async def test_one_call_gives_all_helpful_solutions_where_n_is_honoured() -> None:
    proved: list[Reply] = [solution("41"), solution("42"), solution("41"), solution("99")]
    llm = ScriptedLLM([*proved, rating(4), rating(10), rating(5), rating(2)], max_n=8)
    ctx = context()
    assert (await play(llm, ctx, num_rounds=1)).text == shown("42")
    assert ctx.budget.usage.calls == 6


async def test_another_model_verifies_if_one_is_named() -> None:
    verifier = Provers([], {"41": 4, "42": 9, "99": 2}, model="critic")
    llm = Provers(["42", "41"], {})
    await play(llm, context(models=[verifier]), verifier="critic")
    assert len(verifier.asked_for("rate")) == len(verifier.calls) == 8


async def test_the_order_of_arrival_changes_nothing() -> None:
    provers = Provers(["41", "40", "42"], {"40": 9, "41": 5, "42": 9, "99": 2})
    found = set()
    for seed in range(10):
        llm = Unhurried(provers._reply, seed)
        found.add((await play(llm, context(limits=Limits()))).text)
    assert found == {shown("40")}


async def test_the_game_is_right_more_often_than_one_call() -> None:
    """One call is right with p = 0.5. Were the game no better, 200 problems would show 134 or
    more right with probability 9e-7. It was measured to be right with 0.8, and so shows fewer with
    probability 5e-6. Seeded."""
    rng, problems = random.Random(7), 200
    right = 0
    for _ in range(problems):
        found = await play(Fallible(rng, p=0.5, q=0.8))
        right += end_of(found.text) == RIGHT
    assert right >= 134
