"""Finds and removes `<optillm_approach>` tags, in the request format of every route."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from optillm_hooks.types import Json

_TAG = re.compile(r"<optillm_approach>([^<]*)</optillm_approach>\s?", re.IGNORECASE | re.ASCII)
"""The text has no `<`, which no expression needs, so an unclosed tag is scanned in linear time."""

_OPENING = "<optillm_approach>"
_MAX_DEPTH = 4
"""Levels of lists and objects between a field and its texts: messages, message, parts, part."""


class Tagged(NamedTuple):
    approach: str | None
    """The text of the first tag in the last user message, or else in the system text."""

    changed: dict[str, Json]
    """The request's fields that had tags, without the tags."""


def read_tags(request: Mapping[str, Json]) -> Tagged:
    """Return the approach that the tags of a request name, and the changed fields without tags.

    Tags are read in the last user message, and in the system text (system or developer message,
    `system`, `instructions`). The first one is used, and all are removed. Elsewhere a tag is plain
    text: an earlier message, an answer or a tool result cannot choose an approach.
    """
    found: dict[str, str] = {}
    changed: dict[str, Json] = {}
    for field in ("system", "instructions", "prompt", "messages", "input"):
        value = request.get(field)
        if value is None or not _may_hold_tag(value):
            continue
        role = "user" if field in ("prompt", "input") else "system"
        cleaned = (
            _clean_turns(value, found)
            if field in ("messages", "input") and isinstance(value, list)
            else _clean(value, role, found)
        )
        if cleaned != value:
            changed[field] = cleaned
    return Tagged(found.get("user") or found.get("system"), changed)


def _may_hold_tag(value: Json, depth: int = _MAX_DEPTH) -> bool:
    if isinstance(value, str):
        return _OPENING in value.lower()
    if depth and isinstance(value, list):
        return any(_may_hold_tag(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return any(_may_hold_tag(value.get(name), depth - 1) for name in ("content", "text"))
    return False


def _clean_turns(turns: list[Json], found: dict[str, str]) -> Json:
    last_user = max(
        (
            i
            for i, turn in enumerate(turns)
            if isinstance(turn, dict) and turn.get("role") == "user"
        ),
        default=-1,
    )
    cleaned: list[Json] = []
    for number, turn in enumerate(turns):
        role = turn.get("role") if isinstance(turn, dict) else None
        chooses = number == last_user or role in ("system", "developer")
        if isinstance(turn, dict) and chooses and "content" in turn:
            kind = "user" if number == last_user else "system"
            cleaned.append({**turn, "content": _clean(turn["content"], kind, found)})
        else:
            cleaned.append(turn)
    return cleaned


def _clean(value: Json, role: str, found: dict[str, str]) -> Json:
    if isinstance(value, list):
        return [_clean_part(part, role, found) for part in value]
    return _clean_part(value, role, found)


def _clean_part(part: Json, role: str, found: dict[str, str]) -> Json:
    if isinstance(part, str):
        for tag in _TAG.finditer(part):
            found.setdefault(role, tag[1].strip())
        return _TAG.sub("", part)
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": _clean_part(part["text"], role, found)}
    return part
