"""Uncertainty of next-token distributions. Pure functions of logits: float32 [B, V], in nats."""

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
    """The uncertainty of one next-token distribution; metrics that were not requested are 0."""

    margin: float = 0.0
    """Probability of the likeliest token minus that of the second likeliest."""

    confidence: float = 0.0
    """DeepConf's confidence: minus the mean log-probability (nats) of the 20 likeliest tokens."""

    entropy: float = 0.0
    """Shannon entropy in bits."""

    varentropy: float = 0.0
    """Variance of the surprisal, in bits squared."""


def measure_uncertainty(
    logits: "Tensor", metrics: Collection[UncertaintyMetric]
) -> list[Uncertainty]:
    """Return the uncertainty of each row, in the given metrics."""
    import torch

    logprobs = logits.log_softmax(dim=-1)
    found: dict[str, Tensor] = {}
    if "margin" in metrics:
        found["margin"] = margin(logprobs)
    if "confidence" in metrics:
        found["confidence"] = confidence(logprobs)
    if "entropy" in metrics:
        found["entropy"], found["varentropy"] = entropy(logprobs)
    # All in one transfer: a GPU is waited for once.
    rows = torch.stack([*found.values()], dim=1).tolist()
    return [Uncertainty(**dict(zip(found, row, strict=True))) for row in rows]


def margin(logprobs: "Tensor") -> "Tensor":
    """Return [B]: the probability of the likeliest token minus that of the second likeliest."""
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
