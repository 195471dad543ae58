"""Processes that a test may have left behind."""

import os
from contextlib import suppress
from pathlib import Path

from optillm_hooks.sandbox import client
from tests import preloaded


def children() -> list[int]:
    """Return the ids of this process's descendants, without the zygotes: these stay.

    So does the fork server that modules before may have had for their proxies.
    """
    parents, others = _parents(), preloaded.processes()
    descendants: set[int] = {os.getpid()}
    while (
        more := {
            pid for pid, parent in parents.items() if parent in descendants and pid not in others
        }
        - descendants
    ):
        descendants |= more
    return sorted(descendants - {os.getpid()} - set(zygotes()))


def zygotes() -> list[int]:
    """Return the ids of this process's zygotes."""
    return [zygote._process.pid for zygote in client._zygotes.values()]


def children_of(pid: int) -> list[int]:
    return [child for child, parent in _parents().items() if parent == pid]


def _parents() -> dict[int, int]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            found[int(stat.parent.name)] = int(stat.read_text().rpartition(") ")[2].split()[1])
    return found
