"""Keys and values of the running rows, and attention over them.

A row's tokens lie in two places: a `Prefix` that it may share with other rows, stored once and
read once for all of them, and its own slot of a `Pool`. Pools are length classes: a row moves to
the next one when it outgrows its own, so that one long row does not make all the short ones long.

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
class Shape:
    """Of the keys (and values) of one token."""

    layers: int
    heads: int
    """Key-value heads, which may be fewer than the query heads."""

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
    """Slots of one length. keys, values: [layers, slots, heads, length, width]."""

    def __init__(self, shape: Shape, length: int) -> None:
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
            self._resize(max(4, 2 * len(self.rows)))
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
        if not self.rows:
            self._resize(0)

    def _resize(self, slots: int) -> None:
        for name in ("keys", "values"):
            old, new = getattr(self, name), self._empty(slots)
            both = min(slots, old.shape[1])
            new[:, :both] = old[:, :both]
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
    length: int = 0
    adapter: str | None = None
    steering: Mapping[str, float] = field(default_factory=dict[str, float])
    """Steering vectors by name, with the strength of each; for tokens fed from now on."""

    @property
    def position(self) -> int:
        """The number of tokens it holds."""
        return self.length + (len(self.prefix.tokens) if self.prefix else 0)


class KeyValues:
    """All rows. Not thread-safe."""

    def __init__(self, shape: Shape, context: int) -> None:
        self.shape = shape
        lengths = [256]
        while lengths[-1] < context:
            lengths.append(min(4 * lengths[-1], context))
        self._pools = [Pool(shape, length) for length in lengths]

    @property
    def bytes(self) -> int:
        """Memory of all slots, used or not, without the prefixes."""
        return sum(pool.bytes for pool in self._pools)

    def bytes_for(self, rows: int, tokens: int) -> int:
        """Return the memory that `rows` rows of `tokens` own tokens take at most."""
        return rows * self._class_of(tokens).length * self.shape.token_bytes

    def rows(self) -> Iterator[Row]:
        for pool in self._pools:
            yield from pool.rows

    def new(self, prefix: Prefix | None = None, adapter: str | None = None) -> Row:
        row = Row(self._pools[0], -1, prefix, adapter=adapter)
        self._pools[0].add(row)
        return row

    def free(self, row: Row) -> None:
        row.pool.remove(row)

    def reserve(self, row: Row, tokens: int) -> None:
        """Make sure that `tokens` more fit into the slot of `row`."""
        pool = self._class_of(row.length + tokens)
        if pool.length <= row.pool.length:
            return
        old = Row(row.pool, row.slot, length=row.length)
        old.pool.rows[old.slot] = old
        pool.add(row)
        used = slice(0, row.length)
        pool.keys[:, row.slot, :, used] = old.pool.keys[:, old.slot, :, used]
        pool.values[:, row.slot, :, used] = old.pool.values[:, old.slot, :, used]
        old.pool.remove(old)

    def fill(self, row: Row, prefix: Prefix, tokens: int) -> None:
        """Copy the first `tokens` tokens of `prefix` into the empty slot of `row`."""
        self.reserve(row, tokens)
        row.pool.keys[:, row.slot, :, :tokens] = prefix.keys[:, :, :tokens]
        row.pool.values[:, row.slot, :, :tokens] = prefix.values[:, :, :tokens]
        row.length = tokens

    def snapshot(self, row: Row, tokens: Sequence[int]) -> Prefix:
        """Return a copy of what `row` holds, whose tokens are `tokens`."""
        used = slice(0, row.length)
        keys, values = row.pool.keys[:, row.slot, :, used], row.pool.values[:, row.slot, :, used]
        if row.prefix is None:
            return Prefix(tuple(tokens), keys.clone(), values.clone())
        return Prefix(
            tuple(tokens),
            torch.cat([row.prefix.keys, keys], dim=2),
            torch.cat([row.prefix.values, values], dim=2),
        )

    def _class_of(self, tokens: int) -> Pool:
        return next(pool for pool in self._pools if pool.length >= tokens)


@dataclass(slots=True, eq=False)
class _Run:
    """Several tokens of one row: places `start` to `end` of the flat list."""

    row: Row
    start: int
    end: int
    mask: Tensor
    """float [tokens, keys]: 0 where a token may look, -inf elsewhere."""


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

    shared: list[tuple[Prefix, Tensor]] = field(default_factory=list[tuple[Prefix, Tensor]])
    """Prefixes, and the slots of the rows that continue each."""


@dataclass(slots=True, eq=False)
class _Write:
    """The tokens of one pool's rows: places `start` to `end` of the flat list."""

    pool: Pool
    start: int
    end: int
    slots: Tensor
    offsets: Tensor
    """int [tokens]: where each is to lie in its slot."""


Feed = tuple[Row, Sequence[int]]


