"""What a call may cost at most: limits of a request reserve it."""

import pytest
from litellm import Router

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway.failures import as_sample_errors
from optillm_hooks.gateway.model_facts import model_facts
from optillm_hooks.llm import Price
from optillm_hooks.types import Sampling


def test_the_price_of_a_call_is_that_of_its_dearest_fallback() -> None:
    prices = {"cheap": 1e-6, "dear": 1e-4}
    router = Router(
        model_list=[
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_key": "none",
                    "input_cost_per_token": price,
                    "output_cost_per_token": 4 * price,
                },
            }
            for name, price in prices.items()
        ],
        fallbacks=[{"cheap": ["dear"]}],
    )
    facts = model_facts(router, "cheap")
    assert facts.price == Price(1e-6, 4e-6)
    assert facts.price_of(Sampling()) == Price(1e-4, 4e-4)


def test_an_unreadable_reply_has_been_answered() -> None:
    with pytest.raises(ProviderFailed) as found, as_sample_errors():
        raise ValueError("Invalid response object Traceback")
    assert found.value.answered
