"""The simulated model obeys its laws, and what is computed from its answers is right."""

import random
import re
from dataclasses import replace
from itertools import product
from math import prod
from statistics import fmean

import pytest

import benchmarks.simulated
from benchmarks.report import DOCS, table
from benchmarks.simulated import (
    BELOW_SINGLE,
    BELOW_VOTE,
    ITSELF,
    LEFT_OUT,
    TITLE,
    WEAK,
    Cell,
    Estimate,
    Found,
    confirmed,
    measure,
    render,
    simulated,
    unknown,
    vote,
)
from benchmarks.simulated_model import (
    QUESTION,
    REQUESTS,
    WRONG_SHARES,
    Problem,
    Simulated,
    UnknownRequest,
    role_of,
)
from optillm_hooks import merging
from optillm_hooks.answers.equivalence import equivalent
from optillm_hooks.answers.extraction import extract_answers
from optillm_hooks.approach_docs import worth
from optillm_hooks.approaches import mars
from optillm_hooks.registry import all_approaches, get_approach
from optillm_hooks.testing import chat
from optillm_hooks.types import Message, Sampling

pytestmark = pytest.mark.anyio
PROBLEM = Problem(("4312", "1234", "5678", "8765"), 0.5)


@pytest.mark.parametrize("votes", [1, 2, 3, 4, 5])
def test_the_accuracy_of_a_vote_is_that_of_all_its_outcomes(votes: int) -> None:
    p = 0.35
    odds = [p, *((1 - p) * share for share in WRONG_SHARES)]
    right = sum(
        prod(odds[answer] for answer in outcome)
        for outcome in product(range(4), repeat=votes)
        if max(outcome, key=lambda a: (outcome.count(a), -outcome.index(a))) == 0
    )
    assert vote(p, votes) == pytest.approx(right, abs=1e-12)


def test_between_whole_numbers_of_votes_the_accuracy_is_interpolated() -> None:
    assert vote(0.5, 3.25) == pytest.approx(0.75 * vote(0.5, 3) + 0.25 * vote(0.5, 4))


def test_none_is_right_as_often_as_a_call() -> None:
    """By Hoeffding, the mean of 2,000 strays by 0.08 with a probability below 2 exp(-25.6)."""
    found = measure(Cell("none", 0.5, ITSELF), problems=2000, seed=1)
    assert abs(found.over_single.mean) < 0.08
    assert (found.calls, found.depth, found.saved, found.judged) == (1, 1, 0, False)


def test_self_consistency_is_right_as_often_as_a_vote_of_five() -> None:
    """Three that agree are the majority of five, so it is exactly that vote.

    By Hoeffding, the mean of 600 strays by 0.11 (calls: 0.22) with a probability below 1e-6. The
    problems are drawn evenly, so the law is integrated by midpoints.
    """
    found = measure(Cell("self_consistency", 0.5, ITSELF), problems=600, seed=2)
    drawn = [(step + 0.5) / 1000 for step in range(1000)]
    assert found.accuracy.mean == pytest.approx(fmean(vote(p, 5) for p in drawn), abs=0.11)
    agree = fmean(p**3 + (1 - p) ** 3 * sum(share**3 for share in WRONG_SHARES) for p in drawn)
    assert found.calls == pytest.approx(5 - 2 * agree, abs=0.22)
    assert found.calls + found.saved == 5


async def test_the_judge_is_right_with_its_accuracy() -> None:
    """By Hoeffding, the means of 3,000 stray by 0.07 with a probability below 2 exp(-29.4)."""
    for accuracy, right_is_held_right, wrong_is_held_right in ((0.7, 0.7, 0.3), (None, 0.5, 0.3)):
        llm = Simulated(PROBLEM, accuracy, random.Random(4))
        for answer, expected in (("4312", right_is_held_right), ("1234", wrong_is_held_right)):
            shown = f"<answer 1 {'a' * 16}>\n{answer} eggs.\n</answer 1 {'a' * 16}>\n{mars.VERIFY}"
            said = [(await llm.complete(chat(shown), Sampling())).text for _ in range(3000)]
            share = fmean(text == "VERDICT: CORRECT" for text in said)
            assert abs(share - expected) < 0.07


@pytest.mark.parametrize("marked", ["", "\nANSWER: <answer>"])
async def test_every_solution_is_read_right_and_worded_in_its_own_way(marked: str) -> None:
    llm = Simulated(PROBLEM, None, random.Random(5))
    asked = (Message("system", f"Be brief.{marked}"), *chat(QUESTION))
    texts = [(await llm.complete(asked, Sampling())).text for _ in range(60)]
    read = extract_answers(texts, question=QUESTION)
    shown = [PROBLEM.answer_in(text) for text in texts]
    assert all(equivalent(str(a), str(b)) for a, b in zip(read, shown, strict=True))
    assert len(set(texts)) == 60


@pytest.mark.parametrize("role", REQUESTS)
def test_every_prompt_is_recognised(role: str) -> None:
    for text in REQUESTS[role]:
        assert role_of(chat(f"{QUESTION}\n\n{text}")) == role


