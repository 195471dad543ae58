"""MCTS: what it values, what it returns, what it costs."""

import asyncio
import random
import re
from typing import Any

import pytest

from optillm_hooks.approaches import mcts
from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, ScriptedLLM, answer, context, params
from optillm_hooks.types import Chat, Completion, Message, Sampling, ToolCall
from tests.simulated import RIGHT, Fallible, Unhurried, answer_in, kind, rating

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", "Say goodbye, then 6 * 7?"),
)


TWO: dict[str, Any] = {"simulations": 2}


def landscape(chat: Chat, sampling: Sampling) -> str:
    """Solutions are worth what they say; a refinement's worth depends on its draft and number."""
    shown = chat[-1].text
    match kind(chat, sampling):
        case "rate":
            return rating(int(answer_in(shown)) // 10)
        case "refine":
            draw = random.Random(f"{answer_in(shown)} {sampling.sample}")
            return f"ANSWER: {draw.randrange(100)}.{sampling.sample}"
        case "sneaky":
            return "ANSWER: 0"
        case _:
            return f"ANSWER: {(37, 61, 12, 58)[sampling.sample % 4]}"


def worth(text: str) -> int:
    return int(answer_in(text)) // 10


async def test_the_best_rated_solution_is_the_answer_and_not_the_first() -> None:
    replies = ["a", "b", "c", rating(1), rating(9), rating(2)]
    refinements: list[Reply] = ["b2", "c2", rating(5), rating(4)]
    llm = ScriptedLLM([*replies, *refinements])
    assert (await answer("mcts", CHAT, llm, **TWO)).text == "b"
    llm.assert_used_up()


async def test_concurrent_simulations_refine_different_solutions_the_best_ones_first() -> None:
    llm = ScriptedLLM(
        ["a", "b", "c", rating(1), rating(9), rating(8), "b2", "c2", rating(9), rating(10)]
    )
    assert (await answer("mcts", CHAT, llm, **TWO)).text == "c2"
    drafts = [c[-1].text for c, s in llm.calls if kind(c, s) == "refine"]
    assert [re.findall(r"\n([abc])\n", text) for text in drafts] == [["b"], ["c"]]


async def test_ties_go_to_the_solution_that_more_simulations_went_through() -> None:
    llm = ScriptedLLM(
        ["a", "b", rating(7), rating(7), "a2", rating(0), "b2", rating(7), "b3", rating(7)]
    )
    one_by_one = params("mcts", branching=2, simulations=3, parallel=1, exploration=0)
    assert (await answer("mcts", CHAT, llm, **one_by_one.model_dump())).text == "b"
    llm.assert_used_up()


@pytest.mark.parametrize(
    ("second", "given", "refined"),
    [
        pytest.param(rating(9), {}, 0, id="a lead that one refinement cannot make up for"),
        pytest.param(rating(9), {"choose_by": "rating"}, 1, id="but it can be rated higher"),
        pytest.param("Hm", {}, 1, id="a lead that is not known"),
    ],
)
async def test_the_search_ends_once_it_is_decided(
    second: str, given: dict[str, Any], refined: int
) -> None:
    solutions = ("So. ANSWER: 41", "Thus. ANSWER: 41", "ANSWER: 42")
    ratings = {"So.": rating(9), "Thus.": second, ": 42": rating(2), ": 43": rating(10)}

    def reply(chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "rate":
                whole = "\n".join(message.text for message in chat)  # asked again, it is before
                return next(said for text, said in ratings.items() if text in whole)
            case "refine":
                return "ANSWER: 43"
            case _:
                return solutions[sampling.sample]

    llm = AnsweringLLM(reply)
    await answer("mcts", CHAT, llm, simulations=1, **given)
    assert sum(kind(*call) == "refine" for call in llm.calls) == refined


def drafts_of(llm: ScriptedLLM) -> list[str]:
    refining = [chat[-1].text for chat, sampling in llm.calls if kind(chat, sampling) == "refine"]
    return ["".join(re.findall(r"\n([ab]2?)\n", text)) for text in refining]


@pytest.mark.parametrize(("exploration", "second"), [(3.2, "a"), (3.3, "b")])
async def test_values_are_ratings_from_0_to_1(exploration: float, second: str) -> None:
    """With the values 1 and 1 of a, and 0 of b, UCT turns to b where exploration is greater than
    1 / (sqrt(ln 3) - sqrt(ln 3 / 2)) = 3.257."""
    llm = ScriptedLLM(["a", "b", rating(10), rating(0), "a2", rating(10), "b2", rating(0)])
    await answer("mcts", CHAT, llm, branching=2, simulations=2, parallel=1, exploration=exploration)
    assert drafts_of(llm) == ["a", second]


async def test_a_solution_without_a_rating_is_worth_the_mean_of_the_others() -> None:
    """b is worth what a is, 1, and so more than a after a refinement that is worth 0.5."""

    def reply(chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "rate":
                whole = "\n".join(message.text for message in chat)  # asked again, it is before
                [shown] = re.findall(r"\n([ab]2?)\n", whole)
                return {"a": rating(10), "a2": rating(5)}.get(shown, "I cannot say.")
            case "refine":
                return "a2"
            case _:
                return "ab"[sampling.sample]

    llm = AnsweringLLM(reply)
    await answer("mcts", CHAT, llm, branching=2, simulations=2, parallel=1)
    assert drafts_of(llm) == ["a", "b"]


async def test_the_conversation_with_the_question_is_in_every_call() -> None:
    llm = AnsweringLLM(landscape)
    await answer("mcts", CHAT, llm, simulations=4, depth=2)
    assert len(llm.calls) == 2 * (3 + 4 * 2)
    for chat, _ in llm.calls:
        assert [m.role for m in chat] == ["system", "user", "assistant", "user"]
        assert chat[0].text.startswith("Be terse.")
        assert chat[1:3] == CHAT[1:3]
        assert CHAT[3].text in chat[3].text


async def test_the_judge_sees_question_and_solution() -> None:
    llm = AnsweringLLM(landscape)
    await answer("mcts", CHAT, llm)
    judged = [c[-1].text for c, s in llm.calls if kind(c, s) == "rate"]
    assert sorted(answer_in(text) for text in judged[:3]) == ["12", "37", "61"]
    assert all(text.startswith(CHAT[3].text) for text in judged)


@pytest.mark.parametrize(
    ("given", "calls", "depth"),
    [
        pytest.param({}, 14, 6, id="defaults"),
        pytest.param(TWO, 10, 4, id="one wave"),
        pytest.param({"simulations": 3}, 12, 6, id="the last wave is not full"),
        pytest.param({**TWO, "depth": 3}, 18, 6, id="three refinements in a row"),
        pytest.param({**TWO, "branching": 4}, 12, 5, id="four first solutions, in two waves"),
        pytest.param({**TWO, "branching": 1}, 6, 6, id="one after another for want of solutions"),
        pytest.param({**TWO, "ratings": 2}, 15, 4, id="two ratings of each"),
        pytest.param({**TWO, "decoys": 2}, 14, 4, id="two decoys"),
    ],
)
async def test_calls_and_critical_path(given: dict[str, Any], calls: int, depth: int) -> None:
    """Where the highest rating decides, a simulation can always change the answer."""
    ctx = context(limits=Limits())
    await answer("mcts", CHAT, AnsweringLLM(landscape), ctx, choose_by="rating", **given)
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (calls, depth)
    cost = get_approach("mcts").cost(params("mcts", **given))
    assert (cost.calls, cost.depth) == (calls, depth)


async def test_one_call_gives_the_first_solutions_where_n_is_honoured() -> None:
    llm = ScriptedLLM(
        ["a", "b", "c", rating(1), rating(9), rating(8), "b2", "c2", rating(1), rating(1)],
        max_n=8,
    )
    ctx = context()
    assert (await answer("mcts", CHAT, llm, ctx, **TWO)).text == "b"
    assert ctx.budget.usage.calls == 8


async def test_more_simulations_never_find_less() -> None:
    found = [
        worth(
            (
                await answer(
                    "mcts", CHAT, AnsweringLLM(landscape), simulations=2 * n, choose_by="rating"
                )
            ).text
        )
        for n in range(1, 13)
    ]
    assert found == sorted(found)
    assert found[-1] > 6


async def test_a_larger_budget_never_finds_less() -> None:
    found = []
    for calls in range(4, 30):
        ctx = context(limits=Limits(max_calls=calls))
        given: dict[str, Any] = {"simulations": 10, "choose_by": "rating"}
        found.append(
            worth((await answer("mcts", CHAT, AnsweringLLM(landscape), ctx, **given)).text)
        )
        assert ctx.budget.usage.calls <= calls
    assert found[-1] > found[0]
    assert found[6:] == sorted(found[6:])


async def test_a_refinement_that_failed_leaves_the_rest() -> None:
    llm = ScriptedLLM(
        ["a", "b", "c", rating(1), rating(9), rating(8), ProviderFailed("502"), "c2", rating(10)]
    )
    assert (await answer("mcts", CHAT, llm, **TWO)).text == "c2"


async def test_a_first_solution_that_failed_is_written_again() -> None:
    llm = ScriptedLLM(
        ["a", ProviderFailed("502"), "c", rating(1), rating(2), "b", "c2", rating(9), rating(3)]
    )
    assert (await answer("mcts", CHAT, llm, **TWO)).text == "b"


async def test_a_chain_of_refinements_that_breaks_keeps_what_it_has() -> None:
    llm = ScriptedLLM(["a", "b", rating(1), rating(5), "b2", ProviderFailed("502"), rating(9)])
    given = params("mcts", branching=2, simulations=1, depth=2).model_dump()
    assert (await answer("mcts", CHAT, llm, **given)).text == "b2"
    llm.assert_used_up()


async def test_a_simulation_is_worth_its_best_solution() -> None:
    """Refinements of a (6) are rated 9 and 1: a, worth (6 + 9) / 2, still beats b, rated 6."""
    rated: list[Reply] = [rating(number) for number in (6, 6, 9, 1, 1, 1)]
    llm = ScriptedLLM(["a", "b", *rated[:2], "a2", "a3", *rated[2:4], "a4", "a5", *rated[4:]])
    given = params(
        "mcts", branching=2, simulations=2, depth=2, parallel=1, exploration=0
    ).model_dump()
    await answer("mcts", CHAT, llm, **given)
    drafts = [c[-1].text for c, s in llm.calls if kind(c, s) == "refine"]
    assert [re.findall(r"\n(\w\d?)\n", text) for text in drafts] == [["a"], ["a2"], ["a"], ["a4"]]


async def test_no_two_calls_ask_for_the_same_sample_of_a_prompt() -> None:
    llm = AnsweringLLM(landscape)
    await answer("mcts", CHAT, llm, simulations=12)
    written = [(chat, s.sample) for chat, s in llm.calls if s.purpose == "answer"]
    assert len(set(map(str, written))) == len(written) == 15


class RepeatsItself(AnsweringLLM):
    """A host that says it honours `n` but gives one choice, of a model that finds nothing new."""

    def __init__(self) -> None:
        super().__init__(self._say, max_n=8)
        self.numbers: dict[str, list[int]] = {}

    def _say(self, chat: Chat, sampling: Sampling) -> str:
        if sampling.purpose == "judge":
            return rating(5)
        self.numbers.setdefault(str(chat), []).append(sampling.sample)
        return "As you like it." if kind(chat, sampling) == "refine" else f"{sampling.sample}"

    async def complete_n(self, chat: Chat, sampling: Sampling, _n: int, /) -> list[Completion]:
        return [await self.complete(chat, sampling)]


async def test_not_even_of_equal_drafts_from_a_host_that_ignores_n() -> None:
    llm = RepeatsItself()
    given: dict[str, Any] = {"simulations": 8, "depth": 3, "choose_by": "rating"}
    await answer("mcts", CHAT, llm, context(limits=Limits()), **given)
    assert any(len(numbers) > 3 for numbers in llm.numbers.values()), "equal drafts are refined"
    assert all(len(set(numbers)) == len(numbers) for numbers in llm.numbers.values())


async def test_a_draft_is_shown_without_its_thoughts() -> None:
    llm = ScriptedLLM(["<think>Hm.</think>a", rating(9), "a2", rating(5)])
    await answer("mcts", CHAT, llm, branching=1, simulations=1)
    assert not any("Hm." in chat[-1].text for chat, _ in llm.calls)


async def test_the_best_so_far_is_at_hand_during_the_search() -> None:
    llm = ScriptedLLM(["a", "b", rating(1), rating(9), HANG])
    ctx = context(limits=Limits())
    task = asyncio.create_task(answer("mcts", CHAT, llm, ctx, branching=2, simulations=1))
    await llm.until_hanging(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ctx.best is not None
    assert ctx.best.text == "b"


async def test_a_spent_budget_ends_the_search() -> None:
    ctx = context(limits=Limits(max_calls=6))
    said: list[str] = []
    ctx.progress = said.append
    await answer("mcts", CHAT, AnsweringLLM(landscape), ctx, simulations=64)
    assert len(said) == 1


async def test_without_any_rating_the_first_solution_is_the_answer() -> None:
    def mute(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "rate":
            return ProviderFailed("502")
        return landscape(chat, sampling)

    assert (await answer("mcts", CHAT, AnsweringLLM(mute))).text == "ANSWER: 37"


async def test_a_truncated_solution_loses_to_a_whole_one() -> None:
    cut = Completion("a", finish_reason="length")
    llm = ScriptedLLM([cut, "b", rating(9), rating(2), cut, rating(9)])
    assert (await answer("mcts", CHAT, llm, branching=2, simulations=1)).text == "b"


async def test_first_solutions_that_agree_are_the_answer_without_rating_or_search() -> None:
    llm, ctx = ScriptedLLM(["So ANSWER: 42", "ANSWER: 42.0", "ANSWER: 42"]), context()
    assert (await answer("mcts", CHAT, llm, ctx)).text == "So ANSWER: 42"
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (3, 1)
    assert ctx.trace.calls_saved == 14 - 3


async def test_of_many_first_solutions_three_that_agree_are_enough() -> None:
    llm, ctx = ScriptedLLM(["ANSWER: 42"] * 3), context()
    await answer("mcts", CHAT, llm, ctx, branching=8, ratings=2)
    assert ctx.trace.calls_saved == 3 * (8 + 4) - 3


@pytest.mark.parametrize(
    "given", [{"confidence": 0.95}, {"branching": 2}], ids=["a higher confidence", "only two"]
)
async def test_too_few_solutions_that_agree_are_searched_on(given: dict[str, Any]) -> None:
    llm = AnsweringLLM(lambda c, s: rating(5) if kind(c, s) == "rate" else "ANSWER: 42")
    await answer("mcts", CHAT, llm, **given)
    assert {kind(*call) for call in llm.calls} == {"solve", "rate", "refine"}


async def test_ratings_of_equal_answers_add_up() -> None:
    """43 is rated 9 once, 42 5 three times."""
    replies = ["ANSWER: 43", "So 42.\nANSWER: 42", "ANSWER: 42", rating(9), rating(5), rating(5)]
    llm = ScriptedLLM([*replies, "Hence\nANSWER: 42", rating(5)])
    assert answer_in((await answer("mcts", CHAT, llm, simulations=1)).text) == "42"
    llm.assert_used_up()


async def test_the_search_ends_when_the_leader_cannot_be_overtaken() -> None:
    """42 leads by 11 with one simulation left, which can bring another answer 10 at most."""
    replies = ["ANSWER: 42", "So\nANSWER: 42", "ANSWER: 43", rating(9), rating(9), rating(7)]
    llm, ctx = ScriptedLLM(replies), context()
    assert answer_in((await answer("mcts", CHAT, llm, ctx, simulations=1)).text) == "42"
    assert ctx.trace.calls_saved == 2


def unchanged(draft: str) -> AnsweringLLM:
    """Rates a and b 6, c 7, and keeps the solution `draft`; other refinements are new ones."""

    def reply(chat: Chat, sampling: Sampling) -> str:
        shown = "".join(re.findall(r"\n([abc])\n<", chat[-1].text))
        match kind(chat, sampling):
            case "rate":
                return rating({"a": 6, "b": 6, "c": 7}.get(shown, 1))
            case "refine":
                kept = shown == draft and mcts.OR_UNCHANGED in chat[-1].text
                return "It holds.\n\nUNCHANGED" if kept else f"{shown} and so on"
            case _:
                return "abc"[sampling.sample]

    return AnsweringLLM(reply)


async def test_a_solution_that_needs_no_change_counts_again() -> None:
    """c is kept twice: 21 lead by 15, and the simulation that is left brings 10 at most."""
    llm, ctx = unchanged("c"), context()
    found = await answer("mcts", CHAT, llm, ctx, simulations=3, parallel=1, exploration=0)
    assert found.text == "c"
    refined = [(c[-1].text, s.sample) for c, s in llm.calls if kind(c, s) == "refine"]
    assert [(re.findall(r"\n([abc])\n<", text), sample) for text, sample in refined] == [
        (["c"], 6),
        (["c"], 7),  # the solution that was kept is not refined itself
    ]
    assert ctx.trace.calls_saved == 2 * 1 + 2
    assert not ctx.trace.lost


async def test_a_chain_ends_at_a_solution_that_needs_no_change() -> None:
    llm = ScriptedLLM(["a", "b", rating(1), rating(5), "b2", "UNCHANGED", rating(9)])
    ctx = context()
    given: dict[str, Any] = {"branching": 2, "simulations": 1, "depth": 3}
    assert (await answer("mcts", CHAT, llm, ctx, **given)).text == "b2"
    llm.assert_used_up()
    assert ctx.trace.calls_saved == 1 + 2
    assert not ctx.trace.lost


@pytest.mark.parametrize("form", ["json", "cut"])
async def test_what_is_json_or_cut_off_is_repeated_if_it_needs_no_change(form: str) -> None:
    client = Sampling(fields={"response_format": {"type": "json_object"}} if form == "json" else {})
    draft = Completion('{"a": 1}', finish_reason="length" if form == "cut" else "stop")
    llm = ScriptedLLM([draft, rating(5), draft, rating(5)])
    await answer("mcts", CHAT, llm, context(client=client), branching=1, simulations=1)
    [request] = [c[-1].text for c, s in llm.calls if kind(c, s) == "refine"]
    assert mcts.OR_REPEAT in request
    assert mcts.UNCHANGED not in request


async def test_a_judge_that_rates_decoys_no_lower_is_put_aside_for_a_vote() -> None:
    def reply(chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "rate":
                return rating(9 if answer_in(chat[-1].text) == "43" else 2)
            case "sneaky":
                return "ANSWER: 43"
            case _:
                return f"({sampling.sample})\nANSWER: {(43, 42, 42)[sampling.sample]}"

    llm, ctx = AnsweringLLM(reply), context(limits=Limits())
    assert (await answer("mcts", CHAT, llm, ctx, decoys=2)).text.startswith("(1)")
    assert ctx.trace.doubts == ["judge:untrusted"]
    assert "refine" not in {kind(*call) for call in llm.calls}


async def test_several_models_write_the_first_solutions() -> None:
    llm, other = AnsweringLLM(landscape), AnsweringLLM(landscape, model="other")
    ctx = context(models=[llm, other])
    await answer("mcts", CHAT, llm, ctx, models=("base", "other"))
    assert {kind(*call) for call in other.calls} == {"solve"}
    assert {kind(*call) for call in llm.calls} == {"solve", "rate", "refine"}


CALLING = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")


async def test_if_most_first_solutions_call_tools_the_first_such_is_returned() -> None:
    llm = ScriptedLLM(["a", CALLING, CALLING])
    assert (await answer("mcts", CHAT, llm)).tool_calls == CALLING.tool_calls


async def test_what_calls_a_tool_beside_others_is_no_solution() -> None:
    replies: list[Reply] = ["a", CALLING, "c", rating(2), rating(9), CALLING]
    llm = ScriptedLLM(replies)
    assert (await answer("mcts", CHAT, llm, simulations=1)).text == "c"
    llm.assert_used_up()


async def test_another_model_judges_if_one_is_named() -> None:
    judge = AnsweringLLM(landscape, model="critic")
    llm = AnsweringLLM(landscape)
    await answer("mcts", CHAT, llm, context(models=[judge]), judge="critic")
    assert {kind(*call) for call in judge.calls} == {"rate"}
    assert {kind(*call) for call in llm.calls} == {"solve", "refine"}


async def test_the_order_of_arrival_changes_nothing() -> None:
    given = {"simulations": 6, "parallel": 3, "depth": 2}
    found: set[str] = set()
    for seed in range(20):
        llm = Unhurried(landscape, seed)
        found.add((await answer("mcts", CHAT, llm, context(limits=Limits()), **given)).text)
    assert len(found) == 1


async def test_the_search_is_right_more_often_than_a_vote_of_as_many_calls() -> None:
    """One call is right with p = 0.3, and a vote of nine too: the wrong answers agree more often.

    Were the search no better, 400 problems would show 0.44 or more with probability under
    exp(-2 * 400 * 0.14**2) = 2e-7. It was measured to be right with 0.59, and so shows 0.44 or
    less with probability under exp(-2 * 400 * 0.15**2) = 2e-8.
    """
    rng, problems = random.Random(7), 400
    right = calls = 0
    for _ in range(problems):
        ctx = context()
        found = await answer("mcts", CHAT, Fallible(rng, p=0.3, q=0.7), ctx)
        right += answer_in(found.text) == RIGHT
        calls += ctx.budget.usage.calls
    assert calls <= 9 * problems
    assert right / problems > 0.44
