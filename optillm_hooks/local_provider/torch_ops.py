"""CPU kernels that are private to torch or need another package, each with a public fallback.

A private operation may be removed or change its signature in another version of torch. Each kernel
is tried once, on a tiny input, when it is first needed, and used only if it computes the same as
its public counterpart.
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

_FEW = 3
"""Numbers of tokens up to which the kernel for few tokens is faster than the one for many."""

_WIDE, _MANY = 2048, 32
"""From this number of inputs, up to this number of tokens, the weights are the first factor."""

_RADIX = 254
"""Of the int8 vectors that a token is the sum of: what rounding leaves is at most half a unit."""

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
            close_to(packed_linear(tokens, packed, b), linear(tokens, weight, b), _ROUNDING_IN_HALF)
            for b in (bias, None)
        )

    return probe("packed linear layers", works)


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Return `weight` reordered for the CPU's matrix unit, for `packed_linear`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
    return packed


def packed_linear(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the same as `linear`, with a packed weight; torch.compile emits the same call."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
    return product


def int8_product(tokens: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Return tokens x (weight x scales), float32 [T, outputs], on a CPU.

    tokens: [T, inputs]; weight: int8 [outputs, inputs]; scales: float32 [outputs].
    """
    if tokens.shape[0] <= _FEW and can_multiply_few():
        from optillm_hooks.local_provider import int8_kernel

        return int8_kernel.multiply(tokens.float().contiguous(), weight, scales)
    return product_in_integers(tokens, weight, scales)


def product_in_integers(tokens: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Return the same as `int8_product`, in the integer arithmetic in which CPUs are fastest.

    Each token is a sum of int8 vectors: its numbers rounded, what rounding leaves, in units of
    1/254, and so on. Three of them are as exact as float32 is for the token's largest number. For
    tokens in half precision there are two.
    """
    count, width = tokens.shape
    vectors = 3 if tokens.dtype.itemsize >= 4 else 2
    exact = tokens.float()
    largest = exact.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30)
    rest, parts = exact * (127 / largest), torch.empty(vectors, count, width, dtype=torch.int8)
    for part in parts:
        rounded = rest.round()
        part.copy_(rounded)
        rest.sub_(rounded).mul_(_RADIX)
    flat = parts.view(-1, width)
    if width >= _WIDE and count <= _MANY:
        products = _integer_product(weight, flat.T).T
    else:
        products = _integer_product(flat, weight.T)
    *earlier, last = products.tensor_split(vectors)
    total = last.float()
    for product in reversed(earlier):
        total.div_(_RADIX).add_(product)
    return total.mul_(scales).mul_(largest.div_(127)).contiguous()


def _integer_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two int8 matrices: int32, or float32 if torch cannot compute that."""
    if _can_multiply_integers():
        product: Tensor = torch._int_mm(left, right)
        return product
    return torch.mm(left.float(), right.float())


@cache
def _can_multiply_integers() -> bool:
    def works() -> bool:
        left, right = ((127 * _numbers(*shape)).to(torch.int8) for shape in ((3, 16), (16, 5)))
        return torch.equal(torch._int_mm(left, right).float(), left.float() @ right.float())

    return probe("products of int8 matrices", works)


@cache
def can_multiply_few() -> bool:
    """Return True if numba is installed, and its kernel for few tokens works here."""

    def works() -> bool:
        from optillm_hooks.local_provider import int8_kernel

        tokens, weight, scales = _numbers(2, 40), _numbers(7, 40), _numbers(7)
        weight = (127 * weight).to(torch.int8)
        found = int8_kernel.multiply(tokens, weight, scales)
        return close_to(found, linear(tokens, weight.float()) * scales, _ROUNDING)

    return probe("the int8 kernel for few tokens", works)


def attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return attention [B, heads, queries, width] and its logsumexp [B, heads, queries].

    `mask`, broadcast to [B, heads, queries, keys], is added to the scores. With `softcap`, they are
    squashed to between -softcap and softcap before.
    """
    plain = softcap is not None or key.shape[-1] != value.shape[-1]
    if not plain and query.device.type == "cpu" and _can_flash_attend(query.dtype):
        return _flash_attention(query, key, value, mask, scale)
    return plain_attention_with_lse(query, key, value, mask, scale, softcap)


def plain_attention_with_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the same as `attention_with_lse`, with plain matrix products, on any device."""
    # The queries are scaled, not the scores: those of float16 could overflow before.
    scores = torch.matmul(query * scale, key.transpose(-1, -2)).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + mask
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
        return all(close_to(found, expected, near) for found, expected in pairs)

    return probe(f"flash attention with its logsumexp in {dtype}", works)


def probe(what: str, works: Callable[[], bool]) -> bool:
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


def close_to(found: Tensor, expected: Tensor, near: float = _ROUNDING) -> bool:
    """Return True if two results have one shape, and differ by rounding alone."""
    same_shape = found.shape == expected.shape
    return same_shape and torch.allclose(found.float(), expected.float(), rtol=near, atol=near)
