"""Requests as Claude Code sends them, on aliases whose names do not tell what their model is."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx
import pytest

from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Upstream

CACHED: Final = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
SCHEMA: Final = {"type": "object", "properties": {"path": {"type": "string"}}}
IMAGE: Final = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
}
PDF: Final = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
FILE: Final = {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}
TURNS: Final[list[Mapping[str, Any]]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "<system-reminder>Be brief.</system-reminder>"},
            {"type": "text", "text": "What does a.png show?", **CACHED},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I read it.", "signature": "c2ln"},
            {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"path": "a.png"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [IMAGE], **CACHED}
        ],
    },
]
REQUEST: Final[Mapping[str, Any]] = {
    "system": [
        {"type": "text", "text": "You are a coding agent.", **CACHED},
        {"type": "text", "text": "Long instructions.", **CACHED},
    ],
    "tools": [{"name": name, "input_schema": SCHEMA} for name in ("Read", "mcp__files__list")],
    "messages": TURNS,
    "max_tokens": 32_000,
    "metadata": {"user_id": json.dumps({"device_id": "d", "session_id": "session-1"})},
}
BUDGET: Final = {"type": "enabled", "budget_tokens": 20_000}
ADAPTIVE: Final = {
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "high"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    url = upstream.url.removesuffix("/v1")
    bases = {"sonnet": "anthropic/claude-sonnet-4-5", "opus": "anthropic/claude-opus-4-7"}
    config = hooked_config(
        [
            *(model_group(name, url, model=model) for name, model in bases.items()),
            model_group("gpt", upstream.url, model="openai/gpt-5-mini"),
            *(alias(f"voted-{base}", "majority_voting(n=2)", base) for base in bases),
            alias("voted-gpt", "majority_voting(n=2)", "gpt"),
        ]
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


def send(proxy: Proxy, **fields: Any) -> httpx.Response:
    headers = {
        "authorization": f"Bearer {proxy.master_key}",
        "user-agent": "claude-cli/2.1.177 (external, cli)",
    }
    body = {**REQUEST, **fields}
    return proxy.http.post(f"{proxy.url}/v1/messages?beta=true", json=body, headers=headers)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("base", "fields"),
    [("sonnet", {"thinking": BUDGET}), ("sonnet", {}), ("opus", ADAPTIVE)],
    ids=["budget", "no thinking", "adaptive"],
)
def test_claude_gets_what_the_plain_model_gets(
    proxy: Proxy, upstream: Upstream, base: str, fields: dict[str, Any], stream: bool
) -> None:
    upstream.play(Script(reply=lambda *_: "A cat."))
    assert send(proxy, model=base, **fields).status_code == 200
    answer = send(proxy, model=f"voted-{base}", stream=stream, **fields)
    assert answer.status_code == 200
    assert "cat." in answer.text
    plain, *ours = [call.body for call in upstream.calls]
    assert len(ours) == 2
    for body in ours:
        for name in ("system", "messages", "thinking", "output_config", "max_tokens"):
            assert body.get(name) == plain.get(name), name
        assert [tool["name"] for tool in body["tools"]] == ["Read", "mcp__files__list"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_another_model_does_not_take_is_left_out(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    """LiteLLM does so for this client, unless the operator has decided otherwise."""
    upstream.play(Script(reply=lambda *_: "A cat."))
    fields = {"thinking": {"type": "disabled"}, "temperature": 0, "stream": stream}
    answer = send(proxy, model="voted-gpt", **fields)
    assert answer.status_code == 200
    assert "error" not in answer.text
    assert {call.body["prompt_cache_key"] for call in upstream.calls} == {"session-1"}
    assert not any("temperature" in call.body for call in upstream.calls)


def test_what_a_model_does_not_take_is_left_out_on_request(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=lambda *_: "ANSWER: 42"))
    asked = {"messages": [{"role": "user", "content": "6 * 7?"}], "temperature": 0.2}
    for model in ("gpt", "voted-gpt"):
        assert proxy.post("/v1/chat/completions", {"model": model, **asked}).status_code == 400
        answer = proxy.post("/v1/chat/completions", {"model": model, "drop_params": True, **asked})
        assert answer.status_code == 200
    assert not any("temperature" in call.body for call in upstream.calls)


@pytest.mark.parametrize("base", ["sonnet", "gpt"])
def test_a_document_is_no_image(proxy: Proxy, upstream: Upstream, base: str) -> None:
    upstream.play(Script(reply=lambda *_: "A page."))
    content = [{"type": "document", "source": PDF}, {"type": "text", "text": "What is it?"}]
    asked = {"messages": [{"role": "user", "content": content}], "tools": None, "stream": False}
    assert send(proxy, model=f"voted-{base}", **asked).status_code == 200
    for call in upstream.calls:
        [document, _] = call.body["messages"][-1]["content"]
        expected = {"sonnet": {"source": PDF}, "gpt": {"file": FILE}}[base]
        assert {name: document.get(name) for name in expected} == expected
        assert document["type"] == {"sonnet": "document", "gpt": "file"}[base]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "search_result", "source": "s", "title": "t", "content": []},
        {"type": "container_upload", "file_id": "file_1"},
    ],
    ids=lambda block: f"{block['type']} {block.get('source')}",
)
def test_what_would_be_lost_is_refused_by_name(
    proxy: Proxy, upstream: Upstream, block: dict[str, Any]
) -> None:
    upstream.play(Script())
    content = [{"type": "text", "text": "What is it?"}, block]
    answer = send(proxy, model="voted-sonnet", messages=[{"role": "user", "content": content}])
    assert answer.status_code == 400
    assert "messages[0].content[1]" in answer.text
    assert block["type"] in answer.text
    assert not upstream.calls
