"""Products of few tokens with weights in GGUF blocks, and their numbers, compiled by numba.

A weight's number is computed in a register, in float32, and multiplied with some tokens there.
Vectors are the compiler's own types: it finds none by itself in loops with 4-bit codes.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core.datamodel import models, register_default
from numba.extending import intrinsic
from torch import Tensor

from optillm_hooks.local_provider.block_parts import Blocks
from optillm_hooks.local_provider.int8_kernel import (
    compiled,
    pointer,
    run,
    thread_count,
    thread_number,
)

_log = logging.getLogger(__name__)

_LANES: Final = 16
"""Weights that are computed at once: a vector of AVX-512, or several smaller ones."""

_FEWEST: Final = 8
"""Scales that have a unit in common, at least."""

_SCALES: Final = 2048
"""Scales that are converted to float32 at once: few enough for the processor's first cache."""


class _Vector(types.Type):
    """A vector of `count` float32 numbers, which the compiler puts into registers."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"vector of {count}")


@register_default(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: _Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.count))


_Compiled = tuple[Any, Callable[..., Any]]
"""Of an intrinsic: its signature, and the function that emits its instructions."""


def _load(builder: Any, address: Any, number: Any, count: int) -> Any:
    found = builder.load(builder.inttoptr(address, ir.VectorType(number, count).as_pointer()))
    found.align = 1
    return found


def _spread(builder: Any, number: Any, count: int) -> Any:
    """Return a vector in which all numbers are the same."""
    kind = ir.VectorType(number.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, _places([0] * count))


def _places(of: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(of)), of)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _zeros(_: Any, count: Any) -> _Compiled:
    """Compile to a vector of zeros."""

    def emit(context: Any, _builder: Any, signature: Any, _given: Any) -> Any:
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return _Vector(count.literal_value)(count), emit


def _reader(convert: Callable[[Any, Any, Any], Any], lanes: int = _LANES) -> Any:
    """Return an intrinsic that reads bytes and converts them to float32."""

    @intrinsic  # type: ignore[untyped-decorator]
    def read(_: Any, address: Any) -> _Compiled:
        def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kind = context.get_value_type(signature.return_type)
            return convert(builder, _load(builder, given[0], ir.IntType(8), lanes), kind)

        return _Vector(lanes)(address), emit

    return read


def _low(builder: Any, read: Any, kind: Any) -> Any:
    return builder.uitofp(builder.and_(read, ir.Constant(read.type, [15] * _LANES)), kind)


def _high(builder: Any, read: Any, kind: Any) -> Any:
    return builder.uitofp(builder.lshr(read, ir.Constant(read.type, [4] * _LANES)), kind)


_low_bits, _high_bits = _reader(_low), _reader(_high)
_signed = _reader(lambda builder, read, kind: builder.sitofp(read, kind))
_signed_scales = _reader(lambda builder, read, kind: builder.sitofp(read, kind), _FEWEST)
_unsigned_scales = _reader(lambda builder, read, kind: builder.uitofp(read, kind), _FEWEST)


@intrinsic  # type: ignore[untyped-decorator]
def _scaled(_: Any, numbers: Any, scale: Any, minimum: Any) -> _Compiled:
    """Compile to numbers * scale + minimum, rounded twice as elsewhere."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        product = builder.fmul(given[0], _spread(builder, given[1], numbers.count))
        return builder.fadd(product, _spread(builder, given[2], numbers.count))

    return numbers(numbers, scale, minimum), emit


@intrinsic  # type: ignore[untyped-decorator]
def _add_product(_: Any, total: Any, numbers: Any, address: Any) -> _Compiled:
    """Compile to total + numbers * those at `address`, where each token has as many."""

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        tokens = _load(builder, given[2], ir.FloatType(), total.count)
        repeated = _places([k % numbers.count for k in range(total.count)])
        each = builder.shuffle_vector(given[1], given[1], repeated)
        product = builder.fmul(each, tokens, flags=("contract",))
        return builder.fadd(given[0], product, flags=("contract",))

    return total(total, numbers, address), emit


