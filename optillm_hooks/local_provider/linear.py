"""Linear layers that are quicker on CPUs for the few tokens that a step of writing feeds."""

from typing import Final

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module

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


def quicken(model: Module) -> None:
    """Let all plain linear layers of a model on a CPU be `Packed` or `WeightsFirst`.

    The packed weights take the place of the plain ones, which no layer of another kind may need.
    """
    looked_up = {id(layer.weight) for layer in model.modules() if isinstance(layer, Embedding)}
    for layer in model.modules():
        if type(layer) is not Linear or layer.weight.device.type != "cpu":
            continue
        if _can_be_packed(layer) and id(layer.weight) not in looked_up:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _PACKED_FOR)
            del layer.weight
            layer.weight = packed
            layer.__class__ = Packed
        else:
            layer.__class__ = WeightsFirst


def _can_be_packed(layer: Linear) -> bool:
    if layer.weight.dtype != torch.bfloat16:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    cpu = torch.ops.mkldnn
    return bool(cpu._is_mkldnn_bf16_supported() and not cpu._is_mkldnn_acl_supported())
