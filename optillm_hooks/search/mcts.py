"""Monte Carlo tree search (UCT) with an ask-tell interface.

Source: Kocsis and Szepesvári 2006, "Bandit based Monte-Carlo Planning" (UCT); Chaslot, Winands and
van den Herik 2008, "Parallel Monte-Carlo Tree Search" (virtual loss). Deviations: a trial keeps
every state that it reaches, because each was paid for with a model call, and a state with nothing
left to try is not visited again, because nothing new would be learnt.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

from optillm_hooks.search.tree import M, Node, S


@dataclass(frozen=True, slots=True, eq=False)
class Trial(Generic[S, M]):
    """Something to try: `move` from `node`."""

    node: Node[S, M]
    move: M


class MCTS(Generic[S, M]):
    """A search tree that grows by one trial at a time, or by several concurrent ones.

    The next trial goes down from the root, at each node to the child with the highest `uct`, until
    a node has an untried move: that move is handed out. A pending trial counts as one of value 0
    (virtual loss), so that concurrent trials spread over the tree. A move is handed out once,
    unless its trial is dropped. Ties go to the oldest child. The only randomness is that of
    `moves`.

    Args:
        root: the state where every trial starts.
        moves: returns the moves from a new node, in the order of trying; none if it is terminal.
        exploration: weight of the uncertainty of a child's value against the value.
    """

    def __init__(
        self, root: S, moves: Callable[[Node[S, M]], Sequence[M]], *, exploration: float
    ) -> None:
        self._moves = moves
        self._exploration = exploration
        self._pending: set[Trial[S, M]] = set()
        self.root = self._made(Node(root))

    def ask(self) -> Trial[S, M] | None:
        """Return the next trial, or None while every move is handed out."""
        node = self.root
        if not node.room:
            return None
        while not node.untried:
            trials = node.visits + node.pending
            open_children = [child for child in node.children if child.room]
            node = max(open_children, key=lambda child: uct(child, trials, self._exploration))
        trial = Trial(node, node.untried.popleft())
        for passed in node.ancestry():
            passed.pending += 1
            passed.room -= 1
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
        """Add the states that `trial` reached, back up its value to the root, return the last node.

        Args:
            trial: a pending trial, neither told nor dropped yet.
            state: the state that its move led to.
            value: the value of its last state, in [0, 1].
            then: the moves after that one, each with the state it led to.

        Raises:
            KeyError: the trial is not pending.
            ValueError: the value is outside [0, 1], and a virtual loss might be a gain.
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"value must be in [0, 1], got {value}")
        self._end(trial)
        node = self._made(Node(state, trial.node))
        for move, reached in then:
            node.untried.remove(move)
            for passed in node.ancestry():
                passed.room -= 1
            node = self._made(Node(reached, node))
        for passed in node.ancestry():
            passed.visits += 1
            passed.total += value
        return node

    def drop(self, trial: Trial[S, M]) -> None:
        """Take back a trial that failed; its move will be the next one tried from its node.

        Raises:
            KeyError: the trial is not pending.
        """
        self._end(trial)
        trial.node.untried.appendleft(trial.move)
        for passed in trial.node.ancestry():
            passed.room += 1

    def _end(self, trial: Trial[S, M]) -> None:
        self._pending.remove(trial)
        for passed in trial.node.ancestry():
            passed.pending -= 1

    def _made(self, node: Node[S, M]) -> Node[S, M]:
        if node.parent is not None:
            node.parent.children.append(node)
        node.untried.extend(self._moves(node))
        for passed in node.ancestry():
            passed.room += len(node.untried)
        return node


def uct(child: Node[S, M], parent_trials: int, exploration: float) -> float:
    """Return the mean value of `child` plus its exploration bonus; pending trials count as 0."""
    trials = child.visits + child.pending
    return child.total / trials + exploration * math.sqrt(math.log(parent_trials) / trials)
