"""Scorers as judges: what they are asked, how their scores count, and what becomes of failures."""

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example
from hypothesis import given as given_values
from hypothesis import strategies as st

from optillm_hooks.budget import Limits
from optillm_hooks.context import MeteredScorer
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.judging.choosing import choose
from optillm_hooks.judging.rating import rate_all
from optillm_hooks.llm import Price
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.registry import Approach, all_approaches
from optillm_hooks.testing import (
    HANG,
    AnsweringScorer,
    Hang,
    Reply,
    ScriptedLLM,
    answer,
    chat,
    context,
)
from optillm_hooks.types import Chat, Sampling
from tests.fakes import SERVICES
from tests.test_catalogue import Lenient

pytestmark = pytest.mark.anyio

SCORED = [approach for approach in all_approaches() if approach.params.scorer_fields]
VOTES = {"self_consistency", "majority_voting"}
"""Approaches that ask their judge only where no answer can be read."""

A, B, C = "ANSWER: 1", "ANSWER: 2", "ANSWER: 3"

Score = Callable[[Chat, str], float | Exception | Hang]


def table(**scores: float | Exception | Hang) -> Score:
    """Return a scorer's function: the score of the answer that ends in the given digit."""
    return lambda _, text: scores[f"of_{text[-1]}"]


def writer(approach: Approach) -> Lenient:
    """Return a model whose answers the approach asks its judge about."""
    if approach.name in VOTES:
        return Lenient(lambda number, _: f"{'Very ' * number}well said.")
    return Lenient()


async def ended(expression: str, scorer: AnsweringScorer, llm: Any = None, **how: Any) -> Outcome:
    groups = {"base": llm or Lenient()}
    request = Request(
        plan=resolve(parse(expression)),
        base="base",
        chat=how.pop("asked", chat("Which number do you like?")),
        client=Sampling(seed=0),
        scorers={scorer.model: scorer}.get,
        services=SERVICES,
        **how,
    )
    return await run(request, groups.__getitem__)


@pytest.mark.parametrize("approach", SCORED, ids=lambda a: a.name)
@pytest.mark.parametrize("max_scored", [1, 32])
async def test_every_approach_with_a_judge_takes_a_scorer(
    approach: Approach, max_scored: int
) -> None:
    (field,) = approach.params.scorer_fields
    scorer = AnsweringScorer(lambda _, text: float(len(text) % 7), max_scored=max_scored)
    outcome = await ended(f"{approach.name}({field}=scorer)", scorer, writer(approach))
    assert scorer.calls
    assert outcome.answers[0].text
    assert not outcome.report.degraded
    by_scorer = [call for call in outcome.report.trace if call.model == "scorer"]
    assert len(by_scorer) == len(scorer.calls)
    assert {call.purpose for call in by_scorer} == {"judge"}


@pytest.mark.parametrize("approach", SCORED, ids=lambda a: a.name)
async def test_a_scorer_that_fails_costs_no_answer(approach: Approach) -> None:
    (field,) = approach.params.scorer_fields
    scorer = AnsweringScorer(lambda *_: ProviderFailed("down", status=503))
    outcome = await ended(f"{approach.name}({field}=scorer)", scorer, writer(approach))
    assert outcome.answers[0].text
    assert any(code.startswith("ratings:") for code in outcome.report.degraded)


async def best(replies: list[Reply], score: Score, **how: Any) -> str:
    llm, scorer = ScriptedLLM(replies), AnsweringScorer(score)
    ctx = context(scorers=[scorer])
    result = await answer("bon", chat("1?"), llm, ctx, n=len(replies), judge="scorer", **how)
    return result.text


@pytest.mark.parametrize(
    ("scores", "given", "expected"),
    [
        pytest.param((0.6, 0.5, 0.9), {}, C, id="the highest score wins"),
        pytest.param((0.5, 0.5, 0.9), {"choose_by": "rating"}, C, id="by rating alone"),
        pytest.param((-9.5, -3.5, -7.0), {}, B, id="rewards below zero"),
        pytest.param((20.0, 30.0, 25.0), {}, B, id="far above"),
        pytest.param(
            (math.nan, 0.1, math.inf),
            {"choose_by": "rating"},
            B,
            id="what is no number does not count",
        ),
        pytest.param((1e308, -1e308, 0.0), {}, A, id="extremes"),
    ],
)
async def test_scores_decide(
    scores: tuple[float, float, float], given: dict[str, Any], expected: str
) -> None:
    of_1, of_2, of_3 = scores
    assert await best([A, B, C], table(of_1=of_1, of_2=of_2, of_3=of_3), **given) == expected


async def test_scores_of_equal_answers_add_up() -> None:
    score = table(of_1=0.5, of_2=0.8)
    replies: list[Reply] = [f"So. {A}", B, f"Thus. {A}"]
    assert await best(replies, score) == f"So. {A}"
    assert await best(replies, score, choose_by="rating") == B


async def test_high_rewards_keep_their_differences() -> None:
    """By their plain sigmoids, all of them nearly 1, two that are worse would outvote the best."""
    replies: list[Reply] = [f"So. {A}", f"Thus. {A}", B]
    assert await best(replies, table(of_1=20.0, of_2=30.0)) == B


