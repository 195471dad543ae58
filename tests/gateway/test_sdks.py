"""The helpers of OpenAI's and Anthropic's SDKs, on an alias and on free forms."""

from typing import Any

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.upstream import Call, Reply, Script, Upstream

MODELS = ("careful", "bon(n=2)-base", "re2&moa-base")
QUESTION: Any = [{"role": "user", "content": "6 * 7?"}]
ANSWER = "By way of ten fours and two: 42.\nANSWER: 42"

FUNCTION = {
    "name": "weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CITY = '{"city": "Oslo"}'


class Sum(BaseModel):
    value: int
    steps: list[str]


AS_JSON = '{"value": 42, "steps": ["10 * 4", "2"]}'


def rated_or(answer: Reply | str) -> Script:
    """Return a script that answers with `answer`, and a judge's questions with a rating."""

    def reply(call: Call, _: int) -> Reply | str:
        return "RATING: 7" if "RATING:" in call.text else answer

    return Script(reply=reply)


def assert_report(holder: Any, upstream: Upstream) -> None:
    report = holder.optillm
    assert report["base_model"] == "base"
    assert report["calls"] == len(upstream.calls)
    assert "42" not in str(report["notes"])


@pytest.mark.parametrize("model", MODELS)
def test_every_route_has_the_report_in_its_body(
    client: openai.OpenAI, claude: anthropic.Anthropic, upstream: Upstream, model: str
) -> None:
    asked = {"model": model, "messages": QUESTION}
    for ask in (
        lambda: client.chat.completions.create(**asked),
        lambda: client.responses.create(model=model, input="6 * 7?"),
        lambda: client.completions.create(model=model, prompt="6 * 7?"),
        lambda: claude.messages.create(**asked, max_tokens=200),
    ):
        upstream.play(rated_or(ANSWER))
        assert_report(ask(), upstream)


@pytest.mark.parametrize("model", MODELS)
def test_openais_stream_helper_has_the_report_among_its_chunks(
    client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    """The final object has what later requests send back: a field of ours would go with it."""
    upstream.play(rated_or(ANSWER))
    with client.chat.completions.stream(model=model, messages=QUESTION) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion()
    [told] = [chunk for chunk in chunks if hasattr(chunk, "optillm")]
    assert_report(told, upstream)
    assert final.choices[0].finish_reason == "stop"
    assert "optillm" not in str(final)


@pytest.mark.parametrize("model", MODELS)
def test_the_final_object_of_the_responses_stream_has_the_report(
    client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    upstream.play(rated_or(ANSWER))
    with client.responses.stream(model=model, input="6 * 7?") as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    assert "42" in final.output_text
    assert_report(final, upstream)


@pytest.mark.parametrize("model", MODELS)
def test_a_streamed_text_completion_has_the_report_once(
    client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    upstream.play(rated_or(ANSWER))
    with client.completions.create(model=model, prompt="6 * 7?", stream=True) as stream:
        told = [chunk for chunk in stream if hasattr(chunk, "optillm")]
    assert [chunk.choices[0].finish_reason for chunk in told] == ["stop"]
    assert_report(told[0], upstream)


@pytest.mark.parametrize("model", MODELS)
def test_the_message_delta_of_a_streamed_message_has_the_report(
    claude: anthropic.Anthropic, upstream: Upstream, model: str
) -> None:
    upstream.play(rated_or(ANSWER))
    with claude.messages.stream(model=model, max_tokens=200, messages=QUESTION) as stream:
        told = [event for event in stream if hasattr(event, "optillm")]
        final = stream.get_final_message()
    assert [event.type for event in told] == ["message_delta"]
    assert_report(told[0], upstream)
    assert (final.stop_reason, final.usage.output_tokens) == (
        "end_turn",
        upstream.bill.completion_tokens,
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_openais_sdk_parses_a_model(
    client: openai.OpenAI, upstream: Upstream, model: str, *, stream: bool
) -> None:
    upstream.play(rated_or(AS_JSON))
    asked: Any = {"model": model, "messages": QUESTION, "response_format": Sum}
    if stream:
        with client.chat.completions.stream(**asked) as pieces:
            answer: Any = pieces.get_final_completion()
    else:
        answer = client.chat.completions.parse(**asked)
    assert answer.choices[0].message.parsed == Sum(value=42, steps=["10 * 4", "2"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_openais_sdk_parses_a_model_from_a_response(
    client: openai.OpenAI, upstream: Upstream, model: str, *, stream: bool
) -> None:
    upstream.play(rated_or(AS_JSON))
    asked: Any = {"model": model, "input": "6 * 7?", "text_format": Sum}
    if stream:
        with client.responses.stream(**asked) as events:
            for _ in events:
                pass
            answer: Any = events.get_final_response()
    else:
        answer = client.responses.parse(**asked)
    assert answer.output_parsed == Sum(value=42, steps=["10 * 4", "2"])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_a_response_calls_a_tool_and_goes_on_with_its_result(
    client: openai.OpenAI, upstream: Upstream, model: str, *, stream: bool
) -> None:
    upstream.play(rated_or(Reply(None, tool_calls=(("weather", CITY),))))
    asked: Any = {"model": model, "tools": [{"type": "function", **FUNCTION}]}
    question: Any = [{"role": "user", "content": "Which weather?"}]
    if stream:
        with client.responses.stream(**asked, input=question) as events:
            for _ in events:
                pass
            answer: Any = events.get_final_response()
    else:
        answer = client.responses.create(**asked, input=question)
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert (call.name, call.arguments) == ("weather", CITY)
    upstream.play(rated_or("It is sunny: 42 degrees."))
    made: Any = {key: getattr(call, key) for key in ("type", "call_id", "name", "arguments")}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    done = client.responses.create(**asked, input=[*question, made, result])
    assert done.output_text == "It is sunny: 42 degrees."
    assert upstream.calls[0].messages[-1]["content"] == "sunny"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_a_message_calls_tools_and_goes_on_with_their_results(
    claude: anthropic.Anthropic, upstream: Upstream, model: str, *, stream: bool
) -> None:
    calls = (("weather", CITY), ("weather", '{"city": "Rome"}'))
    upstream.play(rated_or(Reply(None, tool_calls=calls)))
    tool = {"name": "weather", "input_schema": FUNCTION["parameters"]}
    question: Any = {"role": "user", "content": "Which weather?"}
    asked: Any = {"model": model, "max_tokens": 200, "tools": [tool]}
    if stream:
        with claude.messages.stream(**asked, messages=[question]) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**asked, messages=[question])
    assert answer.stop_reason == "tool_use"
    uses = [block for block in answer.content if block.type == "tool_use"]
    assert [(use.name, use.input) for use in uses] == [
        ("weather", {"city": "Oslo"}),
        ("weather", {"city": "Rome"}),
    ]
    upstream.play(rated_or("It is sunny in both."))
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"} for use in uses]
    turns: Any = [
        question,
        {"role": "assistant", "content": [block.to_dict() for block in answer.content]},
        {"role": "user", "content": results},
    ]
    done = claude.messages.create(**asked, messages=turns)
    assert "".join(b.text for b in done.content if b.type == "text") == "It is sunny in both."


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["reread", "re2-base"])
def test_reasoning_is_a_thinking_block(
    claude: anthropic.Anthropic, upstream: Upstream, model: str, *, stream: bool
) -> None:
    upstream.play(Script(reply=lambda *_: Reply("It is 42.", reasoning="Ten fours, two.")))
    asked: Any = {
        "model": model,
        "max_tokens": 2000,
        "messages": QUESTION,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    if stream:
        with claude.messages.stream(**asked) as events:
            answer = events.get_final_message()
    else:
        answer = claude.messages.create(**asked)
    assert [block.type for block in answer.content] == ["thinking", "text"]
    thinking: Any = answer.content[0]
    assert "Ten fours, two." in thinking.thinking
