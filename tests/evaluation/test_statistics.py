"""Statistics of right and wrong answers, against figures worked out by hand."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from optillm_hooks.evaluation.asking import Outcome, kept, read_outcomes
from optillm_hooks.evaluation.grading import Grade
from optillm_hooks.evaluation.report import Row, rows_of
from optillm_hooks.evaluation.statistics import (
    holm,
    mcnemar,
    problems_needed,
    quantile,
    wilson,
    wins_needed,
)


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


@pytest.mark.parametrize("tests", [1, 4, 33])
def test_fewer_wins_than_needed_show_nothing(tests: int) -> None:
    corrected = [
        holm([mcnemar(wins, 0), *[1.0] * (tests - 1)])[0]
        for wins in (wins_needed(tests), wins_needed(tests) - 1)
    ]
    assert corrected[0] <= 0.05 < corrected[1]


def test_holms_correction() -> None:
    """By hand: 3 x 0.01, 2 x 0.02, and 0.03, which may not be less than the one before."""
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


TRUE: Final = {"base": 0.6, "same": 0.6, "too": 0.6, "better": 0.9}
"""How often the models of a known law are right, independently of each other."""

PROBLEMS: Final = 60


def simulated(rng: random.Random, folder: Path, run: int) -> Sequence[Row]:
    """Return the report of a run on new problems, from its file of outcomes."""
    file = folder / f"{run}.jsonl"
    with kept(file) as keep:
        for model, p in TRUE.items():
            for problem in range(PROBLEMS):
                grade: Grade = "right" if rng.random() < p else "wrong"
                keep(Outcome(model=model, problem=str(problem), grade=grade, seconds=1.0))
    return rows_of(read_outcomes(file), [*TRUE])


def test_reports_of_1000_runs_err_as_rarely_as_they_say(tmp_path: Path) -> None:
    """By the report of an evaluation, from the files of 1,000 runs with a fixed seed.

    Coverage: each model's Wilson interval has its true accuracy in 95 % +- 2 of the runs. Exactly,
    it does in 95.3 % at 0.6 and in 95.2 % at 0.9 (by the binomial law, as tested above). With
    another seed, one of 75 tests would have a false alarm.

    Family-wise error: in at most 5 % of the runs any model that is as good as the base is called
    different, although one is really better. Exactly, McNemar's test calls two equal models
    different at 5 % / 2 in 1.6 % of the runs: of both, 32 runs at most are expected, and more than
    50 come in one of 600 tests. Without Holm's correction it is about 67.
    """
    rng, covered, false_alarms = random.Random(5), Counter[str](), 0
    for run in range(1000):
        rows = simulated(rng, tmp_path, run)
        covered.update(row.model for row in rows if row.low <= TRUE[row.model] <= row.high)
        false_alarms += any(
            row.difference is not None and row.difference.p <= 0.05
            for row in rows
            if TRUE[row.model] == TRUE["base"]
        )
    assert all(930 <= covered[model] <= 970 for model in TRUE), covered
    assert 0 < false_alarms <= 50


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
