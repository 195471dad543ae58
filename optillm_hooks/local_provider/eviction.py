"""LRU eviction of idle models, to make room for one that is about to be loaded."""

import ctypes
import gc
from collections.abc import Sequence
from typing import Any, Protocol

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.machine import memory_left_by_cgroup

_SHARE = 0.8
"""Fraction of a device's free memory that models may use, unless the operator sets a limit."""

_KV_SHARE = 0.4
"""Fraction of the memory that is left for a KV cache, which allocates up to twice its bound."""

_KV_ON_CPU = 4 << 30
"""Maximum size of a KV cache in main memory, which the proxy and others need too."""


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


def memory_of(model: Any) -> int:
    """Return the memory of a model's weights and buffers, in bytes."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def free_memory(device: str) -> int:
    """Return the memory that is free on `device`, in bytes, whatever else runs there.

    What torch keeps for later is free for it. Main memory ends at the limit of a container.
    """
    if device.startswith("cuda"):
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device == "mps":
        import torch

        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    import psutil

    return int(max(0, min(psutil.virtual_memory().available, memory_left_by_cgroup())))


def memory_for_models(device: str, held: int) -> int:
    """Return the bytes that models may have on `device`, where others hold `held` already."""
    return held + int(_SHARE * free_memory(device))


def memory_for_kv(device: str, prefix_bytes: int) -> int:
    """Return the bytes that a model's KV cache may have, now that its weights are on `device`.

    `prefix_bytes`: what its prefix cache may take beside it.
    """
    share = int(_KV_SHARE * max(0, free_memory(device) - prefix_bytes))
    return min(share, _KV_ON_CPU) if device == "cpu" else share


def release_memory() -> None:
    """Give the memory of a model that nothing refers to back to the system."""
    import torch

    gc.collect()  # models contain reference cycles
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc keeps freed memory
    if trim is not None:
        trim(0)
