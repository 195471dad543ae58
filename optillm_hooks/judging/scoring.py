"""Ratings by a scorer: a reward model, or a reranker.

Scores from 0 to 1 are taken as they are, as rerankers and classifiers give them. If any is outside,
they are a reward model's own numbers, of which only differences mean something. Then the rating is
the probability, by the model of Bradley and Terry with which rewards are trained (Ouyang et al.
2022, arXiv:2203.02155, section 3.5), that the answer is preferred to an average one of the request:
the sigmoid of its reward minus the mean of those that the request has first seen.
"""

from collections.abc import Sequence
from functools import partial
from math import exp, isfinite

from optillm_hooks.context import Context, MeteredScorer
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.types import Chat


async def score_all(
    texts: Sequence[str],
    chat: Chat,
    scorer: MeteredScorer,
    ctx: Context,
    *,
    until: float | None = None,
) -> list[float | None]:
    """Return a rating from 0 to 1 of each answer to `chat`, None where there is none.

    Each call has as many texts as the scorer takes; all calls run concurrently. From `until` on,
    what is missing is given up. The trace counts the lost ratings, and the texts that were cut.
    """
    size = scorer.facts.max_scored
    batches = [texts[at : at + size] for at in range(0, len(texts), size)]
    calls = [partial(scorer.score, chat, batch) for batch in batches]
    found: list[float | None] = []
    cut = 0
    for batch, ended in zip(batches, await outcomes(calls, until=until), strict=True):
        if isinstance(ended, SampleError):
            found += [None] * len(batch)
            continue
        found += [value if isfinite(value) else None for value in ended.values]
        cut += ended.cut
    ctx.trace.count("ratings", lost=found.count(None), of=len(found))
    ctx.trace.count("whole_candidates", lost=cut, of=len(texts))
    known = [value for value in found if value is not None]
    rated = iter(_ratings(known, scorer.model, ctx) if known else ())
    return [None if value is None else next(rated) for value in found]


def _ratings(scores: Sequence[float], model: str, ctx: Context) -> list[float]:
    """Return scores as numbers from 0 to 1, on the same scale in all of a request."""
    if model not in ctx.origins:
        if all(0 <= score <= 1 for score in scores):
            return list(scores)
        ctx.origins[model] = sum(score / len(scores) for score in scores)  # no sum overflows
    return [_sigmoid(score - ctx.origins[model]) for score in scores]


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x > -700 else 0.0  # exp overflows
