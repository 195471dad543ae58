"""Prices that LiteLLM knows are not entered into its price list anew, and calls cost the same."""

from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm import Router

from optillm_hooks.gateway import hook
from optillm_hooks.gateway.listed_prices import without_listed_prices
from tests.proxy import PRICE, model_group

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("litellm_in_this_loop"),
    pytest.mark.filterwarnings("ignore:.*`ReadOnly`:UserWarning"),  # LiteLLM's own types
]
PRICES = {"input_cost_per_token": PRICE.prompt, "output_cost_per_token": PRICE.completion}
ASKED = [{"role": "user", "content": "6 times 7?"}]


@pytest.fixture(scope="module")
def router() -> Router:
    answered = model_group("base", "http://127.0.0.1:9", mock_response="42")
    return Router(model_list=[answered], num_retries=0)


@pytest.fixture
def _hooked() -> Iterator[None]:
    litellm.callbacks.append(hook)
    yield
    litellm.callbacks.remove(hook)


def call(router: Router, **other: float) -> dict[str, Any]:
    """Return a call as the router makes it."""
    [deployment] = router.get_model_ids("base")
    info = {"id": deployment}
    return {"model": "openai/base", **PRICES, **other, "metadata": {"model_info": info}}


def test_listed_prices_move_to_the_information_on_the_model(router: Router) -> None:
    given = call(router)
    metadata, info = given["metadata"], given["metadata"]["model_info"]
    made = without_listed_prices(given)
    assert made == {"model": "openai/base", "metadata": {"model_info": {**info, **PRICES}}}
    assert made["metadata"] is metadata
    assert not PRICES.keys() & info.keys()


@pytest.mark.parametrize(
    "other", [{"input_cost_per_token": 0.0}, {"cache_read_input_token_cost": 1e-7}]
)
def test_prices_of_a_client_stay(router: Router, other: dict[str, float]) -> None:
    given = call(router, **other)
    assert without_listed_prices(given) is given
    assert not PRICES.keys() & given["metadata"]["model_info"].keys()


def test_prices_of_an_unknown_deployment_stay() -> None:
    places: list[dict[str, Any]] = [{}, {"model_info": {}}, {"model_info": {"id": "unknown"}}]
    for metadata in places:
        given = {"model": "openai/base", **PRICES, "metadata": metadata}
        assert without_listed_prices(given) is given


@pytest.mark.usefixtures("_hooked")
async def test_a_call_costs_the_same_without_a_new_entry(
    router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[Any] = []
    monkeypatch.setattr(litellm, "register_model", lambda *given, **_: entered.append(given))
    answer = await router.acompletion(model="base", messages=ASKED)
    usage = answer.usage
    cost = usage.prompt_tokens * PRICE.prompt + usage.completion_tokens * PRICE.completion
    assert answer._hidden_params["response_cost"] == pytest.approx(cost)
    assert cost > 0
    assert entered == []
