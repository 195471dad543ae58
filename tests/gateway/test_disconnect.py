"""A client that disconnects, at any stage of a plan: a second later no call is running."""

from typing import Any

import httpx
import pytest

from tests.gateway.shared import hang_up
from tests.proxy import Proxy
from tests.upstream import HANG, Call, Fault, FaultRule, Script, Upstream, differing

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**CHAT, "max_tokens": 99},
    "/v1/responses": {"input": "What is 6 times 7?"},
    "/v1/completions": {"prompt": "What is 6 times 7?"},
}
# How many calls are let through before the rest hang, by plan: one number for each stage.
STAGES = {
    "base": [0],
    "none-base": [0],
    "re2-base": [0],
    "cot_reflection-base": [0],
    "bon-base": [0, 1],
    "moa-base": [0, 1, 2],
    "self_consistency-base": [0],
    "moa|bon-base": [0, 2, 3],
    "re2&moa-base": [0, 2],
    "careful": [0],
}
CASES = [(model, done) for model, stages in STAGES.items() for done in stages]


def hang_after(calls: int) -> FaultRule:
    def rule(call: Call) -> Fault | None:
        return None if call.index < calls else HANG

    return rule


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("model", "done"), CASES)
def test_no_call_is_alive_a_second_later(
    proxy: Proxy, upstream: Upstream, model: str, done: int, stream: bool
) -> None:
    upstream.play(Script(reply=differing, fault=hang_after(done)))
    body = {"model": model, "stream": stream, **CHAT}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=done)
    upstream.wait_until_idle()
    assert {call.outcome for call in upstream.calls[done:]} == {"gone"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ROUTES)
def test_so_on_every_route(proxy: Proxy, upstream: Upstream, route: str, stream: bool) -> None:
    upstream.play(Script(reply=differing, fault=hang_after(1)))
    body = {"model": "moa-base", "stream": stream, **ROUTES[route]}
    hang_up(proxy, upstream, route, body, done=1)
    upstream.wait_until_idle()
    assert len(upstream.calls) == 2


def test_a_stream_that_is_closed_in_the_middle_of_its_answer(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=lambda *_: "word " * 1000, piece_s=0.05))
    body = {"model": "re2-base", "stream": True, **CHAT}
    headers = {"authorization": f"Bearer {proxy.master_key}"}
    with httpx.stream(
        "POST", f"{proxy.url}/v1/chat/completions", json=body, headers=headers, timeout=30
    ) as response:
        for line in response.iter_lines():
            if "word" in line:
                break
    upstream.wait_until_idle()
    assert upstream.calls[0].outcome == "gone"


def test_the_proxy_serves_on(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    with proxy.openai() as client:
        answer = client.chat.completions.create(
            model="moa-base", messages=[{"role": "user", "content": "hi"}]
        )
    assert "42" in (answer.choices[0].message.content or "")
