"""Monte Carlo tree search (UCT) with an ask-tell interface.

Source: Kocsis and Szepesvári 2006, "Bandit based Monte-Carlo Planning" (UCT); Chaslot, Winands and
van den Herik 2008, "Parallel Monte-Carlo Tree Search" (virtual loss). Deviations: every state
that a trial reaches is added to the tree, because each was paid for with a model call; and a
subtree without untried moves is not visited again, because nothing new would be learnt.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from optillm_hooks.search.tree import M, Node, S


@dataclass(frozen=True, slots=True, eq=False)
class Trial(Generic[S, M]):
    """An expansion to evaluate: `move` from `node`."""

    node: Node[S, M]
    move: M


class MCTS(Generic[S, M]):
    """A search tree that grows by one trial at a time, or by several concurrent trials.

    A trial descends from the root to the child with the highest `uct` at each node, until a node
    has an untried move, which the trial tries. A pending trial counts as one of value 0 (virtual
    loss), so that concurrent trials spread over the tree. Each move is tried once, unless its trial
    is dropped. Ties go to the oldest child. Apart from `moves`, the search is deterministic.

    Args:
        root: the state from which every trial starts.
        moves: returns the moves from a new node, in the order of trying; none if it is terminal.
        exploration: the exploration constant of UCT.
    """

    def __init__(
        self, root: S, moves: Callable[[Node[S, M]], Sequence[M]], *, exploration: float
    ) -> None:
        self._moves = moves
        self._exploration = exploration
        self._pending: set[Trial[S, M]] = set()
        self.root = self._add_node(Node(root))

    def ask(self) -> Trial[S, M] | None:
        """Return the next trial, or None if there is no untried move."""
        node = self.root
        if not node.open_moves:
            return None
        while not node.untried:
            trials = node.visits + node.pending
            open_children = [child for child in node.children if child.open_moves]
            node = max(open_children, key=lambda child: uct(child, trials, self._exploration))
        trial = Trial(node, node.untried.popleft())
        for passed in node.ancestry():
            passed.pending += 1
            passed.open_moves -= 1
        self._pending.add(trial)
        return trial

    def ask_many(self, limit: int) -> list[Trial[S, M]]:
        """Return up to `limit` trials to run concurrently."""
        trials: list[Trial[S, M]] = []
        while len(trials) < limit and (trial := self.ask()):
            trials.append(trial)
        return trials

    def tell(
        self,
        trial: Trial[S, M],
        state: S,
        value: float,
        *,
        then: Sequence[tuple[M, S]] = (),
    ) -> Node[S, M]:
        """Add the states that `trial` reached, back up its value, and return the last node.

        Args:
            trial: a pending trial.
            state: the state that its move led to.
            value: the value of its last state, in [0, 1].
            then: the moves after that one, each with the state it led to.

        Raises:
            KeyError: the trial is not pending.
            ValueError: the value is outside [0, 1], where a virtual loss could be a gain.
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"value must be in [0, 1], got {value}")
        self._end(trial)
        node = self._add_node(Node(state, trial.node))
        for move, reached in then:
            node.untried.remove(move)
            for passed in node.ancestry():
                passed.open_moves -= 1
            node = self._add_node(Node(reached, node))
        for passed in node.ancestry():
            passed.visits += 1
            passed.total += value
        return node

    def drop(self, trial: Trial[S, M]) -> None:
        """Drop a trial that failed; its move will be tried next from its node.

        Raises:
            KeyError: the trial is not pending.
        """
        self._end(trial)
        trial.node.untried.appendleft(trial.move)
        for passed in trial.node.ancestry():
            passed.open_moves += 1

    def _end(self, trial: Trial[S, M]) -> None:
        self._pending.remove(trial)
        for passed in trial.node.ancestry():
            passed.pending -= 1

    def _add_node(self, node: Node[S, M]) -> Node[S, M]:
        if node.parent is not None:
            node.parent.children.append(node)
        node.untried.extend(self._moves(node))
        for passed in node.ancestry():
            passed.open_moves += len(node.untried)
        return node


def uct(child: Node[S, M], parent_trials: int, exploration: float) -> float:
    """Return the mean value of `child` plus its exploration bonus; pending trials count as 0."""
    trials = child.visits + child.pending
    return child.total / trials + exploration * math.sqrt(math.log(parent_trials) / trials)
