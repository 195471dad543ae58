"""The queue of inner calls: how many a worker has under way, and whose turn is next.

A plan may make many calls at once. Where the operator limits the calls under way, a place that gets
free goes to the key with the fewest of them, and to its request with the fewest, in turn among
equals. So neither a wide plan nor a key with many requests can starve others.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class QueueWatch(Protocol):
    """Is told of the calls of a worker."""

    def changed(self, *, running: int, waiting: int) -> None:
        """Hear how many calls are under way, and how many wait."""
        ...

    def began(self, waited_s: float) -> None:
        """Hear that a call begins, and how many seconds it has waited."""
        ...


class Whose(NamedTuple):
    """Whose turn it is."""

    key: str
    """The key that pays, by its hash; "" without one."""

    request: int
    """Tells the requests of a key apart."""


class CallQueue:
    """The inner calls of one worker. All of its calls are made on one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit: int | None = None
        self._running = Counter[Whose]()
        """Calls under way, by request; none of a request is no entry."""

        self._of_keys = Counter[str]()
        """Calls under way, by key."""

        self._waiting: dict[str, dict[Whose, deque[asyncio.Future[None]]]] = {}
        """Calls that wait, by key and request; among equals, the one whose turn is next comes
        first."""

        self.watches: Final[list[QueueWatch]] = []

    @property
    def running(self) -> int:
        return self._of_keys.total()

    @property
    def waiting(self) -> int:
        return sum(len(calls) for of_key in self._waiting.values() for calls in of_key.values())

    @asynccontextmanager
    async def place(self, whose: Whose, limit: int | None) -> AsyncIterator[None]:
        """Make one call in the block, once fewer than `limit` calls are under way.

        A call that is cancelled while it waits leaves the queue; the place of one that has just got
        it goes to the next.
        """
        came, self._limit = self._clock(), limit
        await self._enter(whose)
        try:
            for watch in self.watches:
                watch.began(self._clock() - came)
            yield
        finally:
            self._leave(whose)

    async def _enter(self, whose: Whose) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(whose.key, {}).setdefault(whose, deque()).append(turn)
        self._fill()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._forget(whose, turn)
            else:  # it was cancelled when it had its place
                self._leave(whose)
            raise

    def _leave(self, whose: Whose) -> None:
        _take_one(self._running, whose)
        _take_one(self._of_keys, whose.key)
        self._fill()

    def _forget(self, whose: Whose, turn: asyncio.Future[None]) -> None:
        of_key = self._waiting.get(whose.key, {})
        calls = of_key.get(whose, deque())
        if turn in calls:
            calls.remove(turn)
        if not calls:
            of_key.pop(whose, None)
        if not of_key:
            self._waiting.pop(whose.key, None)
        self._tell()

    def _fill(self) -> None:
        """Give the places that are free to calls that wait."""
        while self._waiting and (self._limit is None or self.running < self._limit):
            whose, turn = self._next()
            if turn.cancelled():  # its task has yet to hear of it
                continue
            self._running[whose] += 1
            self._of_keys[whose.key] += 1
            turn.set_result(None)
        self._tell()

    def _next(self) -> tuple[Whose, asyncio.Future[None]]:
        """Take the call whose turn it is; its key and its request go behind their equals."""
        key = min(self._waiting, key=self._of_keys.__getitem__)
        of_key = self._waiting.pop(key)
        whose = min(of_key, key=self._running.__getitem__)
        calls = of_key.pop(whose)
        turn = calls.popleft()
        if calls:
            of_key[whose] = calls
        if of_key:
            self._waiting[key] = of_key
        return whose, turn

    def _tell(self) -> None:
        for watch in self.watches:
            watch.changed(running=self.running, waiting=self.waiting)


def _take_one(counted: Counter[T], of: T) -> None:
    """Count one less; none is no entry."""
    counted[of] -= 1
    if not counted[of]:
        del counted[of]


QUEUE: Final = CallQueue()
"""That of this process."""
