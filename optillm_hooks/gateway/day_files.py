"""Files of lines, one for each day (UTC), to which several processes append."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from threading import BoundedSemaphore
from typing import Final

_log = logging.getLogger(__name__)

END: Final = b'{"end":"max_bytes_per_day is reached: this day has no more lines"}\n'
"""The last line of a file that is full."""

_MAX_WAITING: Final = 1000
"""Lines that may wait for a slow disk. More are left out, which the log tells."""


@dataclass(slots=True)
class DayFiles:
    """The files of a folder, which are made with the mode 0600.

    A thread writes them. What waits when the process ends is still written.
    """

    directory: Path
    prefix: str
    max_bytes: int
    """Maximum size of a file, its last line included."""

    keep_days: int | None
    """Days after which a file is deleted; None keeps all."""

    thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "optillm-day-files")
    )
    _room: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(_MAX_WAITING))
    _cleaned: date | None = None
    _problem: str = ""

    def add(self, day: date, line: Callable[[], bytes]) -> None:
        """Append what `line` returns to the file of `day`. It is called in the thread."""
        if self._room.acquire(blocking=False):
            self.thread.submit(self._write, day, line)
        else:
            self._tell("the disk is too slow: lines are left out")

    def _write(self, day: date, line: Callable[[], bytes]) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            full = not append(self._file(day), line(), self.max_bytes)
            self._tell(f"{self._file(day).name} is full: lines are left out" if full else "")
            self._delete_old(day)
        except OSError as exc:
            self._tell(f"lines are left out: {exc.strerror}")
        except Exception as exc:
            self._tell(f"a line is left out: {type(exc).__name__}")
        finally:
            self._room.release()

    def _tell(self, problem: str) -> None:
        """Log a problem, unless it is the last one too; empty, that it is over."""
        if problem == self._problem:
            return
        self._problem = problem
        if problem:
            _log.error("optillm: %s: %s", self.directory, problem)

    def _file(self, day: date) -> Path:
        return self.directory / f"{self.prefix}-{day.isoformat()}.jsonl"

    def _delete_old(self, today: date) -> None:
        if self.keep_days is None or self._cleaned == today:
            return
        self._cleaned = today
        first = self._file(today - timedelta(days=self.keep_days)).name
        for old in self.directory.glob(f"{self.prefix}-????-??-??.jsonl"):
            if old.name < first:  # names sort as their dates do
                old.unlink(missing_ok=True)


def append(path: Path, line: bytes, max_bytes: int) -> bool:
    """Append a line to a file, which never has half of one; return whether there was room.

    Without room for it and for `END`, it gets `END` as its last line.

    Raises:
        OSError: it cannot be written.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        os.fchmod(file, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)  # closing it unlocks
        size = os.fstat(file).st_size
        if os.pread(file, len(END), max(0, size - len(END))) == END:
            return False
        has_room = size + len(line) + len(END) <= max_bytes
        whole = line if has_room else END
        if os.write(file, whole) < len(whole):
            os.ftruncate(file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return has_room
    finally:
        os.close(file)
