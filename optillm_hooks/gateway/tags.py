"""Finds and removes `<optillm_approach>` tags, in the request format of every route.

Only text that a person or a program has written as text can choose: strings, and parts whose type
is text. A document, a file, a tool result or a part of any other type is data, whatever it holds.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple, TypeGuard

from optillm_hooks.types import Json

_TAG = re.compile(r"<optillm_approach>([^<]*)</optillm_approach>\s?", re.IGNORECASE | re.ASCII)
"""The text has no `<`, which no expression needs, so an unclosed tag is scanned in linear time."""

_OPENING = "<optillm_approach>"
_MAX_DEPTH = 4
"""Levels of lists and objects between a field and its texts: messages, message, parts, part."""

_TEXT_TYPES = {"messages": "text", "system": "text", "input": "input_text"}
"""The type of a part that is text, by field."""


class Tagged(NamedTuple):
    approach: str | None
    """The text of the first tag in the system text, or else in the last user message."""

    changed: dict[str, Json]
    """The request's fields that had tags, without the tags."""


def read_tags(request: Mapping[str, Json]) -> Tagged:
    """Return the approach that the tags of a request name, and the changed fields without tags.

    Tags are read in the system text (system or developer message, `system`, `instructions`) and in
    the last user message, where pasted text may stand: the system text's is stronger. All tags in
    these places are removed. Elsewhere a tag is plain text: an earlier message, an answer or a tool
    result cannot choose an approach.
    """
    found: dict[str, str] = {}
    changed: dict[str, Json] = {}
    for field in ("system", "instructions", "prompt", "messages", "input"):
        value = request.get(field)
        if value is None or not _may_hold_tag(value):
            continue
        role = "user" if field in ("prompt", "input") else "system"
        cleaned = (
            _clean_turns(value, _TEXT_TYPES[field], found)
            if field in ("messages", "input") and isinstance(value, list)
            else _clean(value, _TEXT_TYPES.get(field), role, found)
        )
        if cleaned != value:
            changed[field] = cleaned
    return Tagged(found.get("system") or found.get("user") or None, changed)


def _may_hold_tag(value: Json, depth: int = _MAX_DEPTH) -> bool:
    if isinstance(value, str):
        return _OPENING in value.lower()
    if depth and isinstance(value, list):
        return any(_may_hold_tag(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return any(_may_hold_tag(value.get(name), depth - 1) for name in ("content", "text"))
    return False


def _clean_turns(turns: list[Json], text_type: str, found: dict[str, str]) -> Json:
    last_user = max(
        (i for i, turn in enumerate(turns) if _is_message(turn) and turn.get("role") == "user"),
        default=-1,
    )
    cleaned: list[Json] = []
    for number, turn in enumerate(turns):
        role = turn.get("role") if _is_message(turn) else None
        chooses = number == last_user or role in ("system", "developer")
        if _is_message(turn) and chooses and "content" in turn:
            kind = "user" if number == last_user else "system"
            cleaned.append({**turn, "content": _clean(turn["content"], text_type, kind, found)})
        else:
            cleaned.append(turn)
    return cleaned


def _is_message(turn: Json) -> TypeGuard[dict[str, Json]]:
    """Return whether an item of `messages` or `input` is a message, and no tool call or result."""
    return isinstance(turn, dict) and turn.get("type") in (None, "message")


def _clean(value: Json, text_type: str | None, role: str, found: dict[str, str]) -> Json:
    """Return a field's value without tags; `text_type` is that of its parts, None for strings."""
    if isinstance(value, str):
        return _clean_text(value, role, found)
    if not isinstance(value, list):
        return value
    return [_clean_part(part, text_type, role, found) for part in value]


def _clean_part(part: Json, text_type: str | None, role: str, found: dict[str, str]) -> Json:
    if isinstance(part, str) and text_type is None:
        return _clean_text(part, role, found)
    if isinstance(part, dict) and text_type is not None and part.get("type") == text_type:
        text = part.get("text")
        return {**part, "text": _clean_text(text, role, found)} if isinstance(text, str) else part
    return part


def _clean_text(text: str, role: str, found: dict[str, str]) -> str:
    for tag in _TAG.finditer(text):
        found.setdefault(role, tag[1].strip())
    return _TAG.sub("", text)
