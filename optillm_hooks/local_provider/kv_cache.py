"""The KV cache of the running rows, and attention over it (grouped-query attention included).

A row's tokens are in two places: its own slot of a `Pool`, and a `Prefix` that it may share with
other rows, which has one slot and is read once for all of them. Pools are length classes: a row
that outgrows its pool moves to the next one, so that one long row does not make all the short
ones long. Prefixes have separate pools, so that all prefixes of a step are read together.

A step feeds any number of tokens to any of the rows, as one flat list: the linear layers see all
tokens together, both those of sequences that decode and those of prefill chunks.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from optillm_hooks.local_provider.torch_ops import attention_with_lse


@dataclass(frozen=True, slots=True)
class KVShape:
    """The shape of the KV cache of one token."""

    layers: int
    kv_heads: int
    group: int
    """Query heads per key-value head; more than 1 with grouped-query or multi-query attention."""

    head_dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The KV cache of a prompt, for rows that start with it. Immutable.

    keys, values: [layers, kv_heads, tokens, head_dim]
    """

    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


class Pool:
    """KV cache slots of one length. keys, values: [layers, slots, kv_heads, length, head_dim].

    The number of slots doubles when all are used, and halves when fewer than half are: there are at
    most twice as many slots as rows.
    """

    def __init__(self, shape: KVShape, length: int) -> None:
        self.shape = shape
        self.length = length
        self.rows: list[Row] = []
        self.keys = self._empty(0)
        self.values = self._empty(0)

    @property
    def bytes(self) -> int:
        return self.keys.shape[1] * self.length * self.shape.token_bytes

    def add(self, row: "Row") -> None:
        """Give `row` a slot with undefined content."""
        if len(self.rows) == self.keys.shape[1]:
            self._resize(max(1, 2 * len(self.rows)))
        row.pool, row.slot = self, len(self.rows)
        self.rows.append(row)

    def remove(self, row: "Row") -> None:
        """Free the slot of `row`; the last row moves into it."""
        last = self.rows.pop()
        if last is not row:
            used = slice(0, last.length)
            for side in (self.keys, self.values):
                side[:, row.slot, :, used] = side[:, last.slot, :, used]
            last.slot = row.slot
            self.rows[last.slot] = last
        if 2 * len(self.rows) < self.keys.shape[1]:
            self._resize(self.keys.shape[1] // 2 if self.rows else 0)

    def _resize(self, slots: int) -> None:
        longest = max((row.length for row in self.rows), default=0)
        for name in ("keys", "values"):
            old, new = getattr(self, name), self._empty(slots)
            both = min(slots, old.shape[1])
            new[:, :both, :, :longest] = old[:, :both, :, :longest]
            setattr(self, name, new)

    def _empty(self, slots: int) -> Tensor:
        s = self.shape
        # Zeros, since attention gives the part after a row's end a weight of zero, and zero times
        # uninitialised memory could be NaN.
        return torch.zeros(
            s.layers, slots, s.kv_heads, self.length, s.head_dim, dtype=s.dtype, device=s.device
        )


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
        return self.length + (len(self.prefix.tokens) if self.prefix else 0)


class KVCache:
    """The KV cache: the slots of all rows and of the prefixes they share. Not thread-safe."""

    def __init__(self, shape: KVShape, context: int) -> None:
        self.shape = shape
        lengths = [256]
        while lengths[-1] < context:
            lengths.append(min(2 * lengths[-1], context))
        self._pools = [Pool(shape, length) for length in lengths]
        self._prefix_pools = [Pool(shape, length) for length in lengths]
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

    def rows(self) -> Iterator[Row]:
        for pool in self._pools:
            yield from pool.rows

    def new(self, prefix: Prefix | None = None, adapter: str | None = None, tokens: int = 0) -> Row:
        """Return an empty row whose slot has room for at least `tokens` tokens."""
        pool = _length_class(tokens, self._pools)
        prefix_slot = None if prefix is None else self._slot_of(prefix)
        row = Row(pool, -1, prefix, prefix_slot, adapter=adapter)
        pool.add(row)
        return row

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
        used = slice(0, row.length)
        pool.keys[:, row.slot, :, used] = old.pool.keys[:, old.slot, :, used]
        pool.values[:, row.slot, :, used] = old.pool.values[:, old.slot, :, used]
        old.pool.remove(old)

    def fill(self, row: Row, prefix: Prefix, tokens: int) -> None:
        """Copy the first `tokens` tokens of `prefix` into the slot of `row`, which has room."""
        row.pool.keys[:, row.slot, :, :tokens] = prefix.keys[:, :, :tokens]
        row.pool.values[:, row.slot, :, :tokens] = prefix.values[:, :, :tokens]
        row.length = tokens

    def snapshot(self, row: Row, tokens: Sequence[int]) -> Prefix:
        """Return a copy of the KV cache of `row`, which has no prefix and holds `tokens`."""
        used = slice(0, row.length)
        keys, values = row.pool.keys[:, row.slot, :, used], row.pool.values[:, row.slot, :, used]
        return Prefix(tuple(tokens), keys.clone(), values.clone())


def _length_class(tokens: int, pools: Sequence[Pool]) -> Pool:
    return next(pool for pool in pools if pool.length >= tokens)


@dataclass(slots=True, eq=False)
class _PrefillChunk:
    """Several tokens of one row, as in prefill: places `start` to `end` of the flat list."""

    row: Row
    start: int
    end: int
    mask: Tensor
    """float [group x tokens, keys]: causal, 0 for keys that a token attends to, else -inf."""


@dataclass(slots=True, eq=False)
class _SingleTokens:
    """One token per row of a pool, as in decode: places `start` to `end` of the flat list."""

    pool: Pool
    start: int
    end: int
    slots: Tensor
    """int [rows]: the slot of each row, in ascending order."""

    padded: Tensor | None
    """int [slots]: the index of each slot's token among these. Slots without a token are padded
    with another row's, whose output is discarded. None: no padding is needed."""

    mask: Tensor
    """float [slots, 1, 1, longest]"""


@dataclass(slots=True, eq=False)
class _Shared:
    """One token each of the rows whose shared prefixes are in one pool (cascade attention)."""

    pool: Pool
    readers: Tensor
    """int [prefixes, max rows per prefix]: the places of the tokens that attend to each prefix.
    Padded with another token's place, whose output is discarded."""

    in_readers: Tensor
    """int [tokens]: the index of each token in `readers`, flattened."""

    places: Tensor
    """int [tokens]: the place of each token in the flat list."""

    mask: Tensor
    """float [prefixes, 1, 1, longest]"""


@dataclass(slots=True, eq=False)
class _Write:
    """The new keys and values of one pool's rows: places `start` to `end` of the flat list."""

    pool: Pool
    start: int
    end: int
    vectors: Tensor
    """int [tokens x kv_heads]: the index of each head's vector in the layer's flattened cache."""


RowTokens = tuple[Row, Sequence[int]]
"""A row and the tokens that a step feeds to it."""


class StepPlan:
    """Attention metadata of one step, shared by all layers: where its tokens are in the KV cache.

    Built before the forward pass; the rows' lengths already include the step's tokens. The flat
    list groups tokens by pool, single tokens first and in slot order, so that attention reads and
    writes mostly contiguous memory.
    """

    def __init__(self, feeds: Sequence[RowTokens], shape: KVShape) -> None:
        on = shape.device
        order = sorted(
            feeds, key=lambda feed: (feed[0].pool.length, len(feed[1]) > 1, feed[0].slot)
        )
        self.rows = [row for row, tokens in order for _ in tokens]
        """The row of each token."""

        self.tokens = torch.tensor([token for _, tokens in order for token in tokens], device=on)
        counts = accumulate(len(tokens) for _, tokens in order)
        ends = dict(zip((row for row, _ in order), counts, strict=True))
        self.last = torch.tensor([ends[row] - 1 for row, _ in feeds], device=on)
        """The place of each row's last token, in the order of `feeds`."""

        seen = [range(row.position - len(tokens), row.position) for row, tokens in order]
        self.positions = torch.tensor([position for some in seen for position in some], device=on)
        self._writes: list[_Write] = []
        self._singles: list[_SingleTokens] = []
        self._chunks: list[_PrefillChunk] = []
        for pool, of_pool in groupby(order, key=lambda feed: feed[0].pool):
            mine = list(of_pool)
            self._writes.append(_write(pool, mine, ends, on))
            single = [row for row, tokens in mine if len(tokens) == 1]
            if single:
                self._singles.append(_singles(pool, single, ends[single[0]] - 1, shape))
            self._chunks += [
                _PrefillChunk(
                    row, ends[row] - len(tokens), ends[row], _causal(row, len(tokens), shape)
                )
                for row, tokens in mine[len(single) :]
            ]
        self._shared = list(_shared(order, ends, shape))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store keys and values; return the attention output [1, tokens, query heads, head_dim].

        query: [1, query heads, tokens, head_dim]; key, value: [1, kv_heads, tokens, head_dim]
        """
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        for w in self._writes:
            for held, given in ((w.pool.keys, keys), (w.pool.values, values)):
                new = given[w.start : w.end].flatten(0, 1)
                held[layer].view(-1, new.shape[-1]).index_copy_(0, w.vectors, new)
        queries = query[0].transpose(0, 1)
        out = queries.new_empty(queries.shape)
        lse = out.new_empty(out.shape[:2], dtype=torch.float32) if self._shared else None
        for singles in self._singles:
            _attend_singles(singles, layer, queries, out, lse, scale)
        for shared in self._shared:
            assert lse is not None  # noqa: S101
            _merge_prefixes(shared, layer, queries, out, lse, scale)
        for chunk in self._chunks:
            _attend_chunk(chunk, layer, query[0], out, scale)
        return out[None]


def _write(
    pool: Pool, feeds: Sequence[RowTokens], ends: Mapping[Row, int], device: torch.device
) -> _Write:
    heads, length = pool.shape.kv_heads, pool.length
    firsts = [
        row.slot * heads * length + offset
        for row, tokens in feeds
        for offset in range(row.length - len(tokens), row.length)
    ]
    of_heads = torch.arange(0, heads * length, length, device=device)
    vectors = torch.tensor(firsts, device=device)[:, None] + of_heads
    first, end = feeds[0], ends[feeds[-1][0]]
    return _Write(pool, ends[first[0]] - len(first[1]), end, vectors.flatten())


def _causal(row: Row, count: int, shape: KVShape) -> Tensor:
    """Return the causal mask [group x count, keys] of the last `count` tokens of `row`."""
    seen = torch.arange(row.position, device=shape.device)
    own = torch.arange(row.position - count, row.position, device=shape.device)
    return _bias(seen[None] <= own[:, None], shape).repeat(shape.group, 1)


def _bias(visible: Tensor, shape: KVShape) -> Tensor:
    """Return an additive attention mask: 0 where `visible`, else -inf."""
    return torch.zeros(visible.shape, dtype=shape.dtype, device=shape.device).masked_fill_(
        ~visible, -torch.inf
    )


def _until(lengths: Sequence[int], shape: KVShape) -> Tensor:
    """Return a mask [slots, 1, 1, longest] over the first `lengths[i]` tokens of slot i."""
    seen = torch.arange(max(lengths), device=shape.device)
    return _bias(seen < torch.tensor(lengths, device=shape.device)[:, None], shape)[:, None, None]


def _singles(pool: Pool, rows: Sequence[Row], start: int, shape: KVShape) -> _SingleTokens:
    count = 1 + rows[-1].slot
    padded, lengths = [0] * count, [1] * count
    for index, row in enumerate(rows):
        padded[row.slot], lengths[row.slot] = index, row.length
    on = shape.device
    return _SingleTokens(
        pool,
        start,
        start + len(rows),
        torch.tensor([row.slot for row in rows], device=on),
        None if count == len(rows) else torch.tensor(padded, device=on),
        _until(lengths, shape),
    )


def _shared(
    feeds: Sequence[RowTokens], ends: Mapping[Row, int], shape: KVShape
) -> Iterator[_Shared]:
    by_pool: dict[Pool, dict[Row, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, tokens in feeds:
        if row.prefix_slot is not None and len(tokens) == 1:
            by_pool[row.prefix_slot.pool][row.prefix_slot].append(ends[row] - 1)
    for pool, by_slot in by_pool.items():
        count, width = 1 + max(slot.slot for slot in by_slot), max(map(len, by_slot.values()))
        places = [place for of_slot in by_slot.values() for place in of_slot]
        readers = [[places[0]] * width for _ in range(count)]
        lengths, in_readers = [1] * count, list[int]()
        for slot, of_slot in by_slot.items():
            readers[slot.slot][: len(of_slot)] = of_slot
            lengths[slot.slot] = slot.length
            in_readers += range(slot.slot * width, slot.slot * width + len(of_slot))
        on = shape.device
        yield _Shared(
            pool,
            torch.tensor(readers, device=on),
            torch.tensor(in_readers, device=on),
            torch.tensor(places, device=on),
            _until(lengths, shape),
        )


def _attend_singles(
    s: _SingleTokens, layer: int, query: Tensor, out: Tensor, lse: Tensor | None, scale: float
) -> None:
    """Write the attention of single tokens over their own slots to `out`, its logsumexp to `lse`.

    Grouped-query attention without `repeat_kv`: groups are folded into the query dimension.
    """
    heads, head_dim = s.pool.shape.kv_heads, s.pool.shape.head_dim
    count, _, _, longest = s.mask.shape
    own = query[s.start : s.end]
    q = (own if s.padded is None else own[s.padded]).reshape(count, heads, -1, head_dim)
    k = s.pool.keys[layer, :count, :, :longest]
    v = s.pool.values[layer, :count, :, :longest]
    if lse is None:
        read = scaled_dot_product_attention(q, k, v, attn_mask=s.mask, scale=scale)
    else:
        read, own_lse = attention_with_lse(q, k, v, s.mask, scale)
        own_lse = own_lse.reshape(count, -1)
        lse[s.start : s.end] = own_lse if s.padded is None else own_lse[s.slots]
    found = read.reshape(count, -1, head_dim)
    out[s.start : s.end] = found if s.padded is None else found[s.slots]


def _merge_prefixes(
    s: _Shared, layer: int, query: Tensor, out: Tensor, lse: Tensor, scale: float
) -> None:
    """Merge the attention over shared prefixes into `out`, the attention over the rows' own slots.

    Cascade attention: each part has its own softmax, and is weighted by its share of the total
    normaliser, computed from the two logsumexps.
    """
    heads, group, head_dim = s.pool.shape.kv_heads, s.pool.shape.group, s.pool.shape.head_dim
    (count, width), longest = s.readers.shape, s.mask.shape[-1]
    q = query[s.readers].reshape(count, width, heads, group, head_dim).transpose(1, 2)
    k = s.pool.keys[layer, :count, :, :longest]
    v = s.pool.values[layer, :count, :, :longest]
    read, prefix_lse = attention_with_lse(
        q.reshape(count, heads, -1, head_dim), k, v, s.mask, scale
    )
    read = read.reshape(count, heads, width, group, head_dim).transpose(1, 2)
    prefix_lse = prefix_lse.reshape(count, heads, width, group).transpose(1, 2)
    found = read.reshape(count * width, -1, head_dim)[s.in_readers]
    prefix_lse = prefix_lse.reshape(count * width, -1)[s.in_readers]
    share = torch.sigmoid(prefix_lse - lse[s.places])
    out[s.places] = torch.lerp(out[s.places], found, share[..., None].to(out.dtype))


def _attend_chunk(
    chunk: _PrefillChunk, layer: int, query: Tensor, out: Tensor, scale: float
) -> None:
    """Write the causal attention of a prefill chunk over its row to `out`."""
    row, count = chunk.row, chunk.end - chunk.start
    k = row.pool.keys[layer, row.slot, :, : row.length]
    v = row.pool.values[layer, row.slot, :, : row.length]
    if row.prefix is not None:
        k = torch.cat([row.prefix.keys[layer], k], dim=1)
        v = torch.cat([row.prefix.values[layer], v], dim=1)
    heads, _, head_dim = k.shape
    q = query[:, chunk.start : chunk.end].reshape(heads, -1, head_dim)
    read = scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=chunk.mask, scale=scale
    )
    out[chunk.start : chunk.end] = read.reshape(-1, count, head_dim).transpose(0, 1)
