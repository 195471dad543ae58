"""Decoys: how often a judge is trusted, what is remembered, and that no decoy is an answer."""

import asyncio
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from math import comb

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, ProviderFailed
from optillm_hooks.judging.decoys import SNEAKY, Record, Trust, compare, keep
from optillm_hooks.registry import get_approach
from optillm_hooks.testing import (
    HANG,
    AnsweringLLM,
    AnsweringScorer,
    Reply,
    answer,
    chat,
    context,
    params,
)
from optillm_hooks.types import Chat, Completion, Fields, Sampling
from tests.fakes import filled_form
from tests.simulated import RIGHT, WRONG, WRONG_WEIGHTS, answer_in, end_of, rating, solution

ASKED = chat("6 * 7?")
SIZES = [(3, 3), (4, 4), (8, 2), (8, 4), (16, 4)]
"""Numbers of candidates and of decoys."""


def laws(candidates: int, decoys: int, p: float, q: float) -> dict[Trust, float]:
    """Return the probability of each trust in a judge that is right about a solution with `q`.

    A candidate is right with probability `p`. The judge rates high what it takes to be right.
    """
    high = p * q + (1 - p) * (1 - q)
    found: dict[Trust, float] = {}
    for ours, at in _binomial(candidates, high):
        for theirs, of in _binomial(decoys, 1 - q):
            trust = compare(_rated(ours, candidates), _rated(theirs, decoys)).trust
            found[trust] = found.get(trust, 0) + at * of
    return found


def _binomial(n: int, p: float) -> Iterator[tuple[int, float]]:
    return ((k, comb(n, k) * p**k * (1 - p) ** (n - k)) for k in range(n + 1))


def _rated(high: int, of: int) -> list[float]:
    return [9.0] * high + [2.0] * (of - high)


@pytest.mark.parametrize(("candidates", "decoys"), SIZES)
def test_a_coin_flip_is_taken_for_a_judge_in_one_request_of_ten_at_most(
    candidates: int, decoys: int
) -> None:
    law = laws(candidates, decoys, p=0.5, q=0.5)
    assert law.get("better", 0) + law.get("reliable", 0) < 0.11
    assert law["chance"] > 0.4


def test_the_numbers_of_one_request_show_little() -> None:
    """Exact, for pvg's eight solutions and four decoys, single call right in half of them."""
    better = {q: laws(8, 4, p=0.5, q=q)["better"] for q in (0.4, 0.5, 0.7, 0.9)}
    aside = {q: laws(8, 4, p=0.5, q=q)["chance"] for q in (0.4, 0.5, 0.7, 0.9)}
    assert better == pytest.approx({0.4: 0.040, 0.5: 0.077, 0.7: 0.213, 0.9: 0.459}, abs=2e-3)
    assert aside == pytest.approx({0.4: 0.705, 0.5: 0.578, 0.7: 0.309, 0.9: 0.077}, abs=2e-3)


@pytest.mark.parametrize(
    ("q", "expected"), [(0.4, "chance"), (0.5, None), (0.7, "better"), (0.95, "reliable")]
)
def test_many_requests_show_what_a_judge_is(q: float, expected: Trust | None) -> None:
    """Of 200 callers with 60 requests of five candidates and three decoys each.

    Half of the problems are solved with p = 0.9 and half with p = 0.1. By the normal law the lead
    of 60 requests is over 2.2 standard deviations from the borders of its class, for all but the
    coin flip: P < 0.014 for each caller; so 18 or more of 200 have P < 1e-8. A coin flip is
    trusted with P < 0.11, and 60 times or more of 200 with P < exp(-2 * 200 * 0.19**2) = 6e-7.
    """
    rng, found = random.Random(5), list[Trust]()
    for _ in range(200):
        record = Record()
        for number in range(60):
            p = 0.9 if number % 2 else 0.1
            right = [rng.random() < p for _ in range(5)] + [False] * 3
            rated = [9.0 if r == (rng.random() < q) else 2.0 for r in right]
            record += compare(rated[:5], rated[5:])
        found.append(record.trust)
    if expected is None:
        assert sum(trust in ("better", "reliable") for trust in found) < 60
    else:
        assert found.count(expected) > 182


