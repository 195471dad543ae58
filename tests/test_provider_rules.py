"""The scripted provider refuses what OpenAI and Anthropic refuse, and nothing else."""

from typing import Any

import pytest

from tests.provider_rules import anthropic_refusal, openai_refusal

HEADERS = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
USER = {"role": "user", "content": "Hi"}
THINKING = {"type": "enabled", "budget_tokens": 1024}
TOOL = {"name": "add", "input_schema": {"type": "object"}}
USE = {
    "role": "assistant",
    "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {}}],
}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "3"}]}


def said(fields: dict[str, Any], model: str) -> str | None:
    body = {"model": model, "max_tokens": 2000, "messages": [USER], **fields}
    refusal = anthropic_refusal({k: v for k, v in body.items() if v is not None}, HEADERS)
    return None if refusal is None else refusal["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.3},
        {"top_p": 0.3},
        {"thinking": THINKING, "temperature": 1},
        {"thinking": THINKING, "top_p": 0.95},
        {"system": [{"type": "text", "text": "Be short."}]},
        {"messages": [USER, {"role": "assistant", "content": "The"}]},
        {"messages": [USER, USE, RESULT], "tools": [TOOL]},
    ],
    ids=str,
)
def test_what_claude_takes(fields: dict[str, Any]) -> None:
    assert said(fields, "claude-sonnet-4-5") is None


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"temperature": 0.3, "top_p": 0.9}, "cannot both be specified"),
        ({"temperature": 1.5}, "less than or equal to 1"),
        ({"n": 2}, "n: Extra inputs are not permitted"),
        ({"thinking": THINKING, "temperature": 0.3}, "may only be set to 1"),
        ({"thinking": THINKING, "top_p": 0.9}, "greater than or equal to 0.95"),
        ({"thinking": THINKING, "top_k": 5}, "`top_k` must be unset"),
        ({"thinking": THINKING, "max_tokens": 1024}, "`max_tokens` must be greater than"),
        ({"thinking": {"type": "enabled", "budget_tokens": 99}}, "or equal to 1024"),
        ({"thinking": {"type": "adaptive"}}, "adaptive thinking is not supported"),
        (
            {"thinking": THINKING, "tools": [TOOL], "tool_choice": {"type": "any"}},
            "when tool_choice forces tool use",
        ),
        (
            {"thinking": THINKING, "messages": [USER, {"role": "assistant", "content": "The"}]},
            "pre-filling the assistant response",
        ),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 'must use the "user" role'),
        ({"messages": [USER, USER]}, "roles must alternate"),
        ({"messages": [{"role": "user", "content": " "}]}, "non-whitespace text"),
        ({"messages": [USER, {"role": "assistant", "content": []}, USER]}, "non-empty content"),
        ({"messages": [USER, {"role": "assistant", "content": "x "}]}, "trailing whitespace"),
        ({"messages": [USER, USE, USER], "tools": [TOOL]}, "without `tool_result` blocks"),
        ({"messages": [USER, USE, RESULT]}, "must define `tools`"),
        ({"messages": [RESULT], "tools": [TOOL]}, "unexpected `tool_use_id`"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "should match pattern"),
        ({"system": [{"type": "text", "text": ""}]}, "system: text content blocks"),
    ],
    ids=str,
)
def test_what_claude_refuses(fields: dict[str, Any], words: str) -> None:
    assert words in (said(fields, "claude-sonnet-4-5") or "")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.3}, "`temperature` is deprecated"),
        ({"top_p": 0.9}, "`top_p` is deprecated"),
        ({"thinking": THINKING}, "thinking.type.adaptive"),
        ({"messages": [USER, {"role": "assistant", "content": "The"}]}, "message prefill"),
        ({"temperature": 1}, None),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, None),
    ],
    ids=str,
)
def test_what_the_newest_claude_refuses(fields: dict[str, Any], words: str | None) -> None:
    found = said(fields, "claude-opus-4-7")
    assert found is None if words is None else words in (found or "")


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("gpt-5-mini", {"temperature": 0.7}, "temperature"),
        ("gpt-5-mini", {"temperature": 1}, None),
        ("o4-mini", {"top_p": 0.9}, "top_p"),
        ("o4-mini", {"max_tokens": 5}, "max_tokens"),
        ("o4-mini", {"max_completion_tokens": 5}, None),
        ("gpt-5-mini", {"stop": ["x"]}, "stop"),
        ("gpt-5.1", {"temperature": 0.7}, None),
        ("gpt-5.1", {"temperature": 0.7, "reasoning_effort": "low"}, "temperature"),
        ("gpt-4o-mini", {"temperature": 0.7, "top_p": 0.9, "max_tokens": 5}, None),
        ("base", {"temperature": 0.7}, None),
    ],
)
def test_what_openai_refuses(model: str, fields: dict[str, Any], param: str | None) -> None:
    refusal = openai_refusal({"model": model, "messages": [USER], **fields})
    assert (None if refusal is None else refusal["error"]["param"]) == param
