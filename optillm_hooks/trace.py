"""The trace of one request: a record of each model call, and facts noted by the approaches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from optillm_hooks.types import Purpose, StoppedBy, Usage

CallOutcome = Literal["ok", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One model call, without any text."""

    stage: str
    """Label of the chain that made the call."""

    run: int
    """Which of the request's runs made it, from 0: a chain, repeated `n` times."""

    model: str
    purpose: Purpose
    depth: int
    """Length of the longest chain of consecutive calls that ends with this one."""

    started_s: float
    """Seconds after the start of the request."""

    seconds: float
    outcome: CallOutcome
    usage: Usage


@dataclass(slots=True)
class Trace:
    """Records of the model calls, and facts noted by the approaches."""

    call_id: str = "-"
    """The request's id in the log."""

    events: list[tuple[str, dict[str, object]]] = field(
        default_factory=list[tuple[str, dict[str, object]]]
    )
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    stopped_by: StoppedBy | None = None
    """The first limit that stopped the request, set when it ends with an answer or without."""

    losses: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """How many of each kind of step were lost, and out of how many: {"ratings": (2, 6)}."""

    listener: Callable[[CallRecord], None] | None = None
    """Called with the record of each call when it ends."""

    def note(self, name: str, /, **facts: object) -> None:
        """Record `facts` under `name`: numbers and short labels, no text of users or models."""
        self.events.append((name, facts))

    def count(self, kind: str, *, lost: int, of: int) -> None:
        """Add `of` steps of a kind ("samples", "ratings"), of which `lost` brought nothing.

        A step is lost if its call failed, or if its reply could not be used. One that was not
        needed any more is not.
        """
        before = self.losses.get(kind, (0, 0))
        self.losses[kind] = (before[0] + lost, before[1] + of)

    @contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """Count the block as one step of a kind, which is lost if it raises."""
        lost = 1
        try:
            yield
            lost = 0
        finally:
            self.count(kind, lost=lost, of=1)

    def record(self, call: CallRecord) -> None:
        """Add the record of a call that has ended."""
        self.calls.append(call)
        if self.listener is not None:
            self.listener(call)

    @property
    def usage(self) -> Usage:
        """The usage of all calls."""
        return sum((call.usage for call in self.calls), Usage())

    @property
    def lost(self) -> tuple[str, ...]:
        """The kinds of which any step was lost, with counts: "ratings:2/6"."""
        return tuple(f"{kind}:{lost}/{of}" for kind, (lost, of) in self.losses.items() if lost)

    @property
    def depth(self) -> int:
        """Length of the critical path, in model calls."""
        return max((call.depth for call in self.calls), default=0)