async def test_many_candidates_are_one_call_and_paid_for_once() -> None:
    llm = ScriptedLLM([f"ANSWER: {number}" for number in range(8)])
    scorer = AnsweringScorer(lambda _, text: int(text[-1]) / 10)
    ctx = context(scorers=[scorer])
    asked = chat("Which?")
    result = await answer("bon", asked, llm, ctx, n=8, judge="scorer", ratings=3)
    assert result.text == "ANSWER: 7"
    ((seen, texts),) = scorer.calls
    assert (seen, len(texts)) == (asked, 8)
    assert ctx.trace.calls_saved == 3 * 8 - 1
    assert ctx.budget.usage.calls == 9
    assert ctx.budget.usage.prompt_tokens == 8 * 10 + 80


async def test_thoughts_are_not_scored() -> None:
    scorer = AnsweringScorer(lambda *_: 0.5)
    ctx = context(scorers=[scorer])
    await rate_all(["<think>8?</think>9"], chat("1?"), MeteredScorer(scorer, ctx), ctx)
    assert [texts for _, texts in scorer.calls] == [("9",)]


@pytest.mark.parametrize("max_scored", [1, 3])
async def test_a_call_that_hangs_loses_only_its_own_texts(max_scored: int) -> None:
    scorer = AnsweringScorer(table(of_1=HANG, of_2=0.2, of_3=0.9), max_scored=max_scored)
    ctx = context(scorers=[scorer])  # its deadline has passed
    ratings = await rate_all([A, B, C], chat("1?"), MeteredScorer(scorer, ctx), ctx)
    assert ratings == ([None, 2.0, 9.0] if max_scored == 1 else [None] * 3)
    assert ctx.trace.losses["ratings"] == (1 if max_scored == 1 else 3, 3)
    assert ctx.budget.stopped_by == "deadline"


@pytest.mark.parametrize(
    ("limits", "stopped_by"),
    [
        (Limits(max_calls=3), "max_calls"),
        (Limits(max_tokens_total=60), "max_tokens_total"),
        (Limits(max_cost_usd=0.5), "max_cost_usd"),
    ],
)
async def test_without_budget_the_candidates_vote(limits: Limits, stopped_by: str) -> None:
    """Three samples cost 45 tokens; the scorer needs 20 more, or 1 dollar."""
    scorer = AnsweringScorer(lambda *_: 0.5, price=Price(0.0, 1.0))
    base = ScriptedLLM([A, B, B], price=Price(0.0, 0.0))
    asked = chat(" ".join(["word"] * 8))
    outcome = await ended("bon(n=3;judge=scorer)", scorer, base, asked=asked, limits=limits)
    assert outcome.answers[0].text == B
    assert not scorer.calls
    assert outcome.report.stopped_by == stopped_by
    assert outcome.report.degraded == ("ratings:2/2",)


async def test_what_was_cut_is_said() -> None:
    scorer = AnsweringScorer(lambda _, text: int(text[-1]) / 10, cut=2)
    outcome = await ended("bon(n=3;judge=scorer)", scorer)
    assert outcome.report.degraded == ("whole_candidates:2/3",)


async def test_ratings_of_later_calls_have_the_scale_of_the_first() -> None:
    scorer = AnsweringScorer(lambda _, text: float(text))
    ctx = context(scorers=[scorer])
    judge = MeteredScorer(scorer, ctx)
    first = await rate_all(["4", "6"], chat("1?"), judge, ctx)
    again = await rate_all(["6", "0.5"], chat("1?"), judge, ctx.child(1))
    assert first[1] == again[0] == pytest.approx(10 / (1 + math.exp(-1)))
    assert again[1] == pytest.approx(10 / (1 + math.exp(4.5)))


@given_values(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
@example([1e308] * 3)
async def test_ratings_are_on_the_scale_and_in_the_order_of_the_scores(scores: list[float]) -> None:
    left = iter(scores)
    scorer = AnsweringScorer(lambda *_: next(left))
    ctx = context(scorers=[scorer])
    judge = MeteredScorer(scorer, ctx)
    texts = [f"{number}" for number in range(len(scores))]
    ratings = await rate_all(texts, chat("1?"), judge, ctx, low=1, high=5)
    of_score = sorted(zip(scores, ratings, strict=True))
    known = [rating for _, rating in of_score if rating is not None]
    assert len(known) == len(scores)
    assert known == sorted(known)
    assert all(1 <= rating <= 5 for rating in known)


async def test_a_choice_is_the_highest_score_and_the_earlier_of_equals() -> None:
    scorer = AnsweringScorer(table(of_1=0.2, of_2=0.7, of_3=0.7))
    ctx = context(scorers=[scorer])
    chosen = await choose([A, B, C], chat("1?"), MeteredScorer(scorer, ctx), ctx, orders=2)
    assert chosen == (1, [0, 2, 0])
    assert ctx.trace.calls_saved == 1


async def test_a_scorer_sees_pseudonyms_inside_privacy() -> None:
    llm = ScriptedLLM([f"{number}: write to al@example.org." for number in range(3)])
    scorer = AnsweringScorer(lambda _, text: int(text[0]) / 10)
    asked = chat("What is new at al@example.org?")
    outcome = await ended("privacy&bon(n=3;judge=scorer)", scorer, llm, asked=asked)
    assert outcome.answers[0].text == "2: write to al@example.org."
    ((seen, texts),) = scorer.calls
    assert "example.org" not in f"{seen}{texts}"
    assert "EMAIL" in seen[0].text
    assert all("EMAIL" in text for text in texts)
