"""Observers: what is told of each request that runs a plan, from its start to its end.

The line in the log, metrics, traces and records of conversations are observers. A new one is a
class here or in a module of its own, and an entry of `OBSERVERS`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.prepared import Prepared
from optillm_hooks.gateway.reports import log_fields, log_line
from optillm_hooks.pipeline.events import Request
from optillm_hooks.pipeline.logs import format_traceback
from optillm_hooks.trace import Watcher
from optillm_hooks.types import Delta

_log = logging.getLogger(__name__)

CANCELLED: Final = "cancelled"
"""The code of an end that is no error: the client has gone, or a stage is not needed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A request whose plan is about to run."""

    prepared: Prepared
    request: Request
    caller: Caller
    stream: bool
    hides_texts: bool = False
    """Whether LiteLLM's own logs may not have the request's texts."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a plan has ended. With an answer, it is in `Prepared.outcome`."""

    seconds: float
    error: str = ""
    """The code of the error, "cancelled", or "" with an answer."""


class Watch(Watcher):
    """Watches one request."""

    def piece(self, choice: int, delta: Delta, /) -> None:
        """Hear what a streaming client is shown of a choice."""

    def ended(self, end: Ended, /) -> None:
        """Hear that the plan has ended."""


class Observer(Protocol):
    def begin(self, started: Started, /) -> Watch | None:
        """Return what watches a request, or None to leave it alone."""
        ...


class LogLines:
    """Logs one INFO line when a plan ends: with an answer or an error, or cancelled.

    LiteLLM's JSON logs have its values as fields, and the trace.
    """

    def begin(self, started: Started, /) -> Watch:
        return _LogLine(started.prepared)


class _LogLine(Watch):
    def __init__(self, prepared: Prepared) -> None:
        self._prepared = prepared

    def ended(self, end: Ended, /) -> None:
        fields = log_fields(self._prepared, seconds=end.seconds, error=end.error)
        trace = {"otel_trace_id": self._prepared.trace.trace_id or None}
        _log.info("%s", log_line(fields), extra={**fields, **trace})


OBSERVERS: Final[list[Observer]] = [LogLines()]


def error_code(error: BaseException) -> str:
    """Return an error's code, "cancelled", or the name of an error that is not ours."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CANCELLED
    return error.code if isinstance(error, OptiLLMError) else type(error).__name__


@contextmanager
def observed(started: Started) -> Iterator[Callable[[int, Delta], None]]:
    """Run the block, in which a plan runs, before the eyes of each observer; of none in a dry run.

    The block calls what it gets with each piece that a streaming client is shown.
    """
    prepared = started.prepared
    watching = [] if prepared.selection.dry_run else OBSERVERS
    watches = [watch for each in watching if (watch := each.begin(started)) is not None]
    prepared.trace.watchers += watches
    began, error = time.monotonic(), ""

    def show(choice: int, delta: Delta) -> None:
        for watch in watches:
            watch.piece(choice, delta)

    try:
        yield show
    except BaseException as exc:
        error = error_code(exc)
        raise
    finally:
        end = Ended(time.monotonic() - began, error)
        for watch in watches:
            prepared.trace.watchers.remove(watch)
            _tell_end(watch, end)


def _tell_end(watch: Watch, end: Ended) -> None:
    """Tell a watch that the plan has ended. A bug in it does not cost the client its answer."""
    try:
        watch.ended(end)
    except Exception as exc:
        _log.error("optillm: an observer failed: %s", format_traceback(exc))
