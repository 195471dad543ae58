"""rStar: which actions follow which, what trajectories are worth, and whom to trust."""

import asyncio
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.approaches import rstar
from optillm_hooks.approaches.rstar import COMPLETE, Action, Step, allowed, beginning, planned
from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed, SampleError, SamplesFailed
from optillm_hooks.registry import get_approach
from optillm_hooks.search.mcts import MCTS
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, answer, context, params
from optillm_hooks.types import Chat, Completion, Message, Sampling, ToolCall
from tests.simulated import RIGHT, Fallible, Unhurried, end_of, kind, solution

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", "There are 17 apples and 25 pears. How many fruits?"),
)


def reasoner(
    answers: list[str], completed: Callable[[str], str] = lambda _: "42"
) -> Callable[[Chat, Sampling], str]:
    """Trajectory n ends in answer n of `answers`; a hint is completed to `completed` of it."""

    def reply(chat: Chat, sampling: Sampling) -> str:
        match kind(chat, sampling):
            case "finish":
                end = answers[sampling.sample]
                return f"({sampling.sample}) ends here, after a while.\nANSWER: {end}"
            case "complete":
                return f"So be it.\nANSWER: {completed(chat[-1].text)}"
            case what:
                return f"<think>Hm.</think>({sampling.sample}) has {what} somewhere in it."

    return reply


FIVE: dict[str, Any] = {"num_rollouts": 5, "candidates": 2, "confidence": 1}
"""Five rollouts at the same time, all of which count."""


def asked_for(llm: AnsweringLLM, what: str) -> list[str]:
    return [chat[-1].text for chat, sampling in llm.calls if kind(chat, sampling) == what]


def actions_of(llm: AnsweringLLM, trajectory: int) -> list[str]:
    return [
        kind(chat, sampling)
        for chat, sampling in llm.calls
        if sampling.purpose != "judge" and sampling.sample == trajectory
    ]


async def test_the_answer_of_most_trajectories_wins_with_its_whole_text() -> None:
    llm = AnsweringLLM(reasoner(["41", "42", "42", "42", "41"]))
    text = (await answer("rstar", CHAT, llm, **FIVE)).text
    assert text == "(1) ends here, after a while.\n\n42"


async def test_trust_outweighs_number() -> None:
    """Three of five say 41, but their beginnings are completed to 42, as are the others'."""
    llm = AnsweringLLM(reasoner(["41", "42", "41", "41", "42"]))
    ctx = context()
    assert end_of((await answer("rstar", CHAT, llm, ctx, **FIVE)).text) == "42"
    assert ctx.trace.events[-1][1] == {"trajectories": 5, "trusted": 2, "support": 0.4}


async def test_without_trust_in_any_the_most_supported_wins() -> None:
    llm = AnsweringLLM(reasoner(["41", "42", "41", "41", "42"], lambda _: "7"))
    assert end_of((await answer("rstar", CHAT, llm, **FIVE)).text) == "41"


@pytest.mark.parametrize("seed", range(8))
async def test_the_answer_has_the_highest_value_times_support(seed: int) -> None:
    """The first four leave the root together: 41 is worth 1/4, and 42 3/4. The fifth goes on from
    one that says 42; it is worth 4/5, more than any other."""

    def echo(shown: str) -> str:
        return answers[int(re.findall(r"\((\d)\)", shown.split(COMPLETE)[1])[0])]

    answers = ["41", "42", "42", "42", "42"]
    one_by_one = params(
        "rstar", num_rollouts=5, parallel=1, candidates=1, c=0, confidence=1
    ).model_dump()
    ctx = context(seed=seed)
    llm = AnsweringLLM(reasoner(answers, echo))
    assert (await answer("rstar", CHAT, llm, ctx, **one_by_one)).text[:3] == "(4)"
    assert ctx.trace.events[-1][1]["support"] == 0.8


