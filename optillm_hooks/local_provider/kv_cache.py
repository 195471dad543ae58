"""The KV cache of the running rows: where the keys and values of their tokens are.

A row's tokens are in two places: its own slot of a `Pool`, and a `Prefix` that it may share with
other rows, which has one slot and is read once for all of them. Pools are length classes: a row
that outgrows its pool moves to the next one, so that one long row does not make all the short
ones long. Prefixes have separate pools, so that all prefixes of a step are read together.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

_Position = TypeVar("_Position", int, Tensor)


@dataclass(frozen=True, slots=True)
class Window:
    """What a token attends to: the last `size` tokens with its own, or its chunk of `size`."""

    size: int
    chunked: bool = False

    def first(self, position: _Position) -> _Position:
        """Return the first position, possibly negative, that a token attends to."""
        if self.chunked:
            return position - position % self.size
        return position - (self.size - 1)


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What layers have in common that share the attention metadata of a step."""

    kv_heads: int
    group: int
    """Query heads per key-value head; more than 1 with grouped-query or multi-query attention."""

    window: Window | None = None
    """None: a token attends to all tokens before it."""

    def first(self, position: int) -> int:
        """Return the first position that the token at `position` attends to."""
        return 0 if self.window is None else max(0, self.window.first(position))


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The attention of one layer, and the shape of its keys and values."""

    kind: AttentionKind
    key_width: int
    """Numbers of a key of one head, and of a query."""

    value_width: int
    cache: int
    """Index of its cache in `KVShape.caches`."""

    stores: bool = True
    """Whether it stores keys and values; if not, it reads those of another layer's cache."""


