"""Replies in the form of Anthropic's `/v1/messages`: whole, and as server-sent events."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.upstream import Billed, Reply

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_THOUGHT = "The user asks; I answer."


def message(
    body: Mapping[str, Any], index: int, reply: "Reply", billed: "Billed | None"
) -> dict[str, Any]:
    """Return a whole reply, with a thought if the request switches thinking on."""
    document = _empty(body, index, billed)
    document["content"] = [_whole(*parts) for parts in _blocks(body, index, reply)]
    document["stop_reason"] = _REASONS.get(reply.finished, reply.finished)
    if billed is not None:
        document["usage"]["output_tokens"] = billed.completion_tokens
    return document


def events(
    body: Mapping[str, Any], index: int, reply: "Reply", billed: "Billed | None"
) -> Iterator[dict[str, Any]]:
    """Yield the events of a streamed reply; each has its name in `type`."""
    yield {"type": "message_start", "message": _empty(body, index, billed)}
    for number, (block, deltas) in enumerate(_blocks(body, index, reply)):
        yield {"type": "content_block_start", "index": number, "content_block": block}
        if number == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": number, "delta": delta}
        yield {"type": "content_block_stop", "index": number}
    reason = _REASONS.get(reply.finished, reply.finished)
    last: dict[str, Any] = {"type": "message_delta"}
    last["delta"] = {"stop_reason": reason, "stop_sequence": None}
    last["usage"] = {"output_tokens": 0 if billed is None else billed.completion_tokens}
    yield last
    yield {"type": "message_stop"}


def _empty(body: Mapping[str, Any], index: int, billed: "Billed | None") -> dict[str, Any]:
    cached = 0 if billed is None else billed.cached_tokens
    return {
        "id": f"msg_{index}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 0 if billed is None else billed.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 1,
        },
    }


def _blocks(
    body: Mapping[str, Any], index: int, reply: "Reply"
) -> Iterator[tuple[dict[str, Any], Sequence[dict[str, Any]]]]:
    """Yield each block as it starts, and the deltas that follow."""
    for block in reply.fields.get("content", ()):
        yield from _as_streamed(block)
    if "content" in reply.fields:
        return
    thinks = (body.get("thinking") or {}).get("type", "disabled") != "disabled"
    if thinks or reply.reasoning:
        thought = reply.reasoning or _THOUGHT
        deltas = [
            *({"type": "thinking_delta", "thinking": word} for word in _words(thought)),
            {"type": "signature_delta", "signature": f"sig-{index}"},
        ]
        yield {"type": "thinking", "thinking": "", "signature": ""}, deltas
    if reply.text:
        deltas = [{"type": "text_delta", "text": word} for word in _words(reply.text)]
        yield {"type": "text", "text": ""}, deltas
    for number, (name, arguments) in enumerate(reply.tool_calls):
        half = len(arguments) // 2
        deltas = [
            {"type": "input_json_delta", "partial_json": part}
            for part in ("", arguments[:half], arguments[half:])
        ]
        use = {"type": "tool_use", "id": f"toolu_{index}_{number}", "name": name, "input": {}}
        yield use, deltas


def _as_streamed(
    block: Mapping[str, Any],
) -> Iterator[tuple[dict[str, Any], Sequence[dict[str, Any]]]]:
    """Yield a block that the script gives as a whole."""
    match block["type"]:
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": w} for w in _words(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            yield {"type": "thinking", "thinking": "", "signature": ""}, [*deltas, signed]
        case "text":
            deltas = [{"type": "text_delta", "text": word} for word in _words(block["text"])]
            yield {"type": "text", "text": ""}, deltas
        case "tool_use":
            arguments = json.dumps(block["input"])
            yield {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
        case _:
            yield dict(block), []


def _whole(block: dict[str, Any], deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a block with all that its deltas add."""
    if block["type"] == "tool_use":
        arguments = "".join(delta["partial_json"] for delta in deltas)
        return block | {"input": json.loads(arguments or "{}")}
    names = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    for delta in deltas:
        name = names[delta["type"]]
        block[name] += delta[name]
    return block


def _words(text: str) -> list[str]:
    first, *others = text.split(" ")
    return [first, *(f" {word}" for word in others)]
