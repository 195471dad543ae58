"""Validating a reply against the request's `response_format`. Pure functions."""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from optillm_hooks.types import Json

_PATTERNS = ("pattern", "patternProperties")
_REFS = ("$ref", "$dynamicRef", "$recursiveRef")
_MAX_REFERENCES = 2_000


def is_json_mode(response_format: Json) -> bool:
    """Return True if `response_format` requests JSON mode or structured outputs."""
    kinds = ("json_object", "json_schema")
    return isinstance(response_format, dict) and response_format.get("type") in kinds


def fits(text: str, response_format: Json) -> bool:
    """Return True if `text` satisfies `response_format`.

    `json_object` requires a JSON object, `json_schema` requires JSON that matches the schema. Other
    formats are not checked, nor is JSON if the schema is invalid.
    """
    if not isinstance(response_format, dict) or not is_json_mode(response_format):
        return True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if response_format["type"] == "json_object":
        return isinstance(value, dict)
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return not isinstance(schema, dict) or _fits_schema(value, schema)


def _fits_schema(value: Json, schema: dict[str, Json]) -> bool:
    """Return True if `value` matches a client's schema; the work is bounded.

    References are resolved only within the schema, never over the network, and at most
    `_MAX_REFERENCES` times: two recursive references double the work at each level of the value.
    Regular expressions are not checked: a client's could block the event loop.
    """
    import jsonschema  # slow to import, and few requests need it
    import referencing

    try:
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
        bounded = {
            **dict.fromkeys(_PATTERNS, _no_check),
            **{name: _bounded(kind.VALIDATORS[name]) for name in _REFS if name in kind.VALIDATORS},
        }
        checked = jsonschema.validators.extend(kind, bounded)
        return bool(checked(schema, registry=referencing.Registry()).is_valid(value))
    except Exception:
        # jsonschema may raise any exception for a malformed schema; the reply is then not checked.
        return True


def _bounded(follow: Callable[..., Iterable[Any]]) -> Callable[..., Iterable[Any]]:
    followed = itertools.count(1)

    def check(*args: Any) -> Iterable[Any]:
        if next(followed) > _MAX_REFERENCES:
            raise RecursionError
        return follow(*args)

    return check


def _no_check(*_: object) -> tuple[()]:
    return ()
