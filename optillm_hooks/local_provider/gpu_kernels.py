"""Triton kernels of attention over the KV cache: each row's keys and values are read in place.

An item is a run of keys (a row's own slot, or the prefix it starts with) and the tokens that attend
to it. One program computes the attention of an item's tokens over a part of its keys, with an
online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867). Parts, and the prefix and slot of a
row, are merged by their logsumexps (flash decoding). No masks are stored: visibility follows from
positions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from optillm_hooks.local_provider.attention import Scores
from optillm_hooks.local_provider.gpu_attention import Before, Launch
from optillm_hooks.local_provider.kv_cache import LayerShape
from optillm_hooks.local_provider.slots import UNIT, anchor

_UNIT = tl.constexpr(UNIT)
_SPLITS_READ = 16

_SEGMENT = tl.constexpr(5)
"""Columns of `segments`: the slot's offset in units and its capacity in tokens, the number of keys
in it, the position of the first, and 1 for a shared prefix, else 0."""


@triton.jit(do_not_specialize_on_alignment=["writes"])
def _store(
    key,
    value,
    anchor,
    writes,
    key_before,
    value_before,
    key_head,
    key_token,
    value_head,
    value_token,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the key and value of one token and head in its row's slot.

    writes: [tokens, 3]: offset of the slot in units, capacity (0: store nothing), place in it.
    key_before, value_before: numbers per token in a slot before this layer's keys and values.
    """
    token, head = tl.program_id(0), tl.program_id(1)
    capacity = tl.load(writes + token * 3 + 1)
    if capacity > 0:
        slot = anchor + tl.load(writes + token * 3) * _UNIT
        place = head * capacity + tl.load(writes + token * 3 + 2)
        n = tl.arange(0, BLOCK)
        new = tl.load(key + head * key_head + token * key_token + n, mask=n < KEY_WIDTH)
        tl.store(slot + capacity * key_before + place * KEY_WIDTH + n, new, mask=n < KEY_WIDTH)
        new = tl.load(value + head * value_head + token * value_token + n, mask=n < VALUE_WIDTH)
        at = slot + capacity * value_before + place * VALUE_WIDTH + n
        tl.store(at, new, mask=n < VALUE_WIDTH)


