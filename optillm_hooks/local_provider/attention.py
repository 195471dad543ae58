"""Attention over the KV cache, for any tokens of any rows in one step (grouped-query included).

A step feeds any number of tokens to any of the rows, as one flat list: the linear layers see all
tokens together, both those of sequences that decode and those of prefill chunks.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from optillm_hooks.local_provider.kv_cache import AttentionKind, KVShape, LayerShape, Pool, Row
from optillm_hooks.local_provider.torch_ops import attention_with_lse


class Scores(NamedTuple):
    """How a layer computes its attention scores from queries and keys."""

    scale: float
    softcap: float | None = None
    """Scores are squashed to between -softcap and softcap, by tanh."""

    sinks: Tensor | None = None
    """float [query heads]: a score per head that takes its part of the softmax, without a value."""


@dataclass(slots=True, eq=False)
class _Write:
    """The new keys and values of one pool's rows: places `start` to `end` of the flat list."""

    pool: Pool
    start: int
    end: int
    slot: int
    """The slot of the only row."""

    offsets: slice
    """The places of the only row's tokens in its slot."""

    vectors: Tensor | None
    """int [tokens x kv_heads]: the index of each head's vector in the layer's flattened cache.
    None: there is only one row."""


@dataclass(slots=True, eq=False)
class _PrefillChunk:
    """Several tokens of one row, as in prefill: places `start` to `end` of the flat list."""

    row: Row
    start: int
    end: int
    first: int
    """The first position that any of the tokens attends to."""

    mask: Tensor
    """float [group x tokens, keys]: 0 for keys that a token attends to, else -inf."""


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

    keys: slice
    """The part of the slots that any of the tokens attends to."""

    mask: Tensor
    """float [slots, 1, 1, keys]"""


@dataclass(slots=True, eq=False)
class _Shared:
    """One token each of the rows that attend to shared prefixes in one pool (cascade attention).

    A row may have moved so far from its prefix that its window no longer reaches it.
    """

    pool: Pool
    readers: Tensor
    """int [prefixes, max rows per prefix]: the places of the tokens that attend to each prefix.
    Padded with another token's place, whose output is discarded."""

    in_readers: Tensor
    """int [tokens]: the index of each token in `readers`, flattened."""

    places: Tensor
    """int [tokens]: the place of each token in the flat list."""

    keys: slice
    """The part of the prefixes that any of the tokens attends to."""

    mask: Tensor
    """float [prefixes, 1, max rows per prefix x group, keys], or 1 for all rows of a prefix."""


RowTokens = tuple[Row, Sequence[int]]
"""A row and the tokens that a step feeds to it."""


@dataclass(frozen=True, slots=True)
class _Feed:
    """The tokens of one row in a step."""

    row: Row
    count: int
    start: int
    """The place of the first in the flat list."""

    @property
    def end(self) -> int:
        return self.start + self.count


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
        ends = accumulate(len(tokens) for _, tokens in order)
        placed = [
            _Feed(row, len(tokens), end - len(tokens))
            for (row, tokens), end in zip(order, ends, strict=True)
        ]
        last = {feed.row: feed.end - 1 for feed in placed}
        self.last = torch.tensor([last[row] for row, _ in feeds], device=on)
        """The place of each row's last token, in the order of `feeds`."""

        seen = [range(feed.row.position - feed.count, feed.row.position) for feed in placed]
        self.positions = torch.tensor([position for some in seen for position in some], device=on)
        self._layers = shape.layers
        self._parts = {kind: _Parts(placed, kind, shape) for kind in shape.kinds}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor:
        """Store keys and values; return the attention output [1, tokens, query heads, width].

        query: [1, query heads, tokens, width]; key, value: [1, kv_heads, tokens, width]
        """
        shape = self._layers[layer]
        parts = self._parts[shape.kind]
        if shape.stores:
            parts.store(shape.cache, key[0], value[0])
        return parts.attend(shape, query[0], scores)[None]


