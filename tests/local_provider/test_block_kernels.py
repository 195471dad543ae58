"""The kernels for weights in GGUF blocks compute what torch does with the weights' numbers."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from torch.nn import Parameter
from torch.nn.functional import linear

from optillm_hooks.local_provider import block_kernels, gguf_blocks, int8_kernel, models
from optillm_hooks.local_provider.gguf_blocks import BlockLinear, BlockWeight, unpack
from tests.local_provider import tiny_gguf

KINDS = list(gguf_blocks._TYPES)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def drawn(kind: str, rows: int, blocks: int) -> BlockWeight:
    """A weight of random blocks with finite scales."""
    rng = torch.Generator().manual_seed(rows)
    size = gguf_blocks._TYPES[kind][0]
    raw = torch.randint(256, (rows, blocks * size), generator=rng, dtype=torch.uint8)
    parts = unpack(kind, raw)
    assert parts is not None
    halves: dict[str, Any] = {
        name: (torch.rand(part.shape, generator=rng) - 0.3).half() / 50
        for name, part in parts._asdict().items()
        if isinstance(part, torch.Tensor) and part.dtype == torch.float16
    }
    width = parts.codes.shape[1] * (2 if parts.half else 1)
    return BlockWeight((rows, width), parts._replace(**halves))


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (37, 3), (70, 9)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("threads")
def test_products_and_numbers_are_those_of_plain_weights(kind: str, rows: int, blocks: int) -> None:
    weight = drawn(kind, rows, blocks)
    assert weight.has_kernel
    plain = weight.plain_numbers(slice(None))
    assert torch.equal(weight.numbers(slice(None)), plain)
    part = slice(rows // 3, rows - rows // 4)
    assert torch.equal(weight.numbers(part), plain[part])
    given = torch.randn(17, weight.shape[1], generator=torch.Generator().manual_seed(1))
    exact = given.double() @ plain.double().T
    bias = torch.linspace(-1, 1, rows)
    layer = BlockLinear(weight, Parameter(bias, requires_grad=False))
    for count in (*range(1, 10), 16, 17):
        found = layer(given[:count])
        largest = given[:count].norm(dim=1)[:, None] * plain.norm(dim=1)
        assert ((found - exact[:count] - bias).abs() < 1e-6 * (largest + 1)).all()
        assert count > 16 or torch.equal(
            found, torch.cat([layer(one[None]) for one in given[:count]])
        )


def test_tokens_in_half_precision_and_other_shapes_are_multiplied_too() -> None:
    weight = drawn("Q4_K", 5, 1)
    given = torch.randn(2, 3, 256).bfloat16()
    found = BlockLinear(weight)(given)
    assert found.dtype == torch.bfloat16
    expected = linear(given.float(), weight.numbers(slice(None)))
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
    strided = torch.randn(256, 3).T
    expected = linear(strided, weight.numbers(slice(None)))
    torch.testing.assert_close(BlockLinear(weight)(strided), expected, rtol=1e-4, atol=1e-4)


def test_scales_below_the_normal_numbers_of_float16_are_exact() -> None:
    weight = drawn("Q8_0", 4, 2)
    assert weight.scales is not None
    weight.scales.copy_(torch.tensor([6e-8, -6e-5, 0.0, -65504.0]).half()[:, None])
    assert torch.equal(weight.numbers(slice(None)), weight.plain_numbers(slice(None)))


def test_without_numba_torch_computes_the_numbers(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weight, given = drawn("Q4_1", 7, 3), torch.randn(2, 96)
    expected = BlockLinear(weight)(given)
    kernel = "optillm_hooks.local_provider.block_kernels"
    monkeypatch.delattr(kernel)
    monkeypatch.delitem(sys.modules, kernel)
    monkeypatch.setitem(sys.modules, "numba", None)
    gguf_blocks.can_use_kernels.cache_clear()
    with caplog.at_level(logging.INFO):
        found, possible = BlockLinear(weight)(given), gguf_blocks.can_use_kernels()
    gguf_blocks.can_use_kernels.cache_clear()
    assert not possible
    assert "kernels for weights in GGUF blocks not available" in caplog.text
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_kernels_are_compiled_where_no_folder_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numba's cache refuses such functions: it raises RuntimeError."""
    asked = []
    compiled = numba.cfunc

    def cfunc(signature: Any, *, cache: bool = False, **options: Any) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(signature, **options)

    monkeypatch.setattr(int8_kernel, "cfunc", cfunc)
    work = int8_kernel.compiled(block_kernels._work(0, packed=False))
    assert asked == [True, False]
    assert work.address


@pytest.mark.parametrize(("dtype", "compiles"), [("auto", True), ("float32", False)])
def test_kernels_are_compiled_when_a_model_in_blocks_is_loaded(
    tmp_path: Path, dtype: str, compiles: bool
) -> None:
    made, file = tiny_gguf.model(), tmp_path / "tiny.gguf"
    tiny_gguf.write(file, made, tiny_gguf.tensors(made, kinds=("Q8_0",)))
    given = {"path": str(tmp_path), "gguf_file": file.name, "cache": str(tmp_path / "cache")}
    gguf_blocks.can_use_kernels.cache_clear()
    models.load(models.find("tiny", {**given, "dtype": dtype, "device": "cpu"}))
    assert gguf_blocks.can_use_kernels.cache_info().currsize == compiles
