"""How many answers, pairs of answers, ratings and choices are read right.

The cases are in tests/golden/reading.json, each of one of these kinds:

* final_answer: the final answer of a reply. It is right if it is equivalent to the expected one.
* pair: two answers and whether they are equivalent. An unequal pair that is taken for equivalent is
  a false merge.
* rating, choice: the verdict of a judge.

An expected null means that there is nothing to read.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.report import parser, publish, table
from optillm_hooks.answers.equivalence import equivalent
from optillm_hooks.answers.extraction import extract_answer
from optillm_hooks.answers.verdicts import read_choice, read_rating

CASES: Final = Path(__file__).parent.parent / "tests" / "golden" / "reading.json"
KINDS: Final = ("final_answer", "pair", "rating", "choice")

Outcome = str
"""One of: right; none (nothing was read, or an equal pair was not recognised); wrong (another value
was read, or an unequal pair was taken for equivalent)."""

Case = dict[str, Any]
Figures = dict[str, Counter[Outcome]]

BEFORE: Final[Figures] = {
    "final_answer": Counter(right=50, none=17, wrong=16),
    "pair": Counter(right=119, none=43, wrong=1),
    "rating": Counter(right=38, none=14, wrong=3),
    "choice": Counter(right=25, none=6),
}
"""The figures when these cases were added, which the readers had not been written for."""


def cases() -> list[Case]:
    """Return all cases."""
    found: list[Case] = json.loads(CASES.read_text(encoding="utf-8"))
    return found


def outcome(case: Case) -> Outcome:
    """Return how `case` is read."""
    if case["kind"] == "pair":
        same = equivalent(case["a"], case["b"])
        return "right" if same is case["same"] else "wrong" if same else "none"
    value, is_right = _read(case)
    if value is None:
        return "right" if case["expected"] is None else "none"
    return "right" if is_right else "wrong"


def _read(case: Case) -> tuple[str | float | None, bool]:
    """Return what is read from the text of `case`, and whether that is the expected value."""
    text, expected = case["text"], case["expected"]
    if case["kind"] == "final_answer":
        answer = extract_answer(text, question=case["question"])
        is_right = None not in (answer, expected) and equivalent(str(answer), str(expected))
        return answer, is_right
    if case["kind"] == "rating":
        rating = read_rating(text, case["low"], case["high"])
        is_right = None not in (rating, expected) and abs(float(rating or 0) - expected) < 1e-9
        return rating, is_right
    choice = read_choice(text, case["count"])
    return choice, choice == expected


def figures(some: Sequence[Case]) -> Figures:
    """Return how many cases of each kind have each outcome."""
    counts: Figures = {kind: Counter() for kind in KINDS}
    for case in some:
        counts[case["kind"]][outcome(case)] += 1
    return counts


def show(counts: Figures) -> str:
    rows = [
        (
            kind,
            str(found.total()),
            *(_shares(found, BEFORE[kind], which) for which in ("right", "none", "wrong")),
        )
        for kind, found in counts.items()
    ]
    return table(("kind", "cases", "right", "not read or missed", "wrong or false merge"), rows)


def _shares(found: Counter[Outcome], before: Counter[Outcome], which: Outcome) -> str:
    now, then = (f"{100 * some[which] / some.total():.1f} %" for some in (found, before))
    return f"{found[which]}: {now} ({then})"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--failures", action="store_true", help="list the cases that fail")
    given = options.parse_args()
    some = cases()
    if given.failures:
        for case in some:
            if (result := outcome(case)) != "right":
                print(result, json.dumps(case, ensure_ascii=False))
    note = (
        "In parentheses: when these cases were added, which the readers had not been written for."
    )
    body = f"{note}\n\n{show(figures(some))}"
    publish("Reading of answers and verdicts", "benchmarks.reading", body, write=given.write)


if __name__ == "__main__":
    main()
