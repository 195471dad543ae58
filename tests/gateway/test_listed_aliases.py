"""What LiteLLM's model map says of aliases: what holds for every deployment of their base."""

from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.proxy.auth.auth_checks import is_model_cost_zero
from litellm.utils import custom_llm_setup

from optillm_hooks.gateway.listed_aliases import entries

SEEING = {"supports_vision": True, "supports_function_calling": True, "max_input_tokens": 5000}
BLIND = {"supports_function_calling": True, "max_input_tokens": 3000}


def model(name: str, named: str, info: dict[str, Any] | None = None, **params: Any) -> Any:
    given = {"model": named, "api_key": "none", **params}
    return {"model_name": name, "litellm_params": given, "model_info": info or {}}


def listed(alias: str, *others: Any, **params: Any) -> dict[str, Any]:
    """Return what is listed of an alias, without what is listed of each."""
    found = entries({"model_list": [*others, model("alias", alias, **params)]})
    assert found[alias].items() >= {"litellm_provider": "optillm", "mode": "chat"}.items()
    return {k: v for k, v in found[alias].items() if k not in ("litellm_provider", "mode")}


def test_an_alias_can_do_what_every_deployment_of_its_base_can() -> None:
    bases = [model("base", "openai/a", SEEING), model("base", "openai/b", BLIND)]
    assert listed("optillm/re2/base", *bases) == BLIND
    assert listed("optillm/re2/base", bases[0]) == SEEING
    assert listed("optillm/re2/base") == {}


def test_the_base_may_be_under_a_wildcard_and_the_provider_a_field() -> None:
    wildcard = model("openai/*", "openai/*")
    known = listed("optillm/re2/openai/gpt-4o-mini", wildcard)
    assert known["max_input_tokens"] == litellm.model_cost["gpt-4o-mini"]["max_input_tokens"]
    field = listed("re2/openai/gpt-4o-mini", wildcard, custom_llm_provider="optillm")
    assert field == known


@pytest.mark.parametrize("plan", ["memory", "compact", "longcepo", "re2&memory"])
def test_an_approach_that_reads_long_texts_has_no_window(plan: str) -> None:
    base = model("base", "openai/a", {**SEEING, "max_output_tokens": 700})
    found = listed(f"optillm/{plan}/base", base)
    assert found == {
        "supports_vision": True,
        "supports_function_calling": True,
        "max_output_tokens": 700,
    }


@pytest.mark.parametrize("alias", ["optillm/re2(/base", "optillm/none-such/base", "optillm/*"])
def test_what_is_no_alias_is_not_listed(alias: str) -> None:
    assert entries({"model_list": [model("base", "openai/a", SEEING), model("x", alias)]}) == {}
    assert entries({"model_list": "none"}) == {}


def test_a_listed_alias_waives_no_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = {"provider": "optillm", "custom_handler": litellm.CustomLLM()}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    monkeypatch.setattr(litellm, "model_cost", dict(litellm.model_cost))
    free = {"input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
    models = [model("base", "openai/a", {**SEEING, **free}), model("x", "optillm/re2/base")]
    litellm.register_model(entries({"model_list": models}), persist_across_reloads=False)
    alone = Router(model_list=[models[1]])
    assert not is_model_cost_zero("x", alone)
    info = alone.get_model_group_info("x")
    assert info is not None
    assert info.max_input_tokens == 5000
