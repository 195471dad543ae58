"""The places of workers: how many may run at once, and who is next."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Final

tenant: Final[ContextVar[object]] = ContextVar("tenant", default=None)
"""For whom the current task works: a caller's key, or one request of a caller without a key.

Outside of requests it is None, and each taker of a place counts as another tenant.
"""


class Places:
    """A number of places that tenants share.

    One tenant holds at most all but one of them. A free place goes to the waiting tenant that holds
    the fewest, among equals to the one that has waited longest.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._share = max(1, count - 1)
        self._held: Counter[object] = Counter()
        self._waiting: dict[asyncio.Future[None], object] = {}

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it in the block."""
        holder = tenant.get() or object()
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = holder
        self._give()
        try:
            await turn
            yield
        finally:
            if turn in self._waiting:
                del self._waiting[turn]
            else:
                self._free += 1
                self._held -= Counter([holder])
                self._give()

    def _give(self) -> None:
        """Give free places to those that wait."""
        while self._free and (turn := self._next()):
            holder = self._waiting.pop(turn)
            self._free -= 1
            self._held[holder] += 1
            turn.set_result(None)

    def _next(self) -> asyncio.Future[None] | None:
        """Return the turn of the tenant that is next, or None if no one may have a place."""
        return min(
            (turn for turn, holder in self._waiting.items() if self._held[holder] < self._share),
            key=lambda turn: self._held[self._waiting[turn]],
            default=None,
        )
