"""Strengths from comparisons in pairs: the model of Bradley and Terry."""

from collections.abc import Sequence
from typing import Final

_MAX_STEPS: Final = 1000
_TOLERANCE: Final = 1e-6


def strengths(wins: Sequence[Sequence[float]], prior: Sequence[float]) -> list[float]:
    """Return the strength of each item, in the order given; they sum to 1.

    An item i beats j with the probability s_i / (s_i + s_j). The strengths are the most likely ones
    for the comparisons. Without any they are in proportion to `prior`.

    Source: Bradley and Terry 1952, "Rank Analysis of Incomplete Block Designs", Biometrika 39;
    Hunter 2004, "MM Algorithms for Generalized Bradley-Terry Models", The Annals of Statistics 32,
    equation 3 (the iteration).

    Args:
        wins: `wins[i][j]` comparisons of i with j were won by i.
        prior: so many more wins each item has over every other one, all above 0. So the strengths
            exist, even of an item that wins or loses all of its comparisons.
    """
    items = range(len(prior))
    won = [sum(wins[i][j] for j in items if j != i) + prior[i] * (len(prior) - 1) for i in items]
    between = [[wins[i][j] + wins[j][i] + prior[i] + prior[j] for j in items] for i in items]
    found = _normal(prior)
    for _ in range(_MAX_STEPS if len(prior) > 1 else 0):
        before = found
        found = _normal(
            [
                won[i] / sum(between[i][j] / (before[i] + before[j]) for j in items if j != i)
                for i in items
            ]
        )
        if all(abs(new - old) <= _TOLERANCE * new for new, old in zip(found, before, strict=True)):
            break
    return found


def _normal(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]