class _Parts:
    """What a step reads and writes in each layer of one kind."""

    def __init__(self, feeds: Sequence[_Feed], kind: AttentionKind, shape: KVShape) -> None:
        self._kind = kind
        self._writes: list[_Write] = []
        self._singles: list[_SingleTokens] = []
        self._chunks: list[_PrefillChunk] = []
        for pool, of_pool in groupby(feeds, key=lambda feed: feed.row.pool):
            mine = list(of_pool)
            self._writes.append(_write(pool, mine, kind, shape))
            single = [feed for feed in mine if feed.count == 1]
            if single:
                self._singles.append(_singles(pool, single, kind, shape))
            self._chunks += [_chunk(feed, kind, shape) for feed in mine[len(single) :]]
        self._shared = list(_shared(feeds, kind, shape))
        only = len(self._singles) == 1 and not self._chunks and not self._shared
        self._alone = self._singles[0] if only else None
        """The tokens of the step, if all are single tokens in one pool, without prefixes."""

    def store(self, cache: int, key: Tensor, value: Tensor) -> None:
        """Store the keys and values [kv_heads, tokens, width] of the step's tokens."""
        for w in self._writes:
            for held, given in ((w.pool.keys[cache], key), (w.pool.values[cache], value)):
                new = given[:, w.start : w.end]
                if w.vectors is None:
                    held[w.slot, :, w.offsets] = new
                else:
                    new = new.transpose(0, 1).flatten(0, 1)
                    held.view(-1, new.shape[-1]).index_copy_(0, w.vectors, new)

    def attend(self, shape: LayerShape, query: Tensor, scores: Scores) -> Tensor:
        """Return the attention output [tokens, query heads, width] of the step's tokens."""
        queries = query.transpose(0, 1)
        if self._alone is not None and scores.sinks is None:
            return _read_singles(self._alone, shape, queries, scores, with_lse=False)[0]
        out = queries.new_empty(*queries.shape[:2], shape.value_width)
        lse = None
        if self._shared or scores.sinks is not None:
            lse = out.new_empty(out.shape[:2], dtype=torch.float32)
        for singles in self._singles:
            found, own_lse = _read_singles(
                singles, shape, queries, scores, with_lse=lse is not None
            )
            out[singles.start : singles.end] = found
            if lse is not None and own_lse is not None:
                lse[singles.start : singles.end] = own_lse
        for shared in self._shared:
            assert lse is not None  # noqa: S101
            _merge_prefixes(shared, shape, queries, out, lse, scores)
        for chunk in self._chunks:
            _attend_chunk(chunk, shape, query, out, lse, scores)
        if lse is not None and scores.sinks is not None:
            out *= torch.sigmoid(lse - scores.sinks.float())[..., None].to(out.dtype)
        return out


def _write(pool: Pool, feeds: Sequence[_Feed], kind: AttentionKind, shape: KVShape) -> _Write:
    start, end, row = feeds[0].start, feeds[-1].end, feeds[0].row
    offsets = slice(row.length - feeds[0].count, row.length)
    if len(feeds) == 1:
        return _Write(pool, start, end, row.slot, offsets, None)
    heads, length = kind.kv_heads, pool.length
    firsts = [
        feed.row.slot * heads * length + offset
        for feed in feeds
        for offset in range(feed.row.length - feed.count, feed.row.length)
    ]
    of_heads = torch.arange(0, heads * length, length, device=shape.device)
    vectors = torch.tensor(firsts, device=shape.device)[:, None] + of_heads
    return _Write(pool, start, end, row.slot, offsets, vectors.flatten())


def _chunk(feed: _Feed, kind: AttentionKind, shape: KVShape) -> _PrefillChunk:
    row, begun = feed.row, feed.row.position - feed.count
    first = kind.first(begun)
    own = torch.arange(begun, row.position, device=shape.device)[:, None]
    seen = torch.arange(first, row.position, device=shape.device)
    visible = seen <= own
    if kind.window is not None:
        visible &= seen >= kind.window.first(own)
    mask = _bias(visible, shape).repeat(kind.group, 1)
    return _PrefillChunk(row, feed.start, feed.end, first, mask)


