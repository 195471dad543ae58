"""What OpenAI's and Anthropic's SDKs make of answers: objects, tool calls, thinking, streams.

The model thinks, and calls several tools in a turn. Aliases with `progress` think aloud too.
"""

import json
from collections.abc import Iterator
from typing import Any, get_args

import anthropic
import openai
import pytest
from anthropic.types import MessageParam, ToolParam, ToolUseBlock
from openai.types.responses import FunctionToolParam, ResponseOutputItem, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.proxy import Proxy
from tests.upstream import Call, Reply, Script, Upstream

MODELS = ("careful", "shown", "moa-base", "re2&bon-base")
THOUGHT = "Six sevens."
CITIES = ("Paris", "Rome")
QUESTION = "6 * 7?"


class Number(BaseModel):
    value: int


class Weather(BaseModel):
    city: str


class Clock(BaseModel):
    city: str


def tools_and_thoughts(call: Call, choice: int) -> Reply:
    """Call every tool once, then answer; answer in the format that is asked for."""
    tools = [tool["function"]["name"] for tool in call.body.get("tools") or ()]
    if tools and call.messages[-1]["role"] == "user":
        calls = [(name, f'{{"city": "{city}"}}') for name, city in zip(tools, CITIES, strict=True)]
        return Reply(None, THOUGHT, tool_calls=calls)
    if call.body.get("response_format"):
        return Reply('{"value": 42}', THOUGHT)
    return Reply(f"By way {choice}: 42.\nRATING: {1 + choice}\nANSWER: 42", THOUGHT)


@pytest.fixture(autouse=True)
def thinking_model(upstream: Upstream) -> None:
    upstream.play(Script(reply=tools_and_thoughts))


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with proxy.openai() as made:
        yield made


@pytest.fixture(scope="module")
def claude(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=proxy.url, api_key=proxy.master_key, max_retries=0, timeout=60
    ) as made:
        yield made


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("model", MODELS)
def test_openai_parses_an_object(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.parse(
        model=model, messages=user(QUESTION), response_format=Number
    )
    assert whole.choices[0].message.parsed == Number(value=42)
    with client.chat.completions.stream(
        model=model, messages=user(QUESTION), response_format=Number
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == Number(value=42)
    answer = client.responses.parse(model=model, input=QUESTION, text_format=Number)
    assert answer.output_parsed == Number(value=42)


@pytest.mark.parametrize("model", MODELS)
def test_openai_parses_several_tool_calls_of_a_stream(client: openai.OpenAI, model: str) -> None:
    with client.chat.completions.stream(
        model=model,
        messages=user("Weather?"),
        tools=[openai.pydantic_function_tool(tool) for tool in (Weather, Clock)],
    ) as stream:
        [choice] = stream.get_final_completion().choices
    found = [call.function.parsed_arguments for call in choice.message.tool_calls or ()]
    assert found == [Weather(city="Paris"), Clock(city="Rome")]
    assert choice.finish_reason == "tool_calls"


def classes_by_type(union: object) -> dict[str, type[BaseModel]]:
    """Return the classes of one of OpenAI's unions by their `type`."""
    classes = get_args(get_args(union)[0])
    return {get_args(each.model_fields["type"].annotation)[0]: each for each in classes}


EVENTS = classes_by_type(ResponseStreamEvent)
ITEMS = classes_by_type(ResponseOutputItem)


@pytest.mark.parametrize("tools", [False, True], ids=["text", "tools"])
@pytest.mark.parametrize("model", MODELS)
def test_responses_are_what_openais_types_require(
    proxy: Proxy, client: openai.OpenAI, model: str, tools: bool
) -> None:
    """The SDK itself takes events with missing fields; clients in other languages do not."""
    function: list[FunctionToolParam] = [
        {"type": "function", "name": name, "strict": False, "parameters": {"type": "object"}}
        for name in ("weather", "clock")
    ]
    body: Any = {"model": model, "input": QUESTION, "tools": function if tools else []}
    whole = proxy.post("/v1/responses", body).json()
    check_items(whole["output"])
    lines = proxy.post("/v1/responses", body | {"stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    for event in events:
        if "response" in event:
            check_items(event["response"]["output"])
        else:
            # LiteLLM does not repeat the name of a function; no client is known to need it.
            EVENTS[event["type"]].model_validate({"name": "", **event})
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added = [event["type"] for event in events].index("response.reasoning_summary_part.added")
    assert events[added + 1]["type"] == "response.reasoning_summary_text.delta"
    with client.responses.stream(**body) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    [reasoning, *rest] = final.output
    assert reasoning.type == "reasoning"
    assert THOUGHT in reasoning.summary[0].text
    assert [item.type for item in rest] == (["function_call"] * 2 if tools else ["message"])
    assert "".join(texts) == final.output_text


def check_items(output: list[dict[str, Any]]) -> None:
    for item in output:
        ITEMS[item["type"]].model_validate(item)


def blocks(message: anthropic.types.Message) -> list[str]:
    """Return the types of the blocks of a message, after a check that none is empty."""
    for block in message.content:
        TypeAdapter(type(block)).validate_python(block.model_dump())
        assert block.type != "text" or block.text
        assert block.type != "thinking" or (block.thinking and block.signature == "")
    return [block.type for block in message.content]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_anthropic_reads_thinking_and_text(
    claude: anthropic.Anthropic, model: str, stream: bool
) -> None:
    message = ask(claude, model, user(QUESTION), stream=stream)
    assert blocks(message) == ["thinking", "text"]
    assert message.stop_reason == "end_turn"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_anthropic_calls_several_tools_and_sends_their_results(
    claude: anthropic.Anthropic, upstream: Upstream, model: str, stream: bool
) -> None:
    turn = ask(claude, model, user("Weather?"), stream=stream, tools=True)
    assert blocks(turn) == ["thinking", "tool_use", "tool_use"]
    assert turn.stop_reason == "tool_use"
    uses = [block for block in turn.content if isinstance(block, ToolUseBlock)]
    assert [(use.name, use.input) for use in uses] == [
        ("weather", {"city": "Paris"}),
        ("clock", {"city": "Rome"}),
    ]
    conversation: list[MessageParam] = [
        *user("Weather?"),
        {"role": "assistant", "content": turn.content},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": use.id, "content": f"sun {use.id}"}
                for use in uses
            ],
        },
    ]
    upstream.play(Script(reply=tools_and_thoughts))
    last = ask(claude, model, conversation, stream=stream, tools=True)
    assert all(f"sun {use.id}" in upstream.calls[0].text for use in uses)
    assert last.stop_reason in ("end_turn", "tool_use")


def ask(
    claude: anthropic.Anthropic,
    model: str,
    messages: list[MessageParam],
    *,
    stream: bool,
    tools: bool = False,
) -> anthropic.types.Message:
    known: list[ToolParam] = [
        {"name": name, "input_schema": {"type": "object"}} for name in ("weather", "clock")
    ]
    given: Any = {"tools": known} if tools else {}
    if not stream:
        message: anthropic.types.Message = claude.messages.create(
            model=model, max_tokens=500, messages=messages, **given
        )
        return message
    with claude.messages.stream(model=model, max_tokens=500, messages=messages, **given) as events:
        return events.get_final_message()
