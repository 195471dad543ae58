"""The queue of inner calls: how many a worker has under way, and whose turn is next.

A plan may make many calls at once. Where the operator limits the calls under way, a place that gets
free goes to the request with the fewest of them, in turn among equals. So a wide plan cannot starve
small ones.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Final, Protocol


class QueueWatch(Protocol):
    """Is told of the calls of a worker."""

    def changed(self, *, running: int, waiting: int) -> None:
        """Hear how many calls are under way, and how many wait."""
        ...

    def began(self, waited_s: float) -> None:
        """Hear that a call begins, and how many seconds it has waited."""
        ...


class CallQueue:
    """The inner calls of one worker. All of its calls are made on one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit: int | None = None
        self._running = Counter[Hashable]()
        """Calls under way, by request; none of a request is no entry."""

        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """Calls that wait, by request; among equals, the request whose turn is next comes first."""

        self.watches: Final[list[QueueWatch]] = []

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def place(self, request: Hashable, limit: int | None) -> AsyncIterator[None]:
        """Make one call of `request` in the block, once fewer than `limit` calls are under way.

        A call that is cancelled while it waits leaves the queue; the place of one that has just got
        it goes to the next.
        """
        came, self._limit = self._clock(), limit
        await self._enter(request)
        try:
            for watch in self.watches:
                watch.began(self._clock() - came)
            yield
        finally:
            self._leave(request)

    async def _enter(self, request: Hashable) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(request, deque()).append(turn)
        self._fill()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(request, turn)
            else:  # it was cancelled when it had its place
                self._leave(request)
            raise

    def _leave(self, request: Hashable) -> None:
        self._running[request] -= 1
        if not self._running[request]:
            del self._running[request]
        self._fill()

    def _forget(self, request: Hashable, turn: asyncio.Future[None]) -> None:
        calls = self._waiting.get(request, deque())
        if turn in calls:
            calls.remove(turn)
        if not calls:
            self._waiting.pop(request, None)
        self._tell()

    def _fill(self) -> None:
        """Give the places that are free to calls that wait."""
        while self._waiting and (self._limit is None or self.running < self._limit):
            request = min(self._waiting, key=self._running.__getitem__)
            calls = self._waiting.pop(request)
            turn = calls.popleft()
            if calls:
                self._waiting[request] = calls  # behind its equals
            if turn.cancelled():  # its task has yet to hear of it
                continue
            self._running[request] += 1
            turn.set_result(None)
        self._tell()

    def _tell(self) -> None:
        for watch in self.watches:
            watch.changed(running=self.running, waiting=self.waiting)


QUEUE: Final = CallQueue()
"""That of this process."""