@pytest.mark.parametrize(
    ("decoys", "missed", "expected"),
    [(18, 0, "better"), (19, 0, "reliable"), (29, 1, "better"), (30, 1, "reliable")],
)
def test_a_judge_is_reliable_once_it_has_caught_enough(
    decoys: int, missed: int, expected: Trust
) -> None:
    """A judge that catches 85 of 100 does as well with P = 0.85**19 = 0.046, and so on."""
    assert Record(100.0, 400.0, decoys, missed).trust == expected


@pytest.mark.parametrize(
    ("candidates", "decoys", "expected"),
    [
        pytest.param([9.0, 9.0], [], "unmeasured", id="no decoy"),
        pytest.param([9.0, None], [None], "unmeasured", id="no rating of one"),
        pytest.param([None], [2.0], "unmeasured", id="no rating of a candidate"),
        pytest.param([5.0, 5.0], [5.0], "unmeasured", id="all alike"),
        pytest.param([2.0, 9.0], [9.0], "chance", id="decoys are rated higher"),
        pytest.param([2.0, 9.0], [2.0, 9.0], "chance", id="as high"),
        pytest.param([9.0, 9.0], [2.0], "unclear", id="too few"),
        pytest.param([8.0, 9.0, 9.0], [1.0, 2.0, 2.0], "better", id="all are rated lower"),
        pytest.param([80.0, 90.0, 90.0], [10.0, 20.0, 20.0], "better", id="whatever the scale"),
    ],
)
def test_what_ratings_show(
    candidates: list[float | None], decoys: list[float | None], expected: Trust
) -> None:
    assert compare(candidates, decoys).trust == expected


def test_only_counts_are_kept_and_each_caller_has_its_own() -> None:
    cache, record = CallerCache(), compare([8, 9, 9], [1, 2, 2])
    one = replace(context_now(), caller_cache=cache.for_caller("one"))
    other = replace(context_now(), caller_cache=cache.for_caller("other"))
    keep("judge", "base", record, one)
    assert keep("judge", "base", record, one) == record + record
    assert keep("judge", "base", record, other) == record
    assert keep("another", "base", record, one) == record
    assert keep("judge", "another", record, one) == record
    assert all(set("".join(kept)) <= set("0123456789.") for kept in cache._entries.values())


def test_what_is_kept_is_bounded_and_follows_a_judge_that_changes() -> None:
    ctx = context_now()
    good, bad = compare([8, 9, 9], [1, 2, 2]), compare([1, 2, 2], [8, 9, 9])
    for _ in range(2000):
        assert keep("judge", "base", good, ctx).decoys <= 1000
    trust = [keep("judge", "base", bad, ctx).trust for _ in range(500)]
    assert trust[0] == "reliable"
    assert trust[-1] == "chance"


def test_a_decoy_in_the_middle_of_the_scale_is_missed() -> None:
    assert compare([9, 9], [5.0, 4.9]).missed == 1


def test_halved_counts_weigh_half_and_are_as_sure() -> None:
    """The same lead in standard deviations, of half as many decoys."""
    assert Record(8.0, 64.0, 20, 4).halved + Record(8.0, 64.0, 20, 4).halved == Record(
        8.0, 32.0, 20, 4
    )


def context_now() -> Context:
    return asyncio.run(_context())


async def _context() -> Context:
    return context()


# ------------------------------------------------------------------------- in an approach


class Judged(AnsweringLLM):
    """Candidates answer `answers` in turn; decoys answer 99; `ratings` are out of ten."""

    def __init__(self, answers: list[str], ratings: dict[str, int], sneaky: Reply = "") -> None:
        super().__init__(self._reply)
        self._answers, self._ratings = answers, ratings
        self._sneaky = sneaky or solution("99")
        self.asked_for: list[str] = []

    def _reply(self, asked: Chat, sampling: Sampling) -> Reply:
        text = asked[-1].text
        kind = "decoy" if SNEAKY in text else "rate" if sampling.purpose == "judge" else "solve"
        self.asked_for.append(kind)
        if kind == "rate":
            return rating(self._ratings[answer_in(text)])
        if kind == "decoy":
            assert sampling.purpose == "draft"
            return self._sneaky
        return solution(self._answers[sampling.sample % len(self._answers)])


@pytest.mark.anyio
async def test_decoys_are_written_beside_the_samples_and_rated_beside_them() -> None:
    llm, ctx = Judged(["41", "42", "43"], {"41": 2, "42": 9, "43": 3, "99": 1}), context()
    result = await answer("bon", ASKED, llm, ctx, n=3, decoys=2)
    assert answer_in(result.text) == "42"
    cost = get_approach("bon").cost(params("bon", n=3, decoys=2))
    assert (ctx.budget.usage.calls, ctx.trace.depth) == (cost.calls, cost.depth) == (10, 2)
    assert (llm.asked_for.count("decoy"), llm.asked_for.count("rate")) == (2, 5)
    assert ctx.trace.lost == ()


