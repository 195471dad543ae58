"""Layers that are quicker on CPUs for the few tokens that a step of writing feeds."""

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module
from torch.nn.functional import rms_norm

_FEW: Final = range(8, 65)
"""Numbers of tokens before which the weights come first: else the usual product is quicker."""

_PACKED_FOR: Final = 16
"""The number of tokens for which weights are packed: it was never slower for any other number."""


class WeightsFirst(Linear):
    """Computes what `Linear` does.

    `Linear` multiplies tokens with weights. Weights with tokens is the same product turned over,
    and the libraries behind torch compute it up to twice as fast where the tokens are few beside
    the weights: they split a product by the rows of its first factor.
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
    """Computes what `Linear` does, with bfloat16 weights in the order of the CPU's matrix unit.

    Each product of plain weights orders them anew. The functions are those of torch's compiler.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            tokens, self.weight, self.bias, "none", [], ""
        )
        return product


def use_fast_layers(model: Module) -> None:
    """Let the plain linear layers and norms of a model on a CPU compute what they do in less time.

    Packed weights take the place of the plain ones, which no layer of another kind may need.
    """
    looked_up = {id(layer.weight) for layer in model.modules() if isinstance(layer, Embedding)}
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.device.type != "cpu":
            continue
        if type(layer) is Linear:
            _quicken_linear(layer, id(weight) in looked_up)
        elif norm := _as_rms_norm(layer, weight):
            layer.forward = norm


def _quicken_linear(layer: Linear, looked_up: bool) -> None:
    if looked_up or not _can_be_packed(layer.weight):
        layer.__class__ = WeightsFirst
        return
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _PACKED_FOR)
    del layer.weight
    layer.weight = packed
    layer.__class__ = Packed


def _can_be_packed(weight: Tensor) -> bool:
    if weight.dtype != torch.bfloat16:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    cpu = torch.ops.mkldnn
    return bool(cpu._is_mkldnn_bf16_supported() and not cpu._is_mkldnn_acl_supported())


def _as_rms_norm(layer: Module, weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what a layer computes if torch has it in one piece: a norm by the root mean square.

    (Zhang and Sennrich 2019, arXiv:1910.07467.) Each model has its own class for it, and some of
    that name compute something else: only the numbers tell. In half precision they are others,
    rounded at other places, and not sooner there.
    """
    epsilon = getattr(layer, "variance_epsilon", None)
    if epsilon is None or weight.dim() != 1 or weight.dtype != torch.float32:
        return None
    norm = partial(rms_norm, normalized_shape=weight.shape, weight=weight, eps=epsilon)
    large = torch.linspace(-2, 3, len(weight))
    given = torch.stack([large, 1e-3 * large])  # the small one shows what is added to its square
    with torch.no_grad():
        return norm if torch.allclose(layer(given), norm(given)) else None
