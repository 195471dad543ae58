"""Statistics of right and wrong answers, against figures worked out by hand."""

import math
import random

import pytest

from optillm_hooks.evaluation.statistics import holm, mcnemar, problems_needed, quantile, wilson


def test_mcnemars_p_is_exact() -> None:
    """Of 5 differences 4 are wins: 2 (1 + 5) / 32."""
    assert mcnemar(4, 1) == mcnemar(1, 4) == 0.375
    assert mcnemar(0, 0) == mcnemar(2, 2) == 1.0


def test_wilsons_interval() -> None:
    """Of 1 in 2: 0.5 +- 0.405."""
    low, high = wilson(1, 2)
    assert (low + high, high - low) == pytest.approx((1.0, 0.8109), abs=1e-4)


@pytest.mark.parametrize("problems", [60, 100, 200])
@pytest.mark.parametrize("accuracy", [0.3, 0.5, 0.7, 0.9])
def test_the_interval_covers_the_truth_in_95_percent(problems: int, accuracy: float) -> None:
    """Exactly: the binomial probability of all counts whose interval has the true accuracy."""
    covered = sum(
        math.comb(problems, right) * accuracy**right * (1 - accuracy) ** (problems - right)
        for right in range(problems + 1)
        if wilson(right, problems)[0] <= accuracy <= wilson(right, problems)[1]
    )
    assert 0.93 <= covered <= 0.97


def test_holms_correction() -> None:
    """By hand: 3 x 0.01, 2 x 0.02, and 0.03, which may not be less than the one before."""
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_false_alarms_below_5_percent() -> None:
    """Eight models as good as the base, 80 problems, 400 repetitions with a fixed seed.

    If one repetition in 20 had a false alarm, there would be 20; more than 33 would come in one of
    400 such tests.
    """
    rng = random.Random(7)
    false_alarms = 0
    for _ in range(400):
        base = [rng.random() < 0.6 for _ in range(80)]
        ps = list[float]()
        for _ in range(8):
            other = [rng.random() < 0.6 for _ in range(80)]
            pairs = list(zip(other, base, strict=True))
            ps.append(mcnemar(pairs.count((True, False)), pairs.count((False, True))))
        false_alarms += min(holm(ps)) <= 0.05
    assert false_alarms <= 33


def test_as_many_problems_as_needed_show_the_difference() -> None:
    """20 wins and 8 losses in 60 problems; at the number needed, 4 of 5 repetitions show it.

    Of 1,000 repetitions, the share is within 0.05 of 0.8 but for one test in 10,000. The exact test
    needs a few more than its approximation says.
    """
    needed = problems_needed(20, 8, 60)
    assert needed == 90
    rng = random.Random(3)
    shown = 0
    for _ in range(1000):
        drawn = [rng.random() for _ in range(needed)]
        wins = sum(each < 20 / 60 for each in drawn)
        losses = sum(20 / 60 <= each < 28 / 60 for each in drawn)
        shown += mcnemar(wins, losses) <= 0.05
    assert 0.73 <= shown / 1000 <= 0.85
    assert problems_needed(3, 3, 60) is None


def test_quantiles_are_interpolated() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert quantile([5.0], 0.95) == 5.0