async def test_nobody_is_asked_where_all_agree() -> None:
    llm = AnsweringLLM(reasoner(["42"] * 5))
    await answer("rstar", CHAT, llm, **FIVE)
    assert not asked_for(llm, "complete")


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(["Paris", "London", "paris.", "**Paris**", "Rome"], id="names"),
        pytest.param(["-3.5", "5", "-7/2", "-3.50", "3.5"], id="negative fractions"),
        pytest.param(["1,000", "1", "1000", "10^3", "1"], id="thousands"),
    ],
)
async def test_answers_need_not_be_counting_numbers(answers: list[str]) -> None:
    llm = AnsweringLLM(reasoner(answers, lambda _: answers[0]))
    assert (await answer("rstar", CHAT, llm, **FIVE)).text.endswith(f"\n\n{answers[0]}")


async def test_solutions_that_cannot_be_read_are_not_trusted() -> None:
    unsure = "It depends on how many apples are still on the tree."
    llm = AnsweringLLM(lambda c, s: unsure if kind(c, s) != "complete" else solution("25"))
    ctx = context()
    assert (await answer("rstar", CHAT, llm, ctx, **FIVE)).text == unsure
    assert ctx.trace.events[-1][1] == {"trajectories": 5, "trusted": 0, "support": 0.0}


async def test_the_conversation_is_in_every_call() -> None:
    llm = AnsweringLLM(reasoner(["41", "42", "42", "42", "41"]))
    await answer("rstar", CHAT, llm, **FIVE)
    for chat, _ in llm.calls:
        assert chat[:3] == CHAT[:3]
        assert chat[3].text.startswith(CHAT[3].text)


async def test_a_step_is_shown_those_before_it_without_their_thoughts() -> None:
    llm = AnsweringLLM(reasoner(["41", "42", "42", "42", "41"]))
    await answer("rstar", CHAT, llm, **FIVE)
    for number in range(5):
        actions = actions_of(llm, number)
        last = [c for c, s in llm.calls if s.sample == number and s.purpose == "solution"][-1]
        shown = last[-1].text
        assert all(f"({number}) has {what} somewhere in it." in shown for what in actions[:-1])
        assert "Hm." not in shown


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("given", "calls", "depth"),
    [
        pytest.param({}, 32, 13, id="defaults"),
        pytest.param({"parallel": 5}, 32, 10, id="no more than leave the root"),
        pytest.param({"parallel": 5, "candidates": 2}, 32, 7, id="two waves"),
        pytest.param({"confidence": 1}, 32, 10, id="four leave the root"),
        pytest.param({"max_depth": 5, "num_rollouts": 5}, 30, 11, id="longer trajectories"),
        pytest.param(FIVE, 20, 4, id="all at once"),
    ],
)
async def test_calls_and_critical_path_are_within_the_stated_cost(
    given: dict[str, int], calls: int, depth: int, seed: int
) -> None:
    cost = get_approach("rstar").cost(params("rstar", **given))
    assert (cost.calls, cost.depth) == (calls, depth)
    ctx = context(seed=seed)
    await answer("rstar", CHAT, AnsweringLLM(reasoner(["41", "42"] * 4)), ctx, **given)
    assert ctx.budget.usage.calls <= calls
    assert ctx.trace.depth <= depth


@pytest.mark.parametrize("seed", range(8))
async def test_rollouts_end_and_are_not_checked_once_one_answer_leads_clearly(seed: int) -> None:
    """3 votes of 3 are sure enough; so are 5 of 6, but not 4 of 5: 0.9375 and 0.89."""
    for answers, rollouts in ((["42"] * 3, 3), (["42", "41", *["42"] * 4], 7)):
        ctx, llm = context(seed=seed), AnsweringLLM(reasoner(answers + ["42"] * 5))
        assert end_of((await answer("rstar", CHAT, llm, ctx)).text) == "42"
        assert len(asked_for(llm, "finish")) == rollouts
        assert not asked_for(llm, "complete")
        assert ctx.trace.calls_saved == 2 * (8 - rollouts) + rollouts