@pytest.mark.anyio
async def test_a_judge_that_rates_decoys_higher_is_put_aside_for_the_vote() -> None:
    ratings = {"41": 3, "42": 9, "99": 10}
    ctx = context()
    result = await answer("bon", ASKED, Judged(["41", "42", "41"], ratings), ctx, decoys=2)
    assert answer_in(result.text) == "41"
    assert ctx.trace.lost == ("judge:untrusted",)
    trusting = await answer("bon", ASKED, Judged(["41", "42", "41"], ratings))
    assert answer_in(trusting.text) == "42"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("choose_by", "known", "expected"),
    [
        pytest.param("auto", Record(), "41", id="the sum"),
        pytest.param("auto", Record(100, 400, 19, 0), "42", id="reliable: the highest"),
        pytest.param("agreement", Record(100, 400, 19, 0), "41", id="the sum, as it is asked for"),
        pytest.param("rating", Record(100, 400, 9, 0), "42", id="the highest, as it is asked for"),
        pytest.param("rating", Record(1, 400, 9, 0), "41", id="unclear: the sum all the same"),
        pytest.param("rating", Record(-90, 400, 9, 0), "41", id="put aside"),
    ],
)
async def test_what_is_known_of_the_judge_decides_how_it_is_used(
    choose_by: str, known: Record, expected: str
) -> None:
    ctx = context()
    keep("base", "base", known, ctx)
    llm = Judged(["41", "42", "41"], {"41": 5, "42": 9, "99": 4})
    result = await answer("bon", ASKED, llm, ctx, n=3, decoys=1, choose_by=choose_by)
    assert answer_in(result.text) == expected


@pytest.mark.anyio
async def test_a_reliable_judge_that_takes_nothing_for_right_leaves_it_to_the_sums() -> None:
    ctx = context()
    keep("base", "base", Record(100, 400, 19, 0), ctx)
    llm = Judged(["41", "42", "41"], {"41": 2, "42": 3, "99": 1})
    assert answer_in((await answer("bon", ASKED, llm, ctx, n=3, decoys=1)).text) == "41"


@pytest.mark.anyio
async def test_candidates_that_agree_wait_for_no_decoy() -> None:
    llm, ctx = Judged(["42"], {}, HANG), context(limits=Limits())
    assert answer_in((await answer("bon", ASKED, llm, ctx, n=3, decoys=3)).text) == "42"
    assert (llm.inside, ctx.trace.lost, ctx.trace.calls_saved) == (0, (), 6)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("sneaky", "lost"),
    [
        pytest.param(ProviderFailed("no", status=400), ("decoys:2/2",), id="fails"),
        pytest.param(Completion("So: 9", finish_reason="length"), ("decoys:2/2",), id="cut off"),
        pytest.param("I cannot help with that.", (), id="refuses: proves nothing"),
    ],
)
async def test_without_a_decoy_the_judge_is_believed(sneaky: Reply, lost: tuple[str, ...]) -> None:
    ctx = context()
    llm = Judged(["41", "42", "41"], {"41": 3, "42": 9}, sneaky)
    assert answer_in((await answer("bon", ASKED, llm, ctx, decoys=2)).text) == "42"
    assert ctx.trace.lost == lost
    assert llm.asked_for.count("rate") == 2


@pytest.mark.anyio
async def test_where_candidates_have_no_readable_answer_any_decoy_is_alike() -> None:
    end = "Thank you for asking, and for your patience. I hope that this helps you to decide."
    first = ("It is fine, as far as I see.", "All seems well.", "Nothing I know of is wrong.")

    def reply(asked: Chat, sampling: Sampling) -> Reply:
        text = asked[-1].text
        if sampling.purpose == "judge":
            return rating(2 if "Do not go" in text else 9)
        return f"{'Do not go.' if SNEAKY in text else first[sampling.sample]} {end}"

    llm, ctx = AnsweringLLM(reply), context()
    await answer("bon", chat("Shall I go?"), llm, ctx, n=3, decoys=2)
    assert sum(sampling.purpose == "judge" for _, sampling in llm.calls) == 5


