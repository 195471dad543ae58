"""What is known about a model before it is called."""

from functools import partial
from pathlib import Path
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.utils import custom_llm_setup

from optillm_hooks.gateway.model_facts import model_facts
from optillm_hooks.llm import Price
from optillm_hooks.types import Sampling


@pytest.fixture(autouse=True)
def local_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = {"provider": "optillm-local", "custom_handler": litellm.CustomLLM()}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()


def group(model: str, info: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """Return a deployment of the group `x`."""
    given = {"model": model, "api_key": "none", "api_base": "http://127.0.0.1:9", **params}
    return {"model_name": "x", "litellm_params": given, "model_info": info or {}}


MAPPED = {
    "always": [
        "openai/o1", "openai/o3-mini", "openai/o4-mini-2025-04-16", "azure/o3",
        "openai/gpt-5", "openai/gpt-5-mini", "azure/gpt-5-nano", "openai/gpt-5.5",
        "groq/openai/gpt-oss-120b", "bedrock/openai.gpt-oss-20b-1:0",
        "deepseek/deepseek-reasoner", "together_ai/deepseek-ai/DeepSeek-R1",
        "ollama/deepseek-r1:8b",
        "hosted_vllm/Qwen/QwQ-32B", "hosted_vllm/Qwen/Qwen3-8B", "ollama_chat/qwen3:8b",
        "hosted_vllm/Qwen/Qwen3-30B-A3B-Thinking-2507",
        "gemini/gemini-2.5-pro", "vertex_ai/gemini-2.5-flash", "gemini/gemini-3-flash-preview",
        "xai/grok-4", "xai/grok-3-mini", "xai/grok-4-fast-reasoning", "xai/grok-code-fast-1",
        "mistral/magistral-medium-latest", "moonshot/kimi-k2-thinking", "zai/glm-4.6",
        "perplexity/sonar-reasoning-pro", "hosted_vllm/microsoft/Phi-4-reasoning",
        "openrouter/anthropic/claude-3.7-sonnet:thinking",
    ],
    "on_request": [
        "anthropic/claude-sonnet-4-5", "bedrock/us.anthropic.claude-opus-4-5-20251101-v1:0",
        "vertex_ai/claude-opus-4-7", "openrouter/anthropic/claude-sonnet-4.5",
        "openai/gpt-5.1", "azure/gpt-5.2", "gemini/gemini-2.5-flash-lite", "deepseek/deepseek-v3.2",
        "anthropic/claude-9-unknown",
    ],
    "never": [
        "openai/gpt-4o-mini", "openai/gpt-4.1", "openai/gpt-5-chat-latest", "openai/my-model",
        "hosted_vllm/Qwen/Qwen3-30B-A3B-Instruct-2507", "xai/grok-4-fast-non-reasoning",
        "hosted_vllm/meta-llama/Llama-3.1-8B-Instruct", "deepseek/deepseek-chat",
        "gemini/gemini-2.0-flash", "mistral/mistral-large-2411", "ollama/llama3.1:8b",
        "hosted_vllm/Qwen/Qwen3-Coder-30B-A3B-Instruct", "gemini/gemini-2.5-flash-image",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "when"), [(model, when) for when, models in MAPPED.items() for model in models]
)
def test_when_a_model_reasons(model: str, when: str) -> None:
    assert model_facts(Router(model_list=[group(model)]), "x").reasoning == when


@pytest.mark.parametrize(
    ("model", "params", "info", "when"),
    [
        ("openai/mine", {}, {"supports_reasoning": True}, "on_request"),
        ("openai/mine", {}, {"thinking_always_on": True}, "always"),
        ("openai/mine", {}, {"default_reasoning_effort": "medium"}, "always"),
        # The router writes an operator's model_info into LiteLLM's map: no name occurs twice.
        ("openai/gpt-5-like", {}, {"supports_reasoning": False}, "never"),
        ("openai/gpt-5-alike", {}, {"default_reasoning_effort": "none"}, "on_request"),
        ("azure/mine", {}, {"base_model": "azure/gpt-5-mini"}, "always"),
        ("azure/mine", {"base_model": "azure/gpt-4o"}, {}, "never"),
        ("anthropic/claude-sonnet-4-5", {"reasoning_effort": "high"}, {}, "always"),
        (
            "anthropic/claude-sonnet-4-5",
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {},
            "always",
        ),
        ("openai/gpt-5-mini", {"reasoning_effort": "none"}, {}, "on_request"),
    ],
)
def test_the_operator_says_when_a_model_reasons(
    model: str, params: dict[str, Any], info: dict[str, Any], when: str
) -> None:
    assert model_facts(Router(model_list=[group(model, info, **params)]), "x").reasoning == when


def test_a_group_reasons_if_all_its_deployments_do() -> None:
    facts = partial(model_facts, model="x")
    always, asked = group("openai/o3"), group("anthropic/claude-sonnet-4-5")
    plain = group("openai/gpt-4o")
    assert facts(Router(model_list=[always, asked])).reasoning == "on_request"
    assert facts(Router(model_list=[always, asked, plain])).reasoning == "never"
    assert model_facts(Router(model_list=[always]), "nobody").reasoning == "never"


def test_a_local_model_reasons_as_its_chat_template_shows(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
    )
    local = {"optillm_local": {"path": str(tmp_path)}}
    for model, info, when in (
        ("optillm-local/mine", local, "always"),
        ("optillm-local/mine-too", {**local, "supports_reasoning": False}, "never"),
        ("optillm-local/small", {"optillm_local": {"path": "Qwen/Qwen3-0.6B"}}, "always"),
        ("optillm-local/other", {"optillm_local": {"path": "acme/plain"}}, "never"),
    ):
        found = model_facts(Router(model_list=[group(model, info)]), "x")
        assert found.reasoning == when, model


@pytest.mark.parametrize(
    ("fields", "price"),
    [
        ({}, Price(1e-6, 4e-6)),
        ({"service_tier": "flex"}, Price(1e-6, 4e-6)),
        ({"service_tier": "priority"}, Price(2e-6, 8e-6)),
        ({"service_tier": [5]}, Price(1e-6, 4e-6)),
        ({"prediction": {"content": "x"}}, Price(4e-6, 4e-6)),
        ({"audio": {"voice": "a"}}, Price(1e-6, 9e-5)),
    ],
    ids=str,
)
def test_a_dearer_service_is_reserved_at_its_price(fields: dict[str, Any], price: Price) -> None:
    prices = {
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 4e-6,
        "input_cost_per_token_priority": 2e-6,
        "output_cost_per_token_priority": 8e-6,
        "output_cost_per_token_flex": 1e-6,
        "output_cost_per_audio_token": 9e-5,
    }
    facts = model_facts(Router(model_list=[group("openai/mine", prices)]), "x")
    assert facts.price_of(Sampling(fields=fields)) == price
    unpriced = model_facts(Router(model_list=[group("openai/mine")]), "x")
    assert unpriced.price_of(Sampling(fields=fields)) is None