@dataclass(frozen=True)
class KVShape:
    """The shape of the KV cache of one token, in all layers."""

    layers: tuple[LayerShape, ...]
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def kinds(self) -> frozenset[AttentionKind]:
        return frozenset(layer.kind for layer in self.layers)

    @cached_property
    def caches(self) -> tuple[LayerShape, ...]:
        """The layers that store keys and values."""
        return tuple(layer for layer in self.layers if layer.stores)

    @cached_property
    def token_bytes(self) -> int:
        numbers = sum(
            layer.kind.kv_heads * (layer.key_width + layer.value_width) for layer in self.caches
        )
        return numbers * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The KV cache of a prompt, for rows that start with it. Immutable.

    keys, values: [kv_heads, tokens, width] of each cache.
    """

    tokens: tuple[int, ...]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]

    @property
    def bytes(self) -> int:
        return sum(held.numel() * held.element_size() for held in (*self.keys, *self.values))


class Pool:
    """KV cache slots of one length. keys, values: [slots, kv_heads, length, width] of each cache.

    The number of slots doubles when all are used, and halves when fewer than half are: there are at
    most twice as many slots as rows.
    """

    def __init__(self, shape: KVShape, length: int) -> None:
        self.shape = shape
        self.length = length
        self.rows: list[Row] = []
        self.slots = 0
        of_keys = [(layer.kind.kv_heads, layer.key_width) for layer in shape.caches]
        of_values = [(layer.kind.kv_heads, layer.value_width) for layer in shape.caches]
        self.keys = [self._empty(0, heads, width) for heads, width in of_keys]
        self.values = [self._empty(0, heads, width) for heads, width in of_values]

    @property
    def bytes(self) -> int:
        return self.slots * self.length * self.shape.token_bytes

    def add(self, row: "Row") -> None:
        """Give `row` a slot with undefined content."""
        if len(self.rows) == self.slots:
            self._resize(max(1, 2 * len(self.rows)))
        row.pool, row.slot = self, len(self.rows)
        self.rows.append(row)

    def remove(self, row: "Row") -> None:
        """Free the slot of `row`; the last row moves into it."""
        last = self.rows.pop()
        if last is not row:
            _copy(last.held(), self.held(row.slot, last.length))
            last.slot = row.slot
            self.rows[last.slot] = last
        if 2 * len(self.rows) < self.slots:
            with suppress(MemoryError, RuntimeError):  # no memory for the smaller one
                self._resize(self.slots // 2 if self.rows else 0)

    def held(self, slot: int, tokens: int) -> list[Tensor]:
        """Return views of the first `tokens` tokens in a slot: keys, then values, of each cache."""
        return [held[slot, :, :tokens] for held in (*self.keys, *self.values)]

    def _resize(self, slots: int) -> None:
        """Change the number of slots, one cache at a time: only one is in memory twice."""
        longest = max((row.length for row in self.rows), default=0)
        self.slots = both = min(slots, self.slots)
        for side in (self.keys, self.values):
            for cache, old in enumerate(side):
                new = self._empty(slots, old.shape[1], old.shape[3])
                new[:both, :, :longest] = old[:both, :, :longest]
                side[cache] = new
        self.slots = slots  # only now that all have them: allocating may fail

    def _empty(self, slots: int, heads: int, width: int) -> Tensor:
        # Zeros, since attention gives the part after a row's end a weight of zero, and zero times
        # uninitialised memory could be NaN.
        shape = (slots, heads, self.length, width)
        return torch.zeros(shape, dtype=self.shape.dtype, device=self.shape.device)


@dataclass(eq=False, slots=True)
class Row:
    """The KV cache of one sequence: the tokens of its prefix, then `length` tokens in its slot."""

    pool: Pool
    slot: int
    prefix: Prefix | None = None
    prefix_slot: "Row | None" = None
    """The slot of the prefix."""

    length: int = 0
    adapter: str | None = None
    steering: Mapping[str, float] = field(default_factory=dict[str, float])
    """Strengths of steering vectors by name, for tokens fed from now on."""

    @property
    def position(self) -> int:
        """The number of tokens in it."""
        return self.length + self.prefix_length

    @property
    def prefix_length(self) -> int:
        """The number of tokens in its prefix."""
        return len(self.prefix.tokens) if self.prefix else 0

    def held(self) -> list[Tensor]:
        """Return views of its tokens in its slot: keys, then values, of each cache."""
        return self.pool.held(self.slot, self.length)


class KVCache:
    """The KV cache: the slots of all rows and of the prefixes they share. Not thread-safe."""

    def __init__(self, shape: KVShape, context: int, pool: type[Pool] = Pool) -> None:
        self.shape = shape
        lengths = [256]
        while lengths[-1] < context:
            lengths.append(min(2 * lengths[-1], context))
        self._pools = [pool(shape, length) for length in lengths]
        self._prefix_pools = [pool(shape, length) for length in lengths]
        self._prefix_slots: dict[Prefix, Row] = {}

    @property
    def bytes(self) -> int:
        """Memory of all slots, used or not."""
        return sum(pool.bytes for pool in self._pools + self._prefix_pools)

    def bytes_for(self, rows: int, tokens: int) -> int:
        """Return the maximum bytes that `rows` rows use for `tokens` tokens each, without prefixes.

        Slots are allocated ahead: up to twice as much memory is allocated.
        """
        return rows * _length_class(tokens, self._pools).length * self.shape.token_bytes

    def prefix_bytes(self, tokens: int) -> int:
        """Return the bytes of a `Prefix` of `tokens` tokens."""
        return tokens * self.shape.token_bytes

    def rows(self) -> Iterator[Row]:
        for pool in self._pools:
            yield from pool.rows

    def new(self, prefix: Prefix | None = None, adapter: str | None = None, tokens: int = 0) -> Row:
        """Return an empty row whose slot has room for at least `tokens` tokens."""
        pool = _length_class(tokens, self._pools)
        row = Row(pool, -1, adapter=adapter)
        pool.add(row)
        if prefix is not None:
            row.prefix_slot = self._slot_of(prefix)
            row.prefix = prefix  # only now: allocating may fail
        return row

    def clear(self, row: Row) -> None:
        """Set the slot of `row` to zeros: NaN would reach the next row that gets the slot."""
        for held in row.pool.held(row.slot, row.pool.length):
            held.zero_()

    def free(self, row: Row) -> None:
        row.pool.remove(row)
        if row.prefix is not None and all(
            other.prefix_slot is not row.prefix_slot for other in self.rows()
        ):
            prefix_slot = self._prefix_slots.pop(row.prefix)
            prefix_slot.pool.remove(prefix_slot)

    def _slot_of(self, prefix: Prefix) -> Row:
        if prefix not in self._prefix_slots:
            pool = _length_class(len(prefix.tokens), self._prefix_pools)
            prefix_slot = Row(pool, -1)
            pool.add(prefix_slot)
            self.fill(prefix_slot, prefix, len(prefix.tokens))
            self._prefix_slots[prefix] = prefix_slot  # only now: allocating may fail
        return self._prefix_slots[prefix]

    def reserve(self, row: Row, tokens: int) -> None:
        """Move `row` to a longer slot unless `tokens` more fit into its own."""
        pool = _length_class(row.length + tokens, self._pools)
        if pool.length <= row.pool.length:
            return
        old = Row(row.pool, row.slot, length=row.length)
        pool.add(row)  # may run out of memory; the row then keeps its old slot
        old.pool.rows[old.slot] = old
        _copy(old.held(), row.held())
        old.pool.remove(old)

    def fill(self, row: Row, prefix: Prefix, tokens: int) -> None:
        """Copy the first `tokens` tokens of `prefix` into the slot of `row`, which has room."""
        row.length = tokens
        _copy([held[:, :tokens] for held in (*prefix.keys, *prefix.values)], row.held())

    def snapshot(self, row: Row, tokens: Sequence[int]) -> Prefix:
        """Return a copy of the KV cache of `row`, which has no prefix and holds `tokens`."""
        copied = [held.clone() for held in row.held()]
        caches = len(self.shape.caches)
        return Prefix(tuple(tokens), copied[:caches], copied[caches:])


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)


def _length_class(tokens: int, pools: Sequence[Pool]) -> Pool:
    return next(pool for pool in pools if pool.length >= tokens)
