"""The product of few tokens with int8 weights, compiled by numba.

Torch has no kernel for it that is fast for a single token in float32. It runs in the threads of
torch's OpenMP library: a second set of threads would compete with them for the cores.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numba import carray, cfunc, types
from numba.extending import intrinsic
from torch import Tensor

_process: Final = ctypes.CDLL(None)  # torch has made the names of its OpenMP library global
_process.GOMP_parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_process.GOMP_parallel.restype = None

thread_number: Any = types.ExternalFunction("omp_get_thread_num", types.int32())
thread_count: Any = types.ExternalFunction("omp_get_num_threads", types.int32())


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_: Any, address: Any) -> tuple[Any, Callable[..., Any]]:
    """Compile to the int64 `address` as a pointer."""

    def emit(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(signature.return_type))

    return types.voidptr(address), emit


def compiled(work: Callable[[Any], None], fastmath: set[str] | None = None) -> Any:
    """Return `work` compiled, for `run`; kept by numba if it may write to a folder."""
    options = {"fastmath": fastmath or False}
    signature = types.void(types.CPointer(types.int64))
    try:
        return cfunc(signature, cache=True, **options)(work)
    except (OSError, RuntimeError):
        return cfunc(signature, **options)(work)


def run(work: Any, numbers: Sequence[int]) -> None:
    """Call what `compiled` returned with int64 numbers, once in each of torch's threads."""
    given = (ctypes.c_int64 * len(numbers))(*numbers)
    _process.GOMP_parallel(work.address, given, torch.get_num_threads(), 0)


def _share(given: Any) -> None:
    """Compute this thread's share of the outputs."""
    numbers = carray(given, 7)
    count, width, outputs = numbers[4], numbers[5], numbers[6]
    tokens = carray(pointer(numbers[0]), (count, width), np.float32)
    weight = carray(pointer(numbers[1]), (outputs, width), np.int8)
    scales = carray(pointer(numbers[2]), outputs, np.float32)
    product = carray(pointer(numbers[3]), (count, outputs), np.float32)
    thread, threads = np.int64(thread_number()), np.int64(thread_count())
    for n in range(outputs * thread // threads, outputs * (thread + 1) // threads):
        for b in range(count):
            total = np.float32(0)
            for k in range(width):
                total += np.float32(weight[n, k]) * tokens[b, k]
            product[b, n] = total * scales[n]


_multiply: Final = compiled(_share, {"reassoc", "contract", "nsz"})  # sums may be reordered


def multiply(tokens: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """Return tokens x (weight x scales), float32 [T, outputs]; all contiguous and on the CPU.

    tokens: float32 [T, inputs]; weight: int8 [outputs, inputs]; scales: float32 [outputs].
    """
    (count, width), outputs = tokens.shape, len(weight)
    product = torch.empty(count, outputs)
    addresses = (tensor.data_ptr() for tensor in (tokens, weight, scales, product))
    run(_multiply, (*addresses, count, width, outputs))
    return product
