"""Choice indices of a streamed answer."""

from collections.abc import Callable

from optillm_hooks.answers.deltas import parts
from optillm_hooks.pipeline.events import Event, Piece
from optillm_hooks.types import Delta


class Choices:
    """Numbers the choices of a stream in the order of the runs that make them.

    A run that fails before it shows anything gets no number. A choice is held back until every run
    before it has begun or failed.
    """

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._held: dict[int, list[Delta]] = {}
        self._number: dict[int, int] = {}
        self._with_content: set[int] = set()
        self._complete: set[int] = set()
        self._dropped: set[int] = set()
        self._next = 0

    def add(self, run: int, delta: Delta) -> None:
        """Show `delta` as a piece of the choice that `run` makes, now or when its turn comes."""
        if delta.text or delta.tool_calls:
            self._with_content.add(run)
        if delta.finish_reason is not None:
            self._complete.add(run)
        self._held.setdefault(run, []).extend(parts(delta))
        self._release()

    def replace(self, run: int, delta: Delta) -> None:
        """Show `delta` instead of what is held back of the choice."""
        self._held.pop(run, None)
        self.add(run, delta)

    def drop(self, run: int) -> None:
        """Drop a run that failed; unless it was shown already, the next run gets its number."""
        self._held.pop(run, None)
        self._dropped.add(run)
        self._release()

    def shows_content(self, run: int) -> bool:
        """Return whether the client has seen text or tool calls of the choice of `run`."""
        return run in self._with_content and run in self._number

    def is_complete(self, run: int) -> bool:
        """Return whether the choice of `run` has its finish reason."""
        return run in self._complete

    @property
    def any_shown(self) -> bool:
        """Whether the client has seen a piece of any choice."""
        return bool(self._number)

    @property
    def any_content_shown(self) -> bool:
        """Whether the client has seen text or tool calls of any choice."""
        return any(run in self._number for run in self._with_content)

    def _release(self) -> None:
        while self._next in self._dropped or self._next in self._held:
            if self._next in self._held:
                self._number[self._next] = len(self._number)
            self._next += 1
        for run in self._held.keys() & self._number.keys():
            for delta in self._held[run]:
                self._emit(Piece(self._number[run], delta))
            self._held[run] = []
