"""Transfers of small numbers from the host to a device, without waiting for the device."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor


def to_device(
    device: torch.device, *lists: Sequence[float], dtype: torch.dtype = torch.int64
) -> Sequence[Tensor]:
    """Return a tensor on `device` for each list, all sent in one copy that does not block."""
    sent = in_host_memory(device, *lists, dtype=dtype).to(device, non_blocking=True)
    return torch.split_with_sizes(sent, [len(numbers) for numbers in lists])


def in_host_memory(
    device: torch.device, *lists: Sequence[float], dtype: torch.dtype = torch.int64
) -> Tensor:
    """Return the concatenated lists in host memory from which `device` copies without blocking.

    Torch keeps such memory from being reused until the copy is done.
    """
    numbers = list(chain.from_iterable(lists))
    return torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
