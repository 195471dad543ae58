"""What the SDKs' stream helpers make of a stream is what they get without one, on each route."""

from collections.abc import Iterator
from typing import Any, Final

import anthropic
import openai
import pytest

from optillm_hooks.types import TokenLogprob
from tests.proxy import Proxy
from tests.upstream import Reply, Script, Upstream

ASKED: Final[list[Any]] = [{"role": "user", "content": "What is 6 times 7?"}]
TOOL: Final = {"type": "object", "properties": {"city": {"type": "string"}}}
OSLO, ROME = ("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "Rome"}')

REPLIES: Final[dict[str, Reply]] = {
    "text": Reply("It is 42."),
    "reasoning and text": Reply("It is 42.", "6 times 7"),
    "two tool calls": Reply(None, tool_calls=(OSLO, ROME)),
    "text and a tool call": Reply("I look.", tool_calls=(OSLO,)),
    "reasoning and tool calls": Reply(None, "Hm.", (OSLO, ROME)),
    "all three": Reply("I look.", "Hm.", (OSLO, ROME)),
    "refusal": Reply(None, fields={"refusal": "I can't help."}),
    "used up": Reply(None, "Hm.", finish_reason="length"),
    "empty": Reply(""),
}
WAYS = pytest.mark.parametrize("model", ["reread", "careful", "moa-base"])
"""A final call, a whole answer, and a final call after progress."""


def replies(*, without: str = "") -> pytest.MarkDecorator:
    named = {name: reply for name, reply in REPLIES.items() if name != without}
    return pytest.mark.parametrize("reply", named.values(), ids=named)


def is_dropped(reply: Reply, model: str) -> bool:
    """Return whether LiteLLM drops a refusal, as it does from a provider's own stream."""
    return bool(reply.fields) and model == "reread"


@pytest.fixture(scope="module")
def openai_client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.master_key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def anthropic_client(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=proxy.url, api_key=proxy.master_key, max_retries=0) as made:
        yield made


def unnamed(value: Any) -> Any:
    """Return a dumped object without ids, and without fields that are null or empty."""
    if isinstance(value, dict):
        kept = {k: unnamed(v) for k, v in value.items() if not (k.endswith("id") or k == "index")}
        return {k: v for k, v in kept.items() if v not in (None, "", {}, [])}
    return [unnamed(item) for item in value] if isinstance(value, list) else value


@WAYS
@replies(without="used up")  # the helper raises an error whenever a reply was cut off
def test_chat(openai_client: openai.OpenAI, upstream: Upstream, reply: Reply, model: str) -> None:
    upstream.play(Script(reply=lambda *_: reply))
    tools: list[Any] = [
        {"type": "function", "function": {"name": "get_weather", "parameters": TOOL}}
    ]
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": tools}
    whole = openai_client.chat.completions.create(**asked)
    with openai_client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion()
    [expected], [found] = (
        unnamed(whole.to_dict()["choices"]),
        unnamed(streamed.to_dict()["choices"]),
    )
    for call in found.get("message", {}).get("tool_calls", ()):
        call["function"].pop("parsed_arguments", None)
    if is_dropped(reply, model):
        expected["message"] = {"role": "assistant"}
    assert found == expected


@WAYS
@replies()
def test_messages(
    anthropic_client: anthropic.Anthropic, upstream: Upstream, reply: Reply, model: str
) -> None:
    upstream.play(Script(reply=lambda *_: reply))
    tools: list[Any] = [{"name": "get_weather", "input_schema": TOOL}]
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": tools, "max_tokens": 999}
    whole = anthropic_client.messages.create(**asked)
    with anthropic_client.messages.stream(**asked) as events:
        streamed = events.get_final_message()
    expected, found = unnamed(whole.to_dict()), unnamed(streamed.to_dict())
    if is_dropped(reply, model):
        expected |= {"content": [{"type": "text"}], "stop_reason": "end_turn"}
    assert found.get("content") == expected.get("content")
    assert found["stop_reason"] == expected["stop_reason"]


@WAYS
@replies(without="refusal")  # LiteLLM's bridge has none
def test_responses(
    openai_client: openai.OpenAI, upstream: Upstream, reply: Reply, model: str
) -> None:
    upstream.play(Script(reply=lambda *_: reply))
    tools: list[Any] = [{"type": "function", "name": "get_weather", "parameters": TOOL}]
    asked: dict[str, Any] = {"model": model, "input": "What is 6 times 7?", "tools": tools}
    whole = openai_client.responses.create(**asked)
    text = ""
    with openai_client.responses.create(**asked, stream=True) as events:
        for event in events:
            text += event.delta if event.type == "response.output_text.delta" else ""
            if event.type in ("response.completed", "response.incomplete"):
                streamed = event.response
    assert text == whole.output_text
    assert unnamed([o.to_dict() for o in streamed.output]) == unnamed(
        [o.to_dict() for o in whole.output]
    )


CALL: Final = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
SCORED: Final = [TokenLogprob("4", -0.1, (("4", -0.1), ("5", -2.0))), TokenLogprob("2", -0.2)]


@WAYS
@pytest.mark.parametrize(
    ("reply", "fields"),
    [
        pytest.param(Reply("It is 42."), {"n": 2}, id="two choices"),
        pytest.param(
            Reply("42", logprobs=SCORED), {"logprobs": True, "top_logprobs": 2}, id="logprobs"
        ),
        pytest.param(
            Reply(None, fields={"function_call": CALL}, finish_reason="function_call"),
            {"functions": [{"name": "get_weather", "parameters": TOOL}]},
            id="a function call",
        ),
    ],
)
def test_other_parts_of_a_chat(
    openai_client: openai.OpenAI,
    upstream: Upstream,
    reply: Reply,
    fields: dict[str, Any],
    model: str,
) -> None:
    upstream.play(Script(reply=lambda *_: reply))
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "extra_body": fields}
    whole = openai_client.chat.completions.create(**asked)
    with openai_client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion()
    found, expected = (unnamed(made.to_dict()["choices"]) for made in (streamed, whole))
    assert found == expected
    assert len(found) == fields.get("n", 1)


@pytest.mark.parametrize("shown", [False, True], ids=["hidden", "shown"])
def test_cot_reflection(openai_client: openai.OpenAI, upstream: Upstream, shown: bool) -> None:
    """LiteLLM takes a section at the start of a whole reply for its reasoning."""
    sections = (
        "<thinking>\n36 + 6\n</thinking>\n<reflection>fine</reflection>\n<output>\n42\n</output>"
    )
    upstream.play(Script(reply=lambda *_: sections))
    asked: dict[str, Any] = {
        "model": "cot_reflection-base",
        "messages": ASKED,
        "extra_body": {"return_full_response": shown},
    }
    whole = openai_client.chat.completions.create(**asked)
    with openai_client.chat.completions.stream(**asked) as events:
        streamed = events.get_final_completion()
    for completion in (whole, streamed):
        message = completion.choices[0].message
        assert message.content == (sections if shown else "42")
        assert not getattr(message, "reasoning_content", None)
