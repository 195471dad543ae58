"""The best of ratings, some of which may be missing."""

import pytest

from optillm_hooks.answers.voting import leaders


@pytest.mark.parametrize(
    ("ratings", "best"),
    [
        pytest.param([1.0, 9.0, 2.0], [1], id="one is best"),
        pytest.param([9.0, 1.0, 9.0], [0, 2], id="two are"),
        pytest.param([None, 0.0], [1], id="a rating of nothing beats none"),
        pytest.param([None, None], [0, 1], id="none at all"),
        pytest.param([], [], id="nobody"),
    ],
)
def test_leaders(ratings: list[float | None], best: list[int]) -> None:
    assert leaders(ratings) == best
