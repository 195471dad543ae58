"""The search as a state machine: hand-worked values, exact laws, and laws of any interleaving."""

import math
import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.search.mcts import MCTS, Trial, uct
from optillm_hooks.search.tree import Node

Search = MCTS[str, str]
StrNode = Node[str, str]
ENDLESS = [str(number) for number in range(200)]


def arms(*names: str, exploration: float) -> Search:
    """A bandit: the root's moves are the arms, and each arm can be tried again and again."""

    def moves(node: StrNode) -> Sequence[str]:
        if node.parent is None:
            return names
        return ENDLESS if node.parent.parent is None else ()

    return MCTS("", moves, exploration=exploration)


def arm_of(trial: Trial[str, str]) -> str:
    path = trial.node.path()
    return trial.move if len(path) == 1 else path[1].state


def visits(search: Search) -> dict[str, int]:
    return {arm.state: arm.visits for arm in search.root.children}


def test_choices_are_those_of_uct_worked_by_hand() -> None:
    """Arm a is always worth 1, b 0.5, exploration 1. With n trials in all, of them n_a on a:
    value of a = 1 + sqrt(ln n / n_a), of b = 0.5 + sqrt(ln n / n_b).

    n=2: 1.833 > 1.333 a   n=3: 1.741 > 1.548 a   n=4: 1.680 > 1.677 a   n=5: 1.634 < 1.769 b
    n=6: 1.669 > 1.446 a   n=7: 1.624 > 1.486 a   n=8: 1.589 > 1.520 a   n=9: 1.560 > 1.548 a
    n=10: 1.537 < 1.573 b
    """
    search = arms("a", "b", exploration=1.0)
    chosen = ""
    for _ in range(11):
        trial = search.ask()
        assert trial is not None
        chosen += arm_of(trial)
        search.tell(trial, trial.move, {"a": 1.0, "b": 0.5}[arm_of(trial)])
    assert chosen == "abaaabaaaab"
    assert visits(search) == {"a": 8, "b": 3}


def test_a_pending_trial_counts_as_lost() -> None:
    """Values 0.9, 0.8, 0.1 after one trial each, exploration 0.2, all asked for together.

    n=3: a 0.9 + 0.2*sqrt(ln 3) = 1.110 is best. With it pending, n=4:
    a 0.9/2 + 0.2*sqrt(ln 4 / 2) = 0.617, b 0.8 + 0.2*sqrt(ln 4) = 1.035: b. With both, n=5:
    a 0.45 + 0.2*sqrt(ln 5 / 2) = 0.629, b 0.4 + 0.179 = 0.579, c 0.1 + 0.2*sqrt(ln 5) = 0.354: a.
    """
    search = arms("a", "b", "c", exploration=0.2)
    for trial, value in zip(search.ask_many(3), [0.9, 0.8, 0.1], strict=True):
        search.tell(trial, trial.move, value)
    assert [arm_of(trial) for trial in search.ask_many(3)] == ["a", "b", "a"]
    a = search.root.children[0]
    assert uct(a, 6, 0.2) == pytest.approx(0.9 / 3 + 0.2 * math.sqrt(math.log(6) / 3))


@pytest.mark.parametrize(("exploration", "second"), [(1.6, "a"), (1.7, "b")])
def test_pending_trials_count_in_the_parent_too(exploration: float, second: str) -> None:
    """Values 1 and 0. With a pending, n=3: a 1/2 + c*sqrt(ln 3 / 2), b c*sqrt(ln 3), so b is next
    where c > 0.5 / 0.307 = 1.629. With n=2, as if a were not pending, c would have to be 2.05."""
    search = arms("a", "b", exploration=exploration)
    for trial, value in zip(search.ask_many(2), [1.0, 0.0], strict=True):
        search.tell(trial, trial.move, value)
    assert [arm_of(trial) for trial in search.ask_many(2)] == ["a", second]


def test_a_walk_yields_parents_before_children_and_older_ones_first() -> None:
    search: Search = MCTS("", lambda _: ("a", "b"), exploration=0.0)
    for value in (1.0, 0.5, 0.9, 0.8):
        trial = search.ask()
        assert trial is not None
        search.tell(trial, trial.node.state + trial.move, value)
    assert [node.state for node in search.root.walk()] == ["", "a", "aa", "ab", "b"]


