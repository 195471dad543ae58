"""Adaptive branching: a tree that grows wider or deeper by Thompson sampling.

Source: AB-MCTS-A, "Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree
Search" (Inoue et al. 2025, arXiv:2503.04412), section 3. At each node a draw decides between a new
child (wider: its belief comes from the scores of the children so far) and the children that are
there (deeper: from the scores of all that was grown below them); another draw decides among these
children, each by the scores of its subtree. The model that grows a node is drawn likewise, by the
scores of all that it has grown. The priors are those of the paper's own experiments.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, Literal, NamedTuple, TypeVar

from optillm_hooks.search.tree import Node, S

Belief = Literal["gaussian", "beta"]
"""What is believed of a mean score: a Gaussian of unknown mean and variance, or a Beta."""

T = TypeVar("T")


class Normal(NamedTuple):
    """A normal distribution whose mean and variance have a normal-inverse-chi-squared belief."""

    mean: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    variance: float = 0.1

    def after(self, scores: Sequence[float]) -> "Normal":
        """Return the belief after `scores` have been seen."""
        count = len(scores)
        if not count:
            return self
        seen = fmean(scores)
        spread = sum((score - seen) ** 2 for score in scores)
        kappa, nu = self.kappa + count, self.nu + count
        shift = self.kappa * count / kappa * (seen - self.mean) ** 2
        return Normal(
            mean=(self.kappa * self.mean + count * seen) / kappa,
            kappa=kappa,
            nu=nu,
            variance=(self.nu * self.variance + spread + shift) / nu,
        )

    def draw(self, rng: random.Random) -> float:
        """Return a mean, drawn from the belief: its marginal is Student's t."""
        variance = self.nu * self.variance / rng.gammavariate(self.nu / 2, 2.0)
        return rng.gauss(self.mean, (variance / self.kappa) ** 0.5)


class Beta(NamedTuple):
    """A Beta belief in the mean of scores from 0 to 1; a score counts as a part of a success."""

    a: float = 0.5
    b: float = 0.5

    def after(self, scores: Sequence[float]) -> "Beta":
        """Return the belief after `scores` have been seen."""
        total = sum(scores)
        return Beta(self.a + total, self.b + len(scores) - total)

    def draw(self, rng: random.Random) -> float:
        """Return a mean, drawn from the belief."""
        return rng.betavariate(self.a, self.b)


@dataclass(frozen=True, slots=True, eq=False)
class Growth(Generic[S]):
    """What to grow: a child of `node`, by `model`."""

    node: Node[S, int]
    model: str


class AdaptiveBranching(Generic[S]):
    """A search tree that says what to grow next, and learns from scores.

    Trials may be pending: what they will bring is not known, so each is drawn by itself. A trial
    that fails is not told.

    Args:
        root: the state from which the tree grows.
        models: the names of the models.
        belief: what is believed of scores.
        rng: what is drawn from.
    """

    def __init__(
        self, root: S, models: Sequence[str], *, belief: Belief, rng: random.Random
    ) -> None:
        self.root: Node[S, int] = Node(root)
        self._prior = Normal() if belief == "gaussian" else Beta()
        self._rng = rng
        self._below: dict[Node[S, int], list[float]] = {self.root: []}
        """The scores of each node's subtree, its own first; the root has none of its own."""

        self._of_model: dict[str, list[float]] = {model: [] for model in models}

    def ask(self) -> Growth[S]:
        """Return what to grow next."""
        node = self.root
        while node.children and not self._goes_wider(node):
            node = self._drawn({child: self._below[child] for child in node.children})
        return Growth(node, self._drawn(self._of_model))

    def tell(self, growth: Growth[S], state: S, score: float) -> Node[S, int]:
        """Add the state that was grown, and return its node.

        Raises:
            ValueError: the score is outside [0, 1].
        """
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score must be in [0, 1], got {score}")
        node = Node[S, int](state, growth.node)
        growth.node.children.append(node)
        self._below[node] = []
        self._of_model[growth.model].append(score)
        for passed in node.ancestry():
            passed.visits += 1
            passed.total += score
            self._below[passed].append(score)
        return node

    def _goes_wider(self, node: Node[S, int]) -> bool:
        wider = [self._below[child][0] for child in node.children]
        deeper = [score for child in node.children for score in self._below[child][1:]]
        return self._drawn({True: wider, False: deeper})

    def _drawn(self, scores: Mapping[T, Sequence[float]]) -> T:
        """Return the key whose drawn mean is the highest."""
        if len(scores) == 1:
            return next(iter(scores))
        means = {key: self._prior.after(seen).draw(self._rng) for key, seen in scores.items()}
        return max(means, key=means.__getitem__)
