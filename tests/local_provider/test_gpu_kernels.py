"""The kernels against attention in double precision, on a GPU: `pytest -m gpu`.

On a CPU they run in Triton's interpreter, in float32: install triton and set TRITON_INTERPRET=1.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from optillm_hooks.local_provider.attention import Scores
from optillm_hooks.local_provider.gpu_attention import GPUPlan, StepTable
from optillm_hooks.local_provider.kv_cache import (
    AttentionKind,
    KVShape,
    LayerShape,
    Prefix,
    Row,
    Window,
)
from optillm_hooks.local_provider.slots import SlotPool

pytestmark = pytest.mark.gpu
GPU = torch.cuda.is_available()

DEVICE = torch.device("cuda:0" if GPU else "cpu")
NEAR = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
PREFIX = 70


class Case(NamedTuple):
    heads: int
    group: int
    key_width: int
    value_width: int
    window: Window | None = None
    softcap: float | None = None
    sinks: bool = False


CASES = [
    Case(2, 3, 16, 16),
    Case(2, 2, 24, 16, Window(20), sinks=True),
    Case(1, 4, 16, 16, Window(32, chunked=True), 5.0, sinks=True),
]
LARGE_CASES = [
    Case(8, 4, 128, 128),
    Case(4, 8, 64, 64, Window(128), sinks=True),
    Case(1, 4, 256, 256, Window(512, chunked=True), 5.0, sinks=True),
    Case(16, 1, 192, 128),
    Case(1, 71, 64, 64),
    Case(8, 1, 80, 80),
]

FEEDS = [
    (5, 1, False),
    (130, 1, False),
    (400, 1, False),
    (1, 1, True),
    (30, 1, True),
    (33, 7, False),
    (200, 40, False),
    (60, 20, True),
    (3, 1, True),
]
"""Of each row its tokens, how many of them the step feeds, and if it has a prefix."""

LARGE_FEEDS = [*FEEDS, (1900, 1, False), (1500, 1, True), (900, 600, False)]


@pytest.mark.parametrize("dtype", NEAR if GPU else [torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES + (LARGE_CASES if GPU else []), ids=str)
def test_attention_is_that_of_double_precision(case: Case, dtype: torch.dtype) -> None:
    from optillm_hooks.local_provider.gpu_kernels import TritonKernels

    torch.manual_seed(0)
    kind = AttentionKind(case.heads, case.group, case.window)
    layers = tuple(LayerShape(kind, case.key_width, case.value_width, i) for i in range(2))
    shape = KVShape(layers, dtype, DEVICE)
    prefix_slot = filled(shape, PREFIX)
    feeds = []
    for length, fed, prefixed in LARGE_FEEDS if GPU else FEEDS:
        row = filled(shape, length)
        if prefixed:
            row.prefix, row.prefix_slot = Prefix(tuple(range(PREFIX)), (), ()), prefix_slot
        feeds.append((row, list(range(fed))))
    plan = GPUPlan(StepTable(feeds, shape), shape, TritonKernels(DEVICE))
    sinks = torch.randn(case.heads * case.group, device=DEVICE) if case.sinks else None
    scores = Scores(case.key_width**-0.5, case.softcap, sinks)
    for layer in range(2):
        tokens = sum(len(fed) for _, fed in feeds)
        query, key, value = (
            torch.randn(1, tokens, heads, width, device=DEVICE).to(dtype).transpose(1, 2)
            for heads, width in (
                (case.heads * case.group, case.key_width),
                (case.heads, case.key_width),
                (case.heads, case.value_width),
            )
        )
        out, place = plan.attend(layer, query, key, value, scores)[0], 0
        for row, new in sorted(feeds, key=lambda feed: len(feed[1]) > 1):
            here = slice(place, place + len(new))
            place = here.stop
            keys, values = held(row, layer)
            assert torch.equal(keys[:, -len(new) :], key[0, :, here])
            assert torch.equal(values[:, -len(new) :], value[0, :, here])
            wanted = reference(query[0, :, here], keys, values, kind, scores)
            error = (out[here].double() - wanted).norm() / wanted.norm()
            assert error < NEAR[dtype], (row.position, len(new))


def filled(shape: KVShape, tokens: int) -> Row:
    """Return a row with random keys and values in a slot of its own pool."""
    pool = SlotPool(shape, tokens + 8)
    row = Row(pool, -1)
    pool.add(row)
    row.length = tokens
    for numbers in pool.held(row.slot, pool.length):
        numbers.normal_()
    return row


def held(row: Row, layer: int) -> tuple[Tensor, Tensor]:
    """Return the keys and values [heads, tokens, width] of a row, its prefix included."""
    parts = [row.held()] if row.prefix_slot is None else [row.prefix_slot.held(), row.held()]
    keys, values = ([part[i] for part in parts] for i in (layer, 2 + layer))
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


def reference(
    query: Tensor, keys: Tensor, values: Tensor, kind: AttentionKind, scores: Scores
) -> Tensor:
    """Return the attention [tokens, query heads, width] of the last tokens, in float64."""
    key, value = (x.double().repeat_interleave(kind.group, dim=0) for x in (keys, values))
    products = query.double() @ key.transpose(1, 2) * scores.scale
    if scores.softcap is not None:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    count, total = products.shape[1:]
    at = torch.arange(total, device=DEVICE)
    for i in range(count):
        position = total - count + i
        outside = (at > position) | (at < kind.first(position))
        products[:, i, outside] = -torch.inf
    if scores.sinks is not None:
        sinks = scores.sinks.double()[:, None, None].expand(-1, count, 1)
        products = torch.cat([products, sinks], dim=-1)
    return (products.softmax(dim=-1)[..., :total] @ value).transpose(0, 1)