@pytest.mark.parametrize(
    ("answers", "finished", "checks", "depth"),
    [
        pytest.param(["42"] * 3, 3, 0, 1, id="they agree"),
        pytest.param(["41", "42"] * 4, 8, 8, 3, id="they do not"),
    ],
)
async def test_a_model_that_reasons_answers_in_two_waves_of_single_calls(
    answers: list[str], finished: int, checks: int, depth: int
) -> None:
    """The calls are those of a vote, and checks where the answers disagree."""
    llm, ctx = AnsweringLLM(reasoner(answers)), context()
    llm.facts = replace(llm.facts, reasoning="always")
    await answer("rstar", CHAT, llm, ctx)
    assert len(asked_for(llm, "finish")) == finished
    assert len(asked_for(llm, "complete")) == checks == len(llm.calls) - finished
    assert ctx.trace.depth == depth


async def test_rollouts_end_where_all_call_tools() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    llm = AnsweringLLM(lambda _, s: calling if s.purpose == "solution" else "Hm.")
    await answer("rstar", CHAT, llm)
    assert len(asked_for(llm, "finish")) == 3


async def test_concurrent_rollouts_begin_with_different_actions() -> None:
    for seed in range(10):
        llm = AnsweringLLM(reasoner(["42"] * 5))
        await answer("rstar", CHAT, llm, context(seed=seed), **FIVE)
        first = [actions_of(llm, number)[0] for number in range(5)]
        assert set(first) == {"step", "finish", "subquestion", "rephrase"}


@pytest.mark.parametrize("seed", range(8))
async def test_later_rollouts_go_on_from_the_best_path_so_far(seed: int) -> None:
    """One try of each action: four leave the root together, then UCT descends.

    Trajectories 0, 2 and 3 are worth 3/4, the other 1/4. The fifth goes on from the first of the
    best that did not finish at once.
    """
    llm = AnsweringLLM(reasoner(["42", "41", "42", "42", "42"]))
    one_by_one = params("rstar", num_rollouts=5, parallel=1, candidates=1, c=0, confidence=1)
    await answer("rstar", CHAT, llm, context(seed=seed), **one_by_one.model_dump())
    best = next(n for n in (0, 2, 3, 1) if actions_of(llm, n) != ["finish"])
    shown = next(c[-1].text for c, s in llm.calls if s.sample == 4 and s.purpose != "judge")
    assert [f"({n}) has" in shown for n in range(4)] == [n == best for n in range(4)]


async def test_the_reward_of_a_trajectory_counts_on_its_whole_path() -> None:
    """Of four answers three are equivalent: each of these trajectories is worth 3/4, the other 1/4;
    the root is worth their mean, (3/4 + 3/4 + 3/4 + 1/4) / 4 = 5/8."""

    def step(action: Action, text: str = "") -> Step:
        return Step(action, Completion(text))

    tree = MCTS[Step | None, Action](None, lambda _: list(Action), exploration=1.0)
    trials = tree.ask_many(5)
    rolled: list[list[Step] | SampleError] = [
        [step(Action.STEP), step(Action.SUBQUESTION), step(Action.FINISH, "ANSWER: 0.5")],
        [step(Action.FINISH, "ANSWER: 1/2")],
        ProviderFailed("502"),
        [step(Action.REANSWER), step(Action.FINISH, "ANSWER: 2")],
        [step(Action.REPHRASE), step(Action.FINISH, "ANSWER: .5")],
    ]
    told = await rstar._tell(tree, trials, rolled, [], CHAT, context())
    assert [[node.mean for node in t.end.path()[1:]] for t in told] == [
        [0.75, 0.75, 0.75],
        [0.75],
        [0.25, 0.25],
        [0.75, 0.75],
    ]
    assert [t.value for t in told] == [0.75, 0.75, 0.25, 0.75]
    assert (tree.root.visits, tree.root.mean, tree.root.pending) == (4, 0.625, 0)
    more: list[list[Step] | SampleError] = [[step(Action.FINISH, "ANSWER: 2")]]
    later = await rstar._tell(tree, tree.ask_many(1), more, told, CHAT, context())
    assert [t.value for t in later] == [0.4]


