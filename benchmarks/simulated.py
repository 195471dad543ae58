"""What every approach is worth at its defaults, on a simulated model of known error law.

    python -m benchmarks.simulated [--problems 200] [--approaches bon,cepo] [--judges .55,.7,itself]
                                   [--p .3,.5,.7] [--seed 2026] [--write]

The approaches themselves run, in process; only the model is simulated. Its laws are `LAWS` of
`benchmarks.simulated_model`, which the output repeats. All approaches get the same problems. Each
is compared with a single call and with a plain vote of as many calls, both of which are computed
exactly for each problem.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import product, repeat
from statistics import fmean, stdev
from typing import Final

import optillm_hooks.approaches  # noqa: F401 (registers them)
from benchmarks.report import parser, publish, table
from benchmarks.simulated_model import (
    LAWS,
    QUESTION,
    WRONG_SHARES,
    Problem,
    Simulated,
    UnknownRequest,
    problem,
)
from optillm_hooks.machine import cpus
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.registry import all_approaches
from optillm_hooks.testing import chat
from optillm_hooks.types import Sampling

TITLE: Final = "Methods on a simulated model"
"""The section of docs/performance.md that has the tables."""

SINGLE: Final = (0.3, 0.5, 0.7)
"""Accuracies of a single call."""

ITSELF: Final = "itself"
JUDGES: Final = (".4", ".55", ".7", ".9", ITSELF)
WEAK: Final = ".55"
"""The judge with which no approach may be worse than a plain vote of as many calls."""

LEFT_OUT: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("autothink", "cot_decoding", "deepconf", "entropy_decoding", "thinkdeeper"),
        "decodes token by token, which a law of whole answers does not describe",
    ),
    **dict.fromkeys(("coc", "executecode"), "runs programs"),
    **dict.fromkeys(("compact", "longcepo", "memory"), "is for long conversations and documents"),
    **dict.fromkeys(("deep_research", "mcp", "readurls", "web_search"), "reads the web, or tools"),
    **dict.fromkeys(("json", "privacy"), "changes the form of answers, not how right they are"),
    **dict.fromkeys(("advisor", "on_demand"), "is for agents, which this model is not"),
    **dict.fromkeys(("re2", "spl"), "changes the prompt, which has no effect here"),
}
"""Approaches that are not simulated, and why."""

TWO_SE: Final = 2.0
CHECKED_ON: Final = 4
"""A flag has to hold on this many times as many new problems."""

BELOW_SINGLE, BELOW_VOTE = "†", "‡"


@dataclass(frozen=True, slots=True)
class Cell:
    """An approach, the accuracy of a single call, and the judge."""

    approach: str
    p: float
    judge: str

    @property
    def place(self) -> tuple[str, float]:
        """The line of the table that the cell is in."""
        return self.approach, self.p


@dataclass(frozen=True, slots=True)
class Estimate:
    mean: float
    se: float

    def show(self, sign: str = "") -> str:
        """Return the estimate in points of per cent."""
        return f"{100 * self.mean:{sign}.1f} ± {100 * self.se:.1f}"


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured in a cell."""

    cell: Cell
    accuracy: Estimate
    over_single: Estimate
    over_vote: Estimate
    """The difference from a plain vote of `calls` calls on the same problems."""

    calls: float
    depth: float
    saved: float
    judged: bool

    @property
    def flags(self) -> str:
        """How the approach does worse than it should, as signs."""
        below = {
            BELOW_SINGLE: self.over_single,
            **({BELOW_VOTE: self.over_vote} if self.cell.judge == WEAK else {}),
        }
        return "".join(sign for sign, by in below.items() if by.mean < -TWO_SE * by.se)


@cache
def _vote_law(votes: int) -> tuple[float, ...]:
    """Return for c = 0 to `votes` the probability that c right votes of so many win.

    The others are wrong by `WRONG_SHARES`. Of answers with equal votes each is equally likely to be
    the first.
    """
    return tuple(_wins(right, votes - right) for right in range(votes + 1))


def _wins(right: int, wrong: int) -> float:
    total = 0.0
    for first in range(wrong + 1):
        for second in range(wrong - first + 1):
            counts = (first, second, wrong - first - second)
            most = max(counts)
            if most > right or not right:
                continue
            ways = math.factorial(wrong) // math.prod(map(math.factorial, counts))
            odds = math.prod(share**n for share, n in zip(WRONG_SHARES, counts, strict=True))
            total += ways * odds / (1 + counts.count(right))
    return total


