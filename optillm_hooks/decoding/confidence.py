"""Confidence of a model in a token, from the top log-probabilities that a provider returns."""

import math
from collections.abc import Sequence

CONFIDENCE_TOKENS = 20
"""Top log-probabilities that a confidence is the mean of, as in DeepConf's reference code."""


def listed_margin(logprobs: Sequence[float]) -> float:
    """Return the gap between the two highest probabilities of a token's top log-probabilities."""
    best = sorted(logprobs, reverse=True)[:2]
    return math.exp(best[0]) - (math.exp(best[1]) if len(best) > 1 else 0.0) if best else 0.0


def listed_confidence(logprobs: Sequence[float]) -> float:
    """Return the negative mean of a token's top log-probabilities.

    If fewer than 20 are listed, it is comparable only with confidences over as many.
    """
    best = sorted(logprobs, reverse=True)[:CONFIDENCE_TOKENS]
    return -sum(best) / len(best) if best else 0.0
