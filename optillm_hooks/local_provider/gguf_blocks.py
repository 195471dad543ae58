"""Weights in the blocks of a GGUF file: quantised numbers, each group with a scale and a minimum.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A weight stays in its blocks in
memory. Its numbers are computed for each use, a few rows at a time, and are exactly those that the
package `gguf` computes. On CPUs kernels compute them if numba is installed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Embedding, Linear, Module, ModuleList, Parameter
from torch.nn.functional import linear
from torch.utils._pytree import tree_map

from optillm_hooks.local_provider.block_parts import Blocks
from optillm_hooks.local_provider.torch_ops import close_to, probe

_FEW: Final = 16
"""Number of tokens up to which the kernels multiply; with more, numbers in float32 are faster."""

_AT_ONCE: Final = 1 << 20
"""Number of weights whose numbers are computed at once: few enough for the processor's cache."""

_IQ4_LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class BlockWeight(Module):
    """A weight matrix in blocks, or in any precision, with the numbers of its float32 version."""

    codes: Tensor
    scales: Tensor | None
    minimums: Tensor | None
    scale_units: Tensor | None
    minimum_units: Tensor | None
    dtype = torch.float32

    def __init__(self, shape: tuple[int, int], stored: Blocks | Tensor) -> None:
        super().__init__()
        self.shape = torch.Size(shape)
        blocks = stored if isinstance(stored, Blocks) else Blocks(stored, stored.new_empty(0))
        self._half, self._offset = blocks.half, blocks.offset
        for name in ("codes", "scales", "minimums", "scale_units", "minimum_units"):
            self.register_buffer(name, getattr(blocks, name))
        if not isinstance(stored, Blocks):
            self.scales = None

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def has_kernel(self) -> bool:
        """True if `product` may be used: on CPUs, with numba, for the groups of GGUF blocks."""
        scales = self.scales
        if scales is None or scales.device.type != "cpu" or scales.dtype == torch.float32:
            return False
        return self.shape[1] // scales.shape[1] in (16, 32) and can_use_kernels()

    def product(self, tokens: Tensor) -> Tensor:
        """Return [T, R] in float32 for few tokens [T, C]."""
        from optillm_hooks.local_provider import block_kernels

        return block_kernels.multiply(tokens.float(), self._blocks())

    def numbers(self, rows: Tensor | slice) -> Tensor:
        """Return the numbers of some rows [rows, C] in float32."""
        if isinstance(rows, slice) and self.has_kernel:
            from optillm_hooks.local_provider import block_kernels

            return block_kernels.numbers(self._blocks(rows))
        return self.plain_numbers(rows)

    def _blocks(self, rows: slice | None = None) -> Blocks:
        """Return the parts of some rows; None: of all."""
        scales, minimums, units, minimum_units = (
            part if part is None or rows is None else part[rows]
            for part in (self.scales, self.minimums, self.scale_units, self.minimum_units)
        )
        assert scales is not None  # noqa: S101
        codes = self.codes if rows is None else self.codes[rows]
        return Blocks(codes, scales, minimums, units, minimum_units, self._half, self._offset)

    def plain_numbers(self, rows: Tensor | slice) -> Tensor:
        """Return the same as `numbers`, without the kernels."""
        codes = self.codes[rows]
        if self.scales is None:
            return codes.float()
        found = torch.empty(len(codes), self.shape[1], device=codes.device)
        if self._half:
            packed = codes.view(len(codes), -1, self._half)
            halves = found.view(len(codes), -1, 2, self._half)
            halves[:, :, 0] = packed & 15
            halves[:, :, 1] = packed >> 4
        else:
            found.copy_(codes)
        scales = _in_units(self.scales, self.scale_units, rows)
        groups = found.view(*scales.shape, -1)
        groups *= scales[..., None]
        if self._offset:
            groups -= (self._offset * scales)[..., None]
        elif self.minimums is not None:
            groups += _in_units(self.minimums, self.minimum_units, rows)[..., None]
        return found

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what `function` does with the numbers: some models use a layer's weight."""
        dtypes = [one.dtype for one in args if isinstance(one, Tensor)]
        dtype = dtypes[0] if dtypes else cls.dtype
        args, kwargs = tree_map(
            lambda one: one.dense(dtype) if isinstance(one, cls) else one, (args, kwargs or {})
        )
        return function(*args, **kwargs)

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.numbers(slice(None)).to(other.dtype) @ other

    def div_(self, divisor: float) -> "BlockWeight":
        """Divide the numbers, as RWKV's model does when it is first used."""
        factors = (self.scales, self.scale_units), (self.minimums, self.minimum_units)
        for numbers, units in factors if self.scales is not None else ((self.codes, None),):
            divided = numbers if units is None else units
            if divided is not None:
                divided.div_(divisor)
        return self

    def parts(self) -> Iterator[slice]:
        """Yield ranges of rows, each of about `_AT_ONCE` weights."""
        step = max(1, _AT_ONCE // self.shape[1])
        for start in range(0, self.shape[0], step):
            yield slice(start, start + step)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the whole matrix [R, C] in `dtype`, for loading: the kernels are not compiled."""
        whole = torch.empty(self.shape, dtype=dtype, device=self.device)
        for rows in self.parts():
            whole[rows] = self.plain_numbers(rows)
        return whole


def _in_units(numbers: Tensor, units: Tensor | None, rows: Tensor | slice) -> Tensor:
    """Return the scales or minimums of some rows [rows, groups] in float32."""
    found = numbers[rows].float()
    if units is not None:
        unit = units[rows].float()
        found.view(*unit.shape, -1).mul_(unit[..., None])
    return found


class BlockLinear(Linear):
    """A `Linear` whose weight stays in its blocks."""

    weight: BlockWeight  # type: ignore[assignment]
    bias: Parameter | None  # type: ignore[assignment]

    def __init__(self, weight: BlockWeight, bias: Parameter | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        del self.weight
        self.weight = weight
        self.bias = bias

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., outputs] for [..., inputs]."""
        flat = tokens.reshape(-1, self.in_features)
        if 0 < len(flat) <= _FEW and self.weight.has_kernel:
            found = self.weight.product(flat).to(flat.dtype)
        else:
            found = flat.new_empty(len(flat), self.out_features)
            for rows in self.weight.parts():
                found[:, rows] = linear(flat, self.weight.numbers(rows).to(flat.dtype))
        if self.bias is not None:
            found += self.bias
        return found.view(*tokens.shape[:-1], -1)


class BlockEmbedding(Module):
    """An embedding whose weight stays in its blocks; `layer` is the model's own `Embedding`."""

    def __init__(self, layer: Embedding, weight: BlockWeight) -> None:
        super().__init__()
        self.weight = weight
        self.num_embeddings = weight.shape[0]
        self._layer = layer
        layer.padding_idx = None  # matters only in training
        placeholder = torch.empty(0, dtype=layer.weight.dtype, device=weight.device)
        layer.weight = Parameter(placeholder, requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return [..., width] for ids [...]."""
        numbers = self.weight.numbers(ids.flatten()).to(self._layer.weight.dtype)
        places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
        found: Tensor = torch.func.functional_call(self._layer, {"weight": numbers}, (places,))
        return found


class BlockExperts(Module):
    """The weights of a layer's experts in their blocks, in the place of a tensor [experts, R, C].

    `parts`: one matrix or two, whose rows are those of the first expert, of the second, and so on.
    An expert's rows are those that it has in each of them.
    """

    def __init__(self, experts: int, parts: Sequence[BlockWeight]) -> None:
        super().__init__()
        self.parts = ModuleList(parts)
        self._each = [(part, part.shape[0] // experts) for part in parts]

    def __getitem__(self, expert: Tensor) -> Tensor:
        """Return the numbers of one expert's weight [R, C] in float32."""
        at = int(expert)
        return torch.cat(
            [part.numbers(slice(at * rows, (at + 1) * rows)) for part, rows in self._each]
        )


def stored_weights(model: Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's weights by name, of those in blocks their parts."""
    yield from model.named_parameters()
    for name, module in model.named_modules():
        if isinstance(module, BlockWeight):
            yield from module.named_buffers(name)


def unpack(kind: str, raw: Tensor) -> Blocks | None:
    """Return the parts of the blocks of a GGUF type such as Q4_K; None if it is not known here.

    `raw` [R, bytes] uint8: the rows of a matrix, as they are in the file.
    """
    if kind not in _TYPES:
        return None
    size, read = _TYPES[kind]
    return read(raw.view(len(raw), -1, size))


@cache
def can_use_kernels() -> bool:
    """Return True if numba is installed, and its kernels for blocks work here.

    The first call compiles them, which takes seconds if numba has not kept them.
    """

    def works() -> bool:
        codes = torch.arange(3 * 128, dtype=torch.uint8).view(3, 128)
        few, units = torch.arange(24, dtype=torch.uint8).view(3, 8), torch.full((3, 1), 0.01).half()
        for blocks in (
            Blocks(codes, few, few, units, -units, half=32),
            Blocks(codes.view(torch.int8), few[:, :4].half() / 100),
        ):
            weight = BlockWeight((3, blocks.codes.shape[1] * (2 if blocks.half else 1)), blocks)
            plain = weight.plain_numbers(slice(None))
            tokens = torch.linspace(-1, 1, 3 * weight.shape[1]).view(3, -1)
            if not all(
                close_to(weight.product(some), linear(some, plain))
                for some in (tokens[:1], tokens[:2], tokens)
            ):
                return False
        return True

    return probe("kernels for weights in GGUF blocks", works)


def held_bytes(kind: str, shape: Sequence[int]) -> int:
    """Return the memory of a tensor of a GGUF type, in bytes: of numbers in float32, or of blocks.

    Only matrices stay in blocks, also those of experts, and only types that are known here.
    """
    weights = math.prod(shape)
    if len(shape) < 2:
        return 4 * weights
    if kind in ("F16", "BF16"):
        return 2 * weights
    if kind not in _TYPES:
        return 4 * weights
    size, read = _TYPES[kind]
    block = read(torch.zeros(1, 1, size, dtype=torch.uint8))
    held = sum(part.nbytes for part in block if isinstance(part, Tensor))
    return weights * held // (block.codes.numel() * (2 if block.half else 1))


def _flat(parts: Tensor) -> Tensor:
    """Return [R, all parts of a row], in memory of its own."""
    return parts.reshape(len(parts), -1).contiguous()


def _lines(part: Tensor, width: int) -> Tensor:
    """Return the bytes [..., n] in lines [..., n / width, width]."""
    return part.reshape(*part.shape[:-1], -1, width)


def _half(raw: Tensor, start: int) -> Tensor:
    """Return the float16 number at byte `start` of each block [R, blocks]."""
    return _flat(raw[..., start : start + 2]).view(torch.float16)


def _nibbles(packed: Tensor) -> Tensor:
    """Return the low bits of the bytes [..., n], then their high bits [..., 2 n]."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _bits(packed: Tensor, width: int) -> Tensor:
    """Return fields of `width` bits, for each position within a byte all bytes [..., fields]."""
    return torch.cat([(packed >> at) & ((1 << width) - 1) for at in range(0, 8, width)], dim=-1)


def _q4_0(raw: Tensor) -> Blocks:
    return Blocks(_flat(raw[..., 2:]), _half(raw, 0), half=16, offset=8)


def _q4_1(raw: Tensor) -> Blocks:
    return Blocks(_flat(raw[..., 4:]), _half(raw, 0), _half(raw, 2), half=16)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Return the fifth bits of 32 codes, from 4 bytes, in their place [..., 32]."""
    each = torch.arange(8, dtype=torch.uint8)
    return ((packed[..., None] >> each) & 1).flatten(-2) << 4


def _q5_0(raw: Tensor) -> Blocks:
    codes = (_nibbles(raw[..., 6:]) | _fifth_bits(raw[..., 2:6])).to(torch.int8) - 16
    return Blocks(_flat(codes), _half(raw, 0))


def _q5_1(raw: Tensor) -> Blocks:
    codes = (_nibbles(raw[..., 8:]) | _fifth_bits(raw[..., 4:8])).to(torch.int8)
    return Blocks(_flat(codes), _half(raw, 0), _half(raw, 2))


def _q8_0(raw: Tensor) -> Blocks:
    return Blocks(_flat(raw[..., 2:]).view(torch.int8), _half(raw, 0))


def _scales_of_six_bits(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scales and minimums [R, 8 blocks] that Q4_K and Q5_K pack into 12 bytes."""
    first, second, rest = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    scales = torch.cat([first & 63, (rest & 15) | ((first >> 6) << 4)], dim=-1)
    minimums = torch.cat([second & 63, (rest >> 4) | ((second >> 6) << 4)], dim=-1)
    return _flat(scales), _flat(minimums)


def _q4_k(raw: Tensor) -> Blocks:
    scales, minimums = _scales_of_six_bits(raw)
    return Blocks(_flat(raw[..., 16:]), scales, minimums, _half(raw, 0), -_half(raw, 2), half=32)


def _q5_k(raw: Tensor) -> Blocks:
    scales, minimums = _scales_of_six_bits(raw)
    low = _nibbles(_lines(raw[..., 48:], 32)).flatten(-2)
    codes = (low | (_bits(raw[..., 16:48], 1) << 4)).to(torch.int8)
    return Blocks(_flat(codes), scales, minimums, _half(raw, 0), -_half(raw, 2))


def _q6_k(raw: Tensor) -> Blocks:
    low = _nibbles(_lines(raw[..., :128], 64)).flatten(-2)
    high = _bits(_lines(raw[..., 128:192], 32), 2).flatten(-2)
    codes = (low | (high << 4)).to(torch.int8) - 32
    scales = _flat(raw[..., 192:208]).view(torch.int8)
    return Blocks(_flat(codes), scales, scale_units=_half(raw, 208))


def _iq4_levels(packed: Tensor) -> Tensor:
    return torch.tensor(_IQ4_LEVELS, dtype=torch.int8)[_nibbles(packed).long()]


def _iq4_nl(raw: Tensor) -> Blocks:
    return Blocks(_flat(_iq4_levels(raw[..., 2:])), _half(raw, 0))


def _iq4_xs(raw: Tensor) -> Blocks:
    each = torch.tensor([0, 4], dtype=torch.uint8)
    low = ((raw[..., 4:8, None] >> each) & 15).flatten(-2)
    pairs = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)
    high = ((raw[..., 2:4, None] >> pairs) & 3).flatten(-2)
    scales = (low | (high << 4)).to(torch.int8) - 32
    codes = _iq4_levels(_lines(raw[..., 8:], 16))
    return Blocks(_flat(codes), _flat(scales), scale_units=_half(raw, 0))


_TYPES: Final[dict[str, tuple[int, Callable[[Tensor], Blocks]]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "IQ4_NL": (18, _iq4_nl),
    "IQ4_XS": (136, _iq4_xs),
}
"""Types by name: the bytes of a block, and the function that takes it apart."""
