"""What an evaluation shows: a line for each model, and pictures of what accuracy costs."""

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from optillm_hooks.evaluation.asking import Outcome
from optillm_hooks.evaluation.spend_log import Booked
from optillm_hooks.evaluation.statistics import holm, mcnemar, problems_needed, quantile, wilson

_PROVEN: Final = 0.05
"""The p at which a difference is more than chance."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model differs from the first one, over the problems that both have answered."""

    points: float
    """Difference of the accuracies, from -1 to 1."""

    wins: int
    losses: int
    p: float
    """McNemar's exact p, corrected by Holm for the number of models that are compared."""

    needed: int | None
    """Problems that would show such a difference at 5 % with a power of 80 %."""

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """What the problems show at 5 %."""
        if self.p > _PROVEN:
            return "undecided"
        return "better" if self.wins > self.losses else "worse"


@dataclass(frozen=True, slots=True)
class Row:
    """A model's figures."""

    model: str
    problems: int
    accuracy: float
    low: float
    high: float
    """The 95 % interval of the accuracy (Wilson)."""

    tokens: float
    """Prompt and completion tokens of a problem, on average."""

    cost_usd: float | None
    """Of a problem, on average; None if any is unknown."""

    judge_tokens: float
    judge_usd: float | None
    """What the judge has cost beside that, in the same way."""

    p50_s: float
    p95_s: float
    calls: float
    depth: float
    unread: int
    """Replies without an answer that could be read. They count as wrong."""

    degraded: int
    failed: int
    """Problems without a reply, which count for nothing."""

    unjudged: int
    """Replies on which the judge gave no verdict. They count for nothing either."""

    difference: Difference | None
    """None for the first model."""


def rows_of(outcomes: Iterable[Outcome], models: Sequence[str]) -> list[Row]:
    """Return the figures of the models that have any reply, in the order of `models`.

    The others are compared with the first of `models`. Of several outcomes of a model for a
    problem, the last counts.
    """
    latest = {(outcome.model, outcome.problem): outcome for outcome in outcomes}
    of = {
        model: {problem: each for (name, problem), each in latest.items() if name == model}
        for model in models
    }
    base = of[models[0]]
    pairs = {model: _discordant(of[model], base) for model in models[1:]}
    corrected = holm([mcnemar(wins, losses) for wins, losses, _ in pairs.values()])
    differences = {
        model: Difference(
            (wins - losses) / both if both else 0.0,
            wins,
            losses,
            p,
            problems_needed(wins, losses, both),
        )
        for (model, (wins, losses, both)), p in zip(pairs.items(), corrected, strict=True)
    }
    found = (_row(model, of[model].values(), differences.get(model)) for model in models)
    return [row for row in found if row is not None]


def _discordant(ours: Mapping[str, Outcome], base: Mapping[str, Outcome]) -> tuple[int, int, int]:
    """Return the problems that only `ours` solves, those that only `base` does, and all of both."""
    both = [
        (ours[problem].grade == "right", base[problem].grade == "right")
        for problem in ours.keys() & base.keys()
        if ours[problem].grade is not None and base[problem].grade is not None
    ]
    return both.count((True, False)), both.count((False, True)), len(both)


