"""Statistics of right and wrong answers, against figures worked out by hand."""

import pytest

from optillm_hooks.evaluation.statistics import mcnemar, wilson


def test_mcnemars_p_is_exact() -> None:
    """Of 5 differences 4 are wins: 2 (1 + 5) / 32."""
    assert mcnemar(4, 1) == mcnemar(1, 4) == 0.375
    assert mcnemar(0, 0) == mcnemar(2, 2) == 1.0


def test_wilsons_interval() -> None:
    """Of 1 in 2: 0.5 +- 0.405."""
    low, high = wilson(1, 2)
    assert (low + high, high - low) == pytest.approx((1.0, 0.8109), abs=1e-4)
