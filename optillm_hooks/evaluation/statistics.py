"""Statistics of right and wrong answers."""

import math
from collections.abc import Sequence


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a share, at 95 % by default."""
    share, weight = right / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / of + weight / of / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the split of wins and losses (McNemar's exact test)."""
    count, few = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(few + 1)) * 0.5**count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for their number, in their order (Holm 1979, step-down).

    Rejecting all that are at most alpha keeps the probability of any false rejection at alpha.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def wins_needed(tests: int, alpha: float = 0.05) -> int:
    """Return how many wins, without a loss, show a difference by the first of so many tests.

    These are McNemar's exact ones, corrected by Holm: fewer problems can show nothing.
    """
    return math.ceil(1 + math.log2(tests / alpha))


def problems_needed(wins: int, losses: int, problems: int) -> int | None:
    """Return how many problems would show a difference like this at 5 % with a power of 80 %.

    By the normal approximation of McNemar's test (Miettinen 1968). None if there is no difference.
    """
    if wins == losses or problems == 0:
        return None
    discordant, difference = (wins + losses) / problems, (wins - losses) / problems
    spread = math.sqrt(max(0.0, discordant - difference**2))
    return math.ceil(((1.96 * math.sqrt(discordant) + 0.8416 * spread) / difference) ** 2)


def quantile(values: Sequence[float], q: float) -> float:
    """Return the quantile `q` of at least one value, interpolated linearly."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
