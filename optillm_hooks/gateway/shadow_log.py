"""The results of shadows: a file of JSON lines for each day (UTC), without any text."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from optillm_hooks.gateway.day_files import END, DayFiles
from optillm_hooks.settings import ShadowLogSettings

PREFIX: Final = "shadows"
CHECK: Final = "check:"
"""What a kind of check is named with."""

Verdict = Literal["served", "shadow", "tie", "same", "different"]
"""Which answer a judge finds better, or whether a check finds the same final answer in both."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two answers, by what it took."""

    model: str
    """The model group, or the approach over its base model."""

    call_id: str | None
    seconds: float
    cost_usd: float | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 1
    depth: int = 1
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A line: what came of a shadow. `cost_usd` is that of the shadow and of its judge."""

    route: str
    served: Side
    shadow: Side
    by: str
    """The judge's model group, or `CHECK` and its kind."""

    verdict: Verdict | None = None
    error: str | None = None
    """Why there is no verdict: a code, never a message."""

    cost_usd: float = 0.0
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))

    def line(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode() + b"\n"


class ShadowLog:
    """The files of a folder, and what the shadows of a day have cost by them.

    Each worker reads what all have written, so they share the day's budget, also after a restart.
    """

    def __init__(self, settings: ShadowLogSettings, directory: str) -> None:
        self._settings = settings
        self.files = DayFiles(
            Path(directory), PREFIX, settings.max_bytes_per_day, settings.keep_days
        )
        self._day = date.min
        self._read = 0
        self._spent = 0.0

    def add(self, record: Record) -> None:
        """Append a record. A thread does it, so nobody waits."""
        self.files.add(datetime.now(UTC).date(), record.line)

    def may_spend(self) -> bool:
        """Return whether today's budget has something left. It reads a file, so it may block.

        A file that is full ends the day: what is spent could not be told any more.
        """
        today = datetime.now(UTC).date()
        if today != self._day:
            self._day, self._read, self._spent = today, 0, 0.0
        path = self.files.directory / f"{PREFIX}-{today.isoformat()}.jsonl"
        written = b""
        with suppress(FileNotFoundError), path.open("rb") as file:
            file.seek(self._read)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        if whole.endswith(END):
            return False
        self._read += len(whole)
        self._spent += sum(_cost(line) for line in whole.splitlines())
        return self._spent < self._settings.max_cost_per_day


def _cost(line: bytes) -> float:
    """Return what a line says that its shadow has cost: 0 of a provider's negative or odd usage."""
    try:
        told: Any = json.loads(line)
    except ValueError:
        return 0.0
    cost = told.get("cost_usd") if isinstance(told, Mapping) else None
    return float(cost) if isinstance(cost, int | float) and 0 <= cost < math.inf else 0.0


@cache
def log_of(settings: ShadowLogSettings) -> ShadowLog | None:
    """Return the log that the settings ask for, None if there is none. A process has one."""
    return None if settings.directory is None else ShadowLog(settings, settings.directory)
