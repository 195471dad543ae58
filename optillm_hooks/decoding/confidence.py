"""How sure a model was of a token, by the log-probabilities that a provider lists."""

import math
from collections.abc import Sequence

CONFIDENCE_TOKENS = 20
"""Tokens whose log-probabilities make a confidence, as in DeepConf's reference code."""


def listed_margin(logprobs: Sequence[float]) -> float:
    """Return the margin of one distribution of which the likeliest log-probabilities are listed."""
    best = sorted(logprobs, reverse=True)[:2]
    return math.exp(best[0]) - (math.exp(best[1]) if len(best) > 1 else 0.0) if best else 0.0


def listed_confidence(logprobs: Sequence[float]) -> float:
    """Return the confidence of one distribution of which the likeliest ones are listed.

    Of fewer than 20 it is that of those: comparable with others of as many.
    """
    best = sorted(logprobs, reverse=True)[:CONFIDENCE_TOKENS]
    return -sum(best) / len(best) if best else 0.0
