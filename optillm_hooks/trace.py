"""The trace of one request: a record of each model call, and facts noted by the approaches."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
    choices: int = 1
    """How many replies it asked for."""


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of one run of a request."""

    name: str
    """The approach, or "final_call"."""

    chain: str
    """Label of the chain that it is a stage of."""

    run: int


class Watcher:
    """Is told what happens while a request runs. Each method does nothing unless overridden.

    A watcher gets no text of the user or of a model, and must not raise.
    """

    def stage(self, _stage: StageRun, /) -> AbstractContextManager[object]:
        """Return the context in which a stage runs, in the stage's own task."""
        return nullcontext()

    def call_ended(self, call: CallRecord, /) -> None:
        """Hear of a model call that has ended."""

    def first_piece(self) -> None:
        """Hear that the client gets the first piece of a streamed answer."""


@dataclass(slots=True)
class Trace:
    """Records of the model calls, and facts noted by the approaches."""

    call_id: str = "-"
    """The request's id in the log."""

    trace_id: str = ""
    """The OpenTelemetry trace of the request, in hexadecimal; empty without tracing."""

    events: list[tuple[str, dict[str, object]]] = field(
        default_factory=list[tuple[str, dict[str, object]]]
    )
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    stopped_by: StoppedBy | None = None
    """The first limit that stopped the request, set when it ends with an answer or without."""

    losses: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """How many of each kind of step were lost, and out of how many: {"ratings": (2, 6)}."""

    doubts: list[str] = field(default_factory=list[str])
    """What was put aside because it could not be trusted, for the report."""

    calls_saved: int = 0
    """Planned calls that were not needed, choices of a call for several counted one by one."""

    watchers: list[Watcher] = field(default_factory=list[Watcher])
    """Those that are told what happens, while it happens."""

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

    def doubt(self, what: str) -> None:
        """Report that `what` was put aside."""
        if what not in self.doubts:
            self.doubts.append(what)

    def save(self, calls: int) -> None:
        """Count planned calls that turned out not to be needed."""
        self.calls_saved += calls

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
        for watcher in self.watchers:
            watcher.call_ended(call)

    def first_piece(self) -> None:
        """Tell that the client gets the first piece of a streamed answer."""
        for watcher in self.watchers:
            watcher.first_piece()

    @contextmanager
    def stage(self, stage: StageRun) -> Iterator[None]:
        """Run the block as a stage, within the context of each watcher."""
        with ExitStack() as contexts:
            for watcher in self.watchers:
                contexts.enter_context(watcher.stage(stage))
            yield

    @property
    def usage(self) -> Usage:
        """The usage of all calls."""
        return sum((call.usage for call in self.calls), Usage())

    @property
    def lost(self) -> tuple[str, ...]:
        """The kinds of which any step was lost, with counts ("ratings:2/6"), and the doubts."""
        counted = [f"{kind}:{lost}/{of}" for kind, (lost, of) in self.losses.items() if lost]
        return (*counted, *self.doubts)

    @property
    def depth(self) -> int:
        """Length of the critical path, in model calls."""
        return max((call.depth for call in self.calls), default=0)
