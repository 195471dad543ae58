"""Best of n: by the user's door, with params from a dict and a metered model."""

import random
import re
from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, ScriptedLLM, answer, context, params
from optillm_hooks.types import Chat, Completion, Message, Sampling, ToolCall

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", "And 6 * 7?"),
)
CALL = Completion("Let me see.", finish_reason="tool_calls", tool_calls=(ToolCall("c", "f", "{}"),))
OTHER_CALL = Completion(
    "Or this.", finish_reason="tool_calls", tool_calls=(ToolCall("d", "g", "{}"),)
)


def cut(text: str) -> Completion:
    return Completion(text, finish_reason="length")


async def best(
    replies: list[Reply], ctx: Context | None = None, n: int = 3, **given: object
) -> tuple[str, ScriptedLLM]:
    llm = ScriptedLLM(replies)
    result = await answer("bon", CHAT, llm, ctx, n=n, **given)
    llm.assert_used_up()
    return result.text, llm


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param(["a", "b", "c", "3", "9", "5"], "b", id="the highest rating wins"),
        pytest.param(["a", "b", "c", "3/10", "**9**", "5"], "b", id="out of ten, in bold"),
        pytest.param(["a", "b", "c", "Rating: 3", "9 out of 10", "5."], "b", id="in words"),
        pytest.param(
            ["a", "b", "c", "<think>10/10?</think>3", "<think>2</think>Score: 9", "5"],
            "b",
            id="after thoughts",
        ),
        pytest.param(["a", "b", "c", "7", "9", "9"], "b", id="a tie goes to the earlier call"),
        pytest.param(["a", "b", "c", "7", "nan", "inf", "5"], "a", id="no number wins"),
        pytest.param(
            ["a", "b", "c", "Good.", "4", "2", "3"], "a", id="unreadable is asked once more"
        ),
        pytest.param(
            ["a", "b", "c", "Good.", "Yes.", "2", "3"], "c", id="then it is no vote, and not zero"
        ),
        pytest.param(
            ["a", "b", "c", "0", "Good.", "Yes.", "0"], "a", id="no vote is not above a zero"
        ),
        pytest.param(
            ["a", "b", "c", ProviderFailed("502"), ProviderFailed("502"), "2", "3"],
            "c",
            id="a failing rating loses nothing else",
        ),
        pytest.param(["a", "b", "c", "2", HANG, "3"], "c", id="a hanging rating loses no other"),
        pytest.param([ProviderFailed("502"), "b", "c", "2", "3"], "c", id="a failed candidate"),
        pytest.param([HANG, "b", "c", "2", "3"], "c", id="a hanging candidate"),
        pytest.param(["", "b", "c", "2", "3"], "c", id="an empty candidate"),
        pytest.param([cut("a"), "b", "c", "2", "3"], "c", id="a cut-off one does not compete"),
        pytest.param([cut("a"), cut("b"), cut("c"), "2", "9", "3"], "b", id="unless all are"),
        pytest.param(["a", "b", " a\n", "1", "3"], "b", id="equal texts are rated once"),
        pytest.param(["a", "b", " a\n", "2", "3"], "a", id="ratings of equal answers add up"),
        pytest.param(["a", "a", "a"], "a", id="one text is not rated"),
        pytest.param([ProviderFailed("502"), HANG, "c"], "c", id="nor is the only one left"),
    ],
)
async def test_winner(replies: list[Reply], expected: str) -> None:
    assert (await best(replies))[0] == expected


async def test_without_any_rating_the_answers_vote() -> None:
    replies: list[Reply] = ["ANSWER: 41", "ANSWER: 42", "The answer is 42.", *["Fine."] * 6]
    assert (await best(replies))[0] == "ANSWER: 42"


async def test_without_ratings_and_answers_the_model_is_asked_which_agrees_with_the_others() -> (
    None
):
    poems: list[Reply] = ["Roses are red, and so on", "Snow falls on roofs", "The sea is deep"]
    ctx = context()
    text, llm = await best([*poems, *["Fine."] * 6, "BEST: 2"], ctx)
    assert text == sorted(map(str, poems), key=llm.calls[-1][0][-1].text.index)[1]
    assert ctx.trace.events == [
        ("ratings", {"candidates": 3, "ratings": [None, None, None]}),
        ("vote", {"voters": 3, "votes": []}),
        ("choice", {"readable": True}),
    ]
    assert ctx.trace.lost == ("ratings:3/3",)


async def test_without_a_choice_either_the_first_is_returned() -> None:
    poems: list[Reply] = ["Roses are red, and so on", "Snow falls on roofs", "The sea is deep"]
    ctx = context()
    assert (await best([*poems, *["Fine."] * 8], ctx))[0] == poems[0]
    assert ctx.trace.lost == ("ratings:3/3", "votes:1/1")


