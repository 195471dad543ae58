"""Self-consistency: by the user's door, with params from a dict and a metered model."""

import random
from dataclasses import replace
from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.final_answer import MARK_IF_DEFINITE as MARK
from optillm_hooks.judging.choosing import MOST_CONSISTENT
from optillm_hooks.prompts import instruct
from optillm_hooks.registry import get_approach
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
from optillm_hooks.types import Answer, Completion, Message, Sampling, TokenLogprob, ToolCall

pytestmark = pytest.mark.anyio
CHAT = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", None, {"tool_calls": [{"id": "c", "type": "function"}]}),
    Message("tool", "36", {"tool_call_id": "c"}),
    Message("assistant", "36"),
    Message(
        "user",
        ({"type": "text", "text": "And this?"}, {"type": "image_url", "image_url": {"url": "x"}}),
    ),
)
A41 = "36 + 5\nANSWER: 41"
A42 = "ANSWER: 41\nNo: 36 + 6.\nANSWER: 42"  # the last marked answer counts
B42 = "By the table, the answer is 42.0."
MUTE = "I would rather not say."
POEMS = ["Roses are red, violets blue.", "The sea is a mirror of the sky.", "Snow falls on roofs."]
CUT = Completion("ANSWER: 41", finish_reason="length")
OF_A41 = (
    "36 + 5\n\n41"  # what the user gets: the value, which the text does not have, without its mark
)
OF_A42 = "ANSWER: 41\nNo: 36 + 6.\n\n42"


async def solve(
    replies: list[Reply], ctx: Context | None = None, n: int | None = None, **given: object
) -> tuple[str, ScriptedLLM]:
    llm = ScriptedLLM(replies)
    result = await answer("self_consistency", CHAT, llm, ctx, n=n or len(replies), **given)
    llm.assert_used_up()
    return result.text, llm


def calls(name: str, arguments: str) -> Completion:
    return Completion("", finish_reason="tool_calls", tool_calls=(ToolCall("c", name, arguments),))


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param([A41, A42, A42], OF_A42, id="most votes win"),
        pytest.param([A41, A42, B42], OF_A42, id="in other words and digits it is the same answer"),
        pytest.param(
            ["The answer is 41.", "The answer is 42.", "Surely the answer is 42."],
            "The answer is 42.",
            id="alike texts with other answers do not agree",
        ),
        pytest.param([A41, A42], OF_A41, id="a tie goes to the earlier call"),
        pytest.param([MUTE, A42, A42, A41], OF_A42, id="unreadable paths do not vote"),
        pytest.param([MUTE, MUTE, A41], MUTE, id="nor does a readable minority"),
        pytest.param([MUTE, MUTE], MUTE, id="equal texts need no further call"),
        pytest.param([ProviderFailed("502"), A42], OF_A42, id="a failed path does not vote"),
        pytest.param([HANG, A42], OF_A42, id="past the deadline: vote over the finished"),
        pytest.param(["", A42], OF_A42, id="an empty path does not vote"),
        pytest.param([CUT, CUT, A42], OF_A42, id="cut-off paths do not vote beside a finished one"),
        pytest.param([CUT, CUT], "41", id="cut-off paths vote when all are"),
        pytest.param(
            ["<think>ANSWER: 41</think>ANSWER: 42", A41, A42],
            "<think>ANSWER: 41</think>42",
            id="what is thought is no vote",
        ),
        pytest.param(["ANSWER: 0.4", "ANSWER: 1/2", "ANSWER: $\\frac{1}{2}$"], "1/2", id="LaTeX"),
        pytest.param(["Because.\n(A)", "(B)", "Surely **B**"], "(B)", id="choices"),
    ],
)
async def test_winner(replies: list[Reply], expected: str) -> None:
    assert (await solve(replies))[0] == expected


async def test_the_winner_is_returned_with_all_it_has() -> None:
    path = Completion(A42, reasoning="thought", fields={"annotations": [1]})
    llm = ScriptedLLM([A41, path, path])
    assert await answer("self_consistency", CHAT, llm, n=3) == replace(path, text=OF_A42)


async def test_prompt_keeps_the_conversation_and_adds_the_instruction() -> None:
    _, llm = await solve([A42], temperature=0.3)
    [(asked, sampling)] = llm.calls
    assert asked[0].text.startswith("Be terse.")
    assert "ANSWER:" in asked[0].text
    assert asked[1:] == CHAT[1:]
    assert (sampling.temperature, sampling.purpose) == (0.3, "answer")


