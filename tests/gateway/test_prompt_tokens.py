"""The estimate of a prompt counts everything that a provider bills as one."""

import time
from typing import Any

import litellm
import pytest

from optillm_hooks.gateway.prompt_tokens import PromptTokens
from optillm_hooks.types import Message, Sampling

WORDS = 1000
LONG = "word " * WORDS
CHAT = (Message("user", "hi"),)
SCHEMA = {"type": "object", "properties": {"a": {"anyOf": [{"description": LONG}]}}}
FUNCTION = {"name": "f", "parameters": SCHEMA}
FIELDS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    {"prediction": {"type": "content", "content": LONG}},
    {"functions": [FUNCTION]},
    {"tools": [{"type": "function", "function": FUNCTION}]},
    {"tools": [{"type": "custom", "custom": {"name": "f", "description": LONG}}]},
    {"tools": [{"name": "f", "input_schema": SCHEMA}]},
    {"tool_choice": {"type": "function", "function": {"name": LONG}}},
    {"extra_body": {"guided_json": SCHEMA}},
    {"guided_grammar": LONG},
    {"documents": [{"text": LONG}]},
    {"web_search_options": {"a": LONG}},
    {"chat_template_kwargs": {"documents": [LONG]}},
    {"a field of nobody": LONG},
]
MESSAGES: list[Message] = [
    Message("user", LONG),
    Message("user", ({"type": "text", "text": LONG},)),
    Message("user", ({"type": "document", "text": LONG},)),
    Message("user", ({"type": "refusal", "refusal": LONG},)),
    Message("assistant", None, {"thinking_blocks": [{"type": "thinking", "thinking": LONG}]}),
    Message("assistant", None, {"reasoning_content": LONG}),
    Message("assistant", None, {"function_call": {"name": "f", "arguments": LONG}}),
    Message("assistant", None, {"tool_calls": [{"id": "x", "custom": {"input": LONG}}]}),
    Message("user", "hi", {"name": LONG}),
]
BASE64 = "a" * 160_000
MEDIA: list[dict[str, Any]] = [
    {"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}},
    {"type": "file", "file": {"file_data": BASE64}},
]


def counted(*messages: Message, **fields: Any) -> int:
    return PromptTokens("gpt-4o-mini").count(messages, Sampling(fields=fields))


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: str(fields)[:50])
def test_fields_that_a_model_reads_count(fields: dict[str, Any]) -> None:
    more = counted(*CHAT, **fields) - counted(*CHAT)
    assert WORDS <= more <= WORDS * 1.2


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: str(message)[:60])
def test_all_text_of_a_message_counts(message: Message) -> None:
    assert WORDS <= counted(message) <= WORDS * 1.2


@pytest.mark.parametrize("name", ["user", "logit_bias", "safety_identifier", "stop"])
def test_fields_that_no_model_reads_do_not_count(name: str) -> None:
    assert counted(*CHAT, **{name: LONG}) == counted(*CHAT)


def test_numbers_and_switches_do_not_count() -> None:
    assert counted(*CHAT, top_k=5, parallel_tool_calls=True) == counted(*CHAT)


@pytest.mark.parametrize("part", MEDIA, ids=lambda part: part["type"])
def test_a_recording_and_a_file_count_by_their_size(part: dict[str, Any]) -> None:
    with_text = Message("user", ({"type": "text", "text": LONG}, part))
    more = counted(with_text) - counted(Message("user", LONG))
    assert 10_000 <= more <= 11_000


def test_an_image_counts_as_litellm_counts_it() -> None:
    image: dict[str, Any] = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{BASE64}"},
    }
    assert 0 < counted(Message("user", (image,))) < 2000


def test_text_that_litellm_cannot_count_is_estimated() -> None:
    assert counted(Message("user", f"half: \ud83d {LONG}")) > WORDS
    broken: dict[str, Any] = {"type": "image_url", "image_url": 5}
    assert counted(Message("user", (broken, {"type": "text", "text": LONG}))) > WORDS


def test_each_text_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    count = litellm.token_counter

    def counting(model: str, **given: Any) -> int:
        read.append(len(str(given)))
        tokens: int = count(model=model, **given)
        return tokens

    monkeypatch.setattr(litellm, "token_counter", counting)
    tokens = PromptTokens("gpt-4o-mini")
    conversation = (Message("system", "Be terse."), Message("user", LONG))
    tools: Any = {"tools": [{"type": "function", "function": FUNCTION}]}
    first = tokens.count(conversation, Sampling(fields=tools))
    read.clear()
    assert tokens.count(conversation, Sampling(fields=dict(tools))) == first
    longer = (*conversation, Message("assistant", "Yes."), Message("user", "Why?"))
    again = tokens.count(longer, Sampling(fields=tools))
    assert first + 8 <= again <= first + 20
    assert sum(read) < 500
    whole = PromptTokens("gpt-4o-mini").count(longer, Sampling(fields=tools))
    assert again == whole


def test_a_part_of_a_conversation_has_about_its_share() -> None:
    tokens = PromptTokens("gpt-4o-mini")
    chat = tuple(Message("user", "word " * n) for n in range(200))
    tokens.count(chat, Sampling())
    exact = PromptTokens("gpt-4o-mini").count(chat[100:], Sampling())
    assert tokens.count(chat[100:], Sampling()) == pytest.approx(exact, rel=0.1)


def test_of_a_very_long_text_parts_are_counted() -> None:
    long = "word " * 400_000
    before = time.thread_time()
    assert counted(Message("user", long)) == pytest.approx(400_000, rel=0.05)
    assert counted(*CHAT, prediction=long) == pytest.approx(400_000, rel=0.05)
    assert time.thread_time() - before < 1


def test_no_text_is_counted_only_where_it_has_few_tokens() -> None:
    """A client that knew which parts are counted could leave all its tokens out of the count."""
    size, dense = 62_500, "a!9Z" * 1_000
    hiding = "".join(" " * 2_000 + dense * 15 + " " * 500 for _ in range(32))
    exact = sum(
        counted(Message("user", hiding[at : at + size])) for at in range(0, 2_000_000, size)
    )
    assert counted(Message("user", hiding)) == pytest.approx(exact, rel=0.15)
