"""The linear layer of a step against torch's own."""

import copy

import pytest
import torch
from torch import nn

from optillm_hooks.local_provider.linear import WeightsFirst, put_weights_first
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

MODEL = nn.Sequential(nn.Linear(7, 12), nn.Linear(12, 5, bias=False))
"""With and without a bias."""


@pytest.fixture(scope="module")
def turned() -> nn.Sequential:
    model = copy.deepcopy(MODEL)
    put_weights_first(model)
    return model


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 64, 65])
@pytest.mark.parametrize("of_one_request", [True, False], ids=["1 x T", "T x 1"])
def test_it_computes_what_linear_does(
    turned: nn.Sequential, tokens: int, of_one_request: bool
) -> None:
    given = torch.randn(1, tokens, 7) if of_one_request else torch.randn(tokens, 1, 7)
    found, expected = turned(given), MODEL(given)
    assert found.shape == expected.shape
    assert found.is_contiguous()  # models take views of it
    torch.testing.assert_close(found, expected)


def test_one_token_without_company_too(turned: nn.Sequential) -> None:
    token = torch.randn(7)
    torch.testing.assert_close(turned(token), MODEL(token))


def test_the_weights_and_their_names_stay(turned: nn.Sequential) -> None:
    assert turned.state_dict().keys() == MODEL.state_dict().keys()
    assert all(isinstance(layer, nn.Linear) for layer in turned)


def test_layers_that_compute_otherwise_are_left_alone() -> None:
    class Doubled(nn.Linear):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(tokens)

    class Elsewhere(nn.Linear):
        pass

    meta = nn.Linear(3, 3, device="meta")
    model = nn.Sequential(Doubled(3, 3), Elsewhere(3, 3), meta)
    put_weights_first(model)
    assert [type(layer) for layer in model] == [Doubled, Elsewhere, nn.Linear]


def test_the_runner_turns_the_layers_of_its_model() -> None:
    model = tiny.model()
    assert not any(isinstance(layer, WeightsFirst) for layer in model.modules())
    Runner(model)
    assert nn.Linear not in {type(layer) for layer in model.modules()}
