"""Processes that a test may have left behind."""

import os
from contextlib import suppress
from pathlib import Path


def children() -> list[int]:
    """Return the ids of this process's descendants, without the zygotes: these stay."""
    parents = _parents()
    descendants: set[int] = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in descendants} - descendants:
        descendants |= more
    return sorted(descendants - {os.getpid()} - set(zygotes()))


def zygotes() -> list[int]:
    """Return the ids of the zygotes that this process started."""
    mine = [pid for pid, parent in _parents().items() if parent == os.getpid()]
    return [pid for pid in mine if b"sandbox.zygote" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _parents() -> dict[int, int]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(") ")[2].split()[1])
    return found
