"""What happened during one request: one record per model call, and notes of the approaches."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from optillm_hooks.types import (
    Purpose,
    Usage,
)

CallOutcome = Literal["ok", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One model call, as the trace keeps it. Never any text."""

    stage: str
    """Label of the chain that made the call."""

    run: int
    """Which of the request's runs made it, from 0: a chain, repeated `n` times."""

    model: str
    purpose: Purpose
    depth: int
    """How many calls lie on the longest chain that ends with this one, itself included."""

    started_s: float
    """Seconds after the start of the request."""

    seconds: float
    outcome: CallOutcome
    usage: Usage


@dataclass(slots=True)
class Trace:
    """What happened: facts noted by the approaches, and one record per model call."""

    events: list[tuple[str, dict[str, object]]] = field(
        default_factory=list[tuple[str, dict[str, object]]]
    )
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    listener: Callable[[CallRecord], None] | None = None
    """Is told of each call when it ends."""

    def note(self, name: str, /, **facts: object) -> None:
        """Keep `facts` (numbers and short labels, no text of users or models) under `name`."""
        self.events.append((name, facts))

    def record(self, call: CallRecord) -> None:
        self.calls.append(call)
        if self.listener is not None:
            self.listener(call)

    @property
    def depth(self) -> int:
        """The critical path, in model calls."""
        return max((call.depth for call in self.calls), default=0)
