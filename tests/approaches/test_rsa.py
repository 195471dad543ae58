"""RSA: populations that are merged, when merging ends, and which solution is the answer."""

import random
import re
from collections import Counter
from math import comb
from typing import Any

import pytest

from optillm_hooks.approaches.rsa import RsaParams
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.final_answer import MARK_IF_DEFINITE
from optillm_hooks.llm import FinalCall
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
from optillm_hooks.types import Chat, Completion, Fields, Json, Message, Sampling, ToolCall

pytestmark = pytest.mark.anyio
CHAT: Chat = (
    Message("system", "Be terse."),
    Message("user", "6 * 6?"),
    Message("assistant", "36"),
    Message("user", "6 * 7?"),
)
BUSY = ProviderFailed("busy", status=429)
CUT = Completion("Six sevens.\nANSWER: 42", "length", usage=ONE_CALL)
CALLING = Completion("", "tool_calls", tool_calls=(ToolCall("1", "f", "{}"),), usage=ONE_CALL)
TOOLS: list[Json] = [{"type": "function", "function": {"name": "f"}}]


def solution(final: object) -> str:
    return f"So it is.\nANSWER: {final}"


def replies(letters: str) -> list[Reply]:
    """Return a solution for each of `letters`, which stand for numbers."""
    return [solution(ord(letter)) for letter in letters]


def letter(text: str) -> str:
    """Return the letter for the last number of `text`."""
    return chr(int(text.split()[-1]))


def merges(llm: ScriptedLLM) -> list[str]:
    """Return the letters of the attempts that each merge was shown."""
    frame = r"<(attempt \d+ \w{16})>\n(.*?)\n</\1>"
    shown = [re.findall(frame, sent[-1].text, re.DOTALL) for sent, _ in llm.calls]
    return ["".join(letter(text) for _, text in found) for found in shown if found]


async def ended(
    script: list[Reply], ctx: Context | None = None, **given: object
) -> tuple[str, ScriptedLLM]:
    llm = ScriptedLLM(script)
    result = await answer("rsa", CHAT, llm, ctx or context(limits=Limits()), **given)
    llm.assert_used_up()
    return result.text, llm


async def test_each_loop_merges_random_subsets_of_the_population_before_it() -> None:
    script = [*replies("abcdef"), *replies("ghijkl"), *replies("mmnopq")]
    ctx = context(limits=Limits())
    text, llm = await ended(script, ctx)
    assert text == f"So it is.\n\n{ord('m')}"
    shown = merges(llm)
    assert [len(set(each)) for each in shown] == [3] * 12
    assert set("".join(shown[:6])) <= set("abcdef")
    assert set("".join(shown[6:])) <= set("ghijkl")
    assert ctx.trace.depth == 4  # two waves of samples, two loops
    assert ctx.trace.calls_saved == 0


async def test_every_call_has_the_whole_conversation_and_is_no_shorter_than_it_must_be() -> None:
    _, llm = await ended([*replies("abcdef"), *replies("gggggg")])
    for sent, sampling in llm.calls:
        assert sent[1:3] == CHAT[1:3]
        assert sent[3].text.startswith("6 * 7?")
        assert MARK_IF_DEFINITE in sent[0].text + sent[-1].text
        assert (sampling.purpose, sampling.max_tokens) == ("solution", None)
    assert len({sampling.sample for _, sampling in llm.calls}) == len(llm.calls)


async def test_thoughts_of_a_solution_are_not_shown() -> None:
    script: list[Reply] = [f"<think>41?</think>{text}" for text in replies("abcdef")]
    _, llm = await ended([*script, *replies("gggggg")])
    assert "<think>" not in "".join(sent[-1].text for sent, _ in llm.calls)


# --------------------------------------------------------------------------------- when it stops


@pytest.mark.parametrize(
    ("script", "given", "saved", "final"),
    [
        pytest.param("aaa", {}, 15, "a", id="three that agree"),
        pytest.param("abaaaa" + "cccccc", {}, 6, "c", id="a population that agrees"),
        pytest.param("aabaaa" + "aaaaab", {}, 6, "a", id="more than half of all votes"),
        pytest.param("aabaaa" + "aaaabb", {"loops": 1}, 0, "a", id="no loop is left"),
        pytest.param(
            "aabaaa" + "aaaaab" + "bbbbbb", {"vote": "last"}, 0, "b", id="only the last ones vote"
        ),
        pytest.param("aab" + "ccc", {"n": 3}, 3, "c", id="smaller populations"),
    ],
)
async def test_it_ends_as_soon_as_the_outcome_is_settled(
    script: str, given: dict[str, object], saved: int, final: str
) -> None:
    ctx = context(limits=Limits())
    text, _ = await ended(replies(script), ctx, **given)
    assert letter(text) == final
    assert ctx.trace.calls_saved == saved


