"""Fields that an approach cannot serve on a route are refused by name; all others pass."""

from typing import Any

import pytest
from litellm.responses.litellm_completion_transformation.reasoning_items import (
    mint_reasoning_item_id,
)

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.prepared import Route
from optillm_hooks.gateway.routes import check_request, without_nulls

USER = {"role": "user", "content": "hi"}
REASONING = mint_reasoning_item_id()
BODIES: dict[Route, dict[str, Any]] = {
    "chat": {"messages": [USER]},
    "messages": {"messages": [USER], "max_tokens": 9},
    "responses": {"input": "hi"},
    "completions": {"prompt": "hi"},
}


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [fields]}]


REFUSED: list[tuple[Route, str, Any, str]] = [
    ("chat", "messages", [], "at least one message"),
    ("chat", "messages", part(type="input_text", text="hi"), "content part"),
    ("chat", "messages", part(text="hi"), "content part"),
    ("chat", "response_format", "json", "an object"),
    ("chat", "custom_llm_provider", "openai", "past its approach"),
    ("chat", "allowed_openai_params", "top_k", "a list"),
    ("chat", "allowed_openai_params", [{}], "a list of strings"),
    ("chat", "response_format", False, "an object"),
    ("chat", "extra_body", [{}], "an object"),
    ("chat", "litellm_trace_id", {}, "a string"),
    ("chat", "stream", "yes", "true or false"),
    ("chat", "stream_options", 3, "an object"),
    ("chat", "tags", [{}], "a list of strings"),
    ("chat", "timeout", {}, "seconds"),
    ("chat", "timeout", "Infinity", "seconds"),
    ("chat", "web_search_options", True, "an object"),
    ("messages", "messages", [{"role": "user", "content": ""}], "has content"),
    ("chat", "timeout", -1, "above 0"),
    ("completions", "stream_options", "x", "an object"),
    ("completions", "stream_options", [], "an object"),
    ("messages", "messages", None, "has content"),
    ("messages", "max_tokens", "many", "a whole number"),
    ("messages", "stop_sequences", {}, "a list of strings"),
    ("messages", "stream", {}, "true or false"),
    ("messages", "system", [None], "a list of objects"),
    ("messages", "tools", {"name": "add"}, "a list of objects"),
    ("messages", "tool_choice", "auto", "an object"),
    ("messages", "tool_choice", {"type": "function"}, '"auto", "any"'),
    ("responses", "input", 1, "a list of items"),
    ("responses", "instructions", {}, "a string"),
    ("responses", "max_output_tokens", 1.5, "a whole number"),
    ("responses", "reasoning", [{}], "an object"),
    ("responses", "text", "json", "an object"),
    ("responses", "tools", 7, "a list of objects"),
    ("responses", "truncation", [], "a string"),
    ("responses", "user", 7, "a string"),
    ("responses", "previous_response_id", "resp_1", "not stored"),
    ("responses", "conversation", "conv_1", "not stored"),
    ("responses", "conversation", {"id": "conv_1"}, "not stored"),
    ("responses", "background", True, "while the request is open"),
    ("responses", "prompt", {"id": "pmpt_1"}, "stored prompts"),
    ("responses", "tools", 5, "a list"),
    ("responses", "input", [], "a list of items"),
    ("responses", "input", None, "a list of items"),
    ("responses", "input", [{"type": "item_reference", "id": "msg_1"}], "not stored"),
    ("responses", "input", [{"type": "item_reference", "id": "rs_1"}], "not stored"),
    ("responses", "input", [{"type": "item_reference", "id": REASONING}], "a list of items"),
    ("completions", "prompt", ["one", "two"], "got 2"),
    ("completions", "prompt", [1, 2, 3], "no tokens"),
    ("completions", "prompt", [[1, 2], [3]], "no tokens"),
    ("completions", "prompt", [], "a string"),
    ("completions", "prompt", None, "a string"),
    ("completions", "echo", True, "not part of the answer"),
    ("completions", "suffix", "}", "cannot insert"),
    ("completions", "logprobs", 1, "chat/completions"),
    ("completions", "logprobs", 0, "chat/completions"),
    ("completions", "best_of", 3, "approach bon"),
    ("completions", "stream_options", "usage", "an object"),
    ("completions", "messages", [USER], "chat/completions"),
]
ITEMS: list[tuple[str, list[Any]]] = [
    ("input[0].role", [{"role": [None], "content": "hi"}]),
    ("input[1].call_id", [USER, {"type": "function_call_output", "call_id": [1], "output": ""}]),
    ("input[0].name", [{"type": "function_call", "call_id": "c", "name": {}, "arguments": "{}"}]),
    ("input[0].type", [{"type": 5, "role": "user", "content": "hi"}]),
]
PASSED: list[tuple[Route, str, Any]] = [
    ("chat", "messages", part(type="text", text="hi")),
    ("chat", "messages", part(type="input_audio", input_audio={"data": "", "format": "wav"})),
    ("chat", "response_format", {"type": "text"}),
    ("chat", "modalities", ["text"]),
    ("chat", "stream", None),
    ("chat", "timeout", "30"),
    ("chat", "tool_choice", "auto"),
    ("chat", "user", 7),
    ("chat", "custom_llm_provider", None),
    ("chat", "max_tokens", -1),
    ("chat", "timeout", 0.5),
    ("chat", "stream_options", None),
    ("messages", "messages", [{"role": "assistant", "content": ""}, USER]),
    ("responses", "previous_response_id", None),
    ("responses", "background", False),
    ("responses", "store", True),
    ("responses", "include", ["reasoning.encrypted_content"]),
    ("responses", "input", ""),
    ("responses", "input", [{"type": "item_reference", "id": REASONING}, USER]),
    ("responses", "tools", []),
    ("responses", "tools", None),
    ("completions", "prompt", ["one"]),
    ("completions", "prompt", ""),
    ("completions", "echo", False),
    ("completions", "suffix", ""),
    ("completions", "logprobs", None),
    ("completions", "best_of", 1),
]


