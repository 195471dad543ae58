"""Linear and RMSNorm layers that are faster for small batches, as in decode steps."""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn import Embedding, Linear, Module
from torch.nn.functional import rms_norm

from optillm_hooks.local_provider.torch_ops import (
    can_pack_linear,
    pack_linear_weight,
    packed_linear,
)

_FEW: Final = range(8, 65)
"""Numbers of tokens for which `WeightsFirst` is faster than the usual product."""

_NEAR: Final = {
    "cpu": {torch.float32: 1e-5},
    "cuda": {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3},
}
"""Relative differences of RMSNorm layers that rounding explains, by device and type."""


class WeightsFirst(Linear):
    """A `Linear` that multiplies weights with tokens instead of tokens with weights.

    The libraries that torch calls parallelise over the rows of the first factor. With few tokens,
    they compute this transposed product up to twice as fast.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        flat = tokens.reshape(-1, tokens.shape[-1])
        if len(flat) not in _FEW:
            return super().forward(tokens)
        if self.bias is None:
            product = torch.mm(self.weight, flat.T)
        else:
            product = torch.addmm(self.bias[:, None], self.weight, flat.T)
        return product.T.reshape(*tokens.shape[:-1], -1).contiguous()


class Packed(Linear):
    """A `Linear` with bfloat16 weights that are reordered for the CPU's matrix unit.

    With plain weights, every product reorders them again.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        return packed_linear(tokens, self.weight, self.bias)


def use_fast_layers(model: Module) -> None:
    """Replace the RMSNorm layers of a model, and on a CPU its Linear layers, with faster ones.

    A packed weight replaces the plain one, so it must not be shared with a layer of another kind.
    """
    embedded = {id(layer.weight) for layer in model.modules() if isinstance(layer, Embedding)}
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.device.type not in ("cpu", "cuda"):
            continue
        if type(layer) is Linear:
            if weight.device.type == "cpu":
                _use_fast_linear(layer, packable=id(weight) not in embedded)
        elif norm := _as_rms_norm(layer, weight):
            layer.forward = norm


def _use_fast_linear(layer: Linear, *, packable: bool) -> None:
    if not packable or layer.weight.dtype != torch.bfloat16 or not can_pack_linear():
        layer.__class__ = WeightsFirst
        return
    packed = pack_linear_weight(layer.weight.detach())
    del layer.weight
    layer.weight = packed
    layer.__class__ = Packed


def _as_rms_norm(layer: Module, weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a faster RMSNorm if `layer` computes the same, else None.

    (Zhang and Sennrich 2019, arXiv:1910.07467.) Each model has its own RMSNorm class, and some
    compute something else, so the results are compared. In half precision the faster norms round
    differently, and on a CPU they are no faster.
    """
    epsilon = getattr(layer, "variance_epsilon", None)
    near = _NEAR[weight.device.type].get(weight.dtype)
    if epsilon is None or weight.dim() != 1 or near is None:
        return None
    if weight.device.type == "cpu":
        norm = partial(_rms_norm, weight=weight, epsilon=torch.tensor(epsilon, dtype=weight.dtype))
    else:
        norm = partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
    large = torch.linspace(-2, 3, len(weight), device=weight.device)
    given = torch.stack([large, 1e-3 * large]).to(weight.dtype)  # the small one reveals epsilon
    with torch.no_grad():
        same = torch.allclose(layer(given), norm(given), rtol=near, atol=1e-3 * near)
    return norm if same else None


def _rms_norm(states: Tensor, weight: Tensor, epsilon: Tensor) -> Tensor:
    """Return the same as torch's `rms_norm`, which on a CPU consists of twice as many operations.

    states: [..., width]; epsilon: a number on the CPU, as a tensor.
    """
    norm = vector_norm(states, dim=-1, keepdim=True, dtype=weight.dtype)
    scale = torch.addcmul(epsilon, norm, norm, value=1 / len(weight)).rsqrt_()
    return scale.mul(states).mul_(weight)
