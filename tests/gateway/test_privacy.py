"""privacy through the real proxy: three routes, streams, tools, fallbacks, Presidio's service."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.registry import all_approaches
from tests.json_host import json_host
from tests.proxy import Proxy, alias, hooked_config, model_group, new_trace, traceparent
from tests.upstream import Call, Reply, Script, Status, Upstream, always

NAME, MAIL = "Alice Johnson", "alice@example.org"
PRIVATE = (NAME, "Alice", MAIL, "Oslo", "alice")
QUESTION = f"My name is {NAME}. Write to {MAIL} in Oslo."
TOOL: Any = {
    "name": "send",
    "description": f"Writes to {MAIL}.",
    "parameters": {"type": "object", "properties": {"to": {"type": "string"}}},
}


class Analyzer:
    """Presidio's analyzer, which knows one city. It refuses what the real one refuses."""

    is_down = False

    def answer(self, path: str, asked: Any) -> tuple[int, Any]:
        good = path == "/analyze" and asked["text"] and asked["language"] == "en"
        good = good and "DATE_TIME" not in asked["entities"]
        at = asked["text"].find("Oslo")
        found = [{"start": at, "end": at + 4, "entity_type": "LOCATION", "score": 0.85}]
        return 500 if self.is_down or not good else 200, found if at >= 0 else []


ANALYZER = Analyzer()


@pytest.fixture(scope="module")
def analyzer() -> Iterator[str]:
    with json_host(ANALYZER.answer) as url:
        yield url


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, analyzer: str
) -> Iterator[Proxy]:
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("other", upstream.url),
            alias("private", "privacy", deadline_s=30),
            alias("private-moa", "privacy&moa", deadline_s=30),
        ],
        optillm_settings={"plan_calls": {"client": 200}},
    )
    config["router_settings"] |= {"fallbacks": [{"private": ["other"]}]}
    folder = tmp_path_factory.mktemp("privacy")
    env = {"PRESIDIO_ANALYZER_API_BASE": analyzer}
    with Proxy(config, folder, env=env) as running:
        yield running


def assert_private(upstream: Upstream) -> None:
    assert upstream.calls
    for call in upstream.calls:
        body = json.dumps(dict(call.body), ensure_ascii=False)
        assert not [value for value in PRIVATE if value in body]


def echo(call: Call, _: int) -> Reply | str:
    """Return a reply that has the pseudonyms of the question, in another case and with marks."""
    if "RATING" in call.text:
        return "RATING: 7"
    asked = next(m for m in call.messages if m["role"] == "user")["content"]
    text = asked if isinstance(asked, str) else asked[0]["text"]
    words = [word.strip(".") for word in text.split()]
    kinds = ("PERSON_", "EMAIL_", "LOCATION_")
    name, mail, place = (next((w for w in words if w.startswith(k)), "nobody") for k in kinds)
    return f"Dear **{name.lower()}**, I wrote to {mail} in {place}s.\nANSWER: 42"


SHOWN = f"Dear **{NAME}**, I wrote to {MAIL} in Oslos."
MESSAGES: Any = [
    {"role": "system", "content": f"You serve {NAME}."},
    {"role": "user", "content": QUESTION},
]


@pytest.mark.parametrize("model", ["private", "private-moa"])
@pytest.mark.parametrize("stream", [False, True])
def test_chat_completions(
    client: openai.OpenAI, proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    upstream.play(Script(reply=echo))
    trace = new_trace()
    asked: Any = {"model": model, "messages": MESSAGES, "user": MAIL}
    asked["extra_headers"] = traceparent(trace)
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        text = str(client.chat.completions.create(**asked).choices[0].message.content)
    assert text.startswith(SHOWN)
    assert_private(upstream)
    inner = [entry for entry in proxy.booked(trace) if entry.origin == "optillm"]
    assert len(inner) == len(upstream.calls)
    assert sum(entry.prompt_tokens for entry in inner) == upstream.bill.prompt_tokens
    assert {entry.end_user for entry in inner} == {MAIL}  # LiteLLM's own books name the user


@pytest.mark.parametrize("stream", [False, True])
def test_responses(client: openai.OpenAI, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=echo))
    asked: Any = {"model": "private", "input": QUESTION, "instructions": f"You serve {NAME}."}
    if stream:
        with client.responses.stream(**asked) as events:
            deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
            final = events.get_final_response()
        assert "".join(deltas) == final.output_text
    else:
        final = client.responses.create(**asked)
    assert final.output_text.startswith(SHOWN)
    assert_private(upstream)


