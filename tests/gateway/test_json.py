"""json over HTTP: the three routes, streamed and not, and hosts without structured outputs."""

import json
from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.documents import all_blocks
from tests.upstream import Call, Script, Status, Upstream, always

QUESTION: Any = [{"role": "user", "content": "6 * 7?"}]


class Sum(BaseModel):
    value: int
    steps: list[str]


GOOD = '{"value": 42, "steps": ["10 * 4", "2"]}'
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "sum", "schema": Sum.model_json_schema()},
}


RATED = "RATING: 5"


def test_the_request_of_the_documentation(client: openai.OpenAI, upstream: Upstream) -> None:
    [body] = [json.loads(b.text) for b in all_blocks() if '"json&bon-gpt-4o-mini"' in b.text]
    rings = '{"planets": ["Saturn", "Uranus"]}'
    upstream.play(Script(reply=lambda call, _: RATED if "RATING:" in call.text else rings))
    answer = client.chat.completions.create(**body)
    assert answer.choices[0].message.content == rings


def at_the_second_try(call: Call, _: int) -> str:
    return GOOD if "not valid" in call.text else '{"value": "many", "steps": []}'


def no_schemas(call: Call) -> Status | None:
    wanted = call.body.get("response_format") or {}
    refused = wanted.get("type") == "json_schema"
    return Status(400, "This response_format type is unavailable now") if refused else None


@pytest.mark.parametrize("model", ["json-base", "json&bon(n=2)-base"])
def test_openais_parser_gets_an_object(
    client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    upstream.play(Script(reply=at_the_second_try))
    answer: Any = client.chat.completions.parse(model=model, messages=QUESTION, response_format=Sum)
    assert answer.choices[0].message.parsed == Sum(value=42, steps=["10 * 4", "2"])
    assert answer.optillm["calls"] == len(upstream.calls)
    assert answer.usage.prompt_tokens == upstream.bill.prompt_tokens
    assert answer.optillm["degraded"] == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_responses_route(client: openai.OpenAI, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=at_the_second_try))
    if not stream:
        answer = client.responses.parse(model="json-base", input="6 * 7?", text_format=Sum)
        assert answer.output_parsed == Sum(value=42, steps=["10 * 4", "2"])
        return
    with client.responses.stream(model="json-base", input="6 * 7?", text_format=Sum) as events:
        shown = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(shown) == GOOD


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_messages_route(claude: anthropic.Anthropic, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=at_the_second_try))
    wanted = {"output_format": {"type": "json_schema", "schema": Sum.model_json_schema()}}
    asked: Any = {"model": "json-base", "max_tokens": 500, "messages": QUESTION}
    if stream:
        with claude.messages.stream(**asked, extra_body=wanted) as events:
            text = "".join(events.text_stream)
    else:
        text = claude.messages.create(**asked, extra_body=wanted).content[0].text
    assert text == GOOD


def test_a_stream_shows_one_valid_answer(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.play(Script(reply=at_the_second_try))
    chunks = client.chat.completions.create(
        model="json-base", messages=QUESTION, response_format=SCHEMA, stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == GOOD


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_what_stays_invalid_is_an_error(
    client: openai.OpenAI, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(reply=lambda *_: "It is 42."))
    shown: list[str] = []

    def answered() -> None:
        found: Any = client.chat.completions.create(
            model="json-base", messages=QUESTION, response_format=SCHEMA, stream=stream
        )
        for chunk in found if stream else ():
            shown.extend(choice.delta.content or "" for choice in chunk.choices)

    with pytest.raises(openai.APIError, match="does not match response_format"):
        answered()
    assert "".join(shown) == ""
    assert len(upstream.calls) == 3


def test_a_bad_schema_costs_nothing(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(Status(500))))
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/a"}}}
    with pytest.raises(openai.BadRequestError, match="'#/\\$defs/a' is not a part of it"):
        client.chat.completions.create(
            model="json-base",
            messages=QUESTION,
            response_format=wanted,  # type: ignore[call-overload]
        )
    assert len(upstream.calls) == 0


def test_a_host_that_refuses_schemas_is_asked_in_json_mode(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    for calls in (2, 1):  # the refusal is remembered
        upstream.play(Script(fault=no_schemas, reply=lambda *_: GOOD))
        answer = client.chat.completions.create(
            model="json-a-b", messages=QUESTION, response_format=SCHEMA
        )
        assert json.loads(answer.choices[0].message.content or "") == json.loads(GOOD)
        assert len(upstream.calls) == calls
        last = upstream.calls[-1]
        assert last.body["response_format"] == {"type": "json_object"}
        assert json.dumps(Sum.model_json_schema()) in last.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_on_claude(client: openai.OpenAI, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=at_the_second_try))
    found: Any = client.chat.completions.create(
        model="json-claude", messages=QUESTION, response_format=SCHEMA, stream=stream
    )
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in found if c.choices)
    else:
        text = found.choices[0].message.content
    assert text == GOOD
    assert len(upstream.calls) == 2
