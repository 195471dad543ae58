"""PlanSearch: what plans rest on, what answers follow, and which answer is chosen."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.approaches.plansearch import draw_subsets
from optillm_hooks.budget import Limits
from optillm_hooks.code_execution.runner import MontyRunner
from optillm_hooks.code_execution.testing import MAX_CHARACTERS
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.registry import get_approach
from optillm_hooks.services import Services
from optillm_hooks.testing import AnsweringLLM, Reply, answer, chat, context, params, run
from optillm_hooks.types import Answer, Chat, Completion, Message, Sampling, ToolCall
from tests.simulated import RIGHT, Fallible, Unhurried, answer_in, kind, rating, solution

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", "In rhymes: 6 * 7?"),
)
OBSERVATIONS = """\
Here are my observations:

1. Forty-two words are
   six lines of seven.
2. Rhyme is optional.
3. Count before you send.

I hope that helps!"""
TEXTS = ("Forty-two words are\nsix lines of seven.", "Rhyme is optional.", "Count before you send.")


def planner(chat: Chat, sampling: Sampling) -> str:
    """Answers 40 + the number of the leaf; the third is rated best."""
    shown = chat[-1].text
    match kind(chat, sampling):
        case "observe":
            return OBSERVATIONS
        case "plan" | "plan freely":
            return f"<think>Hm.</think>Plan {sampling.sample}"
        case "rate":
            return rating({"40": 3, "41": 5, "42": 9}.get(answer_in(shown), 1))
        case _:
            return solution(str(40 + sampling.sample))


def asked_for(llm: AnsweringLLM, what: str) -> list[str]:
    return [chat[-1].text for chat, sampling in llm.calls if kind(chat, sampling) == what]


async def test_the_answer_that_is_rated_best_is_returned_as_one_text() -> None:
    result = await run("plansearch", CHAT, AnsweringLLM(planner))
    assert isinstance(result, Answer)
    assert result.text == solution("42")


@pytest.mark.parametrize(
    ("leaves", "calls", "depth"),
    [pytest.param(3, 10, 4, id="defaults"), (1, 3, 3), (7, 22, 4)],
)
async def test_calls_and_critical_path(leaves: int, calls: int, depth: int) -> None:
    ctx = context()
    llm = AnsweringLLM(lambda c, s: rating(5) if kind(c, s) == "rate" else planner(c, s))
    await answer("plansearch", CHAT, llm, ctx, leaves=leaves)
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (calls, depth)
    cost = get_approach("plansearch").cost(params("plansearch", leaves=leaves))
    assert (cost.calls, cost.depth) == (calls, depth)


async def test_each_plan_rests_on_another_subset_and_derives_new_observations() -> None:
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm, derived=4)
    plans = asked_for(llm, "plan")
    subsets = {tuple(text in plan for text in TEXTS) for plan in plans}
    assert len(subsets) == 3
    assert all(1 <= sum(subset) <= 2 for subset in subsets)
    assert all("derive 4 new observations" in plan for plan in plans)


async def test_neither_plans_nor_observations_are_offered_as_answers() -> None:
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm)
    purposes = {(kind(*call), call[1].purpose) for call in llm.calls}
    assert purposes == {
        ("observe", "draft"),
        ("plan", "draft"),
        ("answer by plan", "answer"),
        ("rate", "judge"),
    }


async def test_words_around_the_observations_are_none() -> None:
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm, leaves=7)
    plans = asked_for(llm, "plan")
    assert not any("Here are" in plan or "I hope" in plan for plan in plans)


async def test_plans_rest_on_no_more_observations_than_are_asked_for() -> None:
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm, leaves=7, observations=2)
    plans = "".join(asked_for(llm, "plan"))
    assert [text in plans for text in TEXTS] == [True, True, False]


async def test_each_answer_follows_its_own_plan() -> None:
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm)
    answering = asked_for(llm, "answer by plan")
    assert [f"Plan {number}\n" in text for number, text in enumerate(answering)] == [True] * 3
    assert not any("think" in text for text in answering)


async def test_the_conversation_is_in_every_call_and_nobody_asks_for_python() -> None:
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm)
    for conversation, _ in llm.calls:
        assert conversation[:3] == CHAT[:3]
        assert conversation[3].text.startswith(CHAT[3].text)
        assert "python" not in conversation[3].text.lower()


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(ProviderFailed("502"), id="the call fails"),
        pytest.param("<think>I wonder</think>", id="nothing is said"),
    ],
)
async def test_without_observations_plans_are_made_freely(observed: Reply) -> None:
    llm = AnsweringLLM(lambda c, s: observed if kind(c, s) == "observe" else planner(c, s))
    assert (await answer("plansearch", CHAT, llm)).text == solution("42")
    assert len(asked_for(llm, "plan freely")) == 3


async def test_a_failed_plan_is_no_plan() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "plan" and sampling.sample == 2:
            return ProviderFailed("502")
        return planner(chat, sampling)

    llm = AnsweringLLM(failing)
    assert (await answer("plansearch", CHAT, llm)).text == solution("41")
    assert len(asked_for(llm, "answer by plan")) == 2


async def test_without_ratings_the_final_answers_vote() -> None:
    def unrated(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) == "rate":
            return "Who knows?"
        texts = (solution("41"), solution("42"), "It is 6 * 7.\nANSWER: 42")
        return texts[sampling.sample] if sampling.purpose == "answer" else planner(chat, sampling)

    assert (await answer("plansearch", CHAT, AnsweringLLM(unrated))).text == solution("42")


def rated(*found: tuple[str, int]) -> AnsweringLLM:
    """Gives these answers, which the judge rates so."""
    ratings = {f"Way {at}.": out_of_ten for at, (_, out_of_ten) in enumerate(found)}

    def reply(asked: Chat, sampling: Sampling) -> str:
        match kind(asked, sampling):
            case "rate":
                return next(rating(n) for way, n in ratings.items() if way in asked[-1].text)
            case "answer by plan":
                return f"Way {sampling.sample}.\n{solution(found[sampling.sample][0])}"
            case _:
                return planner(asked, sampling)

    return AnsweringLLM(reply)


@pytest.mark.parametrize(("choose_by", "expected"), [("auto", "41"), ("rating", "42")])
async def test_ratings_of_equal_answers_add_up_unless_the_highest_is_asked_for(
    choose_by: str, expected: str
) -> None:
    llm = rated(("42", 7), ("41", 5), ("41", 4))
    result = await answer("plansearch", CHAT, llm, choose_by=choose_by)
    assert answer_in(result.text) == expected


async def test_answers_that_are_all_the_same_are_not_rated() -> None:
    ctx, llm = context(), rated(("42", 1), ("42", 9), ("42", 3))
    assert (await answer("plansearch", CHAT, llm, ctx)).text.startswith("Way 0.")
    assert not asked_for(llm, "rate")
    assert (len(ctx.trace.calls), ctx.trace.calls_saved) == (7, 3)


async def test_decoys_are_written_beside_the_search_and_rated_with_its_answers() -> None:
    ctx, llm = context(limits=Limits()), AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm, ctx, decoys=2)
    cost = get_approach("plansearch").cost(params("plansearch", decoys=2))
    assert (len(ctx.trace.calls), ctx.trace.depth) == (cost.calls, cost.depth) == (14, 4)


async def test_a_truncated_answer_loses_to_a_whole_one() -> None:
    def cut(chat: Chat, sampling: Sampling) -> Reply:
        if sampling.purpose == "answer" and sampling.sample == 2:
            return Completion(solution("42"), finish_reason="length")
        return planner(chat, sampling)

    assert (await answer("plansearch", CHAT, AnsweringLLM(cut))).text == solution("41")


async def test_tool_calls_of_the_first_answer_are_returned_as_they_are() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    llm = AnsweringLLM(lambda c, s: calling if s.purpose == "answer" else planner(c, s))
    assert (await answer("plansearch", CHAT, llm)).tool_calls == calling.tool_calls
    assert not asked_for(llm, "rate")


async def test_another_model_judges_if_one_is_named() -> None:
    judge = AnsweringLLM(planner, model="critic")
    llm = AnsweringLLM(planner)
    await answer("plansearch", CHAT, llm, context(models=[judge]), judge="critic")
    assert len(judge.calls) == 3
    assert not asked_for(llm, "rate")


async def test_the_order_of_arrival_changes_nothing() -> None:
    found = set()
    for seed in range(10):
        llm = Unhurried(planner, seed)
        found.add((await answer("plansearch", CHAT, llm, context(limits=Limits()))).text)
        assert found == {solution("42")}


@given(
    count=st.integers(1, 12),
    size=st.integers(1, 4),
    observations=st.lists(st.text(min_size=1), max_size=5, unique=True),
    seed=st.integers(0, 99),
)
def test_laws_of_subsets(count: int, size: int, observations: list[str], seed: int) -> None:
    drawn = draw_subsets(observations, count, size, random.Random(seed))
    assert len(drawn) == count
    possible = len(set(draw_subsets(observations, 200, size, random.Random(0))))
    assert len(set(drawn)) == min(count, possible)
    for subset in drawn:
        assert bool(observations) <= len(subset) <= size
        assert [text for text in observations if text in subset] == list(subset)
    assert drawn == draw_subsets(observations, count, size, random.Random(seed))


def test_every_subset_is_as_likely() -> None:
    """Six subsets of at most two of three. By Hoeffding, 5000 draws stray from 1/6 by 0.04 for one
    of the six with probability under 6 * 2 * exp(-2 * 5000 * 0.04**2) = 1.4e-6."""
    rng = random.Random(7)
    drawn = Counter(draw_subsets("abc", 1, 2, rng)[0] for _ in range(5000))
    assert len(drawn) == 6
    assert all(abs(count / 5000 - 1 / 6) < 0.04 for count in drawn.values())


async def test_the_search_is_right_more_often_than_one_call() -> None:
    """One call is right with p = 0.5. Were the search no better, 800 problems would show 0.6 or
    more with probability under exp(-2 * 800 * 0.1**2) = 1.2e-7. It was measured to be right with
    0.72, and so shows 0.6 or less with probability under exp(-2 * 800 * 0.12**2) = 1e-10."""
    rng, problems = random.Random(7), 800
    right = 0
    for _ in range(problems):
        found = await answer("plansearch", CHAT, Fallible(rng, p=0.5, q=0.8))
        right += answer_in(found.text) == RIGHT
    assert right / problems > 0.6


TESTED = chat("Write f, the square.\n\n>>> f(2)\n4\n>>> f(3)\n9")
SQUARE = "```python\ndef f(x):\n    return x * x\n```"
DOUBLE = "```python\ndef f(x):\n    return x + x\n```"


def programmer(*programs: str) -> AnsweringLLM:
    """Answers by the leaf's program; the judge likes the doubling best."""

    def reply(chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "rate":
                return rating(9 if DOUBLE in chat[-1].text else 2 + ("!" in chat[-1].text))
            case "answer by plan":
                return programs[sampling.sample]
            case _:
                return OBSERVATIONS

    return AnsweringLLM(reply)


def with_runner(**limits: Any) -> Context:
    return replace(
        context(limits=Limits(**limits)), services=Services(code_runner=MontyRunner(seconds=1.0))
    )


async def test_tests_of_the_request_decide_where_programs_may_run() -> None:
    llm = programmer(DOUBLE, SQUARE, "No program.")
    ctx = with_runner()
    assert (await answer("plansearch", TESTED, llm, ctx)).text == SQUARE
    assert not asked_for(llm, "rate")
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (7, 3)
    ((name, facts),) = ctx.trace.events
    assert (name, facts["passed"]) == ("plans", [1, 2, 0])


async def test_the_judge_decides_among_those_that_pass_as_many() -> None:
    power = SQUARE.replace("x * x", "x ** 2")
    llm = programmer(SQUARE, f"Better!\n{power}", DOUBLE)
    result = await answer("plansearch", TESTED, llm, with_runner())
    assert result.text.startswith("Better!")
    assert len(asked_for(llm, "rate")) == 2


@pytest.mark.parametrize(
    ("asked", "ctx"),
    [
        pytest.param(TESTED, lambda: context(limits=Limits()), id="no runner"),
        pytest.param(chat("Write f, the square."), with_runner, id="no tests"),
    ],
)
async def test_without_tests_or_a_runner_the_judge_decides(
    asked: Chat, ctx: Callable[[], Context]
) -> None:
    llm = programmer(SQUARE, DOUBLE, SQUARE)
    assert (await answer("plansearch", asked, llm, ctx())).text == DOUBLE


async def test_where_no_program_passes_the_judge_decides() -> None:
    llm = programmer("None.", DOUBLE.replace("x + x", "y"), "Nothing.")
    result = await answer("plansearch", TESTED, llm, with_runner())
    assert len(asked_for(llm, "rate")) == 3
    assert result.text == "None."


async def test_tests_that_cannot_be_read_are_counted_and_the_judge_decides() -> None:
    ctx = with_runner()
    asked = chat(f"{TESTED[-1].text}\n{' ' * MAX_CHARACTERS}")
    llm = programmer(SQUARE, DOUBLE, SQUARE)
    assert (await answer("plansearch", asked, llm, ctx)).text == DOUBLE
    assert "readings:1/2" in ctx.trace.lost  # the final vote read the request


async def test_a_budget_that_ends_with_the_tests_leaves_one_that_passes_most() -> None:
    llm = programmer(DOUBLE, SQUARE, SQUARE)
    ctx = with_runner(max_calls=7)
    result = await answer("plansearch", TESTED, llm, ctx)
    assert result.text == SQUARE
