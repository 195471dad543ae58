"""What clients send: an approach answers as its base model, or names the field that it refuses."""

import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from tests.proxy import Proxy
from tests.request_cases import read_stream
from tests.upstream import Script, Upstream

USER = {"role": "user", "content": "6 * 7?"}
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": TOOL}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
OLD_CALL = {
    "role": "assistant",
    "content": None,
    "function_call": {"name": "f", "arguments": "{}"},
}
TOOL_USE = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}],
}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "t"}
ITEM_CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
ITEM_RESULT = {"type": "function_call_output", "call_id": "c", "output": "r"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
TEXT = {"type": "text", "text": "6 * 7?"}
SCHEMA = {"name": "a", "schema": {"type": "object", "properties": {}}}

CHAT: dict[str, list[Any]] = {
    "max_tokens": [-1, 0, 5, "5", 1.5],
    "max_completion_tokens": [-1, 5],
    "temperature": [0, 2, "hot", True],
    "top_p": [0, 0.5],
    "stop": ["x", "", [], ["a", "b"]],
    "seed": [1],
    "stream_options": [{"include_usage": True}, {"include_usage": False}, {}],
    "presence_penalty": [0.5],
    "frequency_penalty": [0.5],
    "repetition_penalty": [1.1],
    "top_k": [5, -1],
    "min_p": [0.1],
    "logit_bias": [{}, {"50256": -100}],
    "logprobs": [True, False],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": SCHEMA},
    ],
    "tools": [[], [FUNCTION], [{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["auto", "none"],
    "parallel_tool_calls": [True, False],
    "functions": [[], [TOOL]],
    "function_call": ["auto", "none"],
    "modalities": [["text"]],
    "user": ["u"],
    "store": [True, False],
    "metadata": [{}, {"a": "b"}],
    "service_tier": ["auto"],
    "prediction": [{"type": "content", "content": "x"}],
    "safety_identifier": ["u"],
    "prompt_cache_key": ["k"],
    "include_reasoning": [True],
    "chat_template_kwargs": [{"enable_thinking": False}],
    "provider": [{"order": ["x"]}],
    "options": [{"num_ctx": 2048}],
    "keep_alive": ["5m"],
    "cache_prompt": [True],
    "extra_body": [{"foo": 1}],
    "foo": [1],
    "optillm_approach": ["auto"],
    "optillm_params": [{}],
    "optillm_limits": [{}],
    "messages": [
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "   "}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": []}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": "hi", "name": "bob", "id": "m1"}],
        [{"role": "Human", "content": "hi"}],
        [{"role": "developer", "content": "x"}, USER],
        [USER, {"role": "system", "content": "x"}],
        [{"role": "system", "content": "x"}],
        [{"role": "system", "content": "x"}, {"role": "system", "content": "y"}, USER],
        [{"role": "assistant", "content": "x"}],
        [USER, {"role": "assistant", "content": "The answer"}],
        [USER, {"role": "assistant", "content": ""}],
        [USER, USER],
        [USER, CALLED],
        [USER, CALLED, {"role": "tool", "tool_call_id": "c", "content": "r"}],
        [USER, CALLED, {"role": "tool", "tool_call_id": "c", "content": [TEXT]}],
        [USER, CALLED, {"role": "tool", "tool_call_id": "c", "content": None}],
        [USER, {"role": "assistant", "content": "x", "tool_calls": None}, USER],
        [USER, {"role": "assistant", "content": "x", "tool_calls": []}, USER],
        [USER, {"role": "assistant", "content": None, "refusal": "no"}, USER],
        [USER, {"role": "assistant", "content": "x", "reasoning_content": "r"}, USER],
        [USER, {"role": "assistant", "content": "x", "annotations": [], "audio": None}, USER],
        [USER, OLD_CALL, {"role": "function", "name": "f", "content": "r"}],
        [{"role": "user", "content": [TEXT, IMAGE]}],
        [{"role": "user", "content": [IMAGE]}],
        [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        [{"role": "user", "content": [{"type": "text", "text": ""}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}],
        [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}],
        [{"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}],
        [{"role": "user", "content": "\U0001f642 \u0000 \ud83d\ude42"}],
        [{"role": "user", "content": "word " * 20_000}],
    ],
}

MESSAGES: dict[str, list[Any]] = {
    "max_tokens": [5, -1, 0],
    "system": ["x", "", [], [{**TEXT, "cache_control": {"type": "ephemeral"}}]],
    "metadata": [{"user_id": "u"}, {}],
    "stop_sequences": [["a"], []],
    "temperature": [0],
    "top_p": [0.5],
    "tools": [[], [{"name": "f", "input_schema": {"type": "object"}}]],
    "tool_choice": [{"type": "auto"}],
    "service_tier": ["auto"],
    "thinking": [{"type": "enabled", "budget_tokens": 1024}],
    "optillm_params": [{}],
    "optillm_limits": [{}],
    "messages": [
        [{"role": "user", "content": [TEXT]}],
        [{"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}],
        [USER, {"role": "assistant", "content": "The"}],
        [USER, {"role": "assistant", "content": [{"type": "text", "text": ""}]}, USER],
        [
            USER,
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "d"}]},
            USER,
        ],
        [USER, TOOL_USE, {"role": "user", "content": [TOOL_RESULT, TEXT]}],
    ],
}

RESPONSES: dict[str, list[Any]] = {
    "input": [
        "",
        [USER],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        [USER, ITEM_CALL, ITEM_RESULT],
        [{"role": "developer", "content": "x"}, USER],
    ],
    "instructions": ["x", ""],
    "max_output_tokens": [5, -1, 0],
    "temperature": [0],
    "previous_response_id": ["resp_1"],
    "background": [True, False],
    "store": [True, False],
    "include": [[], ["reasoning.encrypted_content"]],
    "metadata": [{}, {"a": "b"}],
    "parallel_tool_calls": [True],
    "reasoning": [{}, {"effort": "low"}],
    "text": [
        {},
        {"verbosity": "low"},
        {"format": {"type": "text"}},
        {"format": {"type": "json_object"}},
    ],
    "tools": [
        [],
        [{"type": "function", **TOOL}],
        [{"type": "custom", "name": "f"}],
        [{"type": "image_generation"}],
    ],
    "tool_choice": ["auto"],
    "truncation": ["auto", "disabled"],
    "user": ["u"],
    "safety_identifier": ["u"],
    "prompt_cache_key": ["k"],
    "service_tier": ["auto"],
    "stream_options": [{"include_obfuscation": False}],
    "optillm_params": [{}],
}

PATHS = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"model": "base", "messages": [USER]},
    "messages": {"model": "single", "messages": [USER], "max_tokens": 50},
    "responses": {"model": "single", "input": "6 * 7?"},
}
FIELDS = {"chat": CHAT, "messages": MESSAGES, "responses": RESPONSES}
VARIANTS = [
    pytest.param(route, {field: value}, id=f"{route} {field}={json.dumps(value)[:60]}")
    for route, fields in FIELDS.items()
    for field, values in fields.items()
    for value in values
] + [
    pytest.param(route, dict.fromkeys(fields.keys() - BODIES[route].keys()), id=f"{route} nulls")
    for route, fields in FIELDS.items()
]