async def test_candidates_with_the_same_rating_vote() -> None:
    replies: list[Reply] = ["ANSWER: 41", "So 42.\nANSWER: 42", "ANSWER: 42", "ANSWER: 40"]
    assert (await best([*replies, "8", "8", "8", "3"], n=4))[0] == replies[1]


async def test_one_candidate_is_not_rated() -> None:
    _, llm = await best(["a"], n=1)
    assert len(llm.calls) == 1


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param([CALL, OTHER_CALL, "text"], CALL, id="most call tools: the first that does"),
        pytest.param(["text", OTHER_CALL, CALL], OTHER_CALL, id="though the first does not"),
    ],
)
async def test_tool_calls_are_returned_as_they_are(
    replies: list[Reply], expected: Completion
) -> None:
    llm = ScriptedLLM(replies)
    assert await answer("bon", CHAT, llm, n=3) == expected
    llm.assert_used_up()


async def test_the_judge_is_asked_in_a_legal_conversation_that_holds_everything() -> None:
    """No system message but the first, and no turn of the assistant that it did not write."""
    client = Sampling(temperature=1.7, max_tokens=5, stop=("x",), fields={"tools": []})
    _, llm = await best(["a", "b", "c", "3", "9", "5"], context(client=client))
    for asked, sampling in llm.calls[:3]:
        assert asked == CHAT
        assert (sampling.temperature, sampling.purpose, sampling.max_tokens) == (1.0, "answer", 5)
    for (asked, sampling), text in zip(llm.calls[3:], "abc", strict=True):
        assert asked[:-1] == CHAT[:-1]
        assert asked[-1].role == "user"
        assert asked[-1].text.startswith("And 6 * 7?")
        assert f"\n{text}\n" in asked[-1].text
        assert sampling == Sampling(temperature=0.1, purpose="judge")


async def test_another_model_may_judge() -> None:
    judge = ScriptedLLM(["3", "9", "5"], model="judge")
    text, _ = await best(["a", "b", "c"], context(models=[judge]), judge="judge")
    judge.assert_used_up()
    assert text == "b"
    assert params("bon", judge="judge").model_groups() == ("judge",)
    assert params("bon").model_groups() == ()


async def test_the_mean_of_several_ratings_counts() -> None:
    text, _ = await best(["a", "b", "9", "1", "6", "6"], n=2, ratings=2)
    assert text == "b"


@pytest.mark.parametrize(
    "given", [{}, {"n": 1}, {"n": 5}, {"ratings": 3}], ids=["defaults", "one", "five", "repeated"]
)
async def test_calls_and_depth_are_what_the_cost_says(given: dict[str, Any]) -> None:
    ctx = context()
    llm = AnsweringLLM(
        lambda _, sampling: "7" if sampling.purpose == "judge" else f"ANSWER: {sampling.sample}"
    )
    await answer("bon", CHAT, llm, ctx, **given)
    cost = get_approach("bon").cost(params("bon", **given))
    assert (len(ctx.trace.calls), ctx.trace.depth) == (cost.calls, cost.depth)
    assert ctx.budget.usage.calls == cost.calls


async def test_all_candidates_failing_keeps_the_status() -> None:
    with pytest.raises(SamplesFailed) as caught:
        await best([ProviderFailed("busy", status=429)] * 3)
    assert caught.value.status == 429


async def test_a_spent_budget_leaves_the_first_candidate() -> None:
    ctx = context(limits=Limits(max_calls=3))
    assert (await best(["a b c d", "e f g h", "i j k l"], ctx))[0] == "a b c d"


async def test_accuracy_follows_the_law_of_the_judge() -> None:
    """Each candidate is right with p = 0.5; a rating is high for right and low for wrong ones with
    q = 0.8, else the other way round. h = pq + (1-p)(1-q) = 0.5 are rated high, of these pq/h = 0.8
    are right, and of the low ones p(1-q)/(1-h) = 0.2. With n = 3 the winner is rated high unless
    all are low: (1 - 0.125) * 0.8 + 0.125 * 0.2 = 0.725. By Hoeffding, 2500 trials stray by 0.06
    with probability under 2*exp(-18) = 3.1e-8."""
    rng, trials, right = random.Random(5), 2500, 0
    llm = AnsweringLLM(_Judged(rng, p=0.5, q=0.8))
    for _ in range(trials):
        right += (await answer("bon", CHAT, llm, n=3)).text.startswith("right")
    assert abs(right / trials - 0.725) < 0.06


class _Judged:
    def __init__(self, rng: random.Random, *, p: float, q: float) -> None:
        self._rng, self._p, self._q = rng, p, q

    def __call__(self, asked: Chat, sampling: Sampling) -> str:
        if sampling.purpose == "answer":
            return f"{'right' if self._rng.random() < self._p else 'wrong'} {self._rng.random()}"
        is_right = re.search(r"^right", asked[-1].text, re.MULTILINE) is not None
        return "RATING: 8" if is_right == (self._rng.random() < self._q) else "RATING: 2"
