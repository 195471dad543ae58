"""Which of an approach's sampling fields a model of today is sent, next to what the client sent."""

import random
from dataclasses import replace
from typing import Any

import litellm
import pytest
from litellm import Router

from optillm_hooks.context import Context
from optillm_hooks.gateway.model_facts import model_facts
from optillm_hooks.gateway.sampling_rules import check_client
from optillm_hooks.own_fields import sendable, with_room
from optillm_hooks.types import Sampling
from tests.gateway.test_model_facts import group

HIGH: dict[str, Any] = {"reasoning_effort": "high"}
THINKING: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 2048}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {}}}
NO_CALLS: dict[str, Any] = {"tools": [TOOL], "tool_choice": "none"}
GPT_5, SONNET = "openai/gpt-5-mini", "anthropic/claude-sonnet-4-5"


def sent(router: Router, own: Sampling, client: Sampling) -> Sampling:
    """Return the sampling of a call for an answer to the group `x`."""
    facts = model_facts(router, "x")
    ctx = Context(rng=random.Random(0), client=client)

    def filled(own: Sampling) -> Sampling:
        return with_room(own, ctx.filled(own), lambda: facts)

    return filled(sendable(own, filled, lambda: facts))


def read(sampling: Sampling) -> dict[str, Any]:
    given = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        **sampling.fields,
    }
    return {name: value for name, value in given.items() if value is not None}


def asked(**fields: Any) -> Sampling:
    own = {name: fields.pop(name, None) for name in ("temperature", "top_p", "max_tokens")}
    return Sampling(**own, fields=fields)