async def test_the_discriminator_is_another_model_if_one_is_named() -> None:
    answers = ["41", "42", "41", "41", "42"]
    critic = AnsweringLLM(reasoner(answers), model="critic")
    llm = AnsweringLLM(reasoner(answers))
    ctx = context(models=[critic])
    assert (
        end_of((await answer("rstar", CHAT, llm, ctx, discriminator="critic", **FIVE)).text) == "42"
    )
    assert [kind(*call) for call in critic.calls] == ["complete"] * 5
    assert not asked_for(llm, "complete")


async def test_hints_are_20_to_80_percent_of_a_trajectory() -> None:
    """200 uniform shares of [0.2, 0.8] all miss [0.2, 0.35], or all [0.65, 0.8], with probability
    under 2 * 0.75**200 = 2e-25. A hint ends with a word, and words have at most nine letters."""
    shares: list[float] = []
    for seed in range(40):
        llm = AnsweringLLM(reasoner(["41", "42", "42", "42", "41"]))
        await answer("rstar", CHAT, llm, context(seed=seed), **FIVE)
        for number, asked in enumerate(asked_for(llm, "complete")):
            own = [
                llm._answer(chat, sampling)
                for chat, sampling in llm.calls
                if sampling.purpose != "judge" and sampling.sample == number
            ]
            whole = "\n\n".join(str(text).removeprefix("<think>Hm.</think>") for text in own)
            hint = asked.split("1 ")[-2].split(">\n")[1].split("\n<")[0]
            assert whole.startswith(hint)
            assert (0.2 * len(whole) - 10) < len(hint) <= 0.8 * len(whole)
            shares.append(len(hint) / len(whole))
    assert len(shares) == 200
    assert min(shares) < 0.35
    assert max(shares) > 0.65


@given(st.text(alphabet="ab \n"), st.floats(0.2, 0.8))
def test_a_beginning_is_the_share_asked_for_up_to_a_word(text: str, share: float) -> None:
    hint = beginning(text, share)
    assert text.startswith(hint)
    assert len(hint) <= share * len(text)
    rest = text[len(hint) : int(share * len(text))].split()
    assert len(rest) <= 1


@pytest.mark.parametrize(
    ("last", "left", "expected"),
    [
        pytest.param(None, 3, {"STEP", "FINISH", "SUBQUESTION", "REPHRASE"}, id="root"),
        pytest.param(Action.STEP, 2, {"STEP", "FINISH", "SUBQUESTION"}, id="step"),
        pytest.param(
            Action.SUBQUESTION, 2, {"STEP", "FINISH", "SUBQUESTION", "REANSWER"}, id="sub-question"
        ),
        pytest.param(Action.REANSWER, 2, {"STEP", "FINISH", "SUBQUESTION"}, id="again"),
        pytest.param(Action.REPHRASE, 2, {"STEP", "FINISH", "SUBQUESTION"}, id="rephrased"),
        pytest.param(Action.STEP, 1, {"FINISH"}, id="the last one"),
        pytest.param(Action.FINISH, 2, set(), id="finished"),
    ],
)
def test_actions_that_may_follow(last: Action | None, left: int, expected: set[str]) -> None:
    assert {action.name for action in allowed(last, left)} == expected


@given(st.integers(1, 8), st.integers(0, 999))
def test_laws_of_a_planned_rollout(most: int, seed: int) -> None:
    rng = random.Random(seed)
    plan = planned(rng.choice(allowed(None, most)), most, rng)
    assert 1 <= len(plan) <= most
    assert plan.index(Action.FINISH) == len(plan) - 1
    for before, action in zip([None, *plan], plan, strict=False):
        if action is Action.REPHRASE:
            assert before is None
        if action is Action.REANSWER:
            assert before is Action.SUBQUESTION


