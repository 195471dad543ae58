"""A model's confidence in a token, computed from the top log-probabilities of a provider."""

import math
from collections.abc import Sequence

CONFIDENCE_TOKENS = 20
"""Number of top log-probabilities averaged, as in DeepConf's reference implementation."""


def listed_margin(logprobs: Sequence[float]) -> float:
    """Return the difference between the two highest probabilities in a token's top logprobs."""
    best = sorted(logprobs, reverse=True)[:2]
    return math.exp(best[0]) - (math.exp(best[1]) if len(best) > 1 else 0.0) if best else 0.0


def listed_confidence(logprobs: Sequence[float]) -> float:
    """Return the negative mean of a token's top log-probabilities.

    If fewer than 20 are given, compare it only with confidences over the same number.
    """
    best = sorted(logprobs, reverse=True)[:CONFIDENCE_TOKENS]
    return -sum(best) / len(best) if best else 0.0
