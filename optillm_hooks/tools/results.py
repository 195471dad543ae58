"""Tool results as messages, which show them to a model as data."""

import json
from collections.abc import Sequence
from typing import Final

from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.services import ToolResult
from optillm_hooks.types import Fields, Json, Message, ToolCall

_MAX_ARGUMENTS: Final = 65_536
MAX_IMAGES: Final = 16
"""Maximum images of all results that lead to one answer."""

_MAX_OF_RESULT: Final = 4
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


def as_message(call: ToolCall, result: ToolResult, *, at_most: int, images: int) -> Message:
    """Return the message that answers `call`, with at most `at_most` characters of the result.

    Args:
        call: the call.
        result: its result.
        at_most: the maximum number of characters.
        images: how many of its images are shown.
    """
    text = result.text[:at_most].encode(errors="replace").decode()
    if len(result.text) > at_most:
        text += f"\n[{len(result.text) - at_most} more characters were cut off]"
    if result.images:
        text += f"\n[images: {len(result.images)}, of which {images} follow]"
    mark = fence((), [text])
    told = "The tool reports an error. " if result.is_error else ""
    content = f"{told}{data_notice('result', mark)}\n\n{enclose([text], 'result', mark)}"
    return Message("tool", content, {"tool_call_id": call.id})


def images_of(results: Sequence[ToolResult], at_most: int) -> list[list[str]]:
    """Return the images of each result that are shown, at most `at_most` of all."""
    shown = list[list[str]]()
    for result in results:
        usable = [url for url in result.images if len(url) <= _MAX_IMAGE]
        shown.append(usable[: min(_MAX_OF_RESULT, at_most)])
        at_most -= len(shown[-1])
    return shown


def images_message(images: Sequence[Sequence[str]]) -> tuple[Message, ...]:
    """Return the images of a round of calls as a user's turn; nothing if there are none.

    Most providers take no image in a tool's message.
    """
    urls = [url for of_result in images for url in of_result]
    if not urls:
        return ()
    notice: Fields = {"type": "text", "text": "Images that the tools returned, in their order:"}
    parts: list[Fields] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return (Message("user", (notice, *parts)),)
