"""What a call sets itself is recognised by every name, and in every object that is sent."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import litellm
import pytest
from litellm.types.utils import LlmProviders

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.call_fields import counts_choices, limits_length
from optillm_hooks.gateway.convert import is_forwarded, read_sampling, write_sampling
from optillm_hooks.types import Sampling

LENGTHS = (
    "max_tokens", "maxTokens", "MAX_TOKENS", "Max-Tokens", "max_completion_tokens",
    "max_new_tokens", "maxOutputTokens", "maxTokenCount", "max_gen_len", "max_length",
    "max_tokens_to_sample", "maximum_tokens", "max_response_output_tokens", "num_predict",
    "n_predict", "numPredict", "tokens_to_generate",
)  # fmt: skip
CHOICES = (
    "best_of", "bestOf", "best_of_sequences", "candidate_count", "candidateCount", "nBest",
    "num_return_sequences", "numGenerations", "num_completions", "num_choices", "numResults",
    "n_samples", "sampleCount", "N",
)  # fmt: skip
OTHERS = (
    "max_thinking_tokens", "max_reasoning_tokens", "max_tokens_total", "max_input_tokens",
    "max_prompt_tokens", "max_model_len", "max_tool_calls", "max_context_length", "min_tokens",
    "max_time", "num_ctx", "num_gpu", "num_retries", "top_k", "top_n_tokens", "k",
    "mcts_simulations", "truncate_prompt_tokens", "thinking_budget", "a" * 1000,
)  # fmt: skip
NESTED = (
    "extra_body.extra_body", "generationConfig", "generation_config", "inferenceConfig", "options",
    "additionalModelRequestFields", "parameters", "textGenerationConfig", "optional_params",
    "extra_query", "provider_options", "sampling_params", "extra_body.parameters", "a.b.c.d",
)  # fmt: skip
SCHEMA = {"type": "object", "properties": {"max_tokens": {"const": 5}, "n": {"default": 3}}}
LEGITIMATE: list[dict[str, Any]] = [
    {"generationConfig": {"thinkingConfig": {"thinkingBudget": 512, "max_tokens": 9}}},
    {"chat_template_kwargs": {"enable_thinking": True, "max_tokens": 9}},
    {"extra_body": {"chat_template_kwargs": {"n": 9}}},
    {"reasoning": {"max_tokens": 2000}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
    {"extra_body": {"guided_json": {"n": {"default": 3}, "examples": [{"max_tokens": 5}]}}},
    {"my_field": {"n": "north", "max_length": None, "best_of": True, "items": [1, 2, 3]}},
    {"options": {"num_ctx": 2048, "num_gpu": 2}},
    {"provider": {"order": ["x"], "max_price": {"prompt": 1}}},
    {"logit_bias": {"50256": -100}},
    {"generationConfig": {"candidateCount": 1}},
    {"min_tokens": 3},
]


@pytest.mark.parametrize("name", LENGTHS)
def test_a_length_by_any_name_is_the_requests_own(name: str) -> None:
    for params in ({name: 5000}, {"extra_body": {name: 5000}}):
        sampling = read_sampling(params)
        assert sampling == Sampling(max_tokens=5000)
        assert write_sampling(sampling) == {"max_tokens": 5000}


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("value", ["5", 1.5, True, [5], {"a": 5}], ids=str)
def test_a_length_that_is_no_whole_number_is_refused_by_name(name: str, value: object) -> None:
    for params in ({name: value}, {"extra_body": {name: value}}):
        with pytest.raises(RequestRejected, match=f"^{name} must be"):
            read_sampling(params)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", [200, "200", 2.0, 10**400], ids=lambda v: str(v)[:5])
def test_a_number_of_choices_by_another_name_is_refused(name: str, value: object) -> None:
    for params, place in (
        ({name: value}, name),
        ({"extra_body": {name: value}, "n": 3}, f"extra_body.{name}"),
    ):
        with pytest.raises(RequestRejected) as refused:
            read_sampling(params)
        assert refused.value.param == place


@pytest.mark.parametrize("name", CHOICES)
def test_a_number_of_choices_that_changes_nothing_is_left_out(name: str) -> None:
    assert read_sampling({name: 1}) == Sampling()
    assert read_sampling({name: 4, "n": 4, "extra_body": {name: 4}}) == Sampling()


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_the_providers(name: str) -> None:
    assert is_forwarded(name) or name == "num_retries"
    assert not limits_length(name)
    assert not counts_choices(name)


@pytest.mark.parametrize("place", NESTED)
@pytest.mark.parametrize(
    ("name", "value"),
    [*product(LENGTHS, [5000]), *product(CHOICES, [200]), ("max_tokens", "5"), ("n", 2.5)],
)
def test_a_limit_within_an_object_is_refused_by_its_place(
    place: str, name: str, value: object
) -> None:
    params: dict[str, Any] = {name: value}
    for part in reversed(place.split(".")):
        params = {part: [params] if part == "c" else params}
    with pytest.raises(RequestRejected, match="an approach sets this for each call") as refused:
        read_sampling(params)
    assert refused.value.param == f"{place.replace('.c.', '.c.0.')}.{name}"


@pytest.mark.parametrize("params", LEGITIMATE, ids=lambda p: str(p)[:40])
def test_what_only_looks_like_a_limit_is_sent_as_it_is(params: dict[str, Any]) -> None:
    assert write_sampling(read_sampling(params)) == params


@pytest.mark.parametrize("params", [{"models": ["a"]}, {"extra_body": {"models": ["a"]}}], ids=str)
def test_other_models_to_fall_back_to_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RequestRejected, match=r"models: an approach calls its base model"):
        read_sampling(params)


def test_an_object_is_searched_within_bounds() -> None:
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"a": deep}
    for value in (deep, {str(number): 0 for number in range(30_000)}, [[0] * 30_000]):
        with pytest.raises(RequestRejected, match=r"^extra: .* at most"):
            read_sampling({"extra": value})


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, name)
    else:
        yield name, value


MODELS = {
    "bedrock": (
        "amazon.titan-text-express-v1",
        "invoke/ai21.j2-mid-v1",
        "invoke/cohere.command-text-v14",
        "invoke/meta.llama3-8b-instruct-v1:0",
    )
}
FIELDS: list[tuple[str, int, Callable[[str], bool]]] = [
    ("max_tokens", 7777, limits_length),
    ("max_completion_tokens", 7777, limits_length),
    ("n", 333, counts_choices),
]


def test_the_names_of_every_provider_that_litellm_knows_are_recognised() -> None:
    """Or a client could send the provider's own name past the call's."""
    names = {
        (name, rule(name))
        for provider in LlmProviders
        for model in MODELS.get(provider.value, ("some-model",))
        for field, value, rule in FIELDS
        for name, found in leaves(made(model, provider.value, {field: value}))
        if found == value
    }
    assert len(names) > 15
    assert {name for name, known in names if not known} == set()


def made(model: str, provider: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Return what LiteLLM makes of request fields for a provider; nothing if it needs a login."""
    try:
        found: dict[str, Any] = litellm.get_optional_params(
            model=model, custom_llm_provider=provider, drop_params=True, **fields
        )
    except Exception:
        return {}
    return found