def _row(model: str, outcomes: Iterable[Outcome], difference: Difference | None) -> Row | None:
    every = [*outcomes]
    answered = [outcome for outcome in every if outcome.grade is not None]
    if not answered:
        return None
    grades = Counter(outcome.grade for outcome in answered)
    unjudged = sum(outcome.unjudged for outcome in every)
    seconds = [outcome.seconds for outcome in answered]
    low, high = wilson(grades["right"], len(answered))
    return Row(
        model=model,
        problems=len(answered),
        accuracy=grades["right"] / len(answered),
        low=low,
        high=high,
        tokens=fmean(each.prompt_tokens + each.completion_tokens for each in answered),
        cost_usd=_mean([outcome.cost_usd for outcome in answered]),
        judge_tokens=fmean(outcome.judge_tokens for outcome in answered),
        judge_usd=_mean([outcome.judge_usd for outcome in answered]),
        p50_s=quantile(seconds, 0.5),
        p95_s=quantile(seconds, 0.95),
        calls=fmean(outcome.calls for outcome in answered),
        depth=fmean(outcome.depth for outcome in answered),
        unread=grades["unread"],
        degraded=sum(bool(outcome.degraded) for outcome in answered),
        failed=len(every) - len(answered) - unjudged,
        unjudged=unjudged,
        difference=difference,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def frontier(rows: Sequence[Row], price: Callable[[Row], float]) -> list[Row]:
    """Return the rows that no other beats (Pareto), cheapest first: none is as right for less."""
    found = list[Row]()
    for row in sorted(rows, key=lambda row: (price(row), -row.accuracy)):
        best = found[-1] if found else None
        is_equal = best and (best.accuracy, price(best)) == (row.accuracy, price(row))
        if best is None or row.accuracy > best.accuracy or is_equal:
            found.append(row)
    return found


COLUMNS: Final = (
    "model", "problems", "right % [95 %]", "verdict", "points", "wins:losses", "p (Holm)",
    "needed", "tokens", "USD", "p50 s", "p95 s", "calls", "depth", "unread", "degraded", "failed",
    "unjudged",
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """Return a row as text, by `COLUMNS`."""
    by = row.difference
    compared = (
        ("", "", "", "", "")
        if by is None
        else (
            by.verdict,
            f"{100 * by.points:+.1f}",
            f"{by.wins}:{by.losses}",
            f"{by.p:.2g}",
            "" if by.needed is None else str(by.needed),
        )
    )
    return (
        row.model,
        str(row.problems),
        f"{100 * row.accuracy:.1f} [{100 * row.low:.0f}, {100 * row.high:.0f}]",
        *compared,
        f"{row.tokens:.0f}",
        "?" if row.cost_usd is None else f"{row.cost_usd:.6f}",
        f"{row.p50_s:.2f}",
        f"{row.p95_s:.2f}",
        f"{row.calls:.1f}",
        f"{row.depth:.1f}",
        str(row.unread),
        str(row.degraded),
        str(row.failed),
        str(row.unjudged),
    )


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows for a terminal, without the columns that have nothing but zeros or blanks."""
    every = zip(COLUMNS, *map(cells, rows), strict=True)
    lines = [*zip(*(column for column in every if {*column[1:]} - {"", "0"}), strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{text:<{width}}" if place == 0 else f"{text:>{width}}"
            for place, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def as_csv(rows: Sequence[Row]) -> str:
    """Return the rows as CSV, with figures that are not rounded."""
    names = [name for name in Row.__slots__ if name != "difference"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *Difference.__slots__])
    for row in rows:
        by = row.difference
        compared = [None if by is None else getattr(by, name) for name in Difference.__slots__]
        writer.writerow([*(getattr(row, name) for name in names), *compared])
    return text.getvalue()


def dollar_lines(outcomes: Sequence[Outcome], look_up: Callable[[], Booked | None]) -> list[str]:
    """Return what a run has cost in all, as the responses and the spend log say it.

    Args:
        outcomes: all of the run, those that were asked for again too.
        look_up: returns what the spend log has of it; None if there is none.

    No line, and no look at the log, if no response has named a price.
    """
    replies = [each.cost_usd for each in outcomes if each.grade is not None or each.unjudged]
    judged = [each.judge_usd for each in outcomes if each.judge_tokens or each.judge_usd != 0]
    said = sum(cost or 0.0 for cost in (*replies, *judged))
    if not said:
        return []
    of_judge = f", the judge {_sum(judged)}" if judged else ""
    line = f"The replies cost {_sum(replies)}{of_judge}, by what the responses say."
    return [line, _checked(said, look_up())]


def _sum(costs: Sequence[float | None]) -> str:
    unknown = costs.count(None)
    known = f"${sum(cost for cost in costs if cost is not None):.6f}"
    return f"{known} without {unknown} that have no price" if unknown else known


def _checked(said: float, log: Booked | None) -> str:
    if log is None:
        return "There is nothing to check it against: the endpoint shows no spend log."
    line = f"The spend log has ${log.usd:.6f} for this run, in {log.entries} entries."
    if math.isclose(log.usd, said, rel_tol=_SAME):
        return line
    return (
        f"{line} It differs by {log.usd - said:+.6f}: entries come up to a minute late (the same "
        "command looks again), and calls that failed or were cut off cost something too."
    )


_SAME: Final = 0.001
"""A difference that comes of rounding, as a share."""