async def test_a_failed_rollout_or_check_is_left_out() -> None:
    def failing(chat: Chat, sampling: Sampling) -> Reply:
        fails = sampling.purpose != "judge" and sampling.sample == 1
        return ProviderFailed("502") if fails else replies(chat, sampling)

    replies = reasoner(["42", "", "41", "42", "42"])
    ctx = context()
    assert end_of((await answer("rstar", CHAT, AnsweringLLM(failing), ctx, **FIVE)).text) == "42"
    assert ctx.trace.events[-1][1]["trajectories"] == 4

    def unchecked(chat: Chat, sampling: Sampling) -> Reply:
        return ProviderFailed("502") if sampling.purpose == "judge" else replies(chat, sampling)

    assert end_of((await answer("rstar", CHAT, AnsweringLLM(unchecked), **FIVE)).text) == "42"


async def test_a_trajectory_whose_check_fails_is_not_trusted() -> None:
    def checked(chat: Chat, sampling: Sampling) -> Reply:
        if kind(chat, sampling) != "complete":
            return replies(chat, sampling)
        [number, *_] = re.findall(r"\((\d)\)", chat[-1].text.split(COMPLETE)[1])
        return solution("42") if answers[int(number)] == "42" else ProviderFailed("502")

    answers = ["41", "42", "41", "41", "42"]
    replies = reasoner(answers)
    ctx = context()
    assert end_of((await answer("rstar", CHAT, AnsweringLLM(checked), ctx, **FIVE)).text) == "42"
    assert ctx.trace.events[-1][1]["trusted"] == 2


async def test_the_majority_is_the_best_so_far_while_trajectories_are_checked() -> None:
    def hanging(chat: Chat, sampling: Sampling) -> Reply:
        return HANG if sampling.purpose == "judge" else replies(chat, sampling)

    replies = reasoner(["41", "42", "42", "42", "41"])
    llm = AnsweringLLM(hanging)
    ctx = context(limits=Limits())
    task = asyncio.create_task(answer("rstar", CHAT, llm, ctx, **FIVE))
    await llm.until_hanging(5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ctx.best is not None
    assert end_of(ctx.best.text) == "42"


async def test_without_a_trajectory_there_is_an_error() -> None:
    llm = AnsweringLLM(lambda _, __: ProviderFailed("busy", status=429))
    with pytest.raises(SamplesFailed) as caught:
        await answer("rstar", CHAT, llm, **FIVE)
    assert caught.value.status == 429


async def test_tool_calls_of_the_first_trajectory_are_returned_as_they_are() -> None:
    calling = Completion("", tool_calls=(ToolCall("1", "add", "{}"),), finish_reason="tool_calls")
    llm = AnsweringLLM(lambda _, s: calling if s.purpose == "solution" else "Hm.")
    assert (await answer("rstar", CHAT, llm, **FIVE)).tool_calls == calling.tool_calls


async def test_the_order_of_arrival_changes_nothing() -> None:
    replies = reasoner(["41", "42", "43", "41", "42"] * 2, lambda text: text[-60:-58])
    found = set()
    for seed in range(10):
        llm = Unhurried(replies, seed)
        ctx = context(limits=Limits())
        found.add((await answer("rstar", CHAT, llm, ctx, num_rollouts=10)).text)
    assert len(found) == 1


async def test_the_search_is_right_more_often_than_one_call() -> None:
    """One call is right with p = 0.5. Were the search no better, 300 problems would show 192 or
    more right with probability 7e-7. It was measured to be right with 0.75, and so shows fewer
    with probability 9e-6. Seeded."""
    rng, problems = random.Random(7), 300
    right = 0
    for _ in range(problems):
        found = await answer("rstar", CHAT, Fallible(rng, p=0.5, q=0.8))
        right += end_of(found.text) == RIGHT
    assert right >= 192
