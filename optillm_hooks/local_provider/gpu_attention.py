"""Attention on GPUs, with kernels that read each row's slot in place.

All numbers that describe a step are in one table: one copy to the device, or an update in place of
the table that a CUDA graph reads.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

import torch
from torch import Tensor

from optillm_hooks.local_provider.attention import RowTokens, Scores
from optillm_hooks.local_provider.kv_cache import KVShape, LayerShape, Row
from optillm_hooks.local_provider.slots import address
from optillm_hooks.local_provider.transfer import in_host_memory

_BUSY: Final = 128
"""Number of programs that keep a large GPU busy."""

_SPLITS: Final = (4, 64)
"""Minimum and maximum number of splits of a row's keys in decode."""

_TILE: Final = 16
"""Minimum side of a product on matrix units."""


class Before(NamedTuple):
    """Where a cache is in a slot: after so many numbers per token."""

    keys: int
    values: int


@dataclass(slots=True)
class _Items:
    """Runs of keys, each with the tokens that attend to it."""

    width: int
    """Maximum number of tokens per item."""

    segments: list[int] = field(default_factory=list[int])
    """Five numbers per item: see `gpu_kernels.attend_kernel`."""

    readers: list[int] = field(default_factory=list[int])
    """`width` places of tokens per item, padded with -1."""

    def add(self, slot: Row, first: int, places: Sequence[int], *, part: int) -> None:
        """Let the tokens at `places` attend to the tokens of `slot`, from position `first` on."""
        offset, capacity = address(slot)
        for start in range(0, len(places), self.width):
            some = places[start : start + self.width]
            self.segments += (offset, capacity, slot.length, first, part)
            self.readers += (*some, *[-1] * (self.width - len(some)))

    def pad(self, items: int) -> None:
        """Add empty items until there are `items`."""
        missing = items - len(self.readers) // self.width
        self.segments += [0] * (5 * missing)
        self.readers += [-1] * (self.width * missing)


