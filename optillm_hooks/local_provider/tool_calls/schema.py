"""What the JSON schema of a tool says about the type of an argument."""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from optillm_hooks.local_provider.tool_calls.literals import LiteralReader

_MAX_DEPTH = 8
"""Number of nested references and alternatives that are followed."""

_MAX_ALTERNATIVES = 256
"""Number of alternatives that are told apart. References within one another multiply them."""

_WORDS: Mapping[str, Any] = {"True": True, "False": False, "None": None}
_TYPES: Mapping[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object",
    type(None): "null",
}  # fmt: skip
_ALL = frozenset(_TYPES.values())


def with_definitions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `schema` with the definitions of `root`, to which it may refer."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return {**shared, **schema}


def alternatives(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return schemas of one type each that together allow what `schema` does.

    A schema that does not say its type stays as it is. References are followed. With too many
    alternatives, anything is allowed.
    """
    found = list(islice(_alternatives(schema), _MAX_ALTERNATIVES + 1))
    return found if len(found) <= _MAX_ALTERNATIVES else [{}]


def _alternatives(schema: Mapping[str, Any], depth: int = 0) -> Iterator[Mapping[str, Any]]:
    if depth > _MAX_DEPTH:
        yield {}
        return
    if "$ref" in schema:
        yield from _alternatives(_referred(schema), depth + 1)
        return
    if options := schema.get("anyOf") or schema.get("oneOf"):
        for option in options:
            yield from _alternatives(with_definitions(option, schema), depth + 1)
        return
    if "const" in schema or "enum" in schema:
        allowed = [schema["const"]] if "const" in schema else schema["enum"]
        for kind in dict.fromkeys(_TYPES[type(value)] for value in allowed):
            yield {"type": kind, "enum": [one for one in allowed if _TYPES[type(one)] == kind]}
        return
    named = schema.get("type", [])
    types = [named] if isinstance(named, str) else list(named)
    if not types:
        yield schema
    for kind in types:
        yield {**schema, "type": kind}


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """Return the JSON types that `schema` allows; all of them if it does not say."""
    named = [one.get("type") for one in alternatives(schema)]
    return _ALL if None in named else frozenset(map(str, named))


def typed(written: str, schema: Mapping[str, Any]) -> Any:
    """Return an argument that was written without quotation marks.

    A string stays as it is if `schema` allows only strings. Otherwise it is parsed as JSON, or as
    Python's literal if no string is allowed: templates write both. It stays a string if it is
    neither, or is of a type that the schema does not allow beside strings.
    """
    types = types_of(schema)
    if types == {"string"}:
        return written
    try:
        value = _parsed(written.strip(), like_python="string" not in types)
    except (ValueError, RecursionError):
        return written
    allowed = types | ({"integer"} if "number" in types else set())
    return written if "string" in types and _TYPES[type(value)] not in allowed else value


def _parsed(word: str, *, like_python: bool) -> Any:
    """Return the value of `word`; raise ValueError."""
    if word in _WORDS:
        return _WORDS[word]
    try:
        return json.loads(word, parse_constant=_refuse)
    except json.JSONDecodeError:
        reader = LiteralReader(word)
        value = reader.value() if like_python else None
        if not like_python or not reader.done:
            raise
        return value


def retyped(value: Any, schema: Mapping[str, Any]) -> Any:
    """Return `value`, parsed if it is a string and `schema` allows none."""
    if isinstance(value, str) and "string" not in types_of(schema):
        return typed(value, schema)
    return value


def _referred(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the definition that `schema` refers to; empty if it is not in the document."""
    found: Any = schema
    for part in str(schema["$ref"]).removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return with_definitions(found, schema) if isinstance(found, Mapping) else {}


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