def test_dropping_a_trial_takes_its_loss_back_and_offers_the_move_again() -> None:
    search = arms("a", "b", exploration=1.0)
    first = search.ask()
    assert first is not None
    search.drop(first)
    assert search.root.pending == 0
    again = search.ask()
    assert again is not None
    assert again.move == first.move


def test_the_descent_goes_past_the_first_level() -> None:
    """Two moves each way, two levels: the fifth trial is below the best path, two levels down."""
    values = {"a": 0.5, "b": 0.2, "aa": 0.9, "ab": 0.1}
    search: Search = MCTS("", lambda _: ("a", "b"), exploration=0.0)
    for _ in range(4):
        trial = search.ask()
        assert trial is not None
        reached = trial.node.state + trial.move
        search.tell(trial, reached, values[reached])
    trial = search.ask()
    assert trial is not None
    assert (trial.node.state, trial.move) == ("aa", "a")


def test_the_value_of_a_chain_counts_on_its_whole_path() -> None:
    search: Search = MCTS("", lambda _: ("a", "b"), exploration=0.0)
    trial = search.ask()
    assert trial is not None
    end = search.tell(trial, "a", 0.7, then=[("b", "ab"), ("a", "aba")])
    assert [(n.state, n.visits, n.mean) for n in end.path()] == [
        ("", 1, 0.7),
        ("a", 1, 0.7),
        ("ab", 1, 0.7),
        ("aba", 1, 0.7),
    ]
    assert [list(n.untried) for n in end.path()] == [["b"], ["a"], ["b"], ["a", "b"]]


def test_a_value_outside_its_range_is_refused() -> None:
    search = arms("a", exploration=1.0)
    trial = search.ask()
    assert trial is not None
    with pytest.raises(ValueError, match="must be in"):
        search.tell(trial, "a", 1.5)


@pytest.mark.parametrize("end", ["tell", "drop"])
def test_a_trial_ends_once(end: str) -> None:
    search = arms("a", exploration=1.0)
    trial = search.ask()
    assert trial is not None
    search.drop(trial)
    with pytest.raises(KeyError):
        search.drop(trial) if end == "drop" else search.tell(trial, "a", 1.0)


@cache
def odds_of_the_best(turns: int, a: tuple[int, int], b: tuple[int, int]) -> float:
    """Exact odds that arm a has more trials than b in the end; (trials, wins) of each so far.

    Arm a wins 0.7 of its trials, b 0.4; exploration is 0.5.
    """
    if turns == 0:
        return float(a[0] > b[0])
    n = math.log(a[0] + b[0]) if a[0] and b[0] else 0.0

    def value(arm: tuple[int, int]) -> float:
        return arm[1] / arm[0] + 0.5 * math.sqrt(n / arm[0]) if arm[0] else math.inf

    def after(p: float, arm: tuple[int, int], *, of_a: bool) -> float:
        won, lost = (arm[0] + 1, arm[1] + 1), (arm[0] + 1, arm[1])
        return sum(
            odds * odds_of_the_best(turns - 1, new if of_a else a, b if of_a else new)
            for odds, new in ((p, won), (1 - p, lost))
        )

    return after(0.7, a, of_a=True) if value(a) >= value(b) else after(0.4, b, of_a=False)


def test_the_best_arm_is_found_as_often_as_the_exact_law_says() -> None:
    """By Hoeffding, 4000 searches stray from the exact odds by 0.05 with probability under
    2*exp(-20) = 4e-9."""
    rng, searches, found = random.Random(7), 4000, 0
    for _ in range(searches):
        search = arms("a", "b", exploration=0.5)
        for _ in range(25):
            trial = search.ask()
            assert trial is not None
            won = rng.random() < {"a": 0.7, "b": 0.4}[arm_of(trial)]
            search.tell(trial, trial.move, float(won))
        counts = visits(search)
        found += counts["a"] > counts["b"]
    law = odds_of_the_best(25, (0, 0), (0, 0))
    assert 0.8 < law < 0.95
    assert abs(found / searches - law) < 0.05