class StepTable:
    """The numbers that describe a step: its tokens as a flat list, and where their rows are.

    Single tokens come first. Built after the rows' lengths include the step's tokens.
    """

    def __init__(self, feeds: Sequence[RowTokens], shape: KVShape) -> None:
        order = sorted(feeds, key=lambda feed: len(feed[1]) > 1)
        group = max(kind.group for kind in shape.kinds)
        self.singles = sum(len(tokens) == 1 for _, tokens in feeds)
        self.rows = [row for row, tokens in order for _ in tokens]
        """The row of each token."""

        self.tokens = [token for _, tokens in order for token in tokens]
        self.positions: list[int] = []
        self.prefixed: list[int] = []
        self.writes: list[int] = []
        self.single_items = _Items(max(1, _TILE // group))
        self.chunk_items = _Items(max(1, _prefill_tile(shape.dtype) // group))
        ends = accumulate(len(tokens) for _, tokens in order)
        last: dict[Row, int] = {}
        shared: dict[Row, list[int]] = defaultdict(list)
        for (row, tokens), end in zip(order, ends, strict=True):
            last[row] = end - 1
            self.positions += range(row.position - len(tokens), row.position)
            self.prefixed += [int(row.prefix_slot is not None)] * len(tokens)
            offset, capacity = address(row)
            for place in range(row.length - len(tokens), row.length):
                self.writes += (offset, capacity, place)
            single = len(tokens) == 1
            items = self.single_items if single else self.chunk_items
            places = (
                [end - 1] if single else range(end - len(tokens) - self.singles, end - self.singles)
            )
            items.add(row, row.prefix_length, places, part=0)
            if row.prefix_slot is None:
                continue
            if single:
                shared[row.prefix_slot].append(end - 1)
            else:
                items.add(row.prefix_slot, 0, places, part=1)
        for slot, readers in shared.items():
            self.single_items.add(slot, 0, readers, part=1)
        self.parts = 1 + any(self.prefixed)
        self.last = [last[row] for row, _ in feeds]

    def pad(self, singles: int) -> None:
        """Add tokens without a row to a step that has only single tokens."""
        missing = singles - self.singles
        self.singles = singles
        for numbers in (self.tokens, self.positions, self.prefixed, self.last):
            numbers.extend([0] * missing)
        self.writes += [0] * (3 * missing)
        self.single_items.pad(self.parts * singles)

    def lists(self) -> tuple[list[int], ...]:
        singles, chunks = self.single_items, self.chunk_items
        items = singles.segments, singles.readers, chunks.segments, chunks.readers
        return self.tokens, self.positions, self.prefixed, self.writes, self.last, *items


@dataclass(frozen=True, slots=True)
class Launch:
    """The items of one kernel launch, and the tokens of the flat list that read them."""

    start: int
    end: int
    segments: Tensor
    """int [items, 5]"""

    readers: Tensor
    """int [items, tokens per item]: places from `start` on."""

    parts: int
    """2 if some items are shared prefixes, else 1."""

    splits: int
    """Number of splits of each item's keys."""

    tile: int
    """Minimum number of queries, one per token and head, that a program computes together."""


class Kernels(Protocol):
    """The operations on slots. Queries, keys and values: [tokens, heads, width]."""

    def store(
        self, key: Tensor, value: Tensor, writes: Tensor, layer: LayerShape, before: Before
    ) -> None:
        """Store keys and values at `writes`, int [tokens, 3]: slot, its capacity, and place."""
        ...

    def attend(
        self,
        query: Tensor,
        out: Tensor,
        launch: Launch,
        positions: Tensor,
        prefixed: Tensor,
        layer: LayerShape,
        before: Before,
        scores: Scores,
    ) -> None:
        """Write the attention of the tokens of `launch` to `out`.

        positions: int [tokens]; prefixed: int [tokens], 1 for tokens with a shared prefix.
        """
        ...


class GPUPlan:
    """Attention metadata of one step on a GPU, shared by all layers."""

    def __init__(self, table: StepTable, shape: KVShape, kernels: Kernels) -> None:
        lists = table.lists()
        self.table = in_host_memory(shape.device, *lists).to(shape.device, non_blocking=True)
        self.rows = table.rows
        self.tokens, self.positions, self._prefixed, writes, self.last, *items = (
            torch.split_with_sizes(self.table, [len(numbers) for numbers in lists])
        )
        self._writes = writes.view(-1, 3)
        n = table.singles
        heads = min(kind.kv_heads for kind in shape.kinds)
        width, chunk_width = table.single_items.width, table.chunk_items.width
        launches = (
            Launch(
                0,
                n,
                items[0].view(-1, 5),
                items[1].view(-1, width),
                table.parts,
                _splits(n * heads),
                _TILE,
            ),
            Launch(
                n,
                len(self.tokens),
                items[2].view(-1, 5),
                items[3].view(-1, chunk_width),
                table.parts,
                1,
                _prefill_tile(shape.dtype),
            ),
        )
        self._launches = [launch for launch in launches if launch.end > launch.start]
        self._shape, self._kernels = shape, kernels

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Store keys and values; return the attention output [1, tokens, query heads, width].

        query: [1, query heads, tokens, width]; key, value: [1, kv_heads, tokens, width]
        """
        shape = self._shape.layers[layer]
        before = numbers_before(self._shape)[shape.cache]
        if shape.stores:
            keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
            self._kernels.store(keys, values, self._writes, shape, before)
        queries = query[0].transpose(0, 1)
        out = queries.new_empty(*queries.shape[:2], shape.value_width)
        for launch in self._launches:
            here = slice(launch.start, launch.end)
            self._kernels.attend(
                queries[here],
                out[here],
                launch,
                self.positions[here],
                self._prefixed[here],
                shape,
                before,
                scores,
            )
        return out[None]


@cache
def numbers_before(shape: KVShape) -> list[Before]:
    """Return for each cache where its keys and values are in a slot."""
    widths = [layer.kind.kv_heads * layer.key_width for layer in shape.caches]
    widths += [layer.kind.kv_heads * layer.value_width for layer in shape.caches]
    starts = list(accumulate(widths, initial=0))
    return list(map(Before, starts, starts[len(shape.caches) :]))


def _splits(programs: int) -> int:
    """Return the number of splits of each row's keys, a power of two."""
    least, most = _SPLITS
    wanted = _BUSY // max(1, programs)
    return min(most, max(least, 1 << max(0, wanted.bit_length() - 1)))


def _prefill_tile(dtype: torch.dtype) -> int:
    return 64 if dtype.itemsize == 2 else 32
