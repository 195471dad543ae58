"""What the shadows of a proxy have shown: the same report as that of an evaluation."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import Outcome
from optillm_hooks.evaluation.grading import Grade
from optillm_hooks.evaluation.report import Row, rows_of
from optillm_hooks.gateway.shadow_log import CHECK, PREFIX, Record

_RECORD: Final = TypeAdapter(Record)
_GRADES: Final[Mapping[str, tuple[Grade, Grade]]] = {
    "served": ("right", "wrong"),
    "shadow": ("wrong", "right"),
    "tie": ("right", "right"),
    "same": ("right", "right"),
    "different": ("right", "wrong"),
}
"""Those of the served answer and of the shadow's. A check takes the served one as its measure."""


def read_shadows(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a folder, oldest first. A line that is no record is left out.

    Raises:
        CannotRun: there are none.
    """
    found = [each for path in sorted(folder.glob(f"{PREFIX}-*.jsonl")) for each in _lines(path)]
    if not found:
        raise CannotRun(f"{folder} has no results of shadows ({PREFIX}-DAY.jsonl)")
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        with suppress(ValidationError):  # one that was cut off; the last of a full file
            yield asdict(_RECORD.validate_json(line))


def shadow_rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return two rows for each pair of models and way to compare them: the served one first.

    Its accuracy is the share of requests in which no other answer was better. The p of a pair is
    not corrected for the number of pairs. A check does not say which answer is right, so that it
    has no difference.
    """
    pairs = dict.fromkeys(map(_pair, records))
    return [
        replace(row, difference=None) if pair[2].startswith(CHECK) else row
        for pair in pairs
        for row in rows_of(
            (each for r in records if _pair(r) == pair for each in _outcomes(r)), pair[:2]
        )
    ]


def _pair(record: Mapping[str, Any]) -> tuple[str, str, str]:
    by = record["by"]
    return record["served"]["model"], f"{record['shadow']['model']} ({by})", by


def _outcomes(record: Mapping[str, Any]) -> Iterator[Outcome]:
    grades = _GRADES.get(record["verdict"] or "", (None, None))
    for side, model, grade in zip(
        (record["served"], record["shadow"]), _pair(record)[:2], grades, strict=True
    ):
        figures = {name: side[name] for name in side if name not in ("model", "call_id")}
        yield Outcome(
            model=model,
            problem=f"{record['time']} {record['served']['call_id']}",
            grade=grade,
            error=record["error"],
            **figures,
        )


def unjudged(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many shadows have no verdict, by the reason."""
    return dict(Counter(str(r["error"]) for r in records if r["verdict"] is None))