@pytest.fixture(autouse=True, scope="module")
def _answers(upstream: Upstream) -> None:
    upstream.play(Script())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("route", "fields"), VARIANTS)
def test_an_approach_answers_as_the_plain_model_or_names_the_field(
    proxy: Proxy, route: str, fields: dict[str, Any], stream: bool
) -> None:
    path, body = PATHS[route], {**BODIES[route], **fields, "stream": stream}
    base = body.pop("model")
    plain = proxy.post(path, {**body, "model": base})
    ours = proxy.post(path, {**body, "model": f"re2-{base}"})
    assert _agrees(plain, ours, fields), f"{plain.text[:500]} {ours.text[:500]}"


def _agrees(plain: httpx.Response, ours: httpx.Response, fields: Iterable[str]) -> bool:
    if ours.status_code == 200:
        return _shape(ours) == _shape(plain)
    named = ours.status_code == 400 and any(field in ours.text for field in fields)
    return named or ours.status_code == plain.status_code


def _shape(response: httpx.Response) -> object:
    """Return what a client sees of an answer, apart from its text."""
    if response.headers["content-type"].startswith("text/event-stream"):
        read = read_stream(response.text)
        kinds = [block["type"] for block in read["blocks"]]
        return bool(read["text"]), read["finish"], kinds, read["stop_reason"], len(read["errors"])
    return _types(response.json())


def _types(document: Any) -> object:
    """Return the names and types of a JSON document, without what is null or empty."""
    if isinstance(document, dict):
        private = ("optillm", "usage", "provider_specific_fields")
        shown = {key: value for key, value in document.items() if key not in private}
        return {key: _types(value) for key, value in shown.items() if value not in (None, {}, [])}
    if isinstance(document, list):
        return [_types(item) for item in document]
    return type(document).__name__
