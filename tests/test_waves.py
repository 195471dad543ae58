"""Sampling in waves: what is settled, what is saved, and how often the vote changes."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Any

import pytest

from optillm_hooks import waves
from optillm_hooks.answers.voting import contenders
from optillm_hooks.budget import Limits
from optillm_hooks.context import Context, MeteredLLM, depth_so_far
from optillm_hooks.errors import ProviderFailed, SamplesFailed
from optillm_hooks.fanout import sample_many
from optillm_hooks.judging.voting import count_votes
from optillm_hooks.llm import LLM, Price
from optillm_hooks.registry import SamplerParams
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, ScriptedLLM, chat, context, params
from optillm_hooks.types import Chat, Completion, Sampling, ToolCall
from optillm_hooks.waves import first_wave, sample_until_settled, sureness

pytestmark = pytest.mark.anyio
ASKED = chat("6 * 7?")
A, B, C = "ANSWER: 41", "ANSWER: 42", "ANSWER: 43"


def cut(text: str) -> Completion:
    return Completion(text, finish_reason="length")


async def sample(
    llm: LLM, n: int, ctx: Context | None = None, *, judged: bool = False, **given: Any
) -> list[str]:
    ctx = ctx or context()
    params = SamplerParams(**given)
    samples = await sample_until_settled(
        [MeteredLLM(llm, ctx)], ASKED, Sampling(), ctx, params, n=n, judged=judged
    )
    return [completion.text for completion in samples]


@pytest.mark.parametrize(
    ("replies", "given", "calls", "depth"),
    [
        pytest.param([A] * 3, {}, 3, 1, id="three that agree settle it"),
        pytest.param([A, B, A, A, A, A, A, A], {}, 8, 2, id="otherwise all are needed"),
        pytest.param([A] * 2, {"confidence": 0.5}, 2, 1, id="one alone agrees with nothing"),
        pytest.param([A] * 5, {"confidence": 0.98}, 5, 1, id="surer with more samples"),
        pytest.param([A, A, A], {"judged": True}, 3, 1, id="nothing to judge"),
        pytest.param([A, A, B, A, A, A, A, A], {"judged": True}, 8, 2, id="all to be judged"),
        pytest.param([A, B, C], {"first_m": 3}, 8, 1, id="the first three of eight"),
        pytest.param(["As you like it."] * 3, {}, 3, 1, id="one text, though it is no answer"),
        pytest.param([cut(A)] * 8, {}, 8, 2, id="truncated ones settle nothing"),
    ],
)
async def test_how_many_samples_are_taken(
    replies: list[Reply], given: dict[str, Any], calls: int, depth: int
) -> None:
    ctx, llm = context(), ScriptedLLM([*replies, *[HANG] * (8 - len(replies))])
    await sample(llm, 8, ctx, **given)
    assert (len(llm.calls), ctx.trace.depth) == (calls, depth)
    assert ctx.trace.calls_saved == 8 - calls
    assert llm.inside == 0
    assert not ctx.trace.lost


async def test_calls_that_cannot_change_the_winner_are_cancelled() -> None:
    ctx, llm = context(limits=Limits()), ScriptedLLM([A, B, A, A, A, A, HANG, HANG])
    assert await sample(llm, 8, ctx) == [A, B, A, A, A, A]
    assert llm.inside == 0
    assert not ctx.trace.lost


async def test_the_second_wave_begins_at_the_first_disagreement() -> None:
    ctx = context(limits=Limits())
    llm = ScriptedLLM([A, B, HANG, C, HANG, HANG, HANG, HANG])
    task = asyncio.create_task(sample(llm, 8, ctx))
    await llm.until_hanging(5)
    task.cancel()
    await asyncio.wait([task])
    assert ctx.trace.depth == 2


async def test_the_second_wave_waits_for_a_slow_first_one_only_so_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waves, "PATIENCE", 0.001)
    llm = ScriptedLLM([A, HANG, A, A, HANG])
    async with asyncio.timeout(20):
        assert await sample(llm, 5, context(limits=Limits(deadline_s=40))) == [A, A, A]
    assert llm.inside == 0


async def test_a_sample_that_is_cut_off_counts_as_lost_where_the_others_settle_it() -> None:
    ctx, llm = context(limits=Limits()), ScriptedLLM([A, cut(B), A, A, A, A, HANG, HANG])
    assert len(await sample(llm, 8, ctx)) == 6
    assert ctx.trace.lost == ("samples:1/8",)


@pytest.mark.parametrize("failure", [ProviderFailed("502"), HANG], ids=["fails", "hangs"])
async def test_a_first_wave_of_which_one_is_lost_settles_nothing(failure: Reply) -> None:
    ctx, llm = context(), ScriptedLLM([A, failure, A, A, A, A, A, A])
    assert await sample(llm, 8, ctx) == [A] * 7
    assert len(llm.calls) == 8


async def test_after_a_first_wave_that_fails_the_second_is_asked() -> None:
    llm = ScriptedLLM([*[ProviderFailed("502")] * 3, A, A])
    assert await sample(llm, 5) == [A, A]


BUSY, LOST = ProviderFailed("busy", status=429), ProviderFailed("502")


@pytest.mark.parametrize(
    ("first", "calls"),
    [([BUSY, LOST, ""], 5), ([LOST, BUSY, BUSY], 5), (["", "", ""], 3), ([BUSY, "", BUSY], 3)],
)
async def test_a_second_wave_is_given_up_only_if_every_call_shows_that_it_would_fail(
    first: list[Reply], calls: int
) -> None:
    llm = ScriptedLLM([*first, A, A])
    with suppress(SamplesFailed):
        assert await sample(llm, 5) == [A, A]
    assert len(llm.calls) == calls


async def test_all_failing_keeps_the_status() -> None:
    with pytest.raises(SamplesFailed) as caught:
        await sample(ScriptedLLM([ProviderFailed("busy", status=429)] * 5), 5)
    assert caught.value.status == 429


@pytest.mark.parametrize("takes_n", [True, False], ids=["gives one", "refuses"])
async def test_what_is_made_up_for_is_neither_lost_nor_counted_twice(takes_n: bool) -> None:
    """A vote of 8 is decided after 5, asked for in calls for 3 that give one choice, or none."""

    class Host(ScriptedLLM):
        async def complete_n(self, chat: Chat, sampling: Sampling, _n: int, /) -> list[Completion]:
            if not takes_n:
                raise ProviderFailed("n unknown", status=400)
            return [await self.complete(chat, sampling)]

    ctx, llm = context(limits=Limits()), Host([*[A] * 5, *[HANG] * 3], max_n=3)
    assert await sample(llm, 8, ctx, confidence=1) == [A] * 5
    assert llm.inside == 0
    assert not ctx.trace.lost
    assert ctx.trace.losses == {"samples": (0, 8)}
    assert ctx.trace.calls_saved == 0  # all eight were begun


CALL = Completion("", tool_calls=(ToolCall("1", "f", '{"a": 1}'),))
SAME = Completion("", tool_calls=(ToolCall("2", "f", '{"a": 1.0}'),))
OTHER = Completion("", tool_calls=(ToolCall("3", "f", '{"a": 2}'),))


@pytest.mark.parametrize(
    ("replies", "calls"),
    [
        pytest.param([CALL, SAME, CALL], 3, id="equal tool calls"),
        pytest.param([CALL, SAME, OTHER, CALL, CALL], 5, id="other arguments"),
        pytest.param([CALL, SAME, A, CALL, CALL], 5, id="a text among them"),
        pytest.param(["Roses", "Violets are blue", "The sea is deep", A, A], 5, id="free text"),
    ],
)
async def test_replies_of_other_kinds(replies: list[Reply], calls: int) -> None:
    llm = ScriptedLLM(replies)
    await sample(llm, 5)
    assert len(llm.calls) == calls


class Late(AnsweringLLM):
    """Gives `replies` by the number of the sample, and the late ones after all others."""

    def __init__(self, replies: Sequence[Reply], late: int) -> None:
        super().__init__(lambda _, sampling: replies[sampling.sample])
        self._soon = len(replies) - late

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        for _ in range(100 if sampling.sample >= self._soon else 0):
            await asyncio.sleep(0)
        return await super().complete(chat, sampling)


WITHOUT: list[Reply] = [
    f"{first} Thank you for asking, and for your patience. I hope that this helps you to decide."
    for first in ("It is fine, as far as I see.", "All seems well.", "Nothing I know of is wrong.")
]
"""Texts without a readable answer."""

X, Y, Z = '{"a": 1, "b": 1}', '{"a": 2, "b": 3}', '{"a": 2, "b": 4}'


@pytest.mark.parametrize(
    ("replies", "late", "given"),
    [
        pytest.param([A, B, A, A, A, A, B, B], 1, {"judged": True}, id="a judge wants all"),
        pytest.param([B, A, A, C, B], 1, {}, id="a tie, which the earlier answer wins"),
        pytest.param([*[cut(A)] * 7, B], 1, {}, id="one that is not cut off"),
        pytest.param([CALL, CALL, A, A, A, A, CALL, CALL], 2, {}, id="as many calls as texts"),
        pytest.param([A, *WITHOUT[:2], A, A, *WITHOUT], 2, {}, id="too few readable answers"),
    ],
)
async def test_samples_that_can_change_the_winner_are_awaited(
    replies: list[Reply], late: int, given: dict[str, Any]
) -> None:
    ctx, n = context(limits=Limits()), len(replies)
    assert len(await sample(Late(replies, late), n, ctx, **given)) == n


async def test_objects_without_a_majority_vote_on_their_fields_so_all_are_awaited() -> None:
    client = Sampling(fields={"response_format": {"type": "json_object"}})
    ctx = context(limits=Limits(), client=client)
    assert len(await sample(Late([X, Y, X, X, Z, X, Y, Y], 2), 8, ctx)) == 8


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param([A, B, A, B, A, A, A, B], id="at the seventh"),
        pytest.param([A, B, A, C, A, B, A, C], id="half, and no rival"),
    ],
)
async def test_samples_that_cannot_change_the_winner_are_not_awaited(replies: list[Reply]) -> None:
    ctx, n = context(limits=Limits()), len(replies)
    assert len(await sample(Late(replies, 1), n, ctx, confidence=0.99)) == n - 1


@pytest.mark.parametrize(
    ("words", "max_tokens", "calls"),
    [
        pytest.param(10, None, [3], id="a short prompt: two waves"),
        pytest.param(10_000, None, [8], id="a long one is billed once"),
        pytest.param(1000, None, [3], id="long replies"),
        pytest.param(1000, 20, [8], id="short ones save little"),
    ],
)
async def test_where_n_is_honoured_the_price_of_the_prompt_decides(
    words: int, max_tokens: int | None, calls: list[int]
) -> None:
    ctx = context(client=Sampling(max_tokens=max_tokens))
    llm = ScriptedLLM([A] * 8, max_n=16, price=Price(1e-6, 4e-6))
    params, asked = SamplerParams(), chat("word " * words)
    samples = await sample_until_settled(
        [MeteredLLM(llm, ctx)], asked, Sampling(), ctx, params, n=8, chat=ASKED
    )
    assert [len(samples)] == calls
    assert len(llm.calls) == 1


async def test_the_last_samples_are_not_read_as_nothing_depends_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[object] = []
    monkeypatch.setattr(waves, "count_votes", lambda *given: counted.append(given))
    ctx = context()
    assert await sample(ScriptedLLM([A, B, C], max_n=3), 3, ctx) == [A, B, C]
    assert (counted, ctx.trace.lost, ctx.trace.calls_saved) == ([], (), 0)


class Sparing(AnsweringLLM):
    """Answers a call for several with one choice."""

    async def complete_n(self, chat: Chat, sampling: Sampling, _: int, /) -> Sequence[Completion]:
        return await super().complete_n(chat, sampling, 1)


async def test_single_calls_make_up_for_choices_until_the_vote_is_decided() -> None:
    """The calls that make up are not planned, so no planned call is saved by stopping them."""
    ctx, numbers = context(limits=Limits()), list[int]()

    def reply(_: Chat, sampling: Sampling) -> Reply:
        numbers.append(sampling.sample)
        return (A, B, A, A, A, A, HANG, HANG)[len(numbers) - 1]

    llm = Sparing(reply, max_n=8)
    assert await sample(llm, 8, ctx) == [A, B, A, A, A, A]
    assert len(set(numbers)) == len(numbers) == 8
    assert llm.inside == 0
    assert (ctx.trace.calls_saved, ctx.trace.lost) == (0, ())


@pytest.mark.parametrize(
    ("status", "singles"),
    [pytest.param(400, 5, id="n is refused"), pytest.param(401, 0, id="everything is refused")],
)
async def test_where_a_call_for_several_fails_the_second_wave_makes_no_other(
    status: int, singles: int
) -> None:
    """An overloaded provider is another matter: see test_fanout."""

    class OneAtATime(ScriptedLLM):
        async def complete_n(self, *asked: Any) -> Sequence[Completion]:
            several.append(asked)
            raise ProviderFailed("one at a time", status=status)

    several: list[Any] = []
    llm = OneAtATime([A, B, A, A, A], max_n=8)
    if singles:
        assert await sample(llm, 5, context(limits=Limits())) == [A, B, A, A, A]
    else:
        with pytest.raises(SamplesFailed):
            await sample(llm, 5, context(limits=Limits()))
    assert (len(several), len(llm.calls)) == (1, singles)


@pytest.mark.parametrize("name", ["bon", "majority_voting", "self_consistency"])
def test_no_more_samples_are_waited_for_than_there_are(name: str) -> None:
    assert params(name, n=4, first_m=4)
    with pytest.raises(ValueError, match=r"first_m must be at most n \(4\), got 5"):
        params(name, n=4, first_m=5)


async def test_models_are_sampled_in_turn_in_both_waves() -> None:
    asked: list[str] = []

    def model(name: str, reply: str) -> MeteredLLM:
        def answer(_: Chat, __: Sampling) -> Reply:
            asked.append(name)
            return reply

        return MeteredLLM(AnsweringLLM(answer, model=name), ctx)

    ctx = context()
    panel = [model("one", A), model("two", B)]
    samples = await sample_many(panel, ASKED, Sampling(), ctx, n=5)
    assert [sample.text for sample in samples] == [A, A, A, B, B]
    asked.clear()
    await sample_until_settled(panel, ASKED, Sampling(), ctx, SamplerParams(), n=5)
    assert sorted(asked[:3]) == ["one", "one", "two"]
    assert sorted(asked) == ["one"] * 3 + ["two"] * 2


def test_sureness_is_that_of_the_beta_distribution() -> None:
    """For whole numbers of votes it is a sum of binomial terms; here it is integrated instead."""
    for lead, second in [(2, 0), (3, 0), (4, 1), (5, 2), (2, 2)]:
        steps = 20_000
        points = [(step + 0.5) / steps for step in range(steps)]
        weights = [p**lead * (1 - p) ** second for p in points]
        above = sum(weights[steps // 2 :]) / sum(weights)
        assert sureness(lead, second) == pytest.approx(above, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "confidence", "first"),
    [
        *[(8, 0.9, 3), (5, 0.9, 3), (3, 0.9, 3), (2, 0.9, 2), (8, 0.95, 4), (8, 1, 8)],
        *[(64, 0.99, 6), (8, 0.5, 2), (3, 0.6, 2), (1, 0.9, 1)],
    ],
)
def test_the_first_wave_is_the_smallest_that_can_settle_it(
    n: int, confidence: float, first: int
) -> None:
    assert first_wave(n, confidence) == first


@dataclass(frozen=True)
class Measured:
    calls: float
    waves: float
    accuracy: float
    of_all: float


async def measure(p: float, problems: int) -> Measured:
    """Vote on problems of mixed difficulty, p_i ~ Beta(2p, 2(1 - p)), early and with all eight.

    Of the wrong answers, one has a share of 0.6 and three share the rest.
    """
    rng = random.Random(int(p * 10))
    calls: list[int] = []
    waves: list[int] = []
    right: list[bool] = []
    right_of_all: list[bool] = []
    for _ in range(problems):
        difficulty = rng.betavariate(2 * p, 2 * (1 - p))
        wrong = ["ANSWER: 1", *["ANSWER: 2", "ANSWER: 3", "ANSWER: 4"]]
        replies = [
            "ANSWER: 42"
            if rng.random() < difficulty
            else rng.choices(wrong, [0.6, *[0.4 / 3] * 3])[0]
            for _ in range(8)
        ]
        depth_so_far.set(0)
        ctx, llm = context(), ScriptedLLM(list(replies))
        samples = await sample(llm, 8, ctx)
        calls.append(len(llm.calls))
        waves.append(ctx.trace.depth)
        for texts, into in ((samples, right), (replies, right_of_all)):
            candidates = contenders([Completion(text) for text in texts])
            tally = await count_votes(candidates, ASKED, ctx)
            into.append(candidates[tally.winner].text == "ANSWER: 42")
    return Measured(fmean(calls), fmean(waves), fmean(right), fmean(right_of_all))


@pytest.mark.parametrize(("p", "most"), [(0.5, 6.5), (0.7, 5.6), (0.9, 4.1)])
async def test_it_is_as_accurate_as_a_vote_of_eight_with_fewer_calls(p: float, most: float) -> None:
    """Seeded. The bounds on accuracy are four standard errors of the paired difference."""
    problems = 700
    found = await measure(p, problems)
    assert found.calls <= most
    assert found.waves <= 2
    assert abs(found.accuracy - found.of_all) <= 4 * sqrt(0.02 / problems)
