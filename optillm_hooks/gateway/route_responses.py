"""Responses as clients get them: the report, and what LiteLLM loses when it converts to a route.

The provider answers in the format of chat completions, with the `optillm` object in it. LiteLLM
converts it for the other routes, and drops the object.
"""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from optillm_hooks.gateway.messages_route import complete_frames
from optillm_hooks.gateway.prepared import ClientRequest
from optillm_hooks.gateway.reports import report_object
from optillm_hooks.gateway.responses_route import complete_events, complete_response
from optillm_hooks.types import Json

_MESSAGE_DELTA: Final = b"event: message_delta\ndata: "


def completed(response: Any, client: ClientRequest) -> Any:
    """Return a whole response in the form that the route's clients require, with the report."""
    if client.answering is not None and client.route == "responses":
        complete_response(response)
    if client.answering is not None and client.route == "messages":
        _sign_thinking(response)
    return _with_report(response, client)


def stream_completed(events: AsyncIterator[Any], client: ClientRequest) -> AsyncIterator[Any]:
    """Return a stream in the form that the route's clients require, with the report at its end."""
    if client.route == "messages":
        return _messages(events, client)
    if client.route == "responses":
        return _responses(events, client)
    if client.route == "completions":
        return _completions(events, client)
    return events


def _with_report(response: Any, client: ClientRequest) -> Any:
    report = _report(client)
    if report is None:
        return response
    if isinstance(response, dict):
        return response | {"optillm": report}
    response.optillm = report
    return response


def _report(client: ClientRequest) -> dict[str, Json] | None:
    """Return the object for a response that LiteLLM has converted; None if no plan has answered."""
    if client.outcome is None or client.route == "chat":
        return None
    return report_object(client.outcome.report)


def _sign_thinking(message: Mapping[str, Any]) -> None:
    """Give thinking that no model has signed an empty signature, as LiteLLM does in a stream.

    It is null otherwise, which some clients reject.
    """
    for block in message["content"]:
        if block["type"] == "thinking" and block.get("signature") is None:
            block["signature"] = ""


async def _messages(frames: AsyncIterator[Any], client: ClientRequest) -> AsyncIterator[Any]:
    """Yield the events of a message, the one with its usage (`message_delta`) with the report."""
    if client.answering is not None:
        frames = complete_frames(frames)
    async for frame in frames:
        report = _report(client)
        if report is not None and isinstance(frame, bytes) and frame.startswith(_MESSAGE_DELTA):
            event = json.loads(frame.removeprefix(_MESSAGE_DELTA)) | {"optillm": report}
            yield _MESSAGE_DELTA + json.dumps(event).encode() + b"\n\n"
        else:
            yield frame


async def _responses(events: AsyncIterator[Any], client: ClientRequest) -> AsyncIterator[Any]:
    """Yield the events of a response; the one that ends it has the report in its response."""
    if client.answering is not None:
        events = complete_events(events, client.answering.requested)
    async for event in events:
        inner = getattr(event, "response", None)
        if inner is not None:
            event.response = _with_report(inner, client)
        yield event


async def _completions(chunks: AsyncIterator[Any], client: ClientRequest) -> AsyncIterator[Any]:
    """Yield text completion chunks, each with a text, and the finish reason of every choice.

    LiteLLM converts the first choice of a chunk only, and its stream ends with that of choice 0.
    The report is in the chunk that ends choice 0.
    """
    async for chunk in chunks:
        choice = chunk.choices[0]
        if choice.text is None:
            choice.text = ""
        if choice.finish_reason is None or client.outcome is None:
            yield chunk
            continue
        ends = [chunk.model_copy(deep=True) for _ in client.outcome.answers[1:]]
        yield _with_report(chunk, client)
        for index, (end, answer) in enumerate(
            zip(ends, client.outcome.answers[1:], strict=True), 1
        ):
            end.choices[0].index, end.choices[0].finish_reason = index, answer.finish_reason
            yield end
