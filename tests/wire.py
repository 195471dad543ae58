"""A provider whose every byte is given, for what real ones answer in their own formats.

Unlike `tests.upstream` it makes nothing of a reply: it sends a document, or the events of a stream.
`openai_reply`, `anthropic_reply` and `gemini_reply` write both as these providers do.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

Document = Mapping[str, Any]
_USAGE: Final = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


@dataclass(frozen=True, slots=True)
class WireReply:
    """What the provider sends for one call."""

    document: Document
    events: Sequence[Document | str] = ()
    """Events of a stream; an event of Anthropic's gets its type as its name."""

    status: int = 200


class Wire:
    """A server on loopback that answers every call with `reply`, and keeps the calls' bodies."""

    def __init__(self) -> None:
        self.reply = WireReply({})
        self.calls: list[Mapping[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def play(self, reply: WireReply) -> None:
        self.reply, self.calls = reply, []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(wire) -> type[BaseHTTPRequestHandler]:  # noqa: N805 (the handler has a self)
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                wire.calls.append(body)
                reply = wire.reply
                streamed = body.get("stream") or "streamGenerateContent" in self.path
                if streamed and reply.status == 200:
                    self._send("text/event-stream", "".join(map(_event, reply.events)))
                else:
                    self._send("application/json", json.dumps(reply.document))

            def _send(self, content_type: str, text: str) -> None:
                content = text.encode()
                self.send_response(wire.reply.status)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(content)))
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(content)

        return Handler


def _event(event: Document | str) -> str:
    data = event if isinstance(event, str) else json.dumps(event)
    name = "" if isinstance(event, str) or "type" not in event else f"event: {event['type']}\n"
    return f"{name}data: {data}\n\n"


def openai_reply(
    message: Document,
    finish_reason: str | None = "stop",
    deltas: Sequence[Document] | None = None,
    *,
    choice: Document | None = None,
    usage: Document | None = _USAGE,
    **top: object,
) -> WireReply:
    """Return a reply in OpenAI's format; without `deltas`, the message is streamed in one."""
    choice, head = dict(choice or {}), {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m"}
    pieces = [{"role": "assistant", "content": ""}, *([message] if deltas is None else deltas)]
    chunk = {**head, "object": "chat.completion.chunk"}
    return WireReply(
        {
            **head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", **message},
                    "finish_reason": finish_reason,
                    **choice,
                }
            ],
            "usage": usage,
            **top,
        },
        [
            *(
                {**chunk, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]}
                for piece in pieces
            ),
            {
                **chunk,
                "choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason, **choice}],
            },
            {**chunk, "choices": [], "usage": usage},
            "[DONE]",
        ],
    )


def tools(*calls: tuple[str | None, str, Any]) -> list[dict[str, Any]]:
    """Return tool calls in OpenAI's format, given the id, name and arguments of each."""
    return [
        {
            "index": index,
            "id": call_id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (call_id, name, arguments) in enumerate(calls)
    ]


def anthropic_reply(blocks: Sequence[Document], stop_reason: str) -> WireReply:
    """Return a reply of Anthropic's Messages API."""
    usage = {"input_tokens": 7, "output_tokens": 5}
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(blocks),
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }
    start = {**message, "content": [], "stop_reason": None}
    return WireReply(
        message,
        [
            {"type": "message_start", "message": start},
            *(event for index, block in enumerate(blocks) for event in _block(index, block)),
            {
                "type": "message_delta",
                "delta": {"stop_reason": stop_reason, "stop_sequence": None},
                "usage": usage,
            },
            {"type": "message_stop"},
        ],
    )


def _block(index: int, block: Document) -> list[Document]:
    """Return the events of one content block."""
    start: dict[str, Any]
    deltas: list[Document] = []
    match block["type"]:
        case "text":
            start = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": block["text"]}]
        case "thinking":
            start = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [
                {"type": "thinking_delta", "thinking": block["thinking"]},
                {"type": "signature_delta", "signature": block["signature"]},
            ]
        case "tool_use" | "server_tool_use":
            start = {**block, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        case _:
            start = dict(block)
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def gemini_reply(parts: Sequence[Document] | None, finish_reason: str, **top: object) -> WireReply:
    """Return a reply of Gemini's `generateContent`; None: the candidate has no content."""
    candidate: dict[str, Any] = {"finishReason": finish_reason, "index": 0}
    if parts is not None:
        candidate["content"] = {"parts": list(parts), "role": "model"}
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12}
    document = {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": "gemini-x",
        **top,
    }
    return WireReply(document, [document])
