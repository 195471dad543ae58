"""LiteLLM's own compaction runs once for a request, not for each call of an approach."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream

SUMMARY = "They agreed to meet in Lisbon."
COMPACTED: list[dict[str, Any]] = []
"""The requests that the compactor got."""


class Compactor(BaseHTTPRequestHandler):
    """Claude, asked to compact a conversation."""

    def do_POST(self) -> None:
        COMPACTED.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        block = {"type": "compaction", "content": SUMMARY, "signature": "signed"}
        content = json.dumps(
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "claude-opus-4-6",
                "content": [block],
                "stop_reason": "compaction",
                "usage": {"input_tokens": 900, "output_tokens": 20},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def compactor() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Compactor) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


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
    assert answer["optillm"]["calls"] == len(upstream.calls) >= 3
    assert len(COMPACTED) == 1
    assert all(len(call.messages) <= 3 for call in upstream.calls)


def test_a_short_conversation_is_not_compacted(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=where))
    COMPACTED.clear()
    messages = [{"role": "user", "content": "Where do they meet?"}]
    body = {"model": "automatic", "messages": messages, "max_tokens": 300}
    assert proxy.post("/v1/chat/completions", body).status_code == 200
    assert not COMPACTED
