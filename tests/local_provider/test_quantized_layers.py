"""Models in int8 lose nothing but the rounding of their weights."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from optillm_hooks.local_provider import models, torch_ops
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Piece,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.gguf_blocks import BlockEmbedding, BlockWeight, unpack
from optillm_hooks.local_provider.quantized_layers import Int8Linear, quantize
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import test_architectures, tiny, tiny_gguf

FORMAT = tiny.chat_format()
IDS = {FORMAT.token_bytes(token): token for token in range(len(tiny.tokenizer()))}
Product = Callable[[Tensor, Tensor, Tensor], Tensor]


def exact(tokens: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    return tokens.double() @ (weight.double() * scales.double()[:, None]).T


def drawn(count: int, width: int = 96, outputs: int = 33) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens, the last of them with an outlier, and an int8 weight with its scales."""
    torch.manual_seed(count)
    tokens, weight = torch.randn(count, width), torch.randint(-127, 128, (outputs, width))
    tokens[-1, 3] = 1000.0
    return tokens, weight.to(torch.int8), torch.rand(outputs) / 127


@pytest.fixture(params=["few", "many", "without integers"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Product:
    if request.param == "few":
        assert torch_ops.can_multiply_few()
        return torch_ops.int8_product
    if request.param == "without integers":
        monkeypatch.setattr(torch_ops, "_can_multiply_integers", lambda: False)
    return torch_ops.product_in_integers


@pytest.mark.parametrize(("count", "width"), [(1, 96), (3, 2050), (9, 96), (33, 2050)])
def test_a_product_is_as_exact_as_in_float32(product: Product, count: int, width: int) -> None:
    tokens, weight, scales = drawn(count, width)
    found, expected = product(tokens, weight, scales), exact(tokens, weight, scales)
    rounding = 2**-23 * tokens.abs().amax(dim=1, keepdim=True) * width**0.5
    assert found.is_contiguous()  # models take views of it
    assert ((found - expected).abs() <= rounding).all()


def test_two_vectors_are_enough_for_half_precision() -> None:
    tokens, weight, scales = drawn(5)
    found = torch_ops.product_in_integers(tokens.bfloat16(), weight, scales)
    expected = exact(tokens.bfloat16(), weight, scales)
    largest = tokens.abs().amax(dim=1, keepdim=True)
    assert ((found - expected).abs() <= 2**-16 * largest * 96**0.5).all()


def test_the_neighbours_of_a_token_do_not_matter() -> None:
    tokens, weight, scales = drawn(9)
    together = torch_ops.product_in_integers(tokens, weight, scales)
    alone = [torch_ops.product_in_integers(token[None], weight, scales) for token in tokens]
    assert torch.equal(together, torch.cat(alone))


def test_a_token_of_zeros_gives_zeros(product: Product) -> None:
    _, weight, scales = drawn(1)
    assert torch.equal(product(torch.zeros(2, 96), weight, scales), torch.zeros(2, 33))


def test_without_numba_all_products_are_in_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = "optillm_hooks.local_provider.int8_kernel"
    assert torch_ops.can_multiply_few()
    monkeypatch.delattr(kernel)
    monkeypatch.delitem(sys.modules, kernel)
    monkeypatch.setitem(sys.modules, "numba", None)
    torch_ops.can_multiply_few.cache_clear()
    given = drawn(1)
    found, possible = torch_ops.int8_product(*given), torch_ops.can_multiply_few()
    torch_ops.can_multiply_few.cache_clear()
    assert not possible
    assert torch.equal(found, torch_ops.product_in_integers(*given))


@pytest.mark.parametrize("shape", [(7,), (1, 7), (1, 5, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_computes_what_linear_does_with_its_numbers(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    model = tiny.model()
    model.lm_head = nn.Linear(7, 12, bias=bias)
    plain = copy.deepcopy(model.lm_head)
    quantize(model)
    assert isinstance(model.lm_head, Int8Linear)
    plain.weight.data = model.lm_head.weight.dense(torch.float32)
    given = torch.randn(shape).to(dtype)
    found = model.lm_head(given)
    assert found.dtype == dtype
    torch.testing.assert_close(found, plain(given.float()).to(dtype))


def test_weights_are_rounded_to_the_nearest_number() -> None:
    model = tiny.model()
    given = model.lm_head.weight.detach().clone()
    quantize(model)
    units = given.abs().amax(dim=1, keepdim=True) / 127
    error = (model.lm_head.weight.dense(torch.float32) - given).abs()
    assert (error <= units * 0.5001).all()
    assert model.lm_head.weight.codes.nbytes == given.numel()


def test_a_weight_that_is_shared_stays_shared() -> None:
    model = tiny.model()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    quantize(model)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, BlockEmbedding)
    assert embedding.weight is model.lm_head.weight
    ids = torch.tensor([[3, 1, 3]])
    assert torch.equal(embedding(ids), model.lm_head.weight.dense(torch.float32)[ids])


@pytest.fixture(scope="module")
def quantized() -> LlamaForCausalLM:
    model = tiny.model(spread=3.0, spare=0)
    quantize(model)
    return model


def generated(model: LlamaForCausalLM, text: str, tokens: int) -> list[int]:
    ids = torch.tensor([FORMAT.encode([{"role": "user", "content": text}])])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
    )
    return list(map(int, out[0, ids.shape[1] :]))


@pytest.mark.parametrize("rows", [1, 8])
def test_the_engine_writes_what_generate_writes(quantized: LlamaForCausalLM, rows: int) -> None:
    batch = Batch(Runner(copy.deepcopy(quantized)), FORMAT, Capacity())
    texts = [f"{number} " * (1 + 9 * number) for number in range(rows)]
    written: list[list[int]] = [[] for _ in texts]
    for text, tokens in zip(texts, written, strict=True):
        request = EngineRequest(
            messages=[{"role": "user", "content": text}],
            sampling=SamplingParams(temperature=0),
            max_tokens=12,
            logit_bias={tiny.END: -100.0},
            top_logprobs=0,
        )
        batch.add(Submission(request, partial(note, tokens)))
    while not batch.idle:
        batch.step()
    assert written == [generated(quantized, text, 12) for text in texts]


def note(tokens: list[int], event: Event) -> None:
    """Add the tokens of a piece of a reply to `tokens`."""
    if isinstance(event, Piece):
        tokens += [IDS[token.token] for token in event.tokens]


def test_a_model_may_read_the_weight_of_a_layer_by_itself() -> None:
    model = test_architectures.tiny_model("longcat_flash")
    ids = torch.arange(1, 30)[None]
    expected = model(ids).logits
    quantize(model)
    assert (model(ids).logits - expected).norm() < 0.2 * expected.norm()
    weight, tokens = model.lm_head.weight, torch.randn(3, 64)
    dense = weight.dense(torch.float32)
    assert torch.equal(nn.functional.linear(tokens, weight=weight), tokens @ dense.T)
    assert torch.equal(torch.cat([weight, weight]), torch.cat([dense, dense]))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q4_K"])
def test_a_model_may_divide_a_weight_in_blocks(kind: str) -> None:
    numbers = torch.linspace(-1, 1, 2 * 256).view(2, 256).numpy()
    blocks = unpack(kind, torch.from_numpy(tiny_gguf.stored(numbers, kind)))
    assert blocks is not None
    for units in (blocks.scale_units, blocks.minimum_units):
        if units is not None:
            units.fill_(0.5)
    weight = BlockWeight((2, 256), blocks)
    expected = weight.dense(torch.float32) / 4
    assert torch.equal(weight.div_(4).dense(torch.float32), expected)


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_gguf_file_may_be_served_in_int8(tmp_path: Path, dtype: str) -> None:
    made, file = tiny_gguf.model(tied=True), tmp_path / "tiny.gguf"
    tiny_gguf.write(file, made, tiny_gguf.tensors(made, kinds=("Q8_0",)))
    given = {"path": str(tmp_path), "gguf_file": file.name, "cache": str(tmp_path / "cache")}
    plain, spec = (
        models.find("tiny", {**given, "dtype": dtype, **more}) for more in ({}, {"weights": "int8"})
    )
    model = models.load(spec).model
    runner = Runner(model)
    assert runner.weight_bytes == pytest.approx(models.weight_bytes(spec), rel=1e-3)
    assert runner.weight_bytes < models.weight_bytes(plain)
    ids = torch.arange(10)[None]
    expected = models.load(plain).model(ids).logits
    difference = models.load(spec).model(ids).logits - expected
    assert difference.norm() < 0.05 * expected.norm()


def test_a_folder_may_be_served_in_int8(tmp_path: Path) -> None:
    tiny.model().bfloat16().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    spec = models.find("tiny", {"path": str(tmp_path), "weights": "int8"})
    model = models.load(spec).model
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert {type(layer) for layer in linear} == {Int8Linear}
    assert model.dtype == torch.bfloat16
    assert Runner(model).weight_bytes == models.weight_bytes(spec)