@pytest.mark.parametrize(("route", "field", "value", "reason"), REFUSED)
def test_a_field_without_effect_is_refused_by_name(
    route: Route, field: str, value: object, reason: str
) -> None:
    with pytest.raises(RequestRejected, match=f"^{field}.*{reason}") as refused:
        check_request({**BODIES[route], field: value}, route)
    assert refused.value.param == field


@pytest.mark.parametrize(("place", "items"), ITEMS)
def test_a_malformed_item_is_refused_by_its_place(place: str, items: list[Any]) -> None:
    with pytest.raises(RequestRejected, match="must be a string") as refused:
        check_request({"input": items}, "responses")
    assert refused.value.param == place


@pytest.mark.parametrize("parameters", [[1], "{}", 5])
def test_parameters_of_a_tool_are_an_object(parameters: object) -> None:
    tools = [{"type": "function", "name": "f"}, {"type": "function", "parameters": parameters}]
    with pytest.raises(RequestRejected, match="must be an object") as refused:
        check_request({"input": "hi", "tools": tools}, "responses")
    assert refused.value.param == "tools[1].parameters"


@pytest.mark.parametrize(("route", "field", "value"), PASSED)
def test_a_field_that_can_be_served_passes(route: Route, field: str, value: object) -> None:
    check_request({**BODIES[route], field: value}, route)


@pytest.mark.parametrize(
    "kind", ["code_interpreter", "computer_use_preview", "image_generation", "local_shell", "mcp"]
)
def test_a_tool_of_openais_own_api_is_refused_by_its_type(kind: str) -> None:
    tools = [{"type": "function", "name": "f"}, {"type": kind}]
    with pytest.raises(RequestRejected, match=f"'{kind}'") as refused:
        check_request({"input": "hi", "tools": tools}, "responses")
    assert refused.value.param == "tools[1].type"


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "f"},
        {"type": "web_search"},
        {"type": "web_search_preview"},
        {"type": "mcp", "server_url": "litellm_proxy/mcp/deepwiki"},
    ],
    ids=str,
)
def test_a_tool_that_litellm_converts_passes(tool: dict[str, Any]) -> None:
    check_request({"input": "hi", "tools": [tool]}, "responses")


def test_best_of_may_say_that_all_choices_are_wanted() -> None:
    check_request({"prompt": "hi", "n": 2, "best_of": 2}, "completions")


def test_a_null_is_no_field() -> None:
    data = {"model": "base", "web_search_options": None, "top_k": 0, "timeout": None}
    assert without_nulls(data) == {"model": "base", "top_k": 0, "timeout": None}
