"""Tags in text that a user pastes: they choose nothing dear, and cannot make a request fail."""

from typing import Any

import pytest

from tests.gateway.shared import pairs
from tests.proxy import Proxy
from tests.upstream import Script, Status, Upstream, differing

QUESTION = "What is 6 times 7?"
WITHOUT_EFFECT = {
    "other models": "mars(models=[gpt-4o-mini;claude])",
    "a judge": "bon(judge=gpt-4o-mini)",
    "parameters": "self_consistency(n=2)",
    "dear": "cepo",
    "dear together": "moa&bon",
    "several answers": "re2|re2",
    "code": "plansearch",
    "a solver": "z3",
    "a local model's": "entropy_decoding",
    "unknown": "nope",
    "a plugin": "web_search",
    "not readable": "moa(",
    "many": "&".join(["re2"] * 500),
    "long": "x" * 20_000,
}


def pasted(tag: str) -> str:
    return f"{QUESTION} <optillm_approach>{tag}</optillm_approach> end"


def body(text: str, model: str = "base", **fields: Any) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


@pytest.mark.parametrize(("kind", "stream"), pairs(WITHOUT_EFFECT, [False, True]), ids=str)
def test_a_tag_that_is_not_allowed_is_plain_text(
    proxy: Proxy, upstream: Upstream, kind: str, stream: bool
) -> None:
    upstream.play(Script())
    text = pasted(WITHOUT_EFFECT[kind])
    answer = proxy.post("/v1/chat/completions", body(text, stream=stream))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-optillm-tag"] == "ignored"
    assert "x-optillm-approach" not in answer.headers
    [call] = upstream.calls
    assert call.body["messages"] == [{"role": "user", "content": text}]


def test_a_tag_that_is_allowed_is_taken_out(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=differing))
    answer = proxy.post("/v1/chat/completions", body(pasted("moa")))
    assert answer.headers["x-optillm-approach"] == "moa"
    assert "x-optillm-tag" not in answer.headers
    assert len(upstream.calls) == 3
    assert not any("optillm_approach>" in str(call.body) for call in upstream.calls)


TEXT_PARTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": pasted("re2")}]}]
    },
    "/v1/messages": {
        "max_tokens": 100,
        "messages": [{"role": "user", "content": [{"type": "text", "text": pasted("re2")}]}],
    },
    "/v1/responses": {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": pasted("re2")}]}]
    },
    "/v1/completions": {"prompt": pasted("re2")},
}


@pytest.mark.parametrize("route", TEXT_PARTS)
def test_every_route_reads_the_tag_in_its_own_kind_of_text(
    proxy: Proxy, upstream: Upstream, route: str
) -> None:
    upstream.play(Script())
    answer = proxy.post(route, {"model": "base", **TEXT_PARTS[route]})
    assert answer.headers["x-optillm-approach"] == "re2", answer.text
    [call] = upstream.calls
    assert str(call.body).count(QUESTION) == 2


@pytest.mark.parametrize("part", ["tool_result", "document"])
def test_a_part_of_another_type_chooses_nothing(
    proxy: Proxy, upstream: Upstream, part: str
) -> None:
    """Its tag reaches the model as it is."""
    upstream.play(Script())
    tag = "<optillm_approach>moa</optillm_approach>"
    document = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": tag},
    }
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": tag}
    asked: list[object] = [{"role": "user", "content": QUESTION}]
    turns = {
        "document": [{"role": "user", "content": [document]}],
        "tool_result": [
            *asked,
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
    }[part]
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    answer = proxy.post(
        "/v1/messages",
        {"model": "claude", "max_tokens": 100, "messages": turns, "tools": tools},
    )
    assert answer.status_code == 200, answer.text
    assert not [name for name in answer.headers if name.startswith("x-optillm")]
    [call] = upstream.calls
    assert tag in str(call.body)


@pytest.mark.parametrize(
    ("model", "fields", "approach"),
    [
        ("reread", {}, "re2"),
        ("fixed", {}, "re2"),
        ("re2-base", {}, "re2"),
        ("base", {"optillm_approach": "re2"}, "re2"),
    ],
    ids=["alias", "locked alias", "prefix", "body field"],
)
def test_a_text_replaces_nothing_that_was_chosen(
    proxy: Proxy, upstream: Upstream, model: str, fields: dict[str, Any], approach: str
) -> None:
    upstream.play(Script())
    for tag in ("none", "moa", "cepo"):
        answer = proxy.post("/v1/chat/completions", body(pasted(tag), model, **fields))
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-optillm-approach"] == approach
        assert answer.headers["x-optillm-tag"] == "ignored"
    assert len(upstream.calls) == 3


@pytest.mark.parametrize(
    "fields",
    [{"n": 20}, {"seed": "one"}],
    ids=["many choices", "a field of the wrong type"],
)
def test_what_a_plain_request_may_ask_for_fails_by_no_tag(
    proxy: Proxy, upstream: Upstream, fields: dict[str, Any]
) -> None:
    upstream.play(Script())
    plain = proxy.post("/v1/chat/completions", body(QUESTION, **fields))
    tagged = proxy.post("/v1/chat/completions", body(pasted("moa"), **fields))
    assert tagged.status_code == plain.status_code, tagged.text
    assert [call.body.get("n") for call in upstream.calls] == [fields.get("n")] * 2


def test_a_plan_that_fails_by_a_tag_is_a_plain_answer(proxy: Proxy, upstream: Upstream) -> None:
    reread = Script(fault=lambda call: Status(500) if call.text.count(QUESTION) > 1 else None)
    upstream.play(reread)
    answer = proxy.post("/v1/chat/completions", body(pasted("re2")))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-optillm-degraded"]
