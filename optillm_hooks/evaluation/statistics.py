"""Statistics of right and wrong answers."""

import math


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval of a share, at 95 % by default."""
    share, weight = right / of, z * z / of
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / of + weight / of / 4) / (1 + weight)
    return middle - half, middle + half


def mcnemar(wins: int, losses: int) -> float:
    """Return the two-sided p-value of the split of wins and losses (McNemar's exact test)."""
    count, few = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(few + 1)) * 0.5**count)
