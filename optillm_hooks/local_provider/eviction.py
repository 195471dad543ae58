"""The memory that the models of a process share: for one that comes, idle ones leave."""

import os
from collections.abc import Sequence
from typing import Protocol

from optillm_hooks.errors import ProviderFailed

_SHARE = 0.8
"""Of a device's memory for models, where the operator does not say."""


class Resident(Protocol):
    """A model in memory."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int:
        """What it holds now; 0 once it has left."""
        ...

    @property
    def last_used(self) -> float:
        """When a request last came or left, on any clock that all share."""
        ...

    def unload(self) -> bool:
        """Let it leave unless it is in use; return whether it has left."""
        ...


def make_room(name: str, needed: int, limit: int, residents: Sequence[Resident]) -> None:
    """Let idle models leave until `needed` more bytes fit into `limit`.

    The one unused for longest goes first. What is in use stays.

    Raises:
        ProviderFailed: it does not fit, not even alone (500) or beside those in use (503).
    """
    if needed > limit:
        raise ProviderFailed(
            f"{name} needs {needed / 2**30:.1f} GiB, and its device has {limit / 2**30:.1f} "
            "for models",
            status=500,
        )
    staying = list(residents)
    for resident in sorted(residents, key=lambda resident: resident.last_used):
        if needed + sum(other.bytes for other in staying) <= limit:
            return
        if resident.unload():
            staying.remove(resident)
    held = sum(other.bytes for other in staying)
    if needed + held > limit:
        busy = ", ".join(sorted(other.name for other in staying if other.bytes))
        raise ProviderFailed(
            f"no memory for {name} beside {busy}, which are in use; try later", status=503
        )


def device_memory(device: str) -> int:
    """Return the bytes of `device` that models may take."""
    if device.startswith("cuda"):
        import torch

        return int(_SHARE * torch.cuda.mem_get_info(device)[1])
    return int(_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