async def test_a_reasoning_model_is_not_asked_to_reason() -> None:
    llm = ScriptedLLM([A42], reasoning="always")
    await answer("self_consistency", CHAT, llm, n=1)
    [(asked, _)] = llm.calls
    assert asked == instruct(CHAT, MARK)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        pytest.param("6 * 7? Put it in \\boxed{}.", {}, id="in a box"),
        pytest.param("6 * 7? End with 'Answer: <number>'.", {}, id="on a marked line"),
        pytest.param("6 * 7?", {"answer_format": "last_line"}, id="read elsewhere"),
    ],
)
async def test_no_line_is_asked_for_or_removed_beside_another_format(
    message: str, given: dict[str, Any]
) -> None:
    llm = ScriptedLLM(["So:\nANSWER: 42"], reasoning="always")
    result = await answer("self_consistency", chat(message), llm, n=1, **given)
    assert result.text == "So:\nANSWER: 42"
    assert llm.calls[0][0] == chat(message)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("So it is 42.\n\nANSWER: 42", "So it is 42.", id="the text says it"),
        pytest.param("So it is 42.5.\nANSWER: 42", "So it is 42.5.\n\n42", id="it does not"),
        pytest.param("ANSWER: 42", "42", id="nothing else"),
        pytest.param("**ANSWER: 42**\n", "42", id="in bold"),
        pytest.param("**ANSWER:** 42", "42", id="the mark in bold"),
        pytest.param("It is $42.\nANSWER: **$42**.", "It is $42.", id="with other marks"),
        pytest.param("Paris it is.\nANSWER: **Paris**", "Paris it is.", id="the value in bold"),
        pytest.param("It is so.\nANSWER:\n$x$", "It is so.\n\n$x$", id="over two lines"),
        pytest.param("The answer text. ANSWER: 1", "The answer text. ANSWER: 1", id="one line"),
        pytest.param("ANSWER: 1\nNo, wait.", "ANSWER: 1\nNo, wait.", id="not the last line"),
        pytest.param("It is 42.\nAnswer: 42", "It is 42.\nAnswer: 42", id="not our spelling"),
        pytest.param("No answer.", "No answer.", id="no mark"),
    ],
)
async def test_the_marked_line_is_not_in_the_answer(text: str, expected: str) -> None:
    assert (await solve([text]))[0] == expected


async def test_the_logprobs_are_those_of_the_text_that_remains() -> None:
    tokens = tuple(TokenLogprob(token, -0.5) for token in ("It is", " 42", ".", "\nANSWER", ": 42"))
    llm = ScriptedLLM([Completion("It is 42.\nANSWER: 42", logprobs=tokens)])
    result = await answer("self_consistency", CHAT, llm, n=1)
    assert (result.text, result.logprobs) == ("It is 42.", tokens[:3])


async def test_a_readable_minority_does_not_decide() -> None:
    ctx = context()
    text, llm = await solve([*POEMS, A41, "BEST: 2"], ctx, n=4)
    judged = llm.calls[-1][0][-1].text
    second = sorted([*POEMS, A41], key=judged.index)[1]
    assert text == (OF_A41 if second == A41 else second)
    assert ctx.trace.lost == ()


async def test_lost_votes_are_counted() -> None:
    ctx = context()
    await solve([MUTE, A42, A42], ctx)
    assert ctx.trace.lost == ("votes:1/3",)


async def test_tool_calls_are_voted_on_by_name_then_arguments() -> None:
    paris, again = calls("weather", '{"city": "Paris"}'), calls("weather", '{ "city":"Paris" }')
    rome, clock = calls("weather", '{"city": "Rome"}'), calls("time", "{}")
    llm = ScriptedLLM([clock, rome, paris, again, A42])
    result = await answer("self_consistency", CHAT, llm, n=5)
    assert result.tool_calls == paris.tool_calls
    assert len(llm.calls) == 5


async def test_broken_tool_calls_are_returned_without_a_further_call() -> None:
    broken = calls("weather", "{")
    again = replace(broken, text="Let me see.")
    result = await answer("self_consistency", CHAT, ScriptedLLM([broken, again, A42]), n=3)
    assert result.tool_calls == broken.tool_calls


async def test_json_is_voted_on_as_json_and_asked_for_without_a_marked_line() -> None:
    client = Sampling(fields={"response_format": {"type": "json_object"}})
    ctx = context(client=client)
    replies: list[Reply] = ['{"a": 1}', '{"b": 0, "a": 2}', '{"a": 2.0, "b": 0}']
    text, llm = await solve(replies, ctx)
    assert text == '{"b": 0, "a": 2}'
    assert all(asked == CHAT for asked, _ in llm.calls)
    assert llm.calls[0][1].fields["response_format"] == {"type": "json_object"}


async def test_free_text_is_chosen_by_the_model() -> None:
    ctx = context()
    text, llm = await solve([*POEMS, "BEST: 2"], ctx, n=3)
    asked, sampling = llm.calls[-1]
    assert asked[0] == CHAT[0]
    assert MOST_CONSISTENT in asked[-1].text
    assert all(poem in asked[-1].text for poem in POEMS)
    assert sampling.purpose == "judge"
    assert text == sorted(POEMS, key=asked[-1].text.index)[1]
    assert ctx.trace.depth == 2


@pytest.mark.parametrize(
    "verdicts",
    [
        pytest.param(["All are fine.", "Yes."], id="unreadable twice"),
        pytest.param([ProviderFailed("502"), ProviderFailed("502")], id="failed twice"),
        pytest.param([HANG], id="out of time"),
    ],
)
async def test_without_a_verdict_the_first_free_text_is_returned(verdicts: list[Reply]) -> None:
    assert (await solve([*POEMS, *verdicts], n=3))[0] == POEMS[0]