@pytest.mark.anyio
async def test_in_json_mode_decoys_are_json_as_candidates_are() -> None:
    form: Fields = {"response_format": {"type": "json_object"}}
    seen: list[Fields] = []

    def reply(asked: Chat, sampling: Sampling) -> Reply:
        if sampling.purpose == "judge":
            return rating(9 if '"n": 42' in asked[-1].text else 2)
        if SNEAKY in asked[-1].text:
            seen.append(sampling.fields)
            return '{"n": 99}'
        return f'{{"n": {42 - sampling.sample % 3}}}'

    ctx = context(client=Sampling(fields={**form, "tools": [{}]}))
    llm = AnsweringLLM(reply)
    assert (await answer("bon", ASKED, llm, ctx, n=3, decoys=2)).text == '{"n": 42}'
    assert [(f["response_format"], f["tool_choice"]) for f in seen] == [
        (form["response_format"], "none")
    ] * 2
    assert len(llm.calls) == 10


@pytest.mark.anyio
@pytest.mark.parametrize("calls", range(1, 11))
async def test_no_budget_makes_a_decoy_the_answer(calls: int) -> None:
    llm = Judged(["41", "42", "43"], {"41": 2, "42": 9, "43": 3, "99": 10})
    ctx = context(limits=Limits(max_calls=calls))
    result = await answer("bon", ASKED, llm, ctx, n=3, decoys=2)
    assert answer_in(result.text) != "99"
    assert ctx.best is None or answer_in(ctx.best.text) != "99"