@pytest.mark.parametrize(("vote", "final"), [("all", "a"), ("last", "b")])
async def test_the_solutions_of_all_populations_vote_unless_only_the_last_ones_may(
    vote: str, final: str
) -> None:
    """The answer of the first ones has 8 of 18 votes, that of the last ones 6."""
    script = replies("abaacd" + "aaaabe" + "bbbbac")
    ctx = context(limits=Limits())
    text, _ = await ended(script, ctx, vote=vote)
    assert letter(text) == final
    assert dict(ctx.trace.events)["rsa"] == {"loops": 2, "populations": [6, 6, 6]}


async def test_the_latest_solution_with_the_winning_answer_is_returned() -> None:
    script: list[Reply] = [f"Draft {n}.\nANSWER: {ord(a)}" for n, a in enumerate("abac" + "aade")]
    text, _ = await ended(script, n=4, loops=1)
    assert text == f"Draft 4.\n\n{ord('a')}"


# ------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("bad", [BUSY, "", CALLING], ids=["failed", "empty", "a tool call"])
async def test_a_merge_that_brings_nothing_is_left_out(bad: Reply) -> None:
    ctx = context(limits=Limits())
    script = [*replies("abcd"), bad, *replies("efg"), *replies("hhhi")]
    text, llm = await ended(script, ctx, n=4)
    assert letter(text) == "h"
    assert ctx.trace.lost == ("merges:1/8",)
    assert set("".join(merges(llm)[4:])) <= set("efg")


@pytest.mark.parametrize("bad", [BUSY, CUT], ids=["failed", "cut"])
async def test_a_loop_without_a_whole_solution_ends_it(bad: Reply) -> None:
    ctx = context(limits=Limits())
    text, _ = await ended([*replies("aabc"), *[bad] * 4], ctx, n=4)
    assert letter(text) == "a"
    assert ctx.trace.lost == ("merges:4/4",)


async def test_cut_solutions_are_merged_if_there_are_no_others() -> None:
    cut = [Completion(f"So {ord(a)}", "length", usage=ONE_CALL) for a in "abc"]
    text, llm = await ended([*cut, *replies("dde")], n=3, loops=1, subset=2)
    assert letter(text) == "d"
    assert all(set(each) <= set("abc") for each in merges(llm))


async def test_a_single_solution_that_is_left_is_not_merged() -> None:
    ctx = context(limits=Limits())
    text, _ = await ended([BUSY, *replies("a"), BUSY], ctx, n=3)
    assert letter(text) == "a"
    assert ctx.trace.calls_saved == 0


async def test_without_any_solution_the_status_is_the_providers() -> None:
    with pytest.raises(SamplesFailed) as caught:
        await ended([BUSY] * 6)
    assert caught.value.status == 429


async def test_a_limit_leaves_the_answer_that_leads_the_vote() -> None:
    ctx = context(limits=Limits(max_calls=9))
    llm = ScriptedLLM(replies("abbabb" + "abb"))
    result = await answer("rsa", CHAT, llm, ctx)
    assert letter(result.text) == "b"
    assert ctx.best is not None
    assert ctx.best.text == f"So it is.\n\n{ord('b')}"
    assert ctx.budget.stopped_by == "max_calls"


async def test_a_merge_that_hangs_does_not_hold_up_the_vote() -> None:
    llm = ScriptedLLM([*replies("abc"), *replies("dd"), HANG])
    result = await answer("rsa", CHAT, llm, context(limits=Limits(deadline_s=0.3)), n=3, loops=1)
    assert letter(result.text) == "d"
    assert llm.inside == 0


# ------------------------------------------------------------------------ tools, forms, lengths


async def test_most_of_the_first_solutions_decide_whether_a_tool_is_called() -> None:
    client = Sampling(fields={"tools": TOOLS})
    llm = ScriptedLLM([CALLING, *replies("a"), CALLING])
    ctx = context(limits=Limits(), client=client)
    assert await run("rsa", CHAT, llm, ctx, n=3) == CALLING


async def test_a_merge_may_not_call_tools() -> None:
    """It could only be left out. The first solutions may."""
    llm = ScriptedLLM([CALLING, *replies("ab"), *replies("ccc")])
    ctx = context(limits=Limits(), client=Sampling(fields={"tools": TOOLS}))
    await run("rsa", CHAT, llm, ctx, n=3)
    choices = [sampling.fields.get("tool_choice") for _, sampling in llm.calls]
    assert choices == [None] * 3 + ["none"] * 3


async def test_json_votes_as_such_and_nothing_is_asked_for_beside_it() -> None:
    wanted: Fields = {"response_format": {"type": "json_object"}}
    values: list[Reply] = ['{"a": 1}', '{"a": 2}', '{"a": 3}', '{"a": 4}', '{"a": 4.0}', "{}"]
    llm = ScriptedLLM(values)
    ctx = context(limits=Limits(), client=Sampling(fields=wanted))
    result = await answer("rsa", CHAT, llm, ctx, n=3, loops=1)
    assert result.text == '{"a": 4}'
    assert not any("ANSWER" in m.text for sent, _ in llm.calls for m in sent)
    assert all(sampling.fields == wanted for _, sampling in llm.calls)


