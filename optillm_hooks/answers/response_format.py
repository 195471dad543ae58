"""Whether a text has the form that a request's `response_format` asks for. Pure functions."""

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any

from optillm_hooks.types import Json

_PATTERNS = ("pattern", "patternProperties")
_REFS = ("$ref", "$dynamicRef", "$recursiveRef")
_MAX_REFERENCES = 2_000


def fits(text: str, response_format: Json) -> bool:
    """Return whether `text` is what `response_format` (OpenAI's field) asks for.

    `json_object` asks for a JSON object, `json_schema` for JSON that fits the schema. Any other
    format is not checked, nor is a schema that is itself not valid.
    """
    if not isinstance(response_format, dict):
        return True
    kind = response_format.get("type")
    if kind not in ("json_object", "json_schema"):
        return True
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if kind == "json_object":
        return isinstance(value, dict)
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return not isinstance(schema, dict) or _fits_schema(value, schema)


def _fits_schema(value: Json, schema: dict[str, Json]) -> bool:
    """Return whether `value` fits a client's schema, which must not cost us anything.

    References are followed within the schema only, never over the network, and not more than
    `_MAX_REFERENCES` of them, since two that lead back to their own place double the work at each
    level of the value. Regular expressions are left aside: one of theirs could keep the event loop
    busy for ever.
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
        # Whatever a schema of theirs sets off in the library says nothing of the answer.
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
