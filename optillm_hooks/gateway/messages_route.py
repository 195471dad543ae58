"""What LiteLLM loses of Claude's own between Anthropic's messages and chat completions.

It converts a request by the requested name, which may not tell that the model is Claude. Then it
drops `cache_control`, so that nothing is cached, and turns `thinking` into an effort.

Clients send thinking blocks back with a tool's result, and Claude refuses them if anything has
changed. LiteLLM's stream gives the first piece of a block twice, joins successive blocks, and has
no redacted ones.
"""

import copy
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from litellm.llms.anthropic.pass_through.adapters.handler import ANTHROPIC_ADAPTER

from optillm_hooks.types import Delta, Fields, Json

CONVERTED: Final = (
    "context_management", "messages", "output_config", "system", "thinking", "tools",
)  # fmt: skip
"""Fields of a request that LiteLLM converts by the name of the model."""

_CLAUDE: Final = "anthropic/claude"
_PDF: Final = "data:application/pdf"
_MADE: Final = ("messages", "reasoning_effort", "thinking", "tools")
_NOT_EDITED: Final = "clear_thinking_20251015"
"""The edit of the context that leaves the messages as they are on their way to the provider."""


def for_claude(body: Fields, model: str, provider: str | None) -> dict[str, Any]:
    """Return fields of chat completions that LiteLLM makes of a request for a model of Claude's.

    Empty if it has edited the messages.
    """
    edits = body.get("context_management")
    if isinstance(edits, dict) and _edits_messages(edits.get("edits")):
        return {}
    named = "claude" in model or "anthropic" in model
    request: dict[str, Any] = {
        **{name: copy.deepcopy(body[name]) for name in CONVERTED if name in body},
        "model": f"{provider}/{model}" if named else _CLAUDE,
        "max_tokens": 1,
    }
    request.pop("context_management", None)
    made, _ = ANTHROPIC_ADAPTER.translate_completion_input_params_with_tool_mapping(
        request, custom_llm_provider=provider
    )
    return {name: value for name, value in (made or {}).items() if name in _MADE}


def with_files(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return chat messages with documents as files. LiteLLM has made images of them."""
    return [
        {**message, "content": [*map(_as_file, message["content"])]}
        if message["role"] == "user" and isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]


def _as_file(part: Mapping[str, Any]) -> dict[str, Any]:
    url = (part.get("image_url") or {}).get("url", "")
    if not url.startswith(_PDF):
        return dict(part)
    others = {name: value for name, value in part.items() if name not in ("type", "image_url")}
    return {"type": "file", "file": {"filename": "document.pdf", "file_data": url}, **others}


def _edits_messages(edits: object) -> bool:
    return isinstance(edits, list) and any(
        not isinstance(edit, dict) or edit.get("type") != _NOT_EDITED for edit in edits
    )


_REDACTED: Final = "redacted_thinking: "
"""Begins a stand-in for a redacted block. A signature is base64, which has no such characters."""

_UNSIGNED: Final = "end of block: "

END_OF_PROGRESS: Final = Delta(
    fields={"thinking_blocks": [{"type": "thinking", "thinking": "", "signature": _UNSIGNED}]}
)
"""Ends the block that shows progress, which is no thinking of the model's."""


def with_stand_ins(delta: Delta) -> Delta:
    """Return `delta` with redacted thinking as the signature of an empty block, which LiteLLM
    converts."""
    blocks = delta.fields.get("thinking_blocks")
    if not isinstance(blocks, list):
        return delta
    return replace(delta, fields={**delta.fields, "thinking_blocks": [*map(_stand_in, blocks)]})


def _stand_in(block: Json) -> Json:
    if not isinstance(block, dict) or block.get("type") != "redacted_thinking":
        return block
    return {"type": "thinking", "thinking": "", "signature": f"{_REDACTED}{block.get('data')}"}


async def complete_frames(frames: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield server-sent events of LiteLLM's, with each thinking block as its model made it."""
    blocks = _Blocks()
    async for frame in frames:
        event = _read(frame)
        if event is None:
            yield frame
        else:
            for each in blocks.add(event):
                yield f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode()


def _read(frame: Any) -> dict[str, Any] | None:
    """Return the event if it is a part of a content block."""
    if not isinstance(frame, bytes) or not frame.startswith(b"event: content_block_"):
        return None
    event: dict[str, Any] = json.loads(frame.partition(b"\ndata: ")[2])
    return event


@dataclass(slots=True)
class _Blocks:
    """The content blocks of one stream. LiteLLM's thinking block may hold several of the model's,
    of which each ends with its signature."""

    added: int = 0
    """The number of blocks before this one that LiteLLM does not count."""

    begun: bool = True
    """Whether the client has the start of the thinking block."""

    empty: bool = False
    """Whether LiteLLM's thinking block has given nothing yet."""

    def add(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events for the client that `event` of LiteLLM's makes."""
        event["index"] += self.added
        if event["type"] == "content_block_start":
            self.begun = event["content_block"]["type"] != "thinking"
            self.empty = not self.begun
            if self.begun:
                yield event
        elif event["type"] == "content_block_stop":
            yield from self._stop(event)
        else:
            yield from self._delta(event)

    def _stop(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self.empty:
            yield _start(event["index"], _THINKING)
        if self.begun or self.empty:
            yield event
        else:
            self.added -= 1  # the last block has ended already
        self.begun, self.empty = True, False

    def _delta(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        index, signature = event["index"], event["delta"].get("signature") or ""
        self.empty = False
        if signature.startswith(_REDACTED):
            data = signature.removeprefix(_REDACTED)
            yield _start(index, {"type": "redacted_thinking", "data": data})
        else:
            if not self.begun:
                yield _start(index, _THINKING)
            if signature != _UNSIGNED:
                yield event
        self.begun = not signature
        if signature:
            yield {"type": "content_block_stop", "index": index}
            self.added += 1


_THINKING: Final = {"type": "thinking", "thinking": "", "signature": ""}


def _start(index: int, block: dict[str, str]) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}
