"""Linear and RMSNorm layers that are faster on CPUs for small batches, as in decode steps."""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module
from torch.nn.functional import rms_norm

from optillm_hooks.local_provider.torch_ops import (
    can_pack_linear,
    pack_linear_weight,
    packed_linear,
)

_FEW: Final = range(8, 65)
"""Numbers of tokens for which `WeightsFirst` is faster than the usual product."""


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
    """Replace the Linear and RMSNorm layers of a model on a CPU with faster equivalents.

    A packed weight replaces the plain one, so it must not be shared with a layer of another kind.
    """
    embedded = {id(layer.weight) for layer in model.modules() if isinstance(layer, Embedding)}
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.device.type != "cpu":
            continue
        if type(layer) is Linear:
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
    """Return torch's fused RMSNorm if `layer` computes the same, else None.

    (Zhang and Sennrich 2019, arXiv:1910.07467.) Each model has its own RMSNorm class, and some
    compute something else, so the results are compared. In half precision the fused norm rounds
    differently and is no faster.
    """
    epsilon = getattr(layer, "variance_epsilon", None)
    if epsilon is None or weight.dim() != 1 or weight.dtype != torch.float32:
        return None
    norm = partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
    large = torch.linspace(-2, 3, len(weight))
    given = torch.stack([large, 1e-3 * large])  # the small one reveals the epsilon
    with torch.no_grad():
        return norm if torch.allclose(layer(given), norm(given)) else None