@pytest.mark.parametrize("text", ["Take a guess.", f"{mars.VERIFY} {merging.MERGE}"])
def test_another_prompt_is_no_question(text: str) -> None:
    with pytest.raises(UnknownRequest, match=r"Take a guess|fuse.*verify"):
        role_of(chat(f"{QUESTION}\n\n{text}"))


@pytest.mark.parametrize("name", [approach.name for approach in all_approaches()])
def test_every_approach_is_simulated_or_left_out_for_a_reason(name: str) -> None:
    """A new one may need its prompts in `simulated_model.REQUESTS`, or a line in `LEFT_OUT`."""
    assert name in LEFT_OUT or not unknown(name)


def test_nothing_is_left_out_that_does_not_exist() -> None:
    assert not set(LEFT_OUT) - {approach.name for approach in all_approaches()}
    assert len(simulated()) + len(LEFT_OUT) == len(all_approaches())


def found(cell: Cell, single: float, over_vote: float, *, judged: bool = True) -> Found:
    return Found(
        cell,
        Estimate(0.5, 0.01),
        Estimate(single, 0.01),
        Estimate(over_vote, 0.01),
        calls=4.5,
        depth=1.5,
        saved=0.5,
        judged=judged,
    )


@pytest.mark.parametrize(
    ("judge", "single", "over_vote", "flags"),
    [
        (WEAK, -0.021, -0.021, BELOW_SINGLE + BELOW_VOTE),
        (WEAK, -0.019, -0.019, ""),
        (WEAK, 0.1, -0.021, BELOW_VOTE),
        (".9", 0.1, -0.021, ""),
        (".4", -0.021, 0.1, BELOW_SINGLE),
    ],
)
def test_a_flag_is_more_than_two_standard_errors(
    judge: str, single: float, over_vote: float, flags: str
) -> None:
    assert found(Cell("bon", 0.5, judge), single, over_vote).flags == flags


def doubtful(cell: Cell, problems: int, seed: int) -> Found:
    """Return a flag for a few problems, and for many only if it is of `bon`."""
    below = -0.05 if problems == 10 or cell.approach == "bon" else 0.0
    return found(cell, below, -seed / 1000)


def test_a_flag_counts_only_if_it_holds_on_more_problems() -> None:
    cells = [Cell("bon", 0.5, ".4"), Cell("moa", 0.5, ".4")]
    bon, moa = confirmed(cells, 10, 7, doubtful)
    assert (bon.flags, moa.flags) == (BELOW_SINGLE, "")
    assert bon.over_vote.mean == -0.008  # on other problems: the next seed


def test_the_table_shows_figures_and_flags() -> None:
    shown = render([found(Cell("bon", 0.5, WEAK), 0.1, -0.021)])
    row = ["`bon`", "4.5", "1.5", "0.5", f"50.0 ± 1.0 (-2.1 ± 1.0) {BELOW_VOTE}"]
    assert table(["approach", "calls", "depth", "saved", f"judge {WEAK}"], [row]) in shown
    assert f"{BELOW_SINGLE} more than two standard errors below a single call: none." in shown
    assert shown.endswith("a plain vote of as many calls: `bon`.")


def by_judge(cell: Cell, problems: int, seed: int) -> Found:
    """Return figures that name the judge, of an approach that asks one only if it is `bon`."""
    below = -0.05 if (cell.judge, problems) == (WEAK, 10) else 0.0
    return found(cell, float(cell.judge), below - seed / 1000, judged=cell.approach == "bon")


def test_an_approach_without_a_judge_is_measured_once() -> None:
    cells = [Cell(name, 0.5, judge) for name in ("bon", "none") for judge in (WEAK, ".9")]
    made = confirmed(cells, 10, 7, by_judge)
    assert [one.cell for one in made] == cells
    weak, strong, alone, as_well = made
    assert (weak.over_single.mean, strong.over_single.mean) == (0.55, 0.9)
    assert (weak.over_vote.mean, strong.over_vote.mean) == (-0.008, -0.007)  # one was checked
    assert replace(as_well, cell=alone.cell) == alone


def flagged(sign: str) -> list[str]:
    """Return the approaches that have a flag in the table that was written last."""
    _, _, section = DOCS.read_text(encoding="utf-8").partition(f"\n## {TITLE}\n")
    [line] = [line for line in section.split("\n## ")[0].splitlines() if line.startswith(sign)]
    return re.findall(r"`(\w+)`", line)


def test_readme_says_of_each_approach_with_a_flag_what_is_better() -> None:
    """The line `Worth it when: ...` of its docstring, which README's table shows, has to say it."""
    for sign, said in ((BELOW_SINGLE, "one call"), (BELOW_VOTE, "vote")):
        silent = [name for name in flagged(sign) if said not in worth(get_approach(name))]
        assert not silent, f"their lines `Worth it when: ...` do not name {said!r}"


@pytest.mark.benchmark
def test_the_benchmark_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["simulated", "--problems", "20", "--p", ".5", "--judges", ".55,itself"]
    monkeypatch.setattr("sys.argv", given)
    benchmarks.simulated.main()
    shown = capsys.readouterr().out
    assert all(f"| `{name}` | " in shown for name in simulated())
    assert all(f"* `{name}`: " in shown for name in LEFT_OUT)