async def test_of_free_texts_the_model_chooses_one_of_the_last_population() -> None:
    texts: list[Reply] = [f"{'Very ' * number}well said." for number in range(6)]
    llm = ScriptedLLM([*texts, "BEST: 2"])
    ctx = context(limits=Limits())
    result = await answer("rsa", CHAT, llm, ctx, n=3, loops=1)
    assert result.text in texts[3:]
    choosing = llm.calls[-1][0][-1].text
    assert [text in choosing for text in ("\nwell said", "\nVery Very Very well")] == [False, True]


async def test_a_solution_that_is_too_long_is_what_the_answer_is_written_from() -> None:
    ctx = context(limits=Limits(), client=Sampling(max_tokens=3))
    llm = ScriptedLLM(replies("aaa"))
    result = await run("rsa", CHAT, llm, ctx)
    assert isinstance(result, FinalCall)
    assert "So it is." in result.chat[-1].text
    assert result.fallback is not None
    assert result.fallback.finish_reason == "length"


# ----------------------------------------------------------------------------- models, reasoning


async def test_models_write_solutions_and_merge_in_turn() -> None:
    one = ScriptedLLM([*replies("abab")], model="one")
    two = ScriptedLLM([*replies("ca")], model="two")
    ctx = context(limits=Limits(), models=[one, two])
    given = params("rsa", models=("one", "two"))
    assert given.model_groups() == ("one", "two")
    await answer("rsa", CHAT, ScriptedLLM([]), ctx, models=("one", "two"), n=3, loops=1)
    one.assert_used_up()
    two.assert_used_up()


@pytest.mark.parametrize(("reasoning", "asked"), [("never", True), ("always", False)])
async def test_a_model_that_reasons_is_not_asked_to(reasoning: Any, asked: bool) -> None:
    llm = ScriptedLLM(replies("aaa"), reasoning=reasoning)
    await answer("rsa", CHAT, llm, context(limits=Limits()))
    assert all(("step by step" in sent[0].text) == asked for sent, _ in llm.calls)


# ------------------------------------------------------------------------------------ cost, laws


@pytest.mark.parametrize(
    ("given", "cost"),
    [({}, Cost(18, 4)), ({"n": 3, "loops": 1}, Cost(6, 2)), ({"n": 4, "loops": 3}, Cost(16, 5))],
    ids=str,
)
async def test_the_cost_is_as_declared(given: dict[str, object], cost: Cost) -> None:
    assert get_approach("rsa").cost(params("rsa", **given)) == cost
    numbers = iter(range(99))
    llm = AnsweringLLM(lambda *_: solution(next(numbers)))
    ctx = context(limits=Limits())
    await answer("rsa", CHAT, llm, ctx, **given)
    assert Cost(ctx.budget.usage.calls, ctx.trace.depth) == cost


@pytest.mark.parametrize(
    "bad", [{"n": 1}, {"subset": 1}, {"loops": 0}, {"temperature": 0}, {"vote": "first"}], ids=str
)
def test_what_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RsaParams.model_validate(bad)


async def test_all_subsets_are_merged_equally_often() -> None:
    """Of 600 merges, each of the 20 subsets is missing with a probability below 1e-12.

    The share of the merges that show a solution is within 0.12 of one half, except with a
    probability of 6 * 2 * exp(-2 * 600 * 0.12**2) < 1e-6 (Hoeffding).
    """
    subsets: Counter[frozenset[str]] = Counter()
    for seed in range(100):
        llm = ScriptedLLM([*replies("abcdef"), *replies("gggggg")])
        await answer("rsa", CHAT, llm, context(limits=Limits(), seed=seed), loops=1)
        subsets.update(map(frozenset, merges(llm)))
    assert len(subsets) == comb(6, 3)
    for member in "abcdef":
        share = sum(count for subset, count in subsets.items() if member in subset) / 600
        assert abs(share - 0.5) < 0.12


@pytest.mark.parametrize(("vote", "expected"), [("all", 0.625), ("last", 0.5)])
async def test_it_is_right_as_often_as_its_merges_are(vote: str, expected: float) -> None:
    """Two solutions, each right with p, are merged twice if they differ, each time rightly with q.

    With one right solution, the last population is right if its first merge is: p**2 + 2p(1 - p)q.
    If all vote, one right merge is enough: p**2 + 2p(1 - p)(1 - (1 - q)**2). In 600 requests the
    share is within 0.11, except with a probability of 2 exp(-2 * 600 * 0.11**2) < 1e-6 (Hoeffding).
    """
    rng, p, q, right = random.Random(vote), 0.5, 0.5, 0

    def reply(sent: Chat, _: Sampling) -> Reply:
        if "attempts at the request" not in sent[-1].text:
            return solution(42 if rng.random() < p else rng.randrange(10**6, 10**9))
        return solution(42 if "ANSWER: 42\n" in sent[-1].text and rng.random() < q else 41)

    for _ in range(600):
        ctx = context(limits=Limits())
        given: dict[str, object] = {"n": 2, "subset": 2, "loops": 1, "vote": vote}
        found = await answer("rsa", chat("6 * 7?"), AnsweringLLM(reply), ctx, **given)
        right += found.text.split()[-1] == "42"
    assert abs(right / 600 - expected) < 0.11