class StepPlan:
    """Where the tokens of one step are, for the attention of every layer.

    Made before the forward pass; the rows' lengths already count the step's tokens. In the flat
    list of all tokens those of a pool lie together, single tokens first and in the order of their
    slots: then most of what attention reads and writes is one piece of memory.
    """

    def __init__(self, feeds: Sequence[Feed], shape: Shape) -> None:
        on = shape.device
        order = sorted(
            feeds, key=lambda feed: (feed[0].pool.length, len(feed[1]) > 1, feed[0].slot)
        )
        self.rows = [row for row, tokens in order for _ in tokens]
        """The row of each token."""

        self.tokens = torch.tensor([token for _, tokens in order for token in tokens], device=on)
        ends = dict(zip((row for row, _ in order), _ends(order), strict=True))
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
                self._singles.append(_single(pool, single, ends[single[0]] - 1, shape))
            self._runs += [
                _Run(row, ends[row] - len(tokens), ends[row], _causal(row, len(tokens), shape))
                for row, tokens in mine[len(single) :]
            ]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store keys and values; return what each token reads: [1, tokens, query heads, width].

        query: [1, query heads, tokens, width]; key, value: [1, heads, tokens, width]
        """
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)
        for w in self._writes:
            w.pool.keys[layer][w.slots, :, w.offsets] = keys[w.start : w.end]
            w.pool.values[layer][w.slots, :, w.offsets] = values[w.start : w.end]
        out = torch.empty_like(query.transpose(1, 2))
        for singles in self._singles:
            _attend_singles(singles, layer, query[0], out[0], scale)
        for run in self._runs:
            _attend_run(run, layer, query[0], out[0], scale)
        return out


def _ends(feeds: Sequence[Feed]) -> Iterator[int]:
    """Yield where in the flat list the tokens of each row end."""
    return accumulate(len(tokens) for _, tokens in feeds)


def _write(
    pool: Pool, feeds: Sequence[Feed], ends: Mapping[Row, int], device: torch.device
) -> _Write:
    slots, offsets = list[int](), list[int]()
    for row, tokens in feeds:
        slots += [row.slot] * len(tokens)
        offsets += range(row.length - len(tokens), row.length)
    first, end = feeds[0], ends[feeds[-1][0]]
    whole = torch.tensor([slots, offsets], device=device)
    return _Write(pool, ends[first[0]] - len(first[1]), end, whole[0], whole[1])


def _causal(row: Row, count: int, shape: Shape) -> Tensor:
    seen = torch.arange(row.position, device=shape.device)
    own = torch.arange(row.position - count, row.position, device=shape.device)
    return _bias(seen[None] <= own[:, None], shape)


def _bias(visible: Tensor, shape: Shape) -> Tensor:
    return torch.zeros(visible.shape, dtype=shape.dtype, device=shape.device).masked_fill_(
        ~visible, -torch.inf
    )


def _single(pool: Pool, rows: Sequence[Row], start: int, shape: Shape) -> _Singles:
    count = 1 + rows[-1].slot
    longest = max(row.length for row in rows)
    places, lengths = [0] * count, [1] * count
    shared: dict[Prefix, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        places[row.slot], lengths[row.slot] = place, row.length
        if row.prefix is not None:
            shared[row.prefix].append(row.slot)
    on = shape.device
    visible = torch.arange(longest, device=on) < torch.tensor(lengths, device=on)[:, None]
    return _Singles(
        pool,
        start,
        start + len(rows),
        torch.tensor([row.slot for row in rows], device=on),
        None if count == len(rows) else torch.tensor(places, device=on),
        _bias(visible, shape)[:, None, None],
        [(prefix, torch.tensor(mine, device=on)) for prefix, mine in shared.items()],
    )


def _attend_singles(s: _Singles, layer: int, query: Tensor, out: Tensor, scale: float) -> None:
    heads, width, (count, _, _, longest) = s.pool.shape.heads, s.pool.shape.width, s.mask.shape
    asked = query[:, s.start : s.end].transpose(0, 1)
    # The query heads of one key-value head stand where other queries would: nothing is repeated.
    q = (asked if s.places is None else asked[s.places]).reshape(count, heads, -1, width)
    k = s.pool.keys[layer, :count, :, :longest]
    v = s.pool.values[layer, :count, :, :longest]
    if s.shared:
        read = _with_prefixes(s, layer, q, k, v, scale)
    else:
        read = scaled_dot_product_attention(q, k, v, attn_mask=s.mask, scale=scale)
    found = read.reshape(count, -1, width)
    out[s.start : s.end] = found if s.places is None else found[s.slots]


def _with_prefixes(
    s: _Singles, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> Tensor:
    """Return attention over prefix and slot together: [slots, heads, group, width].

    Both parts are softmaxed apart and weighed by their shares of the whole normaliser.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scale + s.mask.float()
    total = scores.logsumexp(dim=-1, keepdim=True)
    read = torch.matmul((scores - total).exp().to(v.dtype), v)
    for prefix, slots in s.shared:
        heads, group, width = q.shape[1:]
        asked = q[slots].transpose(0, 1).reshape(heads, -1, width)
        scores = torch.matmul(asked, prefix.keys[layer].transpose(-1, -2)).float() * scale
        before = scores.logsumexp(dim=-1, keepdim=True)
        from_prefix = torch.matmul((scores - before).exp().to(v.dtype), prefix.values[layer])
        before = before.reshape(heads, len(slots), group, 1).transpose(0, 1)
        from_prefix = from_prefix.reshape(heads, len(slots), group, width).transpose(0, 1)
        share = torch.sigmoid(before - total[slots]).to(v.dtype)
        read[slots] = torch.lerp(read[slots], from_prefix, share)
    return read


def _attend_run(run: _Run, layer: int, query: Tensor, out: Tensor, scale: float) -> None:
    row, count = run.row, run.end - run.start
    k = row.pool.keys[layer, row.slot, :, : row.length]
    v = row.pool.values[layer, row.slot, :, : row.length]
    if row.prefix is not None:
        k = torch.cat([row.prefix.keys[layer], k], dim=1)
        v = torch.cat([row.prefix.values[layer], v], dim=1)
    heads, _, width = k.shape
    q = query[:, run.start : run.end].reshape(heads, -1, width)
    mask = run.mask.repeat(q.shape[1] // count, 1)
    read = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale)
    out[run.start : run.end] = read.reshape(-1, count, width).transpose(0, 1)