def call_tool(call: Call, _: int) -> Reply:
    text = str(echo(call, 0))
    mail = text.split("wrote to ")[1].split(" in")[0]
    return Reply(tool_calls=[("send", json.dumps({"to": mail.lower(), "cc": f"x {mail}"}))])


def test_messages_with_tools_streamed_and_not(
    claude: anthropic.Anthropic, upstream: Upstream
) -> None:
    tools: Any = [{**TOOL, "input_schema": TOOL["parameters"]}]
    del tools[0]["parameters"]
    history: Any = [
        {"role": "user", "content": QUESTION},
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "toolu_1", "name": "send", "input": {"to": MAIL}}
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": f"sent to {MAIL}"}
            ],
        },
    ]
    asked: Any = {
        "model": "private", "max_tokens": 500, "tools": tools, "messages": history,
        "system": f"You serve {NAME}.", "metadata": {"user_id": MAIL},
    }  # fmt: skip
    upstream.play(Script(reply=call_tool))
    whole = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        pieces = [event.type for event in stream]
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        [block] = [each for each in message.content if each.type == "tool_use"]
        called: Any = block
        assert called.input == {"to": MAIL, "cc": f"x {MAIL}"}
    assert "input_json" in pieces
    assert_private(upstream)


ANSWERERS = [
    each.name
    for each in all_approaches()
    if each.kind != "decoder" and each.name not in ("none", "privacy")
]


@pytest.mark.parametrize("name", ANSWERERS)
def test_on_the_wire_no_call_of_any_approach_has_an_original(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    upstream.play(Script(reply=echo))
    body = {"model": f"privacy&{name}-base", "messages": MESSAGES}
    response = proxy.post("/v1/chat/completions", body)
    if upstream.calls:
        assert_private(upstream)
    else:  # it needs what is not set up here
        assert response.status_code == 400, response.text


def test_no_fallback_of_the_router_gets_what_is_hidden(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(Status(500))))
    response = proxy.post("/v1/chat/completions", {"model": "private", "messages": MESSAGES})
    assert response.status_code == 500
    assert_private(upstream)
    assert not [value for value in PRIVATE if value in response.text]


def test_if_the_analyzer_is_down_nothing_is_sent(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ANALYZER, "is_down", True)
    upstream.play(Script(reply=echo))
    for stream in (False, True):
        body = {"model": "private", "messages": MESSAGES, "stream": stream}
        response = proxy.post("/v1/chat/completions", body)
        assert response.status_code == 502
        assert "analyzer" in response.text
    assert upstream.calls == []


def test_an_image_is_refused_before_any_call(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=echo))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": QUESTION}, image]
    body = {"model": "private", "messages": [{"role": "user", "content": content}]}
    for stream in (False, True):
        response = proxy.post("/v1/chat/completions", {**body, "stream": stream})
        assert response.status_code == 400
        assert "image_url" in response.text
    assert upstream.calls == []


def test_a_long_conversation_does_not_hold_others_up(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=echo))
    long = [
        {"role": "user", "content": QUESTION},
        {"role": "user", "content": f"{MAIL} and so on. " * 9000},
    ]
    response = proxy.post("/v1/chat/completions", {"model": "private", "messages": long})
    assert response.json()["choices"][0]["message"]["content"].startswith(SHOWN)
    assert_private(upstream)


def test_the_proxys_log_has_no_original_and_no_pseudonym(proxy: Proxy) -> None:
    ours = [line for line in proxy.log.splitlines() if "optillm" in line]
    assert not [line for line in ours if any(value in line for value in (*PRIVATE, "PERSON_"))]
