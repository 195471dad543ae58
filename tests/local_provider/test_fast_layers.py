"""The fast layers compute what torch's and transformers' own layers do."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from optillm_hooks.local_provider.fast_layers import Packed, WeightsFirst, use_fast_layers
from optillm_hooks.local_provider.runner import Runner
from optillm_hooks.local_provider.torch_ops import can_pack_linear
from tests.local_provider import tiny

PACKS = torch.ops.mkldnn._is_mkldnn_bf16_supported()
"""Whether this CPU has a matrix unit for bfloat16."""

KINDS = {torch.float32: WeightsFirst, torch.bfloat16: Packed if PACKS else WeightsFirst}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    """With and without a bias."""
    layers = nn.Sequential(nn.Linear(7, 12), nn.Linear(12, 5, bias=False))
    return layers.to(request.param).requires_grad_(False)


@pytest.fixture(scope="module")
def quick(model: nn.Sequential) -> nn.Sequential:
    layers = copy.deepcopy(model)
    use_fast_layers(layers)
    return layers


def dtype_of(model: nn.Sequential) -> torch.dtype:
    return next(model.parameters()).dtype


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("of_one_request", [True, False], ids=["1 x T", "T x 1"])
def test_it_computes_what_linear_does(
    model: nn.Sequential, quick: nn.Sequential, tokens: int, of_one_request: bool
) -> None:
    shape = (1, tokens, 7) if of_one_request else (tokens, 1, 7)
    given = torch.randn(shape, dtype=dtype_of(model))
    found, expected = quick(given), model(given)
    assert found.shape == expected.shape
    assert found.is_contiguous()  # models take views of it
    torch.testing.assert_close(found, expected)


def test_one_token_without_company_too(model: nn.Sequential, quick: nn.Sequential) -> None:
    token = torch.randn(7, dtype=dtype_of(model))
    torch.testing.assert_close(quick(token), model(token))


def test_the_layers_stay_linear_ones_of_their_shape(
    model: nn.Sequential, quick: nn.Sequential
) -> None:
    for layer, plain in zip(quick, model, strict=True):
        assert isinstance(layer, nn.Linear)
        assert layer.weight.shape == plain.weight.shape


def test_packed_weights_are_no_second_copy(model: nn.Sequential, quick: nn.Sequential) -> None:
    plain = {id(tensor) for tensor in quick.state_dict().values()}
    packed = [layer for layer in quick if isinstance(layer, Packed)]
    assert len(packed) == (2 if PACKS and dtype_of(model) == torch.bfloat16 else 0)
    assert not any(id(layer.weight) in plain for layer in packed)
    assert sum("weight" in name for name in quick.state_dict()) == 2 - len(packed)


def test_weights_that_are_looked_up_too_stay_plain() -> None:
    embedding, head = nn.Embedding(5, 7).bfloat16(), nn.Linear(7, 5, bias=False)
    head.weight = embedding.weight
    use_fast_layers(nn.Sequential(embedding, head))
    assert type(head) is WeightsFirst
    assert head.weight is embedding.weight


@pytest.mark.parametrize("lacking", ["torch.backends.mkldnn.is_available", "bf16", "acl"])
def test_cpus_that_cannot_pack_go_without(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    can = {"bf16": (False, False), "acl": (True, True)}.get(lacking)
    if can is None:
        monkeypatch.setattr(lacking, lambda: False)
    else:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: can[0])
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_acl_supported", lambda: can[1])
    can_pack_linear.cache_clear()
    layer = nn.Linear(3, 3).bfloat16()
    use_fast_layers(layer)
    can_pack_linear.cache_clear()
    assert type(layer) is WeightsFirst


class Norm(nn.Module):
    """As models have it, or nearly: it may add another epsilon than it says, and one."""

    def __init__(self, epsilon: float = 1e-5, one: float = 0.0) -> None:
        super().__init__()
        self.variance_epsilon = 1e-5
        self.weight = nn.Parameter(torch.empty(16).uniform_(0.5, 1.5), requires_grad=False)
        self._epsilon, self._one = epsilon, one

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        square = tokens.pow(2).mean(-1, keepdim=True) + self._epsilon
        return (self._one + self.weight) * tokens * square.rsqrt()


def of_llama() -> nn.Module:
    made: nn.Module = LlamaRMSNorm(16, eps=1e-5)
    made.load_state_dict(Norm().state_dict())
    return made.requires_grad_(False)


@pytest.mark.parametrize("make", [Norm, of_llama])
@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("shape", [(1, 3, 16), (1, 2, 4, 16)], ids=["tokens", "heads"])
def test_a_norm_computes_what_that_of_the_model_does(
    make: Callable[[], nn.Module], size: float, shape: tuple[int, ...]
) -> None:
    plain = make()
    quick = copy.deepcopy(plain)
    use_fast_layers(quick)
    given = size * torch.randn(shape)
    assert "forward" in vars(quick)
    torch.testing.assert_close(quick(given), plain(given))


def test_a_norm_with_float32_weights_computes_in_float32_whatever_it_gets() -> None:
    plain = of_llama()
    quick = copy.deepcopy(plain)
    use_fast_layers(quick)
    given = torch.randn(1, 3, 16).bfloat16()
    torch.testing.assert_close(quick(given), plain(given.float()))


@pytest.mark.parametrize(
    "other",
    [Norm(one=1.0), Norm(epsilon=0.0), nn.LayerNorm(16), Norm().bfloat16(), Norm().to("meta")],
    ids=["weights from one", "nothing added", "another norm", "bfloat16", "meta"],
)
def test_norms_that_compute_otherwise_are_left_alone(other: nn.Module) -> None:
    use_fast_layers(other)
    assert "forward" not in vars(other)


def test_layers_that_compute_otherwise_are_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(tokens)

    class Elsewhere(nn.Linear):
        pass

    meta = nn.Linear(3, 3, device="meta")
    model = nn.Sequential(Doubled(3, 3), Elsewhere(3, 3), meta)
    use_fast_layers(model)
    assert [type(layer) for layer in model] == [Doubled, Elsewhere, nn.Linear]


@pytest.mark.parametrize(("dtype", "kind"), KINDS.items(), ids=str)
def test_the_runner_uses_fast_layers(dtype: torch.dtype, kind: type[nn.Linear]) -> None:
    model = tiny.model().to(dtype)
    Runner(model)
    linear = {type(layer) for layer in model.modules() if isinstance(layer, nn.Linear)}
    assert linear == {kind}
    assert ("forward" in vars(model.model.norm)) == (dtype == torch.float32)