def _singles(
    pool: Pool, feeds: Sequence[_Feed], kind: AttentionKind, shape: KVShape
) -> _SingleTokens:
    rows, on = [feed.row for feed in feeds], shape.device
    count = 1 + rows[-1].slot
    firsts = [max(0, kind.first(row.position - 1) - row.prefix_length) for row in rows]
    keys = slice(min(firsts), max(row.length for row in rows))
    padded, starts, ends = [0] * count, [[keys.start]] * count, [[keys.start + 1]] * count
    for index, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        padded[row.slot], starts[row.slot], ends[row.slot] = index, [first], [row.length]
    return _SingleTokens(
        pool,
        feeds[0].start,
        feeds[-1].end,
        torch.tensor([row.slot for row in rows], device=on),
        None if count == len(rows) else torch.tensor(padded, device=on),
        keys,
        _between(starts, ends, keys, shape),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """A single token that attends to its row's prefix, from position `first` on."""

    place: int
    first: int


def _shared(feeds: Sequence[_Feed], kind: AttentionKind, shape: KVShape) -> Iterator[_Shared]:
    by_pool: dict[Pool, dict[Row, list[_Reader]]] = defaultdict(lambda: defaultdict(list))
    for feed in feeds:
        row, prefix_slot = feed.row, feed.row.prefix_slot
        first = kind.first(row.position - 1)
        if prefix_slot is not None and feed.count == 1 and first < row.prefix_length:
            by_pool[prefix_slot.pool][prefix_slot].append(_Reader(feed.start, first))
    for pool, by_slot in by_pool.items():
        yield _shared_in(pool, by_slot, kind, shape)


def _shared_in(
    pool: Pool, by_slot: Mapping[Row, Sequence[_Reader]], kind: AttentionKind, shape: KVShape
) -> _Shared:
    count, width = 1 + max(slot.slot for slot in by_slot), max(map(len, by_slot.values()))
    every = [reader for of_slot in by_slot.values() for reader in of_slot]
    begin = min(reader.first for reader in every)
    keys = slice(begin, max(slot.length for slot in by_slot))
    readers = [[every[0].place] * width for _ in range(count)]
    starts = [[begin] * (1 if kind.window is None else width) for _ in range(count)]
    ends, in_readers = [[begin + 1]] * count, list[int]()
    for slot, of_slot in by_slot.items():
        readers[slot.slot][: len(of_slot)] = [reader.place for reader in of_slot]
        if kind.window is not None:
            starts[slot.slot][: len(of_slot)] = [reader.first for reader in of_slot]
        ends[slot.slot] = [slot.length]
        in_readers += range(slot.slot * width, slot.slot * width + len(of_slot))
    mask = _between(starts, ends, keys, shape)
    return _Shared(
        pool,
        torch.tensor(readers, device=shape.device),
        torch.tensor(in_readers, device=shape.device),
        torch.tensor([reader.place for reader in every], device=shape.device),
        keys,
        mask if kind.window is None else mask.repeat_interleave(kind.group, dim=2),
    )


def _between(
    starts: Sequence[Sequence[int]], ends: Sequence[Sequence[int]], keys: slice, shape: KVShape
) -> Tensor:
    """Return a mask [slots, 1, queries or 1, keys] from `starts` to before `ends` in each slot."""
    if _all_are(keys.start, starts) and _all_are(keys.stop, ends):
        shown = (len(starts), 1, len(starts[0]), keys.stop - keys.start)
        return torch.zeros(shown, dtype=shape.dtype, device=shape.device)
    seen = torch.arange(keys.start, keys.stop, device=shape.device)
    begun = seen >= torch.tensor(starts, device=shape.device)[..., None]
    over = seen >= torch.tensor(ends, device=shape.device)[..., None]
    return _bias(begun & ~over, shape)[:, None]


def _all_are(value: int, numbers: Sequence[Sequence[int]]) -> bool:
    return all(number == value for some in numbers for number in some)


def _bias(visible: Tensor, shape: KVShape) -> Tensor:
    """Return an additive attention mask: 0 where `visible`, else -inf."""
    return torch.zeros(visible.shape, dtype=shape.dtype, device=shape.device).masked_fill_(
        ~visible, -torch.inf
    )


def _read_singles(
    s: _SingleTokens, layer: LayerShape, query: Tensor, scores: Scores, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the attention of single tokens over their own slots, and its logsumexp if asked for.

    Grouped-query attention without `repeat_kv`: groups are folded into the query dimension.
    """
    count, heads = s.mask.shape[0], layer.kind.kv_heads
    own = query[s.start : s.end]
    q = (own if s.padded is None else own[s.padded]).reshape(count, heads, -1, layer.key_width)
    k = s.pool.keys[layer.cache][:count, :, s.keys]
    v = s.pool.values[layer.cache][:count, :, s.keys]
    read, lse = _attention(q, k, v, s.mask, scores, with_lse=with_lse)
    read = read.reshape(count, -1, layer.value_width)
    lse = None if lse is None else lse.reshape(count, -1)
    if s.padded is None:
        return read, lse
    return read[s.slots], None if lse is None else lse[s.slots]


def _merge_prefixes(
    s: _Shared, layer: LayerShape, query: Tensor, out: Tensor, lse: Tensor, scores: Scores
) -> None:
    """Merge the attention over shared prefixes into `out` and `lse`, which are of the rows' slots.

    Cascade attention: each part has its own softmax, and is weighted by its share of the total
    normaliser, computed from the two logsumexps.
    """
    heads, group = layer.kind.kv_heads, layer.kind.group
    count, width = s.readers.shape
    q = query[s.readers].reshape(count, width, heads, group, -1).transpose(1, 2)
    k = s.pool.keys[layer.cache][:count, :, s.keys]
    v = s.pool.values[layer.cache][:count, :, s.keys]
    read, prefix_lse = attention_with_lse(
        q.reshape(count, heads, -1, layer.key_width), k, v, s.mask, scores.scale, scores.softcap
    )
    read = read.reshape(count, heads, width, group, -1).transpose(1, 2)
    prefix_lse = prefix_lse.reshape(count, heads, width, group).transpose(1, 2)
    found = read.reshape(count * width, -1, layer.value_width)[s.in_readers]
    prefix_lse = prefix_lse.reshape(count * width, -1)[s.in_readers]
    own_lse = lse[s.places]
    share = torch.sigmoid(prefix_lse - own_lse)
    out[s.places] = torch.lerp(out[s.places], found, share[..., None].to(out.dtype))
    lse[s.places] = torch.logaddexp(own_lse, prefix_lse)


def _attend_chunk(
    chunk: _PrefillChunk,
    layer: LayerShape,
    query: Tensor,
    out: Tensor,
    lse: Tensor | None,
    scores: Scores,
) -> None:
    """Write the attention of a prefill chunk over its row to `out`, its logsumexp to `lse`."""
    row, count, cache = chunk.row, chunk.end - chunk.start, layer.cache
    own = slice(max(0, chunk.first - row.prefix_length), row.length)
    k = row.pool.keys[cache][row.slot, :, own]
    v = row.pool.values[cache][row.slot, :, own]
    if row.prefix is not None and chunk.first < row.prefix_length:
        k = torch.cat([row.prefix.keys[cache][:, chunk.first :], k], dim=1)
        v = torch.cat([row.prefix.values[cache][:, chunk.first :], v], dim=1)
    q = query[:, chunk.start : chunk.end].reshape(1, layer.kind.kv_heads, -1, layer.key_width)
    read, own_lse = _attention(q, k[None], v[None], chunk.mask, scores, with_lse=lse is not None)
    out[chunk.start : chunk.end] = read.reshape(-1, count, layer.value_width).transpose(0, 1)
    if lse is not None and own_lse is not None:
        lse[chunk.start : chunk.end] = own_lse.reshape(-1, count).T


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scores: Scores, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Return attention [B, heads, queries, width] and, if it is asked for, its logsumexp."""
    if with_lse or scores.softcap is not None:
        return attention_with_lse(query, key, value, mask, scores.scale, scores.softcap)
    read = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scores.scale)
    return read, None
