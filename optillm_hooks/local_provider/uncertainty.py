"""Pure functions from logits (float32 [B, V], nats) to what a step tells about the model."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from optillm_hooks.decoding.confidence import CONFIDENCE_TOKENS

if TYPE_CHECKING:
    from torch import Tensor

UncertaintyMetric = Literal["margin", "confidence", "entropy"]


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of the distribution that a token is drawn from; 0 where nobody asked for it."""

    margin: float = 0.0
    """Probability of the likeliest token minus that of the second."""

    confidence: float = 0.0
    """Minus the mean log-probability (nats) of the 20 likeliest tokens: high when peaked."""

    entropy: float = 0.0
    """In bits."""

    varentropy: float = 0.0
    """Variance of the surprise, in bits squared."""


def measure_uncertainty(
    logits: "Tensor", asked: Collection[UncertaintyMetric]
) -> list[Uncertainty]:
    """Return the measures in `asked` of each row."""
    logprobs = logits.log_softmax(dim=-1)
    none = [0.0] * len(logits)
    margins = margin(logprobs).tolist() if "margin" in asked else none
    confidences = confidence(logprobs).tolist() if "confidence" in asked else none
    entropies, varentropies = none, none
    if "entropy" in asked:
        h, v = entropy(logprobs)
        entropies, varentropies = h.tolist(), v.tolist()
    columns = zip(margins, confidences, entropies, varentropies, strict=True)
    return [Uncertainty(*row) for row in columns]


def margin(logprobs: "Tensor") -> "Tensor":
    """Return [B]: the probability of the likeliest token minus that of the second."""
    best = logprobs.topk(2, dim=-1).values.exp()
    return best[:, 0] - best[:, 1]


def confidence(logprobs: "Tensor", tokens: int = CONFIDENCE_TOKENS) -> "Tensor":
    """Return [B]: minus the mean log-probability of the `tokens` likeliest tokens."""
    return -logprobs.topk(min(tokens, logprobs.shape[-1]), dim=-1).values.mean(dim=-1)


def entropy(logprobs: "Tensor") -> "tuple[Tensor, Tensor]":
    """Return entropy [B] in bits and varentropy [B] in bits squared."""
    p = logprobs.exp()
    surprise = -logprobs.clamp(min=-1e4) / math.log(2)
    h = (p * surprise).sum(dim=-1)
    v = (p * (surprise - h[:, None]).square()).sum(dim=-1)
    return h, v
