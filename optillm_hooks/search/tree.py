"""Nodes of a search tree, with visit counts and values."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

S = TypeVar("S")
"""The state of a node."""

M = TypeVar("M")
"""A move, which leads from a node to a child."""


@dataclass(slots=True, eq=False)
class Node(Generic[S, M]):
    """A node of the search tree: a state that was reached. Nodes are compared by identity."""

    state: S
    parent: "Node[S, M] | None" = None
    children: list["Node[S, M]"] = field(default_factory=list["Node[S, M]"])
    untried: deque[M] = field(default_factory=deque[M])
    """Moves that have not been tried yet, the next one first."""

    visits: int = 0
    """Number of evaluated trials that ended here or below."""

    total: float = 0.0
    """Sum of the values of these trials."""

    pending: int = 0
    """Number of pending trials through this node."""

    open_moves: int = 0
    """Number of untried moves here and below."""

    @property
    def mean(self) -> float:
        """Mean value of the trials that ended here or below; 0 if there are none."""
        return self.total / self.visits if self.visits else 0.0

    def path(self) -> list["Node[S, M]"]:
        """Return the nodes from the root to this one, inclusive."""
        nodes = [*self.ancestry()]
        nodes.reverse()
        return nodes

    def ancestry(self) -> Iterator["Node[S, M]"]:
        """Yield this node, its parent, and so on up to the root."""
        node: Node[S, M] | None = self
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator["Node[S, M]"]:
        """Yield this node and its descendants in preorder, older children first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))
