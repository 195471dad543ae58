"""Adaptive branching: what is believed after scores, and how often each branch is drawn."""

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest

from optillm_hooks.search.branching import AdaptiveBranching, Belief, Beta, Normal

DRAWS = 4000
"""By Hoeffding, they stray from a probability by 0.05 with probability under 2*exp(-20) = 5e-9."""


def grown(
    belief: Belief, rng: random.Random, models: tuple[str, ...] = ("m",)
) -> AdaptiveBranching[str]:
    return AdaptiveBranching("", models, belief=belief, rng=rng)


def student(belief: Normal) -> Callable[[float], float]:
    """Return the density of the mean: Student's t with `nu` degrees of freedom."""
    nu, scale = belief.nu, math.sqrt(belief.variance / belief.kappa)
    factor = math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2))
    factor /= math.sqrt(nu * math.pi) * scale
    return lambda x: factor * (1 + ((x - belief.mean) / scale) ** 2 / nu) ** (-(nu + 1) / 2)


def beta(belief: Beta) -> Callable[[float], float]:
    a, b = belief
    factor = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))
    return lambda x: factor * x ** (a - 1) * (1 - x) ** (b - 1)


def first_is_higher(one: Normal | Beta, other: Normal | Beta) -> float:
    """Return the probability that a draw of `one` is above one of `other`, integrated by midpoints.

    The points are those of x = tan(u) for Student's t, and of x = sin(u)^2 for the Beta, so that
    tails and edges have enough of them.
    """
    steps, higher, below = 40_000, 0.0, 0.0
    if isinstance(one, Normal) and isinstance(other, Normal):
        us = [-math.pi / 2 + math.pi * (k + 0.5) / steps for k in range(steps)]
        points = [(math.tan(u), math.pi / steps / math.cos(u) ** 2) for u in us]
        densities = student(one), student(other)
    else:
        assert isinstance(one, Beta)
        assert isinstance(other, Beta)
        us = [math.pi / 2 * (k + 0.5) / steps for k in range(steps)]
        points = [(math.sin(u) ** 2, math.pi / steps * math.sin(u) * math.cos(u)) for u in us]
        densities = beta(one), beta(other)
    for x, width in points:
        mass = densities[1](x) * width
        higher += densities[0](x) * width * (below + mass / 2)
        below += mass
    assert below == pytest.approx(1, abs=1e-3)
    return higher


PRIORS: dict[Belief, Normal | Beta] = {"gaussian": Normal(), "beta": Beta()}


def test_the_belief_in_a_normal_distribution_is_the_textbooks() -> None:
    """One score at a time or all at once; by hand for one: kappa 2, nu 2, mean 0.4, and variance
    (0.1 + 0.5 * 0.64) / 2."""
    one = Normal().after([0.8])
    assert one == pytest.approx((0.4, 2.0, 2.0, 0.21))
    assert Normal().after([0.8, 0.2, 0.5]) == pytest.approx(one.after([0.2]).after([0.5]))
    assert Normal().after([]) == Normal()


def test_a_score_is_a_part_of_a_success() -> None:
    assert Beta().after([0.25, 1.0]) == (1.75, 1.25)


@pytest.mark.parametrize("belief", ["gaussian", "beta"])
@pytest.mark.parametrize(
    ("children", "below"),
    [([0.5], []), ([0.9, 0.1], []), ([0.2, 0.3], [0.8, 0.9]), ([0.7], [0.1, 0.1, 0.2])],
)
def test_wider_or_deeper_is_drawn_by_the_beliefs(
    belief: Belief, children: list[float], below: list[float]
) -> None:
    """`below` are grown from the first child."""
    tree = grown(belief, random.Random(3))
    first = tree.ask()
    nodes = [tree.tell(first, "child", score) for score in children]
    for score in below:
        tree.tell(type(first)(nodes[0], "m"), "grandchild", score)
    prior = PRIORS[belief]
    exact = first_is_higher(prior.after(children), prior.after(below))
    wider = sum(tree.ask().node is tree.root for _ in range(DRAWS)) / DRAWS
    assert wider == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("belief", ["gaussian", "beta"])
def test_the_model_is_drawn_by_the_scores_of_what_it_has_grown(belief: Belief) -> None:
    tree = grown(belief, random.Random(4), ("one", "two"))
    growth = type(tree.ask())
    for model, scores in (("one", [0.9, 0.8, 0.9]), ("two", [0.2, 0.4])):
        for score in scores:
            tree.tell(growth(tree.root, model), model, score)
    prior = PRIORS[belief]
    exact = first_is_higher(prior.after([0.9, 0.8, 0.9]), prior.after([0.2, 0.4]))
    models = Counter(tree.ask().model for _ in range(DRAWS))
    assert models["one"] / DRAWS == pytest.approx(exact, abs=0.05)


def test_all_models_and_nodes_are_as_likely_before_any_score() -> None:
    tree = grown("gaussian", random.Random(5), ("one", "two"))
    found = Counter(tree.ask().model for _ in range(DRAWS))
    assert found["one"] / DRAWS == pytest.approx(0.5, abs=0.05)
    assert tree.ask().node is tree.root


def test_scores_are_those_of_all_above() -> None:
    tree = grown("beta", random.Random(6))
    growth = type(tree.ask())
    child = tree.tell(growth(tree.root, "m"), "a", 0.5)
    leaf = tree.tell(growth(child, "m"), "b", 1.0)
    assert [(node.visits, node.mean) for node in leaf.path()] == [(2, 0.75), (2, 0.75), (1, 1.0)]


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_a_score_outside_is_refused(score: float) -> None:
    tree = grown("beta", random.Random(7))
    with pytest.raises(ValueError, match="score must be in"):
        tree.tell(tree.ask(), "a", score)


@pytest.mark.parametrize("belief", ["gaussian", "beta"])
def test_it_goes_deeper_where_refining_helps_and_wider_where_it_does_not(belief: Belief) -> None:
    """200 searches of 16 scores each: seeded, so that it gives the same every time."""
    children = dict[str, float]()
    for name, gain in (("helps", 0.25), ("harms", -0.25)):
        wide = 0
        for seed in range(200):
            rng = random.Random(seed)
            tree = grown(belief, rng)
            for _ in range(16):
                asked = tree.ask()
                depth = len(asked.node.path()) - 1
                score = min(1.0, max(0.0, rng.gauss(0.4 + gain * depth, 0.1)))
                tree.tell(asked, "", score)
            wide += len(tree.root.children)
        children[name] = wide / 200
    assert children["helps"] + 2 < children["harms"]