def bushy(node: StrNode) -> Sequence[str]:
    """A finite tree of 3 + 2 + 1 moves a path, and no two paths alike."""
    return "abc"[: 3 - len(node.state)]


def worth(state: str) -> float:
    return sum(map(ord, state)) * 37 % 101 / 100


@given(
    steps=st.lists(st.sampled_from(["ask", "tell", "drop"]), max_size=80),
    picks=st.randoms(use_true_random=False),
)
def test_laws_of_every_interleaving(steps: list[str], picks: random.Random) -> None:
    search: Search = MCTS("", bushy, exploration=0.5)
    under_way: list[Trial[str, str]] = []
    told: list[tuple[int, str]] = []
    for step in steps:
        if step == "ask":
            trial = search.ask()
            if trial is not None:
                assert (id(trial.node), trial.move) not in told
                assert all((t.node, t.move) != (trial.node, trial.move) for t in under_way)
                under_way.append(trial)
        elif under_way:
            trial = under_way.pop(picks.randrange(len(under_way)))
            if step == "drop":
                search.drop(trial)
            else:
                told.append((id(trial.node), trial.move))
                search.tell(
                    trial, trial.node.state + trial.move, worth(trial.node.state + trial.move)
                )
        nodes = list(search.root.walk())
        assert search.root.visits == len(told) == len(nodes) - 1
        assert search.root.pending == len(under_way)
        assert len({node.state for node in nodes}) == len(nodes)
        for node in nodes:
            below = sum(child.visits for child in node.children)
            assert node.visits == below + (node is not search.root)
            assert node.open_moves == sum(len(n.untried) for n in node.walk())
            assert node.pending == sum(node in t.node.path() for t in under_way)


@pytest.mark.parametrize("concurrent", [1, 2, 3, 7])
def test_concurrency_changes_neither_the_visits_nor_the_reach(concurrent: int) -> None:
    """Asked until nothing is left, every path is tried once, however many trials are pending."""
    search: Search = MCTS("", bushy, exploration=0.5)
    while trials := search.ask_many(concurrent):
        for trial in trials:
            reached = trial.node.state + trial.move
            search.tell(trial, reached, worth(reached))
    assert search.root.visits == 3 + 3 * 2 + 3 * 2 * 1
    assert {node.state for node in search.root.walk()} == {
        "", "a", "b", "c", "aa", "ab", "ba", "bb", "ca", "cb",
        "aaa", "aba", "baa", "bba", "caa", "cba",
    }  # fmt: skip


def test_trials_asked_for_together_are_told_in_any_order_to_the_same_sums() -> None:
    def sums(*, reverse: bool) -> dict[str, float]:
        search: Search = MCTS("", bushy, exploration=0.5)
        trials = search.ask_many(3)
        for trial in reversed(trials) if reverse else trials:
            search.tell(trial, trial.move, worth(trial.move))
        return {f"{n.state} {n.visits}": n.total for n in search.root.walk()}

    assert sums(reverse=True) == pytest.approx(sums(reverse=False))


def test_same_moves_and_values_give_the_same_search() -> None:
    def grown(seed: int) -> list[tuple[str, int]]:
        rng = random.Random(seed)
        search: Search = MCTS(
            "", lambda node: rng.sample(bushy(node), len(bushy(node))), exploration=0.5
        )
        for _ in range(9):
            trial = search.ask()
            assert trial is not None
            reached = trial.node.state + trial.move
            search.tell(trial, reached, worth(reached))
        return [(node.state, node.visits) for node in search.root.walk()]

    assert grown(1) == grown(1)
    assert any(grown(seed) != grown(1) for seed in range(2, 12))


@given(st.integers(1, 14), st.integers(0, 4))
def test_more_trials_never_find_less(fewer: int, more: int) -> None:
    def best(trials: int) -> float:
        search: Search = MCTS("", bushy, exploration=0.5)
        found = 0.0
        for _ in range(trials):
            trial = search.ask()
            if trial is None:
                break
            reached = trial.node.state + trial.move
            search.tell(trial, reached, worth(reached))
            found = max(found, worth(reached))
        return found

    assert best(fewer) <= best(fewer + more)