def vote(p: float, votes: float) -> float:
    """Return the accuracy of a plain vote on a problem that a call solves with probability `p`.

    Between whole numbers of votes it is interpolated.
    """
    below, part = math.floor(votes), votes % 1
    if part:
        return (1 - part) * vote(p, below) + part * vote(p, below + 1)
    law = _vote_law(below)
    return sum(
        math.comb(below, right) * p**right * (1 - p) ** (below - right) * wins
        for right, wins in enumerate(law)
    )


def simulated() -> list[str]:
    """Return the approaches that are simulated."""
    return [each.name for each in all_approaches() if each.name not in LEFT_OUT]


def measure(cell: Cell, problems: int, seed: int) -> Found:
    """Return what an approach does on so many problems, which depend on `seed` and `cell.p`."""
    return asyncio.run(_measure(cell, problems, seed))


async def _measure(cell: Cell, problems: int, seed: int) -> Found:
    drawn = random.Random(f"{seed} {cell.p}")  # noqa: S311 (no secret)
    rng = random.Random(f"{seed} {cell}")  # noqa: S311
    right: list[bool] = []
    outcomes: list[Outcome] = []
    asked: list[Problem] = []
    judged = False
    accuracy = None if cell.judge == ITSELF else float(cell.judge)
    for _ in range(problems):
        asked.append(problem(drawn, cell.p))
        llm = Simulated(asked[-1], accuracy, rng)
        outcomes.append(await _answered(cell.approach, llm, rng.randrange(2**32)))
        right.append(asked[-1].answer_in(outcomes[-1].answers[0].text) == asked[-1].right)
        judged = judged or llm.judged
    calls = fmean(outcome.report.calls for outcome in outcomes)
    return Found(
        cell=cell,
        accuracy=_estimate(right),
        over_single=_estimate(
            [is_right - one.difficulty for is_right, one in zip(right, asked, strict=True)]
        ),
        over_vote=_estimate(
            [
                is_right - vote(one.difficulty, calls)
                for is_right, one in zip(right, asked, strict=True)
            ]
        ),
        calls=calls,
        depth=fmean(outcome.report.depth for outcome in outcomes),
        saved=fmean(outcome.report.calls_saved for outcome in outcomes),
        judged=judged,
    )


async def _answered(name: str, llm: Simulated, seed: int) -> Outcome:
    """Return the outcome of an approach at its defaults.

    Raises:
        UnknownRequest: it asks for something that the model does not know.
        AssertionError: something was lost, which never happens with this model.
    """
    request = Request(
        plan=resolve(parse(name)), base=llm.model, chat=chat(QUESTION), client=Sampling(seed=seed)
    )
    logging.disable()  # a request that the model does not know is reported below
    try:
        outcome = await run(request, {llm.model: llm}.__getitem__)
    finally:
        logging.disable(logging.NOTSET)
        if llm.unknown is not None:
            raise llm.unknown
    lost = [code for code in outcome.report.degraded if "/" in code]
    assert not lost, (name, lost)
    return outcome


def _estimate(values: Sequence[float]) -> Estimate:
    return Estimate(fmean(values), stdev(values) / math.sqrt(len(values)))


Measure = Callable[[Cell, int, int], Found]


def confirmed(cells: Sequence[Cell], problems: int, seed: int, measured: Measure) -> list[Found]:
    """Return what was found in each cell; where that has a flag, what is found on new problems.

    The new problems are `CHECKED_ON` times as many. Of approaches that are as good as they should
    be, one cell in 44 is more than two standard errors too low by chance, and one in 1,900 twice.
    An approach that asks no judge is measured once for all judges.
    """
    with ProcessPoolExecutor(cpus()) as pool:
        first = _measured(pool, cells, problems, seed, measured)
        flagged = {found.cell.place for found in first if found.flags}
        doubted = [
            found.cell
            for found in first
            if found.flags or (not found.judged and found.cell.place in flagged)
        ]
        second = _measured(pool, doubted, CHECKED_ON * problems, seed + 1, measured)
    checked = {found.cell: found for found in second}
    return [checked.get(found.cell, found) for found in first]


