"""LRU eviction of idle models, to make room for one that is about to be loaded."""

import os
from collections.abc import Sequence
from typing import Protocol

from optillm_hooks.errors import ProviderFailed

_SHARE = 0.8
"""Fraction of a device's memory that models may use, unless the operator sets a limit."""


class Resident(Protocol):
    """A model in memory."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int:
        """Memory in use; 0 once it is unloaded."""
        ...

    @property
    def last_used(self) -> float:
        """When a request last arrived or ended, on a clock that all residents share."""
        ...

    def unload(self) -> bool:
        """Unload it unless it is in use; return True if it is unloaded."""
        ...


def make_room(name: str, needed: int, limit: int, residents: Sequence[Resident]) -> None:
    """Evict idle models, least recently used first, until `needed` more bytes fit into `limit`.

    Models in use are not evicted.

    Raises:
        ProviderFailed: it does not fit at all (500), or not together with the models in use (503).
    """
    if needed > limit:
        raise ProviderFailed(
            f"{name} needs {needed / 2**30:.1f} GiB, but its device has only "
            f"{limit / 2**30:.1f} GiB for models",
            status=500,
        )
    remaining = list(residents)
    for resident in sorted(residents, key=lambda resident: resident.last_used):
        if needed + sum(other.bytes for other in remaining) <= limit:
            return
        if resident.unload():
            remaining.remove(resident)
    held = sum(other.bytes for other in remaining)
    if needed + held > limit:
        busy = ", ".join(sorted(other.name for other in remaining if other.bytes))
        raise ProviderFailed(
            f"not enough memory for {name} while these models are in use: {busy}; try again later",
            status=503,
        )


def device_memory(device: str) -> int:
    """Return the memory of `device` that models may use, in bytes."""
    if device.startswith("cuda"):
        import torch

        return int(_SHARE * torch.cuda.mem_get_info(device)[1])
    return int(_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
