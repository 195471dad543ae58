"""Reads the JSON object in a reply that was asked for one."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.types import Json

_MAX_REPAIRED: Final = 100_000
"""Maximum length of a text that is repaired."""

_MAX_OBJECTS: Final = 8
"""Maximum objects that are read in a text."""

_MAX_BRACES: Final = 32
"""Maximum braces at which an object is looked for."""


def read_objects(text: str, *, repair: bool = True) -> list[dict[str, Json]]:
    """Return the JSON objects that `text` may mean, the most likely first.

    First comes the whole text, then fenced blocks and objects amid prose, the last of them first:
    models think before they answer. Reasoning before them is skipped, and JSON inside a string is
    read too. With `repair`, the last is what is left after repairs: quotes, commas and brackets
    that are missing or of the wrong kind, constants of Python, comments.
    """
    visible = without_reasoning(text).strip()
    found = (each for each in _objects(visible, repair=repair) if each is not None)
    return list(islice(found, _MAX_OBJECTS))


def _objects(text: str, *, repair: bool) -> Iterator[dict[str, Json] | None]:
    yield _as_object(_loads(text))
    blocks = [block.content.strip() for block in reversed(code_blocks(text))]
    yield from (_as_object(_loads(block)) for block in blocks)
    yield from reversed(list(_amid_prose(text)))
    if repair:
        broken = next((block for block in blocks if block.startswith("{")), text)
        yield _as_object(repaired(broken[max(broken.find("{"), 0) :]))


def _as_object(value: Json) -> dict[str, Json] | None:
    """Return `value` if it is an object, or the object that it is the text of."""
    if isinstance(value, str):
        value = _loads(value.strip())
    return value if isinstance(value, dict) else None


def _amid_prose(text: str) -> Iterator[dict[str, Json]]:
    at = text.find("{")
    for _ in range(_MAX_BRACES):
        if at < 0:
            return
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            yield value
        at = text.find("{", end)


def values_amid_prose(text: str) -> Iterator[tuple[Json, str]]:
    """Yield the JSON objects and arrays in `text` with their texts.

    The first that is broken ends it: what follows may be a part of it.
    """
    at = _opening(text, 0)
    for _ in range(_MAX_BRACES):
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield value, text[at:end]
        at = _opening(text, end)


def _opening(text: str, start: int) -> int:
    found = _OPENING.search(text, start)
    return len(text) if found is None else found.start()


def _loads(text: str) -> Json:
    try:
        return strict_loads(text)
    except (ValueError, RecursionError):
        return None


def strict_loads(text: str) -> Json:
    """Return the JSON value that `text` is. NaN and infinities are none.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deep.
    """
    value: Json = _DECODER.decode(text)
    return value


def repaired(text: str) -> dict[str, Json] | list[Json] | None:
    """Return the object or array that `text`, which begins with its bracket, is meant to be."""
    if text[:1] not in ("{", "[") or len(text) > _MAX_REPAIRED:
        return None
    import json_repair

    try:
        value = json_repair.loads(text, skip_json_loads=True)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError, TypeError):
        return None
    return value if type(value) is {"{": dict, "[": list}[text[0]] else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_OPENING: Final = re.compile(r"[{\[]")
_DECODER: Final = json.JSONDecoder(parse_constant=_refuse)
