"""Nodes of a search tree, with visits and values."""

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
    """A state that was reached. Two nodes are equal only if they are the same node."""

    state: S
    parent: "Node[S, M] | None" = None
    children: list["Node[S, M]"] = field(default_factory=list["Node[S, M]"])
    untried: deque[M] = field(default_factory=deque[M])
    """Moves that were not handed out yet, the next one first."""

    visits: int = 0
    """Trials that ended here or below and have a value."""

    total: float = 0.0
    """The sum of their values."""

    pending: int = 0
    """Trials through here that have no value yet."""

    room: int = 0
    """Untried moves here and below."""

    @property
    def mean(self) -> float:
        """The mean value of the trials that ended here or below; 0 without any."""
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
        """Yield this node and all below it, each before its children, older children first."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(reversed(node.children))
