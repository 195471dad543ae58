"""Keys and values of the running rows, and attention over them.

A row's tokens lie in two places: a `Prefix` that it may share with other rows, which has one slot
and is read once for all of them, and its own slot of a `Pool`. Pools are length classes: a row
moves to the next one when it outgrows its own, so that one long row does not make all the short
ones long. Prefixes have pools of their own, so that all those of a step are read in one go.

A step feeds any number of tokens to any of the rows, as one flat list: the linear layers see all
tokens at once, whether a token continues an answer or belongs to a prompt that is being read.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class KVShape:
    """Of the keys (and values) of one token."""

    layers: int
    heads: int
    """Key-value heads."""

    group: int
    """Query heads that read each of them."""

    width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.heads * self.width * self.dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The beginning that several rows have in common. Never written to.

    keys, values: [layers, heads, tokens, width]
    """

    tokens: tuple[int, ...]
    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


class Pool:
    """Slots of one length. keys, values: [layers, slots, heads, length, width].

    Their number doubles when they are used up and halves when half of it will do: it is at most
    twice that of the rows.
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
        """Give `row` a slot; its content is undefined."""
        if len(self.rows) == self.keys.shape[1]:
            self._resize(max(1, 2 * len(self.rows)))
        row.pool, row.slot = self, len(self.rows)
        self.rows.append(row)

    def remove(self, row: "Row") -> None:
        """Take the slot of `row` away; the last row moves into the hole."""
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
        # Zeros: attention multiplies what lies behind a row's end by a weight of zero, and zero
        # times whatever memory held before could be NaN.
        return torch.zeros(
            s.layers, slots, s.heads, self.length, s.width, dtype=s.dtype, device=s.device
        )


@dataclass(eq=False, slots=True)
class Row:
    """One sequence: the tokens of its prefix, then `length` tokens in its slot."""

    pool: Pool
    slot: int
    prefix: Prefix | None = None
    prefix_slot: "Row | None" = None
    """The slot of the prefix."""

    length: int = 0
    adapter: str | None = None
    steering: Mapping[str, float] = field(default_factory=dict[str, float])
    """Steering vectors by name, with the strength of each; for tokens fed from now on."""

    @property
    def position(self) -> int:
        """The number of tokens it holds."""
        return self.length + (len(self.prefix.tokens) if self.prefix else 0)


class KVCache:
    """All rows. Not thread-safe."""

    def __init__(self, shape: KVShape, context: int) -> None:
        self.shape = shape
        lengths = [256]
        while lengths[-1] < context:
            lengths.append(min(2 * lengths[-1], context))
        self._pools = [Pool(shape, length) for length in lengths]
        self._trunk_pools = [Pool(shape, length) for length in lengths]
        self._trunks: dict[Prefix, Row] = {}

    @property
    def bytes(self) -> int:
        """Memory of all slots, used or not."""
        return sum(pool.bytes for pool in self._pools + self._trunk_pools)

    def bytes_for(self, rows: int, tokens: int) -> int:
        """Return the memory that `rows` rows of `tokens` own tokens fill at most.

        Slots are made ahead: up to twice as much is allocated.
        """
        return rows * _class_of(tokens, self._pools).length * self.shape.token_bytes

    def rows(self) -> Iterator[Row]:
        for pool in self._pools:
            yield from pool.rows

    def new(self, prefix: Prefix | None = None, adapter: str | None = None, tokens: int = 0) -> Row:
        """Return an empty row whose slot has room for `tokens` tokens or more."""
        pool = _class_of(tokens, self._pools)
        prefix_slot = None if prefix is None else self._trunk(prefix)
        row = Row(pool, -1, prefix, prefix_slot, adapter=adapter)
        pool.add(row)
        return row

    def free(self, row: Row) -> None:
        row.pool.remove(row)
        if row.prefix is not None and all(
            other.prefix_slot is not row.prefix_slot for other in self.rows()
        ):
            prefix_slot = self._trunks.pop(row.prefix)
            prefix_slot.pool.remove(prefix_slot)

    def _trunk(self, prefix: Prefix) -> Row:
        if prefix not in self._trunks:
            pool = _class_of(len(prefix.tokens), self._trunk_pools)
            prefix_slot = Row(pool, -1)
            pool.add(prefix_slot)
            self.fill(prefix_slot, prefix, len(prefix.tokens))
            self._trunks[prefix] = prefix_slot  # only now: there may have been no memory for it
        return self._trunks[prefix]

    def reserve(self, row: Row, tokens: int) -> None:
        """Make sure that `tokens` more fit into the slot of `row`."""
        pool = _class_of(row.length + tokens, self._pools)
        if pool.length <= row.pool.length:
            return
        old = Row(row.pool, row.slot, length=row.length)
        pool.add(row)  # may find no memory, and the row is then still where it was
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
        """Return a copy of what `row`, which has no prefix, holds: its tokens are `tokens`."""
        used = slice(0, row.length)
        keys, values = row.pool.keys[:, row.slot, :, used], row.pool.values[:, row.slot, :, used]
        return Prefix(tuple(tokens), keys.clone(), values.clone())


def _class_of(tokens: int, pools: Sequence[Pool]) -> Pool:
    return next(pool for pool in pools if pool.length >= tokens)


@dataclass(slots=True, eq=False)
class _Run:
    """Several tokens of one row: places `start` to `end` of the flat list."""

    row: Row
    start: int
    end: int
    mask: Tensor
    """float [group x tokens, keys]: 0 where a token may look, -inf elsewhere."""


@dataclass(slots=True, eq=False)
class _Singles:
    """One token each of rows of one pool: places `start` to `end` of the flat list, by slot."""

    pool: Pool
    start: int
    end: int
    slots: Tensor
    """int [rows]: the slots that have a token."""

    places: Tensor | None
    """int [slots]: of each slot's token among these, where slots without one take part with a
    stranger's; None if all slots have one."""

    mask: Tensor
    """float [slots, 1, 1, longest]"""


