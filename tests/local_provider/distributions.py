"""The exact distribution of sampling parameters, and whether counts follow one."""

import math
from collections.abc import Mapping, Sequence

import torch

from optillm_hooks.local_provider.engine_request import SamplingParams


def exact(logits: Mapping[int, float], sampling: SamplingParams) -> dict[int, float]:
    """Return the probability of each token that can be drawn."""
    order = sorted(logits, key=lambda token: -logits[token])[: sampling.top_k or None]
    weights = {token: math.exp(logits[token] / sampling.temperature) for token in order}
    total = sum(weights.values())
    kept, mass = dict[int, float](), 0.0
    for token, weight in weights.items():
        if mass < sampling.top_p * total and weight >= sampling.min_p * weights[order[0]]:
            kept[token] = weight
        mass += weight
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


def assert_follows(counts: Sequence[int], probabilities: Sequence[float]) -> None:
    """Chi-square: fails by chance once in ten million times."""
    n = sum(counts)
    distance = sum((c - n * p) ** 2 / (n * p) for c, p in zip(counts, probabilities, strict=True))
    given = ((len(probabilities) - 1) / 2, distance / 2)
    freedom, half = torch.tensor(given, dtype=torch.float64, device="cpu")
    assert torch.special.gammaincc(freedom, half) > 1e-7
