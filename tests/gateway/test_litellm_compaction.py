"""LiteLLM's own compaction runs once for a request, not for each call of an approach."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.json_host import json_host
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream

SUMMARY = "They agreed to meet in Lisbon."
COMPACTED: list[dict[str, Any]] = []
"""The requests that the compactor got."""


def compact(_path: str, body: Any) -> tuple[int, Any]:
    """Answer as Claude does that is asked to compact a conversation."""
    COMPACTED.append(body)
    block = {"type": "compaction", "content": SUMMARY, "signature": "signed"}
    return 200, {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-6",
        "content": [block],
        "stop_reason": "compaction",
        "usage": {"input_tokens": 900, "output_tokens": 20},
    }


@pytest.fixture(scope="module")
def compactor() -> Iterator[str]:
    with json_host(compact) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, compactor: str
) -> Iterator[Proxy]:
    careful = alias("careful", "self_consistency(n=3)")
    careful["model_info"] |= {"max_input_tokens": 4000, "max_output_tokens": 500}
    claude = {"model": "anthropic/claude-opus-4-6", "api_base": compactor, "api_key": "none"}
    routing = {
        "tiers": dict.fromkeys(("SIMPLE", "MEDIUM", "COMPLEX", "REASONING"), "careful"),
        "context_compaction": {"model": "claude", "trigger_ratio": 0.9, "max_tokens": 512},
    }
    automatic = {
        "model_name": "automatic",
        "litellm_params": {
            "model": "auto_router/complexity_router",
            "complexity_router_config": routing,
            "complexity_router_default_model": "careful",
        },
    }
    config = hooked_config(
        [
            model_group("base", upstream.url),
            {"model_name": "claude", "litellm_params": claude},
            careful,
            automatic,
        ]
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy"), ledger=False) as running:
        yield running


def where(call: Call, _: int) -> str:
    return f"ANSWER: {'Lisbon' if SUMMARY in call.text else 'unknown'}"


def test_the_calls_of_an_approach_share_one_compaction(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=where, n="ignored"))
    COMPACTED.clear()
    said = [
        {"role": role, "content": f"{n} {'and so it went on ' * 150}"}
        for n in range(8)
        for role in ("user", "assistant")
    ]
    messages = [*said, {"role": "user", "content": "Where do they meet?"}]
    body = {"model": "automatic", "messages": messages, "max_tokens": 300}
    response = proxy.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert "Lisbon" in answer["choices"][0]["message"]["content"]
    # The third call may be cancelled, because the vote is settled, before it is sent.
    assert answer["optillm"]["calls"] >= len(upstream.calls) >= 2
    assert len(COMPACTED) == 1
    assert all(len(call.messages) <= 3 for call in upstream.calls)


def test_a_short_conversation_is_not_compacted(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=where))
    COMPACTED.clear()
    messages = [{"role": "user", "content": "Where do they meet?"}]
    body = {"model": "automatic", "messages": messages, "max_tokens": 300}
    assert proxy.post("/v1/chat/completions", body).status_code == 200
    assert not COMPACTED