@intrinsic  # type: ignore[untyped-decorator]
def _store_sums(_: Any, one: Any, other: Any, address: Any, stride: Any) -> _Compiled:
    """Compile to a write of the sum of each token's numbers, `stride` bytes from one another."""

    def emit(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        both, address = builder.fadd(given[0], given[1]), given[2]
        for token in range(one.count // _LANES):
            total = _part(builder, both, token * _LANES, _LANES)
            width = _LANES
            while width > 1:
                width //= 2
                total = builder.fadd(
                    _part(builder, total, 0, width), _part(builder, total, width, width)
                )
            _write(builder, total, address)
            address = builder.add(address, given[3])
        return context.get_dummy_value()

    return types.none(one, other, address, stride), emit


def _part(builder: Any, numbers: Any, start: int, count: int) -> Any:
    return builder.shuffle_vector(numbers, numbers, _places([*range(start, start + count)]))


def _write(builder: Any, numbers: Any, address: Any) -> None:
    builder.store(numbers, builder.inttoptr(address, numbers.type.as_pointer())).align = 4


@intrinsic  # type: ignore[untyped-decorator]
def _store(_: Any, numbers: Any, address: Any) -> _Compiled:
    """Compile to a write of a vector."""

    def emit(context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        _write(builder, given[0], given[1])
        return context.get_dummy_value()

    return types.none(numbers, address), emit


@intrinsic  # type: ignore[untyped-decorator]
def _from_half(_: Any, number: Any) -> _Compiled:
    """Compile to a float16 number, given as uint16, in float32.

    The compiler's own conversion calls a function that is missing here on CPUs that have no
    instruction for it.
    """

    def emit(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        word, real = ir.IntType(32), ir.FloatType()
        bits = builder.zext(given[0], word)
        size = builder.shl(builder.and_(bits, word(0x7FFF)), word(13))
        size = builder.fmul(builder.bitcast(size, real), real(2.0**112))
        sign = builder.shl(builder.and_(bits, word(0x8000)), word(16))
        return builder.bitcast(builder.or_(builder.bitcast(size, word), sign), real)

    return types.float32(number), emit


@njit  # type: ignore[untyped-decorator]
def _convert(numbers: Any, units: Any, each: Any, start: Any, count: Any, found: Any) -> None:
    """Write scales or minimums to `found` in float32.

    `each`: how many have a unit in common; 0: they are float16; below 0: they have no sign.
    """
    if each == 0:
        given = carray(pointer(numbers + 2 * start), count, np.uint16)
        written = carray(pointer(found), count, np.float32)
        for i in range(count):
            written[i] = _from_half(given[i])
        return
    unit = carray(pointer(units), (start + count) // abs(each), np.uint16)
    for i in range(0, count, _FEWEST):
        scale = _from_half(unit[(start + i) // abs(each)])
        if each < 0:
            part = _unsigned_scales(numbers + start + i)
        else:
            part = _signed_scales(numbers + start + i)
        _store(_scaled(part, scale, np.float32(0)), found + 4 * i)


def _work(tile: int, packed: bool) -> Any:
    """Return a function that computes a thread's share of the outputs.

    `tile`: number of tokens that a weight is multiplied with while it is in a register; 0: there
    are none, and the weights are written. `packed`: codes have 4 bits.
    """
    lanes = tile * _LANES or _LANES

    def work(given: Any) -> None:
        numbers = carray(given, 16)
        tokens, codes, product, scratch = numbers[0], numbers[1], numbers[2], numbers[3]
        tiles, width, outputs, groups = numbers[8], numbers[9], numbers[10], numbers[11]
        span, shift, each, offset = numbers[12], numbers[13], numbers[14], numbers[15]
        thread, threads = np.int64(thread_number()), np.int64(thread_count())
        begin, end = outputs * thread // threads, outputs * (thread + 1) // threads
        at_once = max(1, _SCALES // groups)
        size = at_once * groups
        scales = scratch + 8 * size * thread
        minimums = scales + 4 * size
        scale, minimum = (
            carray(pointer(scales), size, np.float32),
            carray(pointer(minimums), size, np.float32),
        )
        minimum[:] = np.float32(0)
        for first in range(begin, end, at_once):
            rows = min(at_once, end - first)
            start, count = first * groups, rows * groups
            _convert(numbers[4], numbers[5], each, start, count, scales)
            if numbers[6]:
                _convert(numbers[6], numbers[7], each, start, count, minimums)
            elif offset:
                for i in range(count):
                    minimum[i] = -offset * scale[i]
            for row in range(rows):
                code = codes + (first + row) * (width // 2 if packed else width)
                for t in range(tiles):
                    factors = tokens + 4 * t * tile * width
                    one, other = _zeros(lanes), _zeros(lanes)
                    for pair in range(width // (2 * _LANES)):
                        low = 2 * pair - (pair & (span - 1))
                        high = low + span
                        if packed:
                            a, b = _low_bits(code + 16 * pair), _high_bits(code + 16 * pair)
                        else:
                            a, b = _signed(code + 32 * pair), _signed(code + 32 * pair + 16)
                        i, j = row * groups + (low >> shift), row * groups + (high >> shift)
                        a, b = _scaled(a, scale[i], minimum[i]), _scaled(b, scale[j], minimum[j])
                        if tile:
                            one = _add_product(one, a, factors + 4 * lanes * low)
                            other = _add_product(other, b, factors + 4 * lanes * high)
                        else:
                            written = product + 4 * ((first + row) * width + _LANES * low)
                            _store(a, written)
                            _store(b, written + 4 * _LANES * span)
                    if tile:
                        written = product + 4 * (t * tile * outputs + first + row)
                        _store_sums(one, other, written, 4 * outputs)

    return work


def _compile() -> dict[tuple[int, bool], Any]:
    begun = time.perf_counter()
    kernels = {
        (tile, packed): compiled(_work(tile, packed))
        for tile in (0, 1, 2, 4)
        for packed in (False, True)
    }
    seconds = time.perf_counter() - begun
    _log.info("the kernels for weights in GGUF blocks were compiled or read in %.1f s", seconds)
    return kernels


_KERNELS: Final = _compile()


def multiply(tokens: Tensor, blocks: Blocks) -> Tensor:
    """Return the products of tokens with weights, float32 [T, outputs].

    tokens: float32 [T, inputs]. A token's products are the same whatever others are beside it.
    """
    count, width = tokens.shape
    tile = min(count, 4) if count != 3 else 4
    tiles = -(-count // tile)
    if tile > 1:
        padded = tokens.new_zeros(tiles * tile, width)
        padded[:count] = tokens
        tokens = padded.view(tiles, tile, -1, _LANES).transpose(1, 2)
    product = torch.empty(tiles * tile, len(blocks.codes))
    _run(tile, tiles, tokens.contiguous(), blocks, product)
    return product[:count]


def numbers(blocks: Blocks) -> Tensor:
    """Return the numbers of weights, float32 [outputs, inputs]."""
    outputs, width = blocks.codes.shape
    found = torch.empty(outputs, width * (2 if blocks.half else 1))
    _run(0, 1, found, blocks, found)
    return found


def _run(tile: int, tiles: int, tokens: Tensor, blocks: Blocks, product: Tensor) -> None:
    """Compute products, or the numbers themselves if `tile` is 0."""
    (outputs, width), packed = blocks.codes.shape, bool(blocks.half)
    width *= 2 if packed else 1
    groups, each = blocks.scales.shape[1], 0
    if blocks.scale_units is not None:
        each = groups // blocks.scale_units.shape[1]
        each *= -1 if blocks.scales.dtype == torch.uint8 else 1
    scratch = torch.empty(torch.get_num_threads(), 2, max(groups, _SCALES))
    places = (
        tokens,
        blocks.codes,
        product,
        scratch,
        blocks.scales,
        blocks.scale_units,
        blocks.minimums,
        blocks.minimum_units,
    )
    addresses = (0 if place is None else place.data_ptr() for place in places)
    span = max(1, blocks.half // _LANES)
    shift = 1 if width == 2 * _LANES * groups else 0
    sizes = tiles, width, outputs, groups, span, shift, each, blocks.offset
    run(_KERNELS[tile, packed], (*addresses, *sizes))
