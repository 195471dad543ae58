"""Layers with int8 weights, one scale for each output: a quarter of the bytes of float32.

Weights are rounded to the nearest of 255 numbers: symmetric, without calibration. Activations are
not quantised, so a model differs from its float32 version by its weights alone, and a token's
result does not depend on the others of its batch.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from optillm_hooks.local_provider.block_parts import Blocks
from optillm_hooks.local_provider.gguf_blocks import (
    BlockEmbedding,
    BlockLinear,
    BlockWeight,
)
from optillm_hooks.local_provider.torch_ops import can_multiply_few, int8_product

_LARGEST: Final = 127

_AT_ONCE: Final = 1 << 24
"""Number of weights that are quantised at once."""


class Int8Linear(BlockLinear):
    """A `Linear` with int8 weights. On a GPU their numbers are computed for each use."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        if not tokens.is_cpu:
            return super().forward(tokens)
        flat = tokens.reshape(-1, self.in_features)
        weight, bias = self.weight, self.bias
        scales = weight.scales
        assert scales is not None  # noqa: S101
        found = int8_product(flat, weight.codes, scales.view(-1))
        if bias is not None:
            found += bias
        if tokens.dtype != torch.float32:
            found = found.to(tokens.dtype)
        return found.view(*tokens.shape[:-1], self.out_features)


def quantize(model: Any) -> None:
    """Replace the linear layers and the token embedding of a model with int8 ones, in place.

    A layer that shares the embedding's weight shares the quantised one. Weights in other layers
    stay as they are, such as those of norms, and of experts that one tensor holds.
    """
    can_multiply_few()  # compiles the kernel now, not during a request
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    shared = _quantized(weight)
    linear = [name for name, at in model.named_modules() if type(at) in (Linear, BlockLinear)]
    for name in linear:
        layer = model.get_submodule(name)
        own = shared if layer.weight is weight else _quantized(layer.weight)
        model.set_submodule(name, Int8Linear(own, layer.bias))
    if isinstance(embedding, BlockEmbedding):
        embedding.weight = shared
    else:
        model.set_input_embeddings(BlockEmbedding(embedding, shared))


def _quantized(weight: Parameter | BlockWeight) -> BlockWeight:
    """Return int8 numbers of a matrix, a few rows at a time, to save memory."""
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(codes), 1, device=weight.device)
    step = max(1, _AT_ONCE // weight.shape[1])
    for start in range(0, len(codes), step):
        rows = slice(start, start + step)
        exact = _numbers(weight, rows)
        scales[rows] = exact.abs().amax(dim=1, keepdim=True).clamp_min_(1e-30) / _LARGEST
        codes[rows] = (exact / scales[rows]).round_().to(torch.int8)
    return BlockWeight((weight.shape[0], weight.shape[1]), Blocks(codes, scales))


def _numbers(weight: Parameter | BlockWeight, rows: slice) -> Tensor:
    if isinstance(weight, BlockWeight):
        return weight.numbers(rows)
    return weight.detach()[rows].float()