@pytest.mark.anyio
async def test_no_decoy_is_the_best_so_far_when_the_request_is_cancelled() -> None:
    def reply(asked: Chat, _: Sampling) -> Reply:
        return solution("99") if SNEAKY in asked[-1].text else HANG

    llm, ctx = AnsweringLLM(reply), context(limits=Limits())
    task = asyncio.create_task(answer("bon", ASKED, llm, ctx, decoys=2))
    await llm.until_hanging(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (ctx.best, llm.inside) == (None, 0)


@pytest.mark.anyio
async def test_a_judge_that_is_wrong_spoils_nothing_once_it_is_known() -> None:
    """One call is right with p = 0.5, and the judge with q = 0.1.

    The vote of three is right with 0.568, and with this judge 0.205 (100,000 problems). After 20
    requests 300 show 0.387 or less of the former, or more of the latter, with probability under
    exp(-2 * 300 * 0.181**2) = 3e-9. The judge seems better than chance after 20 requests with
    3e-8 by the normal law: its lead is over five standard deviations below zero.
    """
    rng = random.Random(11)

    def reply(asked: Chat, sampling: Sampling) -> Reply:
        text = asked[-1].text
        if sampling.purpose == "judge":
            return rating(9 if (answer_in(text) == RIGHT) == (rng.random() < 0.1) else 2)
        wrong = rng.choices(WRONG, WRONG_WEIGHTS)[0]
        return solution(wrong if SNEAKY in text or rng.random() < 0.5 else RIGHT)

    cache, right = CallerCache(), 0
    for number in range(320):
        ctx = replace(context(), caller_cache=cache)
        found = await answer("bon", ASKED, AnsweringLLM(reply), ctx, n=3, decoys=2)
        right += number >= 20 and answer_in(found.text) == RIGHT
    assert right / 300 > 0.387


# ---------------------------------------------------- in an approach that rates nothing else

FOUR = {
    "genselect": {"n": 4},
    "moa": {"proposers": 4},
    "fusion": {"n": 4},
    "rsa": {"n": 4, "loops": 2},
}
"""Approaches that compare or merge candidates, with four of these."""

MEASURED = pytest.mark.parametrize("name", FOUR)


class Merging(AnsweringLLM):
    """Four candidates, of which the second is preferred in every comparison and by every merge.

    Decoys answer 99, and are rated `decoy`; the candidates are rated five.
    """

    def __init__(self, answers: str, decoy: int = 1, sneaky: Reply = "") -> None:
        super().__init__(self._reply)
        self._answers, self._decoy = answers.split(), decoy
        self._sneaky = sneaky or solution("99")

    def _reply(self, asked: Chat, sampling: Sampling) -> Reply:
        text, best = asked[-1].text, self._answers[1]
        if SNEAKY in text:
            return self._sneaky
        if "RATING: <number>" in text:
            return rating(self._decoy if answer_in(text) == "99" else 5)
        shown = re.findall(r"ANSWER: (\d+)", text)
        if sampling.purpose == "judge":
            return filled_form(text) or f"BEST: {[*shown, best].index(best) + 1}"
        return solution(best if shown else self._answers[sampling.sample % 4])


@pytest.mark.anyio
@MEASURED
@pytest.mark.parametrize(
    ("decoy", "expected", "lost"),
    [
        pytest.param(1, "42", (), id="decoys are rated lower"),
        pytest.param(9, "41", ("judge:untrusted",), id="decoys are rated higher: the vote"),
    ],
)
async def test_a_judge_that_compares_or_merges_is_measured_by_ratings(
    name: str, decoy: int, expected: str, lost: tuple[str, ...]
) -> None:
    ctx = context()
    found = await answer(name, ASKED, Merging("41 42 41 43", decoy), ctx, decoys=2, **FOUR[name])
    assert (end_of(found.text), ctx.trace.lost) == (expected, lost)
    declared = get_approach(name).cost(params(name, decoys=2, **FOUR[name]))
    assert ctx.budget.usage.calls + ctx.trace.calls_saved == declared.calls


@pytest.mark.anyio
@MEASURED
async def test_what_earlier_requests_have_shown_decides_here_too(name: str) -> None:
    ctx = context()
    keep("base", "base", Record(-90, 400, 9, 0), ctx)
    found = await answer(name, ASKED, Merging("41 42 41 43"), ctx, decoys=1, **FOUR[name])
    assert end_of(found.text) == "41"


@pytest.mark.anyio
@MEASURED
async def test_ratings_that_only_measure_are_made_beside_the_other_calls(name: str) -> None:
    """All candidates and decoys are rated, at the declared cost, and the depth stays the same."""
    plain, ctx = context(limits=Limits()), context(limits=Limits())
    await asyncio.gather(
        answer(name, ASKED, Merging("41 42 43 44"), plain, **FOUR[name]),
        answer(name, ASKED, Merging("41 42 43 44"), ctx, decoys=2, **FOUR[name]),
    )
    assert ctx.budget.usage.calls == plain.budget.usage.calls + 4 + 2 * 2
    assert (ctx.trace.depth, ctx.trace.calls_saved) == (plain.trace.depth, plain.trace.calls_saved)
    free, measured = (
        get_approach(name).cost(params(name, decoys=count, **FOUR[name])) for count in (0, 2)
    )
    assert measured == replace(free, calls=free.calls + 4 + 2 * 2)


@pytest.mark.anyio
async def test_a_scorer_that_compares_is_measured_by_its_scores() -> None:
    def score(_: Chat, text: str) -> float:
        return {"41": 0.3, "42": 0.6, "43": 0.2, "99": 0.9}[answer_in(text)]

    found = []
    for decoys in (0, 2):
        ctx = context(scorers=[AnsweringScorer(score)])
        given = {"judge": "scorer", "decoys": decoys, **FOUR["genselect"]}
        result = await answer("genselect", ASKED, Merging("41 42 41 43"), ctx, **given)
        found.append((answer_in(result.text), ctx.trace.lost))
    assert found == [("42", ()), ("41", ("judge:untrusted",))]


@pytest.mark.anyio
@MEASURED
async def test_where_candidates_agree_the_judge_is_not_measured(name: str) -> None:
    """The first three of four candidates settle it: decoys are not awaited, nothing is rated."""
    llm, ctx = Merging("42 42 42 42", sneaky=HANG), context(limits=Limits())
    found = await answer(name, ASKED, llm, ctx, decoys=2, **FOUR[name])
    assert (end_of(found.text), llm.inside, ctx.trace.lost) == ("42", 0, ())
    declared = get_approach(name).cost(params(name, decoys=2, **FOUR[name]))
    assert ctx.trace.calls_saved == declared.calls - 3 - 2


@pytest.mark.anyio
@MEASURED
async def test_no_budget_makes_a_decoy_the_answer_of_a_merge(name: str) -> None:
    declared = get_approach(name).cost(params(name, decoys=2, **FOUR[name]))
    for calls in range(1, declared.calls + 1):
        llm, ctx = Merging("41 42 43 44", 9), context(limits=Limits(max_calls=calls))
        with suppress(BudgetExceeded):
            found = await answer(name, ASKED, llm, ctx, decoys=2, **FOUR[name])
            assert end_of(found.text) != "99"
        assert ctx.best is None or end_of(ctx.best.text) != "99"
        assert (llm.inside, ctx.budget.usage.calls <= calls) == (0, True)