def _measured(
    pool: ProcessPoolExecutor, cells: Sequence[Cell], problems: int, seed: int, measured: Measure
) -> list[Found]:
    at_one_judge = {cell.place: cell for cell in cells}
    found = dict(_pairs(pool, list(at_one_judge.values()), problems, seed, measured))
    for cell in cells:
        same = found[at_one_judge[cell.place]]
        if not same.judged:
            found[cell] = replace(same, cell=cell)
    found |= _pairs(pool, [cell for cell in cells if cell not in found], problems, seed, measured)
    return [found[cell] for cell in cells]


def _pairs(
    pool: ProcessPoolExecutor, cells: Sequence[Cell], problems: int, seed: int, measured: Measure
) -> Iterable[tuple[Cell, Found]]:
    return zip(cells, pool.map(measured, cells, repeat(problems), repeat(seed)), strict=True)


def render(found: Sequence[Found]) -> str:
    """Return the tables, one for each accuracy of a single call, and the flags."""
    judges = list(dict.fromkeys(one.cell.judge for one in found))
    parts = []
    for p in dict.fromkeys(one.cell.p for one in found):
        head = ("approach", "calls", "depth", "saved", *(f"judge {judge}" for judge in judges))
        names = dict.fromkeys(one.cell.approach for one in found)
        rows = [_row(name, [one for one in found if one.cell.place == (name, p)]) for name in names]
        parts.append(f"### A single call is right in {100 * p:.0f} %\n\n{table(head, rows)}")
    return "\n\n".join([*parts, _flagged(found)])


def _row(name: str, found: Sequence[Found]) -> list[str]:
    """Return a line of the table; an approach without a judge has its figures in each column."""
    figures = [
        f"{one.accuracy.show()} ({one.over_vote.show('+')}){one.flags and ' ' + one.flags}"
        for one in found
    ]
    return [
        f"`{name}`",
        *(_range([getattr(one, kind) for one in found]) for kind in ("calls", "depth", "saved")),
        *figures,
    ]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low}-{high}"


def _flagged(found: Sequence[Found]) -> str:
    """Return what the flags mean, and which approaches have them."""
    notes = {
        BELOW_SINGLE: "more than two standard errors below a single call",
        BELOW_VOTE: f"with a judge of {WEAK}, as far below a plain vote of as many calls",
    }
    lines = []
    for sign, meaning in notes.items():
        names = dict.fromkeys(f"`{o.cell.approach}`" for o in found if sign in o.flags)
        lines.append(f"{sign} {meaning}: {', '.join(names) or 'none'}.")
    return "\n\n".join(lines)


def unknown(name: str) -> str:
    """Return why an approach cannot be simulated, or ""."""
    try:
        for p in (0.3, 0.5):
            measure(Cell(name, p, WEAK), problems=5, seed=0)
    except UnknownRequest as exc:
        return f"asks for something that is not simulated: {exc}"
    return ""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--problems", type=int, default=200)
    options.add_argument("--seed", type=int, default=2026)
    for name, default in (("approaches", ()), ("judges", JUDGES), ("p", SINGLE)):
        options.add_argument(f"--{name}", default=",".join(map(str, default)))
    given = options.parse_args()
    chosen = given.approaches.split(",") if given.approaches else simulated()
    left_out = {**LEFT_OUT, **{name: why for name in chosen if (why := unknown(name))}}
    cells = [
        Cell(name, float(p), judge)
        for p, name, judge in product(given.p.split(","), chosen, given.judges.split(","))
        if name not in left_out
    ]
    found = confirmed(cells, given.problems, given.seed, measure)
    how = f"""\
{given.problems} problems for each figure, seed {given.seed}; where that has a flag, {CHECKED_ON} \
times as many new ones. In the column of a judge: right answers in per cent ± their standard \
error, and in brackets the difference from a plain vote of as many calls. An approach that asks no \
judge is measured once. `saved` are planned calls that were not needed."""
    why = "\n".join(f"* `{name}`: {reason}." for name, reason in sorted(left_out.items()))
    body = f"{LAWS}\n{how}\n\n{render(found)}\n\nNot simulated:\n\n{why}"
    publish(TITLE, "benchmarks.simulated", body, write=given.write)


if __name__ == "__main__":
    main()
