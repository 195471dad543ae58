"""Tool results as messages, which show them to a model as data."""

import json
from collections.abc import Sequence
from typing import Final

from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.services import ToolResult
from optillm_hooks.types import Fields, Json, Message, ToolCall

_MAX_ARGUMENTS: Final = 65_536
_MAX_IMAGES: Final = 4
_MAX_IMAGE: Final = 8_000_000
"""Characters of a data URL."""


def read_arguments(call: ToolCall) -> dict[str, Json] | None:
    """Return the arguments of a call; None if they are not a JSON object of a usable size."""
    text = call.arguments.strip() or "{}"
    if len(text) > _MAX_ARGUMENTS:
        return None
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def as_message(call: ToolCall, result: ToolResult, *, at_most: int, sees_images: bool) -> Message:
    """Return the message that answers `call`, with at most `at_most` characters of the result."""
    text = result.text[:at_most].encode(errors="replace").decode()
    if len(result.text) > at_most:
        text += f"\n[{len(result.text) - at_most} more characters were cut off]"
    if result.images:
        shown = len(_shown(result)) if sees_images else 0
        text += f"\n[images: {len(result.images)}, of which {shown} follow]"
    mark = fence((), [text])
    told = "The tool reports an error. " if result.is_error else ""
    content = f"{told}{data_notice('result', mark)}\n\n{enclose([text], 'result', mark)}"
    return Message("tool", content, {"tool_call_id": call.id})


def images_message(results: Sequence[ToolResult]) -> tuple[Message, ...]:
    """Return the images of a round of calls as a user's turn; nothing if there are none.

    Most providers take no image in a tool's message.
    """
    urls = [url for result in results for url in _shown(result)]
    if not urls:
        return ()
    notice: Fields = {"type": "text", "text": "Images that the tools returned, in their order:"}
    images: list[Fields] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return (Message("user", (notice, *images)),)


def _shown(result: ToolResult) -> list[str]:
    return [url for url in result.images if len(url) <= _MAX_IMAGE][:_MAX_IMAGES]
