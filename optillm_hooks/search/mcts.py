"""Monte Carlo tree search by UCT, asked for trials and told their values.

Source: Kocsis and Szepesvári 2006, "Bandit based Monte-Carlo Planning" (UCT); Chaslot, Winands and
van den Herik 2008, "Parallel Monte-Carlo Tree Search" (virtual loss). Deviations: a trial keeps
every state that it reaches, because each was paid for with a model call, and a state with nothing
left to try is not visited again, because that would tell nothing new.
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
    """A search tree that grows by one trial at a time, or by several at once.

    The next trial goes down from the root, at each node to the child of highest `uct`, until a
    node has an untried move: that one is handed out. A trial under way counts as one that was
    worth nothing (virtual loss), so that trials asked for together spread over the tree. A move is
    handed out once, unless its trial was dropped. Ties go to the child that was made first; there
    is no chance in it but what `moves` draws.

    Args:
        root: where every trial starts.
        moves: says what can be tried from a node that was just made, in the order of trying; none
            from a terminal one.
        exploration: weight of the uncertainty of a child's value against the value.
    """

    def __init__(
        self, root: S, moves: Callable[[Node[S, M]], Sequence[M]], *, exploration: float
    ) -> None:
        self._moves = moves
        self._exploration = exploration
        self._under_way: set[Trial[S, M]] = set()
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
        self._under_way.add(trial)
        return trial

    def ask_many(self, most: int) -> list[Trial[S, M]]:
        """Return up to `most` trials to be run at once."""
        trials: list[Trial[S, M]] = []
        while len(trials) < most and (trial := self.ask()):
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
        """Keep what `trial` reached, count its value from there up to the root, return its end.

        Args:
            trial: a trial that was asked for, and not told or dropped yet.
            state: where its move led.
            value: what its end is worth, in [0, 1].
            then: the moves that were made after that one, each with the state it led to.

        Raises:
            KeyError: the trial is not under way.
            ValueError: the value is outside [0, 1], where trials under way would not count as lost.
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
        """Take back a trial that came to nothing; its move can be tried again, as the next one.

        Raises:
            KeyError: the trial is not under way.
        """
        self._end(trial)
        trial.node.untried.appendleft(trial.move)
        for passed in trial.node.ancestry():
            passed.room += 1

    def _end(self, trial: Trial[S, M]) -> None:
        self._under_way.remove(trial)
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
    """Return the value of `child` plus its exploration bonus, trials under way counted as lost."""
    trials = child.visits + child.pending
    return child.total / trials + exploration * math.sqrt(math.log(parent_trials) / trials)
