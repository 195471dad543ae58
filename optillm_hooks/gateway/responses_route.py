"""Answers of the responses route in the form that OpenAI's clients require.

LiteLLM makes them from chat completions. It names the deployment, which would reveal an alias's
base. It leaves out numbers of events and, where an answer has reasoning, an event and fields that
some clients require (openai-node's stream helper, Vercel's AI SDK).
"""

from collections.abc import AsyncIterator
from typing import Any

from litellm.types.llms.openai import BaseLiteLLMOpenAIResponseObject, ResponsesAPIResponse
from litellm.types.utils import ModelResponseStream


def complete_response(response: ResponsesAPIResponse) -> None:
    """Give each reasoning item of `response` its summary."""
    for item in response.output:
        if getattr(item, "type", None) == "reasoning" and not hasattr(item, "summary"):
            _summarise(item)


async def complete_events(events: AsyncIterator[Any], model: str) -> AsyncIterator[Any]:
    """Yield `events` numbered, with the requested model's name and whole events of reasoning.

    LiteLLM's route for Cursor has chunks of chat completions instead, which need nothing.
    """
    number = 0
    async for event in _with_parts(events):
        if isinstance(event, ModelResponseStream):
            yield event
            continue
        response: Any = getattr(event, "response", None)
        if getattr(response, "model", None) is not None:
            response.model = model
            complete_response(response)
        event.sequence_number = number
        number += 1
        yield event


async def _with_parts(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield `events`, with the summary of each reasoning item announced before its first delta."""
    announced: set[str] = set()
    async for event in events:
        if isinstance(event, ModelResponseStream):
            pass
        elif event.type == "response.output_item.added" and event.item.type == "reasoning":
            event.item.summary = []
        elif event.type == "response.reasoning_summary_part.added":
            announced.add(event.item_id)
        elif event.type == "response.reasoning_summary_text.delta":
            event.summary_index = 0
            if event.item_id not in announced:
                announced.add(event.item_id)
                yield _part_added(event)
        elif event.type in ("response.output_text.delta", "response.output_text.done"):
            event.logprobs = getattr(event, "logprobs", None) or []
        yield event


def _summarise(item: Any) -> None:
    """Move the reasoning of `item` from its content, where LiteLLM puts it, to its summary."""
    item.summary = [{"type": "summary_text", "text": part.text} for part in item.content]
    item.content = []


def _part_added(delta: Any) -> BaseLiteLLMOpenAIResponseObject:
    """Return the event that precedes the first `delta` of a summary."""
    return BaseLiteLLMOpenAIResponseObject(
        type="response.reasoning_summary_part.added",
        item_id=delta.item_id,
        output_index=delta.output_index,
        summary_index=0,
        part={"type": "summary_text", "text": ""},
    )
