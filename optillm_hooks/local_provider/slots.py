"""KV cache slots that are allocated one by one, for GPUs.

Torch's allocator keeps freed GPU memory for the next slot. A pool grows without copying the rows
that it has, and its slots never move, so that kernels can be given their addresses.
"""

from functools import cache
from typing import Final

import torch
from torch import Tensor

from optillm_hooks.local_provider.kv_cache import KVShape, Pool, Row

UNIT: Final = 16
"""Slots are addressed in units of this many numbers, so that kernels can load whole words."""


class SlotPool(Pool):
    """A pool of which each slot is a tensor: the keys of each cache, then the values."""

    offsets: list[int]
    """Where each slot is: its distance from the anchor, in units."""

    def __init__(self, shape: KVShape, length: int) -> None:
        super().__init__(shape, length)
        self._slots: list[Tensor] = []
        self.offsets = []

    @property
    def bytes(self) -> int:
        return len(self._slots) * self.length * self.shape.token_bytes

    def add(self, row: Row) -> None:
        """Give `row` a slot with undefined content."""
        s = self.shape
        numbers = self.length * s.token_bytes // s.dtype.itemsize
        slot = torch.empty(numbers, dtype=s.dtype, device=s.device)
        start = anchor(s.device, s.dtype).data_ptr()
        self.offsets.append((slot.data_ptr() - start) // (UNIT * s.dtype.itemsize))
        self._slots.append(slot)
        row.pool, row.slot = self, len(self.rows)
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        """Free the slot of `row`; the last row takes its number."""
        last, slot, offset = self.rows.pop(), self._slots.pop(), self.offsets.pop()
        if last is not row:
            last.slot = row.slot
            self.rows[last.slot], self._slots[last.slot] = last, slot
            self.offsets[last.slot] = offset

    def held(self, slot: int, tokens: int) -> list[Tensor]:
        """Return views of the first `tokens` tokens in a slot: keys, then values, of each cache."""
        shapes = [(layer.kind.kv_heads, layer.key_width) for layer in self.shape.caches]
        shapes += [(layer.kind.kv_heads, layer.value_width) for layer in self.shape.caches]
        sizes = [self.length * heads * width for heads, width in shapes]
        parts = torch.split_with_sizes(self._slots[slot], sizes)
        return [
            part.view(heads, self.length, width)[:, :tokens]
            for part, (heads, width) in zip(parts, shapes, strict=True)
        ]


@cache
def anchor(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the tensor from which slots are addressed."""
    return torch.empty(UNIT, device=device, dtype=dtype)


def address(row: Row) -> tuple[int, int]:
    """Return the offset of a row's slot, and its capacity in tokens."""
    pool = row.pool
    assert isinstance(pool, SlotPool)  # noqa: S101
    return pool.offsets[row.slot], pool.length