async def test_all_paths_failing_says_why_and_keeps_the_status() -> None:
    with pytest.raises(SamplesFailed, match="calls failed: 502; ") as caught:
        await solve([ProviderFailed("502", status=503), HANG])
    assert caught.value.status == 503


async def test_every_call_is_accounted_for_at_depth_one() -> None:
    ctx = context()
    await solve([A41, A42, A42], ctx)
    assert (ctx.budget.usage.calls, ctx.budget.usage.completion_tokens) == (3, 15)
    assert ctx.trace.depth == 1
    assert ctx.trace.events == [
        ("samples", {"asked": 3, "finished": 3}),
        ("vote", {"voters": 3, "votes": [1, 2]}),
    ]


async def test_at_defaults_the_cost_is_what_it_says() -> None:
    ctx = context()
    llm = AnsweringLLM(lambda _, sampling: f"ANSWER: {sampling.sample}")
    await answer("self_consistency", CHAT, llm, ctx)
    cost = get_approach("self_consistency").cost(params("self_consistency"))
    assert (len(ctx.trace.calls), ctx.trace.depth) == (cost.calls, cost.depth) == (5, 2)


async def test_the_budget_ends_the_sampling_and_the_rest_votes() -> None:
    ctx = context(limits=Limits(max_calls=3))
    assert (await solve([A41, A42, A42], ctx, n=5))[0] == OF_A42


async def test_accuracy_follows_the_binomial_law() -> None:
    """p=0.6 per path, n=5, two possible answers: P(majority right) = 0.68256. By Hoeffding, 2500
    trials stray by 0.06 with probability under 2*exp(-18) = 3.1e-8: a failure is a bug."""
    rng, trials, right = random.Random(7), 2500, 0
    llm = AnsweringLLM(lambda *_: rng.choice([A42, B42]) if rng.random() < 0.6 else A41)
    for _ in range(trials):
        result: Answer = await answer("self_consistency", CHAT, llm, n=5)
        right += result.text in (OF_A42, B42)
    assert abs(right / trials - 0.68256) < 0.06


async def test_accuracy_with_many_wrong_answers_follows_the_multinomial_law() -> None:
    """p=0.5, wrong answers uniform over 20, n=5. Right wins with 3 or more votes (P = 0.5), with 2
    unless 3 others agree or 2 others agree before it, with 1 only as the first of five different:
    summed exactly below. 1200 trials stray by 0.09 with probability under 2*exp(-19) = 1.1e-8."""
    expected = _plurality_law(0.5, 20, 5)
    rng, trials, right = random.Random(11), 1200, 0

    def path(*_: object) -> str:
        return "ANSWER: 0" if rng.random() < 0.5 else f"ANSWER: {rng.randint(1, 20)}"

    llm = AnsweringLLM(path)
    for _ in range(trials):
        right += (await answer("self_consistency", CHAT, llm, n=5)).text == "0"
    assert abs(right / trials - expected) < 0.09


def _plurality_law(p: float, wrong: int, n: int) -> float:
    """Return P(the right answer wins a vote of n with ties to the earlier), by enumeration.

    States are sequences in which a new wrong answer is written as the next unused number.
    """

    def follow(votes: tuple[int, ...], used: int, weight: float) -> float:
        if len(votes) == n:
            best = max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)))
            return weight if best == 0 else 0.0
        total = follow((*votes, 0), used, weight * p)
        for known in range(1, used + 1):
            total += follow((*votes, known), used, weight * (1 - p) / wrong)
        fresh = weight * (1 - p) * (wrong - used) / wrong
        return total + follow((*votes, used + 1), used + 1, fresh)

    return follow((), 0, 1.0)


def test_the_law_agrees_with_the_binomial_one() -> None:
    assert _plurality_law(0.6, 1, 5) == pytest.approx(0.68256)


async def test_another_model_may_choose_among_free_texts() -> None:
    """Nor are the votes of several models spoilt by it: they are asked for the samples only."""
    poems = ("Roses are red, and so on", "Snow falls on roofs", "The sea is deep and wide")
    voters = [ScriptedLLM([poem], model=f"model-{at}") for at, poem in enumerate(poems)]
    judge = ScriptedLLM(["BEST: 2"], model="judge")
    ctx = context(models=[*voters, judge])
    given = {"models": tuple(llm.model for llm in voters), "judge": "judge", "n": 3}
    result = await answer(
        "self_consistency", (Message("user", "Write a line."),), ScriptedLLM([]), ctx, **given
    )
    for llm in (*voters, judge):
        llm.assert_used_up()
    assert result.text == sorted(poems, key=judge.calls[0][0][-1].text.index)[1]
    assert params("self_consistency", **given).generators() == given["models"]
    assert params("self_consistency", **given).model_groups() == (*given["models"], "judge")