@pytest.mark.parametrize(
    ("model", "own", "client", "expected"),
    [
        pytest.param(
            GPT_5, {"temperature": 0.7, "top_p": 0.9}, {}, {}, id="GPT-5 refuses any temperature"
        ),
        pytest.param(GPT_5, {"temperature": 1.0}, {}, {"temperature": 1.0}, id="but its own"),
        pytest.param("openai/o4-mini", {"temperature": 0.1}, {}, {}, id="o4-mini"),
        pytest.param("azure/gpt-5", {"temperature": 0.1}, {}, {}, id="GPT-5 at Azure"),
        pytest.param(
            "openai/gpt-4o",
            {"temperature": 0.7, "top_p": 0.9},
            {},
            {"temperature": 0.7, "top_p": 0.9},
            id="a plain model takes both",
        ),
        pytest.param(
            "openai/mine", {"temperature": 0.7}, {}, {"temperature": 0.7}, id="an unknown model"
        ),
        pytest.param(
            "openai/gpt-5.1", {"temperature": 0.7}, {}, {"temperature": 0.7}, id="effort none"
        ),
        pytest.param("openai/gpt-5.1", {"temperature": 0.7}, HIGH, HIGH, id="the client's effort"),
        pytest.param(SONNET, NO_CALLS, {}, NO_CALLS, id="a judge with tools may not call them"),
        pytest.param(
            "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            NO_CALLS,
            {},
            {"tools": [TOOL]},
            id="Bedrock cannot forbid calls",
        ),
        pytest.param(
            SONNET,
            {"temperature": 0.7, "top_p": 0.9},
            {},
            {"temperature": 0.7},
            id="Claude takes one of them",
        ),
        pytest.param(
            SONNET, {"temperature": 0.7}, {"top_p": 0.9}, {"top_p": 0.9}, id="the client's stays"
        ),
        pytest.param(SONNET, {"temperature": 1.5}, {}, {}, id="no temperature above 1"),
        pytest.param(SONNET, {"temperature": 0.7}, HIGH, HIGH, id="Claude that thinks by effort"),
        pytest.param(SONNET, {"temperature": 0.7}, THINKING, THINKING, id="by a budget"),
        pytest.param(
            SONNET,
            {"temperature": 0.7},
            {"thinking": {"type": "disabled"}},
            {"temperature": 0.7, "thinking": {"type": "disabled"}},
            id="Claude that may not think",
        ),
        pytest.param(
            SONNET,
            {"max_tokens": 500},
            HIGH,
            {"max_tokens": 4596, **HIGH},
            id="thinking has room beside a draft",
        ),
        pytest.param(
            SONNET,
            {"temperature": 0.7, "reasoning_effort": "high"},
            {"max_tokens": 300},
            {"temperature": 0.7, "max_tokens": 300},
            id="an effort that the client's max_tokens leaves no room for",
        ),
        pytest.param(
            SONNET,
            {"temperature": 0.7, "reasoning_effort": "high"},
            {},
            HIGH,
            id="an effort that was asked for counts more than a temperature",
        ),
        pytest.param(
            "gemini/gemini-2.5-pro",
            {"max_tokens": 500, "temperature": 0.3},
            HIGH,
            {"max_tokens": 4596, "temperature": 0.3, **HIGH},
            id="Gemini counts thinking too",
        ),
        *(
            pytest.param(model, {"temperature": 0.7, "top_p": 0.9}, {}, {}, id=model)
            for model in (
                "anthropic/claude-opus-4-7",
                "bedrock/us.anthropic.claude-opus-4-7",
                "vertex_ai/claude-opus-4-7",
                "databricks/databricks-claude-opus-4-7",
            )
        ),
        *(
            pytest.param(
                model, {"temperature": 0.7, "top_p": 0.9}, {}, {"temperature": 0.7}, id=model
            )
            for model in (
                "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                "vertex_ai/claude-sonnet-4-5",
                "openrouter/anthropic/claude-sonnet-4.5",
                "openai/claude-sonnet-4-5",
            )
        ),
    ],
)
def test_what_is_sent(
    model: str, own: dict[str, Any], client: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = sent(Router(model_list=[group(model)]), asked(**own), asked(**client))
    assert read(found) == expected


def test_every_deployment_and_every_fallback_must_take_it() -> None:
    own, client = asked(temperature=0.7), asked()
    plain, reasoning = group("openai/gpt-4o"), group(GPT_5)
    assert read(sent(Router(model_list=[plain, reasoning]), own, client)) == {}
    other = reasoning | {"model_name": "other"}
    falling = Router(model_list=[plain, other], fallbacks=[{"x": ["other"]}])
    assert read(sent(falling, own, client)) == {}
    apart = Router(model_list=[plain, other], fallbacks=[{"other": ["x"]}])
    assert read(sent(apart, own, client)) == {"temperature": 0.7}


def test_the_operators_fields_and_options_count() -> None:
    own, client = asked(temperature=0.7), asked()
    thinking = group(SONNET, **HIGH)
    assert read(sent(Router(model_list=[thinking]), own, client)) == {}
    dropping = group(GPT_5, drop_params=True)  # LiteLLM leaves out what the model refuses
    assert read(sent(Router(model_list=[dropping]), own, client)) == {"temperature": 0.7}
    named = group("azure/my-deployment", {"base_model": "azure/gpt-5-mini"})
    assert read(sent(Router(model_list=[named]), own, client)) == {}


@pytest.mark.parametrize(
    ("model", "client", "words"),
    [
        (GPT_5, {"temperature": 0.3}, "temperature=0.3"),
        (GPT_5, {"stop": ["x"]}, "stop"),
        ("anthropic/claude-opus-4-7", {"temperature": 0.3}, "temperature=0.3"),
        (SONNET, {"seed": 3}, "seed"),
        (SONNET, {"reasoning_effort": "high", "max_tokens": 500}, "max_tokens"),
        (SONNET, {"max_tokens": 2048, **THINKING}, "max_tokens"),
        (SONNET, {"max_tokens": 2049, **THINKING}, None),
        (SONNET, {"temperature": 0.3, **THINKING}, "temperature"),
        (SONNET, {"top_p": 0.9, **HIGH}, "top_p"),
        (SONNET, {"top_p": 0.95, **HIGH}, None),
        (SONNET, {"tools": [TOOL], "tool_choice": "required", **HIGH}, "tool_choice"),
        (SONNET, {"tools": [TOOL], "tool_choice": "auto", **HIGH}, None),
        (SONNET, {"temperature": 0.3}, None),
        ("openai/gpt-4o", {"temperature": 0.3, "stop": ["x"], "seed": 3}, None),
        ("openai/mine", {"temperature": 0.3, "reasoning_effort": "high"}, None),
    ],
)
def test_a_client_is_refused_as_the_plain_model_refuses_it(
    model: str, client: dict[str, Any], words: str | None
) -> None:
    found = model_facts(Router(model_list=[group(model)]), "x").deployments
    given = {name: client.pop(name, None) for name in ("stop", "seed")}
    stop = given["stop"]
    sampling = replace(asked(**client), stop=tuple(stop) if stop else None, seed=given["seed"])
    if words is None:
        check_client(found, sampling)
        return
    with pytest.raises(litellm.BadRequestError, match=words):
        check_client(found, sampling)
    other = model_facts(Router(model_list=[group(model), group("openai/gpt-4o")]), "x").deployments
    if "thinking" not in client and "reasoning_effort" not in client:
        check_client(other, sampling)


def test_what_the_operator_sets_counts_when_a_clients_fields_are_checked() -> None:
    """A plain call would have both, and be refused."""
    thinking = group(SONNET, reasoning_effort="low")
    found = model_facts(Router(model_list=[thinking]), "x").deployments
    check_client(found, asked(max_tokens=2000))
    with pytest.raises(litellm.BadRequestError, match="must be greater than"):
        check_client(found, asked(max_tokens=300))
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        check_client(found, asked(temperature=0.2))
    check_client(found, asked(max_tokens=300, reasoning_effort="none"))
