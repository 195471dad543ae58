"""The texts of a conversation and of a request's fields: visits each, and puts in what is returned.

JSON in a text is read as JSON: a value may hide behind its escapes.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, Protocol

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.errors import RequestRejected
from optillm_hooks.types import Chat, Fields, Json, Message, Sampling

_MAX_LEVELS: Final = 64
_MAX_JSON: Final = 1 << 22
"""Characters up to which a text is read as JSON."""

_LONG_NUMBER: Final = 10**6
"""Shorter whole numbers are no private values."""

_OPAQUE: Final = frozenset(
    {
        "cache_control", "call_id", "data", "encrypted_content", "file_data", "file_id", "format",
        "id", "index", "input_audio", "media_type", "mime_type", "role", "signature",
        "thought_signature", "tool_call_id", "type",
    }
)  # fmt: skip
"""Fields that say what something is, or that only a provider can read."""

_OF_NAMES: Final = frozenset(
    {
        "$defs", "definitions", "dependencies", "dependentRequired", "dependentSchemas",
        "patternProperties", "properties",
    }
)  # fmt: skip
"""Objects in a schema whose keys are names of the client's own."""

_DEFINED: Final = frozenset(
    {"function_call", "functions", "response_format", "tool_choice", "tools"}
)
"""Fields of a request whose form is known. Others, such as a host's own, are data."""

_DATA: Final = frozenset(
    {"arguments", "const", "default", "enum", "example", "examples", "input", "metadata"}
)
"""Fields that have data of the client's own, whatever it is called in there."""

_DATA_URL: Final = Pattern(
    r"data:[\w.+-]{1,100}/[\w.+-]{1,100}(?:;[\w.+-]{1,100}=[\w.+-]{1,100}){0,4};base64,[\w+/=-]*"
)

PLAIN_PARTS: Final = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
"""Types of content parts that are text."""

_PEOPLE: Final = frozenset({"user", "assistant", "system", "developer"})
"""Roles whose `name` is that of a person; of the others it is a function's."""

_IDS: Final = ("user", "safety_identifier")
"""Fields of a request that are the id of the client's user."""


class Visitor(Protocol):
    """What is done with each text."""

    def text(self, text: str, /) -> str:
        """Return what stands in place of `text`."""
        ...

    def name(self, name: str, entity: str, /) -> str:
        """Return what stands in place of a name or an id, which is private as a whole."""
        ...

    def note(self, text: str, /) -> None:
        """Look at a text that is not replaced itself, but that has context for its parts."""
        ...


class _TooDeep(ValueError):
    pass


def attachments(chat: Chat) -> list[str]:
    """Return the types of content parts that are no text, each once."""
    parts = [part for m in chat if isinstance(m.content, tuple) for part in m.content]
    types = (str(part.get("type")) for part in parts)
    return [name for name in dict.fromkeys(types) if name not in PLAIN_PARTS]


def visit_chat(chat: Chat, visitor: Visitor) -> Chat:
    """Return `chat` with each text as the visitor returns it.

    Raises:
        RequestRejected: something in it is nested too deeply.
    """
    try:
        return tuple(_message(message, visitor) for message in chat)
    except _TooDeep:
        raise RequestRejected("a message is nested too deeply for privacy") from None


def visit_sampling(sampling: Sampling, visitor: Visitor) -> Sampling:
    """Return the fields of a request with each text as the visitor returns it. Raises as above."""
    stop = sampling.stop
    try:
        fields = {name: _field(name, value, visitor) for name, value in sampling.fields.items()}
    except _TooDeep:
        raise RequestRejected("a field of the request is nested too deeply for privacy") from None
    stop = None if stop is None else tuple(map(visitor.text, stop))
    return replace(sampling, fields=fields, stop=stop)


def _field(name: str, value: Json, visitor: Visitor) -> Json:
    if name in _IDS and isinstance(value, str):
        return visitor.name(value, "USER")
    read = _protocol if name in _DEFINED else _as_data
    return read(value, visitor, 0, name)