@dataclass(slots=True, eq=False)
class _Shared:
    """Single tokens of rows that continue prefixes of one pool."""

    pool: Pool
    asking: Tensor
    """int [prefixes, most rows of one]: the places of the tokens that read each prefix. Where a
    prefix has fewer, a stranger's takes part."""

    spots: Tensor
    """int [tokens]: where in `asking`, flattened, each token is."""

    places: Tensor
    """int [tokens]: where each is in the flat list."""

    mask: Tensor
    """float [prefixes, 1, 1, longest]"""


@dataclass(slots=True, eq=False)
class _Write:
    """The tokens of one pool's rows: places `start` to `end` of the flat list."""

    pool: Pool
    start: int
    end: int
    vectors: Tensor
    """int [tokens x heads]: which of the pool's vectors each is to be, of those of one layer."""


Feed = tuple[Row, Sequence[int]]


class StepPlan:
    """Where the tokens of one step are, for the attention of every layer.

    Made before the forward pass; the rows' lengths already count the step's tokens. In the flat
    list of all tokens those of a pool lie together, single tokens first and in the order of their
    slots: then most of what attention reads and writes is one piece of memory.
    """

    def __init__(self, feeds: Sequence[Feed], shape: KVShape) -> None:
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
        """Where the last token of each row is, in the order in which the rows were given."""

        seen = [range(row.position - len(tokens), row.position) for row, tokens in order]
        self.positions = torch.tensor([position for some in seen for position in some], device=on)
        self._writes: list[_Write] = []
        self._singles: list[_Singles] = []
        self._runs: list[_Run] = []
        for pool, of_pool in groupby(order, key=lambda feed: feed[0].pool):
            mine = list(of_pool)
            self._writes.append(_write(pool, mine, ends, on))
            single = [row for row, tokens in mine if len(tokens) == 1]
            if single:
                self._singles.append(_singles(pool, single, ends[single[0]] - 1, shape))
            self._runs += [
                _Run(row, ends[row] - len(tokens), ends[row], _causal(row, len(tokens), shape))
                for row, tokens in mine[len(single) :]
            ]
        self._shared = list(_shared(order, ends, shape))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store keys and values; return what each token reads: [1, tokens, query heads, width].

        query: [1, query heads, tokens, width]; key, value: [1, heads, tokens, width]
        """
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        for w in self._writes:
            for held, given in ((w.pool.keys, keys), (w.pool.values, values)):
                new = given[w.start : w.end].flatten(0, 1)
                held[layer].view(-1, new.shape[-1]).index_copy_(0, w.vectors, new)
        asked = query[0].transpose(0, 1)
        out = asked.new_empty(asked.shape)
        totals = out.new_empty(out.shape[:2], dtype=torch.float32) if self._shared else None
        for singles in self._singles:
            _attend_singles(singles, layer, asked, out, totals, scale)
        for shared in self._shared:
            assert totals is not None  # noqa: S101
            _add_prefixes(shared, layer, asked, out, totals, scale)
        for run in self._runs:
            _attend_run(run, layer, query[0], out, scale)
        return out[None]


def _write(
    pool: Pool, feeds: Sequence[Feed], ends: Mapping[Row, int], device: torch.device
) -> _Write:
    heads, length = pool.shape.heads, pool.length
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
    seen = torch.arange(row.position, device=shape.device)
    own = torch.arange(row.position - count, row.position, device=shape.device)
    return _bias(seen[None] <= own[:, None], shape).repeat(shape.group, 1)


def _bias(visible: Tensor, shape: KVShape) -> Tensor:
    return torch.zeros(visible.shape, dtype=shape.dtype, device=shape.device).masked_fill_(
        ~visible, -torch.inf
    )


def _until(lengths: Sequence[int], shape: KVShape) -> Tensor:
    """Return a mask [slots, 1, 1, longest] that shows of each slot its first tokens."""
    seen = torch.arange(max(lengths), device=shape.device)
    return _bias(seen < torch.tensor(lengths, device=shape.device)[:, None], shape)[:, None, None]


def _singles(pool: Pool, rows: Sequence[Row], start: int, shape: KVShape) -> _Singles:
    count = 1 + rows[-1].slot
    places, lengths = [0] * count, [1] * count
    for place, row in enumerate(rows):
        places[row.slot], lengths[row.slot] = place, row.length
    on = shape.device
    return _Singles(
        pool,
        start,
        start + len(rows),
        torch.tensor([row.slot for row in rows], device=on),
        None if count == len(rows) else torch.tensor(places, device=on),
        _until(lengths, shape),
    )


def _shared(feeds: Sequence[Feed], ends: Mapping[Row, int], shape: KVShape) -> Iterator[_Shared]:
    readers: dict[Pool, dict[Row, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, tokens in feeds:
        if row.prefix_slot is not None and len(tokens) == 1:
            readers[row.prefix_slot.pool][row.prefix_slot].append(ends[row] - 1)
    for pool, by_trunk in readers.items():
        count, most = (
            1 + max(prefix_slot.slot for prefix_slot in by_trunk),
            max(map(len, by_trunk.values())),
        )
        asking = [[next(iter(by_trunk.values()))[0]] * most for _ in range(count)]
        lengths, spots = [1] * count, list[int]()
        for prefix_slot, places in by_trunk.items():
            asking[prefix_slot.slot][: len(places)] = places
            lengths[prefix_slot.slot] = prefix_slot.length
            spots += range(prefix_slot.slot * most, prefix_slot.slot * most + len(places))
        flat = [place for places in by_trunk.values() for place in places]
        numbers = [torch.tensor(some, device=shape.device) for some in (asking, spots, flat)]
        yield _Shared(pool, numbers[0], numbers[1], numbers[2], _until(lengths, shape))


def _attend_singles(
    s: _Singles, layer: int, query: Tensor, out: Tensor, totals: Tensor | None, scale: float
) -> None:
    heads, width, (count, _, _, longest) = s.pool.shape.heads, s.pool.shape.width, s.mask.shape
    asked = query[s.start : s.end]
    # The query heads of one key-value head stand where other queries would: nothing is repeated.
    q = (asked if s.places is None else asked[s.places]).reshape(count, heads, -1, width)
    k = s.pool.keys[layer, :count, :, :longest]
    v = s.pool.values[layer, :count, :, :longest]
    if totals is None:
        read = scaled_dot_product_attention(q, k, v, attn_mask=s.mask, scale=scale)
    else:
        read, total = read_with_total(q, k, v, s.mask, scale)
        total = total.reshape(count, -1)
        totals[s.start : s.end] = total if s.places is None else total[s.slots]
    found = read.reshape(count, -1, width)
    out[s.start : s.end] = found if s.places is None else found[s.slots]


def _add_prefixes(
    s: _Shared, layer: int, query: Tensor, out: Tensor, totals: Tensor, scale: float
) -> None:
    """Make of what each token reads in its slot what it reads in prefix and slot together.

    Both parts were softmaxed apart and are weighed by their shares of the whole normaliser.
    """
    heads, group, width = s.pool.shape.heads, s.pool.shape.group, s.pool.shape.width
    (count, most), longest = s.asking.shape, s.mask.shape[-1]
    q = query[s.asking].reshape(count, most, heads, group, width).transpose(1, 2)
    k = s.pool.keys[layer, :count, :, :longest]
    v = s.pool.values[layer, :count, :, :longest]
    read, total = read_with_total(q.reshape(count, heads, -1, width), k, v, s.mask, scale)
    read = read.reshape(count, heads, most, group, width).transpose(1, 2)
    total = total.reshape(count, heads, most, group).transpose(1, 2)
    found = read.reshape(count * most, -1, width)[s.spots]
    share = torch.sigmoid(total.reshape(count * most, -1)[s.spots] - totals[s.places])
    out[s.places] = torch.lerp(out[s.places], found, share[..., None].to(out.dtype))


def read_with_total(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return attention [B, heads, queries, width] and the logs of its normalisers, without width.

    `mask` [B, 1, 1, keys] is added to the scores.
    """
    if query.device.type == "cpu":
        # What `scaled_dot_product_attention` runs on CPUs; but that one keeps the normaliser, and
        # goes another way where the numbers of a head do not lie together.
        read, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.contiguous(), key, value, attn_mask=mask, scale=scale
        )
        return read, total
    return multiplied(query, key, value, mask, scale)


def multiplied(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return what `read_with_total` does, by plain products on any device."""
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale + mask.float()
    total = scores.logsumexp(dim=-1, keepdim=True)
    return torch.matmul((scores - total).exp().to(value.dtype), value), total[..., 0]


def _attend_run(run: _Run, layer: int, query: Tensor, out: Tensor, scale: float) -> None:
    row, count = run.row, run.end - run.start
    k = row.pool.keys[layer, row.slot, :, : row.length]
    v = row.pool.values[layer, row.slot, :, : row.length]
    if row.prefix is not None:
        k = torch.cat([row.prefix.keys[layer], k], dim=1)
        v = torch.cat([row.prefix.values[layer], v], dim=1)
    heads, _, width = k.shape
    q = query[:, run.start : run.end].reshape(heads, -1, width)
    read = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=run.mask, scale=scale)
    out[run.start : run.end] = read.reshape(-1, count, width).transpose(0, 1)
