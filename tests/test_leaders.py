"""The best of ratings, some of which may be missing, and of their sums over equal answers."""

import pytest

from optillm_hooks.answers.voting import leaders
from optillm_hooks.judging.selection import by_agreement


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


@pytest.mark.parametrize(
    ("equal", "ratings", "best"),
    [
        pytest.param([0, 1, 0], [3, 5, 3], 0, id="the highest sum"),
        pytest.param([0, 0, 0], [2, 9, 9], 1, id="of its candidates the one rated highest"),
        pytest.param([None, None, 2, 2], [5, 5, 3, 3], 2, id="an unreadable one equals no other"),
        pytest.param([0, 1, 1], [6, 4, None], 2, id="a missing rating is the mean"),
        pytest.param([0, 1, 1], [8, 4, 4], 1, id="equal sums: the more frequent"),
        pytest.param([0, 1, 1, 3], [8, None, None, 0], 1, id="even without a rating"),
        pytest.param([0, 1], [None, 5], 1, id="as frequent: the one with a rating"),
        pytest.param([0, 1], [5, 5], 0, id="alike: the earlier"),
    ],
)
def test_the_answer_with_the_highest_sum_of_ratings(
    equal: list[int | None], ratings: list[float | None], best: int
) -> None:
    assert by_agreement(equal, ratings) == best
