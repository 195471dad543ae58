"""Reasoning and progress, in the form that clients require which check what they get."""

import json
from typing import Any, get_args

import anthropic
import openai
import pytest
from anthropic.types import ToolParam, ToolUseBlock
from openai.types.responses import ResponseOutputItem, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tests.proxy import Proxy
from tests.upstream import Call, Reply, Script, Upstream

MODELS = ("careful", "shown", "re2&bon-base")
"""An alias, one that shows progress, and a free form."""

THOUGHT = "Six sevens."
TOOLS = ("weather", "clock")


def thoughts_and_tools(call: Call, choice: int) -> Reply:
    names = [tool["function"]["name"] for tool in call.body.get("tools") or ()]
    if names:
        return Reply(None, THOUGHT, tool_calls=[(name, '{"city": "Oslo"}') for name in names])
    return Reply(f"By way {choice}: 42.\nRATING: {1 + choice}\nANSWER: 42", THOUGHT)


@pytest.fixture(autouse=True)
def thinking_model(upstream: Upstream) -> None:
    upstream.play(Script(reply=thoughts_and_tools))


def classes_by_type(union: object) -> dict[str, type[BaseModel]]:
    """Return the classes of one of OpenAI's unions by their `type`."""
    classes = get_args(get_args(union)[0])
    return {get_args(each.model_fields["type"].annotation)[0]: each for each in classes}


EVENTS = classes_by_type(ResponseStreamEvent)
ITEMS = classes_by_type(ResponseOutputItem)


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["text", "tools"])
@pytest.mark.parametrize("model", MODELS)
def test_responses_are_what_openais_types_require(
    proxy: Proxy, client: openai.OpenAI, model: str, tools: tuple[str, ...]
) -> None:
    """The SDK itself takes events with missing fields; clients in other languages do not."""
    functions = [{"type": "function", "name": name, "parameters": {}} for name in tools]
    body: Any = {"model": model, "input": "6 * 7?", "tools": functions}
    check_items(proxy.post("/v1/responses", body).json()["output"])
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


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("tools", [(), TOOLS], ids=["text", "tools"])
@pytest.mark.parametrize("model", MODELS)
def test_messages_are_what_anthropics_types_require(
    claude: anthropic.Anthropic, model: str, tools: tuple[str, ...], stream: bool
) -> None:
    """Anthropic's API refuses empty text, and a signature that is null, in the next turn."""
    known: list[ToolParam] = [{"name": name, "input_schema": {"type": "object"}} for name in tools]
    asked: Any = {"model": model, "max_tokens": 500, "tools": known}
    asked["messages"] = [{"role": "user", "content": "6 * 7?"}]
    if stream:
        with claude.messages.stream(**asked) as events:
            content = list(events.get_final_message().content)
    else:
        content = claude.messages.create(**asked).content
    for block in content:
        TypeAdapter(type(block)).validate_python(block.model_dump())
        assert block.type != "text" or block.text
    progress = ["thinking"] if stream and model == "shown" else []  # in a block of its own
    answer = ["tool_use", "tool_use"] if tools else ["text"]
    assert [block.type for block in content] == [*progress, "thinking", *answer]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["re2-claude", "self_consistency(n=2)-claude", "moa-claude"])
def test_claude_gets_its_signed_thinking_back_with_the_results_of_its_tools(
    claude: anthropic.Anthropic, upstream: Upstream, model: str, stream: bool
) -> None:
    """It refuses the turn otherwise."""
    asked: Any = {
        "model": model,
        "max_tokens": 4000,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}],
    }

    def ask(turns: list[Any]) -> Any:
        if not stream:
            return claude.messages.create(**asked, messages=turns)
        with claude.messages.stream(**asked, messages=turns) as events:
            return events.get_final_message()

    question = {"role": "user", "content": "Weather?"}
    upstream.play(Script(reply=lambda *_: Reply(None, tool_calls=[("weather", "{}")])))
    first = ask([question])
    thinking, use = first.content
    assert thinking.signature
    assert isinstance(use, ToolUseBlock)
    upstream.play(Script(reply=lambda *_: Reply("It is sunny.\nANSWER: sunny")))
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    last = ask(
        [
            question,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [result]},
        ]
    )
    assert last.stop_reason == "end_turn"
    for call in upstream.calls:
        [turn] = [message for message in call.messages if message["role"] == "assistant"]
        assert turn["content"][0] == thinking.to_dict()
