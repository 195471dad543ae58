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
    return [pid for pid in children_of(os.getpid()) if "sandbox.zygote" in _command(pid)]


def children_of(pid: int) -> list[int]:
    return [child for child, parent in _parents().items() if parent == pid]


def _parents() -> dict[int, int]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(") ")[2].split()[1])
    return found


def _command(pid: int) -> str:
    """Return the command line of `pid`; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
