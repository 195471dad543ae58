"""The model of Bradley and Terry: the fit is the most likely one, whatever was compared."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.judging.bradley_terry import strengths

Wins = list[list[float]]


@st.composite
def compared(draw: Callable[[st.SearchStrategy[list[int]]], list[int]]) -> tuple[Wins, list[float]]:
    """Return wins among 2 to 6 items, and a prior."""
    prior = draw(st.lists(st.integers(1, 5), min_size=2, max_size=6))
    row = st.lists(st.integers(0, 4), min_size=len(prior), max_size=len(prior))
    return [[float(won) for won in draw(row)] for _ in prior], [float(p) for p in prior]


@given(compared())
def test_each_item_wins_as_often_as_its_strength_predicts(found: tuple[Wins, list[float]]) -> None:
    """This is the condition of the maximum likelihood, of which there is one."""
    wins, prior = found
    fitted, items = strengths(wins, prior), range(len(prior))
    assert sum(fitted) == pytest.approx(1)
    for i in items:
        others = [j for j in items if j != i]
        won = sum(wins[i][j] + prior[i] for j in others)
        expected = sum(
            (wins[i][j] + wins[j][i] + prior[i] + prior[j]) * fitted[i] / (fitted[i] + fitted[j])
            for j in others
        )
        assert won == pytest.approx(expected, rel=1e-4)


@given(compared(), st.integers(0, 99))
def test_the_order_of_the_items_does_not_matter(found: tuple[Wins, list[float]], seed: int) -> None:
    wins, prior = found
    order = random.Random(seed).sample(range(len(prior)), len(prior))
    moved = strengths([[wins[i][j] for j in order] for i in order], [prior[i] for i in order])
    fitted = strengths(wins, prior)
    assert moved == pytest.approx([fitted[i] for i in order], rel=1e-4)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_without_comparisons_the_prior_decides(prior: list[int]) -> None:
    fitted = strengths([[0.0] * len(prior)] * len(prior), prior)
    assert fitted == pytest.approx([p / sum(prior) for p in prior])


def test_known_strengths_are_found_again() -> None:
    """From n comparisons of each pair. The Fisher information of a log-strength is n times the sum
    of p(1-p) over the three pairs, which is above 21,000, and half of it is left if the others are
    estimated too: 0.05 is more than five standard deviations, which four strengths exceed with a
    probability below 3e-6."""
    known, rng, n = [0.5, 0.25, 0.15, 0.1], random.Random(3), 40_000
    wins = [[0.0] * 4 for _ in known]
    for i in range(4):
        for j in range(i):
            won = sum(rng.random() < known[i] / (known[i] + known[j]) for _ in range(n))
            wins[i][j], wins[j][i] = won, n - won
    assert strengths(wins, [0.01] * 4) == pytest.approx(known, rel=0.05)


def test_an_item_that_wins_always_is_the_strongest_and_one_that_loses_always_the_weakest() -> None:
    wins = [[0.0, 2.0, 2.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    first, second, third = strengths(wins, [0.01] * 3)
    assert 1 > first > second > third > 0


def test_strengths_are_transitive_where_counts_of_wins_are_not_enough() -> None:
    """Both have won two of four comparisons, but one of them against the stronger opponents."""
    wins = [[0.0] * 4 for _ in range(4)]
    wins[0][2], wins[2][0] = 2.0, 2.0
    wins[1][3], wins[3][1] = 2.0, 2.0
    wins[2][3] = 4.0
    fitted = strengths(wins, [0.5] * 4)
    assert fitted[0] > fitted[1]