def _message(message: Message, visitor: Visitor) -> Message:
    content = message.content
    if isinstance(content, str):
        content = _text(content, visitor, 0)
    elif content is not None:
        content = tuple(_part(part, visitor) for part in content)
    fields = {name: _of_message(message, name, visitor) for name in message.fields}
    return replace(message, content=content, fields=fields)


def _part(part: Fields, visitor: Visitor) -> Fields:
    return {name: _protocol(value, visitor, 0, name) for name, value in part.items()}


def _of_message(message: Message, name: str, visitor: Visitor) -> Json:
    value = message.fields[name]
    if name == "name" and isinstance(value, str) and message.role in _PEOPLE:
        return visitor.name(value, "PERSON")
    if name == "thinking_blocks" and isinstance(value, list):
        return [_thought(block, visitor) for block in value]
    return _protocol(value, visitor, 0, name)


def _thought(block: Json, visitor: Visitor) -> Json:
    """Return a block of thinking. A signed one is as its provider wrote it, and has to stay so."""
    signed = isinstance(block, dict) and (block.get("signature") or block.get("data"))
    return block if signed else _protocol(block, visitor, 0, "thinking_blocks")


def _protocol(value: Json, visitor: Visitor, level: int, name: str) -> Json:
    """Return a value of the API: names of its fields stay, except those in a schema."""
    if level > _MAX_LEVELS:
        raise _TooDeep
    if name in _OPAQUE and not isinstance(value, dict | list):
        return value
    if name in _DATA:
        return _as_data(value, visitor, level, name)
    if isinstance(value, str):
        return value if _DATA_URL.fullmatch(value) else _text(value, visitor, level)
    if isinstance(value, list):
        return [_protocol(item, visitor, level + 1, "") for item in value]
    if isinstance(value, Mapping):
        keys = name in _OF_NAMES
        return {
            visitor.text(key) if keys else key: _protocol(
                item, visitor, level + 1, "" if keys else key
            )
            for key, item in value.items()
        }
    return value


def _as_data(value: Json, visitor: Visitor, level: int, _name: str) -> Json:
    """Return a value of the client's own, of which nothing is known: its names are texts too."""
    data: Json = _data(value, visitor, level)
    return data


def _text(text: str, visitor: Visitor, level: int) -> str:
    """Return a text; of JSON, with the texts and long numbers in it replaced."""
    parsed, is_exact = _parsed(text) if level <= _MAX_LEVELS else (None, True)
    if parsed is not None:
        visitor.note(json.dumps(parsed, ensure_ascii=False))
        try:
            visited = _data(parsed, visitor, level + 1)
        except _TooDeep:
            visited = parsed
        if visited != parsed or not is_exact:
            return json.dumps(visited, ensure_ascii=False)
    return visitor.text(text)


def _parsed(text: str) -> tuple[Any, bool]:
    """Return the JSON object or list that `text` is, and whether it has all that is in `text`.

    None if it is none. Of fields of the same name, only the last is read.
    """
    if len(text) > _MAX_JSON or text.lstrip()[:1] not in ("{", "["):
        return None, True
    is_exact = True

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal is_exact
        made = dict(pairs)
        is_exact = is_exact and len(made) == len(pairs)
        return made

    try:
        return json.loads(text, object_pairs_hook=as_object), is_exact
    except (ValueError, RecursionError):
        return None, True


def _data(value: Any, visitor: Visitor, level: int) -> Any:
    if level > _MAX_LEVELS:
        raise _TooDeep
    if isinstance(value, str):
        return _text(value, visitor, level)
    if isinstance(value, list):
        return [_data(item, visitor, level + 1) for item in value]
    if isinstance(value, dict):
        return {visitor.text(k): _data(item, visitor, level + 1) for k, item in value.items()}
    is_whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if is_whole and value >= _LONG_NUMBER:
        written = str(int(value)) if value < 10**40 else ""
        replaced = visitor.text(written)
        return value if replaced == written else replaced
    return value
