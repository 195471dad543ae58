"""Reads the JSON object in a reply that was asked for one."""

import json
from collections.abc import Iterator
from typing import Final

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.types import Json

_DECODER: Final = json.JSONDecoder()


def read_object(text: str) -> dict[str, Json] | None:
    """Return the JSON object in `text`, or None if there is none.

    It is the whole text, or the last fenced block that is one, or else what begins at the first
    brace. Reasoning before it is skipped.
    """
    visible = without_reasoning(text).strip()
    return next((found for found in _objects(visible) if found is not None), None)


def _objects(text: str) -> Iterator[dict[str, Json] | None]:
    yield _object_at_start(text)
    for block in reversed(code_blocks(text)):
        yield _object_at_start(block.content.strip())
    yield _object_at_start(text[max(text.find("{"), 0) :])


def _object_at_start(text: str) -> dict[str, Json] | None:
    if not text.startswith("{"):
        return None
    try:
        value, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