@triton.jit(
    do_not_specialize=["parts", "splits"],
    do_not_specialize_on_alignment=["segments", "readers", "positions"],
)
def _attend(
    query,
    anchor,
    segments,
    readers,
    positions,
    partial,
    lse,
    key_before,
    value_before,
    query_head,
    query_token,
    scale,
    softcap,
    parts,
    splits,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    READERS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    CHUNKED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend from an item's tokens to one of the splits of its keys, for one key-value head.

    segments: [items, 5]; readers: [items, READERS], the tokens that attend, padded with -1.
    partial: float32 [tokens, parts, splits, query heads, VALUE_WIDTH]; lse: the same without the
    width, in base 2, -inf where no key is visible.
    """
    item, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m = tl.arange(0, BLOCK_M)
    reader = tl.load(readers + item * READERS + m // GROUP, mask=m < READERS * GROUP, other=-1)
    asked = reader >= 0
    if tl.max(reader, 0) >= 0:
        segment = segments + item * _SEGMENT
        capacity = tl.load(segment + 1)
        length = tl.load(segment + 2)
        first = tl.load(segment + 3)
        part = tl.load(segment + 4)
        slot = anchor + tl.load(segment) * _UNIT
        keys = slot + capacity * (key_before + head * KEY_WIDTH)
        values = slot + capacity * (value_before + head * VALUE_WIDTH)
        position = tl.load(positions + reader, mask=asked, other=-1)
        earliest = tl.zeros_like(position)
        if WINDOW > 0:
            earliest = position - (position % WINDOW if CHUNKED else WINDOW - 1)
        visible_from = tl.min(tl.where(asked, earliest, 1 << 30), 0) - first
        begin = tl.maximum(visible_from, 0) // BLOCK_N * BLOCK_N
        end = tl.minimum(length, tl.max(position, 0) - first + 1)
        blocks = tl.cdiv(tl.maximum(end - begin, 0), BLOCK_N)
        each = tl.cdiv(blocks, splits) * BLOCK_N
        begin += split * each
        end = tl.minimum(end, begin + each)

        query_at = head * GROUP + m % GROUP
        d = tl.arange(0, KEY_BLOCK)
        e = tl.arange(0, VALUE_BLOCK)
        q = tl.load(
            query + reader[:, None] * query_token + query_at[:, None] * query_head + d[None, :],
            mask=asked[:, None] & (d < KEY_WIDTH)[None, :],
            other=0.0,
        )
        highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        read = tl.zeros([BLOCK_M, VALUE_BLOCK], tl.float32)
        for start in range(begin, end, BLOCK_N):
            n = start + tl.arange(0, BLOCK_N)
            inside = n < end
            k = tl.load(
                keys + n[:, None] * KEY_WIDTH + d[None, :],
                mask=inside[:, None] & (d < KEY_WIDTH)[None, :],
                other=0.0,
            )
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            if SOFTCAP:
                scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
            scores *= 1.4426950408889634
            at = first + n
            seen = inside[None, :] & (at[None, :] <= position[:, None])
            seen = seen & (at[None, :] >= earliest[:, None])
            scores = tl.where(seen, scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores - safe[:, None])
            kept = tl.exp2(highest - safe)
            total = total * kept + tl.sum(weights, 1)
            v = tl.load(
                values + n[:, None] * VALUE_WIDTH + e[None, :],
                mask=inside[:, None] & (e < VALUE_WIDTH)[None, :],
                other=0.0,
            )
            read = read * kept[:, None]
            read = tl.dot(weights.to(v.dtype), v, read, input_precision="ieee")
            highest = higher
        heads = HEADS * GROUP
        place = ((reader * parts + part) * splits + split) * heads + query_at
        found = total > 0
        safe_total = tl.where(found, total, 1.0)
        tl.store(
            lse + place,
            tl.where(found, tl.log2(safe_total) + highest, float("-inf")),
            mask=asked,
        )
        tl.store(
            partial + place[:, None] * VALUE_WIDTH + e[None, :],
            read / safe_total[:, None],
            mask=(asked & found)[:, None] & (e < VALUE_WIDTH)[None, :],
        )


@triton.jit(
    do_not_specialize=["parts", "splits"], do_not_specialize_on_alignment=["prefixed", "sinks"]
)
def _merge(
    out,
    partial,
    lse,
    prefixed,
    sinks,
    parts,
    splits,
    HEADS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Merge the parts of one token and query head into out [tokens, query heads, VALUE_WIDTH].

    prefixed: [tokens], 1 if the token has a shared prefix. sinks: [query heads], logits that take
    a share of the attention without a value.
    """
    token, head = tl.program_id(0), tl.program_id(1)
    found = splits * (1 + tl.load(prefixed + token))
    e = tl.arange(0, VALUE_BLOCK)
    highest = float("-inf")
    total = 0.0
    if SINKS:
        highest = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total = 1.0
    read = tl.zeros([VALUE_BLOCK], tl.float32)
    for start in range(0, found, BLOCK):
        n = start + tl.arange(0, BLOCK)
        place = (token * parts * splits + n) * HEADS + head
        some = tl.load(lse + place, mask=n < found, other=float("-inf"))
        higher = tl.maximum(highest, tl.max(some, 0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(some - safe)
        kept = tl.exp2(highest - safe)
        total = total * kept + tl.sum(weights, 0)
        new = tl.load(
            partial + place[:, None] * VALUE_WIDTH + e[None, :],
            mask=(weights > 0)[:, None] & (e < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        read = read * kept + tl.sum(weights[:, None] * new, 0)
        highest = higher
    read = read / tl.where(total > 0, total, 1.0)
    at = out + (token * HEADS + head) * VALUE_WIDTH + e
    tl.store(at, read.to(out.dtype.element_ty), mask=e < VALUE_WIDTH)


class TritonKernels:
    """The kernels, launched by the thread that creates this."""

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # Triton launches on the thread's current device

    def store(
        self, key: Tensor, value: Tensor, writes: Tensor, layer: LayerShape, before: Before
    ) -> None:
        """Store keys and values in the slots of their rows."""
        key, value = (t if t.stride(2) == 1 else t.contiguous() for t in (key, value))
        _store[key.shape[:2]](
            key,
            value,
            anchor(key.device, key.dtype),
            writes,
            before.keys,
            before.values,
            key.stride(1),
            key.stride(0),
            value.stride(1),
            value.stride(0),
            KEY_WIDTH=layer.key_width,
            VALUE_WIDTH=layer.value_width,
            BLOCK=_block(max(layer.key_width, layer.value_width)),
        )

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
        """Write the attention of the tokens of `launch` to `out`, which is contiguous."""
        query = query if query.stride(2) == 1 else query.contiguous()
        tokens, heads, _ = query.shape
        parts = tokens, launch.parts, launch.splits, heads
        partial = query.new_empty(*parts, layer.value_width, dtype=torch.float32)
        lse = query.new_empty(parts, dtype=torch.float32)
        items, readers = launch.readers.shape
        key_block, value_block = _block(layer.key_width), _block(layer.value_width)
        rows = _block(max(launch.tile, readers * layer.kind.group))
        wide = max(key_block, value_block) > 128
        half = query.element_size() == 2
        window = layer.kind.window
        _attend[items, layer.kind.kv_heads, launch.splits](
            query,
            anchor(query.device, query.dtype),
            launch.segments,
            launch.readers,
            positions,
            partial,
            lse,
            before.keys,
            before.values,
            query.stride(1),
            query.stride(0),
            scores.scale,
            scores.softcap or 1.0,
            launch.parts,
            launch.splits,
            HEADS=layer.kind.kv_heads,
            GROUP=layer.kind.group,
            READERS=readers,
            KEY_WIDTH=layer.key_width,
            VALUE_WIDTH=layer.value_width,
            KEY_BLOCK=key_block,
            VALUE_BLOCK=value_block,
            WINDOW=window.size if window else 0,
            CHUNKED=bool(window and window.chunked),
            SOFTCAP=scores.softcap is not None,
            BLOCK_M=rows,
            BLOCK_N=64 if half and not wide else 32,
            num_warps=8 if rows > 64 else 4,
            num_stages=3 if half else 2,
        )
        _merge[tokens, heads](
            out,
            partial,
            lse,
            prefixed,
            lse if scores.sinks is None else scores.sinks,
            launch.parts,
            launch.splits,
            HEADS=heads,
            VALUE_WIDTH=layer.value_width,
            VALUE_BLOCK=value_block,
            SINKS=scores.sinks is not None,
            BLOCK=_SPLITS_READ,
        )


def _block(width: int) -> int:
    """Return the smallest block, a power of two that matrix units accept, for `width` numbers."""
    return max(16, 1 << (width - 1).bit_length())
