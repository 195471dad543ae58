"""The store as stages use it: asynchronous, and opened when it is first used."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from optillm_hooks.store.records import (
    Method,
    Namespace,
    NewNote,
    Note,
    StoreFailed,
    StoreUnusable,
    Strategy,
)

if TYPE_CHECKING:  # loading SQLAlchemy takes a while: a thread does it when the store is opened
    from sqlalchemy import Engine

    from optillm_hooks.store.strategy_rows import AllRows

T = TypeVar("T")

FILE: Final = "store.sqlite3"
_THREADS: Final = 4
_RETRY_S: Final = 5.0
"""Seconds in which a database that could not be reached is not asked again."""

_log = logging.getLogger(__name__)


class Store:
    """One store: a file of SQLite in `directory`, or the PostgreSQL database at `url`.

    Each method is one transaction, which runs in a thread. A transaction that has begun is finished
    even if its caller is cancelled. All methods raise `StoreFailed`.
    """

    def __init__(
        self, *, directory: Path, url: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._url = url
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, "optillm-store")
        self._opening = threading.Lock()
        self._engine: Engine | None = None
        self._retry_at = 0.0
        """Instant on `time.monotonic`."""

    async def add_notes(
        self, owner: Namespace, notes: Sequence[NewNote], *, ttl_s: float | None = None
    ) -> int:
        """Add notes and return how many are new; one that is there already becomes the newest.

        Texts are cut to `MAX_NOTE_CHARS`. Beyond `MAX_NOTES`, the oldest notes are deleted.
        """
        return await self._write(lambda rows: rows.add_notes(owner, notes, ttl_s))

    async def notes(
        self, owner: Namespace, *, limit: int = 1000, after: str | None = None
    ) -> list[Note]:
        """Return the newest `limit` notes, newest first; with `after`, those next to that note."""
        return await self._read(lambda rows: rows.notes(owner, limit, after))

    async def delete_note(self, owner: Namespace, note_id: str) -> bool:
        """Delete a note; return whether there was one."""
        return await self._write(lambda rows: rows.delete_note(owner, note_id))

    async def clear_notes(self, owner: Namespace) -> int:
        """Delete all notes; return how many there were."""
        return await self._write(lambda rows: rows.clear_notes(owner))

    async def text(self, owner: Namespace, key: str) -> str | None:
        """Return the text that is cached under `key`; None if there is none."""
        return await self._read(lambda rows: rows.text(owner, key))

    async def put_text(
        self, owner: Namespace, key: str, text: str, *, ttl_s: float | None = None
    ) -> None:
        """Cache `text` under `key`, in the place of what was there.

        It is cut to `MAX_TEXT_CHARS`. Beyond `MAX_TEXTS`, the oldest texts are deleted.
        """
        await self._write(lambda rows: rows.put_text(owner, key, text, ttl_s))

    async def clear_texts(self, owner: Namespace) -> int:
        """Delete all cached texts; return how many there were."""
        return await self._write(lambda rows: rows.clear_texts(owner))

    async def strategies(self, owner: Namespace) -> list[Strategy]:
        """Return the current version of each strategy, oldest first."""
        return await self._read(lambda rows: rows.strategies(owner))

    async def add_strategy(self, owner: Namespace, method: Method) -> bool:
        """Add a strategy; return whether it is new. Texts are cut to `MAX_METHOD_CHARS`.

        Beyond `MAX_STRATEGIES`, the least useful one is deleted.
        """
        return await self._write(lambda rows: rows.add_strategy(owner, method))

    async def revise_strategy(self, owner: Namespace, uid: str, seen: int, method: Method) -> bool:
        """Make `method` the next version of a strategy, if version `seen` is still the current one.

        Returns whether it was. The new version begins without uses and rewards.
        """
        return await self._write(lambda rows: rows.revise_strategy(owner, uid, seen, method))

    async def roll_back_strategy(self, owner: Namespace, uid: str, version: int) -> bool:
        """Make an earlier version the current one, with its own count; return whether it exists."""
        return await self._write(lambda rows: rows.roll_back_strategy(owner, uid, version))

    async def delete_strategy(self, owner: Namespace, uid: str) -> bool:
        """Delete a strategy with all its versions; return whether there was one."""
        return await self._write(lambda rows: rows.delete_strategy(owner, uid))

    async def use_strategies(self, owner: Namespace, uids: Sequence[str], request: str) -> None:
        """Count a use of the current version of each strategy, by the request with that id."""
        await self._write(lambda rows: rows.use_strategies(owner, uids, request))

    async def reward(self, owner: Namespace, request: str, reward: float) -> int:
        """Give `reward`, from 0 to 1, to what a request used; return how many versions got it.

        Only the first reward of a request counts.
        """
        return await self._write(lambda rows: rows.reward(owner, request, reward))

    def close(self) -> None:
        """Finish what is running, and close all connections. The next use opens it again."""
        self._threads.shutdown()
        self._threads = ThreadPoolExecutor(_THREADS, "optillm-store")
        with self._opening:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None

    async def _read(self, work: "Callable[[AllRows], T]") -> T:
        return await self._in_thread(work, reads=True)

    async def _write(self, work: "Callable[[AllRows], T]") -> T:
        return await self._in_thread(work, reads=False)

    async def _in_thread(self, work: "Callable[[AllRows], T]", *, reads: bool) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._transact, work, reads)

    def _transact(self, work: "Callable[[AllRows], T]", reads: bool) -> T:
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        from optillm_hooks.store.strategy_rows import AllRows

        try:
            self._check_reachable()
            engine = self._opened().execution_options(reads=reads)
            with engine.begin() as connection:
                return work(AllRows(connection, self._clock()))
        except (SQLAlchemyError, StoreUnusable, OSError) as exc:
            # The error of a statement has its parameters, which are texts of users.
            said = getattr(exc, "orig", None) or exc
            if isinstance(exc, OperationalError) and not getattr(exc.orig, "sqlstate", None):
                self._retry_at = time.monotonic() + _RETRY_S
            _log.error("the store cannot be used: %s", str(said)[:500])
            raise StoreFailed from None

    def _check_reachable(self) -> None:
        """Fail at once while the database is known to be away: many requests may be waiting."""
        if self._url is not None and time.monotonic() < self._retry_at:
            raise StoreUnusable("its database could not be reached a moment ago")

    def _opened(self) -> "Engine":
        from optillm_hooks.store.opening import open_file, open_url

        with self._opening:
            if self._engine is None:
                self._check_reachable()
                self._engine = (
                    open_file(self._directory / FILE) if self._url is None else open_url(self._url)
                )
            return self._engine
