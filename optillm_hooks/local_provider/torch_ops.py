"""Private CPU kernels of torch, each with a public fallback.

A private operation may be removed or change its signature in another version of torch. Each is
tried once, on a tiny input, when it is first needed, and used only if it computes the same as its
public counterpart.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import linear

_log = logging.getLogger(__name__)

_PACKED_FOR = 16
"""Weights are packed for this number of tokens, which was never slower for other numbers."""

_ROUNDING = 1e-4
_ROUNDING_IN_HALF = 0.05


@cache
def can_pack_linear() -> bool:
    """Return True if bfloat16 weights can be packed for the matrix unit of this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False

    def works() -> bool:
        cpu = torch.ops.mkldnn
        if not cpu._is_mkldnn_bf16_supported() or cpu._is_mkldnn_acl_supported():
            return False
        tokens, weight, bias = (_numbers(*shape).bfloat16() for shape in ((3, 16), (8, 16), (8,)))
        packed = pack_linear_weight(weight)
        return packed.shape == weight.shape and all(
            _close(packed_linear(tokens, packed, b), linear(tokens, weight, b), _ROUNDING_IN_HALF)
            for b in (bias, None)
        )

    return _probe("packed linear layers", works)


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Return `weight` reordered for the CPU's matrix unit, for `packed_linear`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    return packed


def packed_linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the same as `linear`, with a packed weight; torch.compile emits the same call."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
    return product


def attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return attention [B, heads, queries, head_dim] and its logsumexp [B, heads, queries].

    `mask` [B, 1, 1, keys] is added to the scores.
    """
    if query.device.type == "cpu" and _can_flash_attend(query.dtype):
        return _flash_attention(query, key, value, mask, scale)
    return plain_attention_with_lse(query, key, value, mask, scale)


def plain_attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the same as `attention_with_lse`, with plain matrix products, on any device."""
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale + mask.float()
    lse = scores.logsumexp(dim=-1, keepdim=True)
    return torch.matmul((scores - lse).exp().to(value.dtype), value), lse[..., 0]


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    # `scaled_dot_product_attention` calls this on CPUs, but drops the logsumexp. The kernel is
    # slow if the numbers of a head are not contiguous.
    read, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query.contiguous(), key, value, attn_mask=mask, scale=scale
    )
    return read, lse


@cache
def _can_flash_attend(dtype: torch.dtype) -> bool:
    def works() -> bool:
        query, key, value = (_numbers(2, 2, tokens, 8).to(dtype) for tokens in (3, 4, 4))
        mask = torch.zeros(2, 1, 1, 4, dtype=dtype)
        mask[1, ..., 2:] = -torch.inf
        given = query, key, value, mask, 0.3
        pairs = zip(_flash_attention(*given), plain_attention_with_lse(*given), strict=True)
        near = _ROUNDING if dtype.itemsize >= 4 else _ROUNDING_IN_HALF
        return all(_close(found, expected, near) for found, expected in pairs)

    return _probe(f"flash attention with its logsumexp in {dtype}", works)


def _probe(what: str, works: Callable[[], bool]) -> bool:
    """Return True if an operation works here; if not, log the reason once."""
    reason = "not supported, or its result differs"
    try:
        with torch.inference_mode():
            if works():
                return True
    except Exception as exc:  # a missing name, another signature, or any error of a kernel
        reason = f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"
    _log.info(
        "torch %s: %s not available (%s); using plain layers", torch.__version__, what, reason
    )
    return False


def _numbers(*shape: int) -> Tensor:
    """Return a tensor of numbers from -1 to 1, without changing torch's random state."""
    count = torch.Size(shape).numel()
    return (torch.arange(count) * 0.7).sin().reshape(shape)


def _close(found: Tensor, expected: Tensor, near: float) -> bool:
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found.float(), expected.float(), rtol=near, atol=near)
