"""Validating replies against the request's `response_format`, in a worker process.

The schema is the client's, and checking a text against it has no useful bound: a few lines of
schema can mean minutes of work, and so can a regular expression in it. The module is a worker of
`sandbox`, which is killed when its time is up.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from optillm_hooks.types import Json


def is_json_mode(response_format: Json) -> bool:
    """Return True if `response_format` requests JSON mode or structured outputs."""
    kinds = ("json_object", "json_schema")
    return isinstance(response_format, dict) and response_format.get("type") in kinds


def fit(texts: Sequence[str], response_format: Json) -> bool | None:
    """Return whether all `texts` satisfy `response_format`; None if that cannot be checked.

    `json_object` requires a JSON object, `json_schema` requires JSON that matches the schema. Other
    formats require nothing. A schema that is invalid cannot be checked.
    """
    if not isinstance(response_format, dict) or not is_json_mode(response_format):
        return True
    try:
        values = [json.loads(text) for text in texts]
    except (ValueError, RecursionError):
        return False
    if response_format["type"] == "json_object":
        return all(isinstance(value, dict) for value in values)
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return True if schema is None else _fit_schema(values, schema)


def _fit_schema(values: Sequence[Json], schema: Json) -> bool | None:
    """Return whether all `values` match a client's schema; None if that cannot be checked.

    References are resolved only within the schema, never over the network.
    """
    import referencing

    try:
        validator = _validator(schema)
        validator.check_schema(schema)
        checked = validator(schema, registry=referencing.Registry())
        return all(checked.is_valid(value) for value in values)
    except Exception:  # jsonschema may raise any exception for a malformed schema
        return None


def _validator(schema: Json) -> Any:
    """Return the validator of a schema's dialect, with `uniqueItems` in linear time."""
    import jsonschema  # slow to import, and the proxy itself does not need it

    return _with_unique_items(jsonschema.validators.validator_for(schema))


@cache
def _with_unique_items(validator: Any) -> Any:
    import jsonschema

    def unique_items(_: Any, required: Json, items: Json, __: Json) -> Iterator[Exception]:
        if required and isinstance(items, list) and len(set(map(_key, items))) < len(items):
            yield jsonschema.ValidationError("the items are not unique")

    return jsonschema.validators.extend(validator, {"uniqueItems": unique_items})


def _key(value: Json) -> object:
    """Return a hashable value that is the same for equal JSON values: 1 is 1.0, but not true."""
    if isinstance(value, list):
        return list, tuple(map(_key, value))
    if isinstance(value, dict):
        return dict, frozenset((name, _key(item)) for name, item in value.items())
    return isinstance(value, bool), value


def load() -> None:
    """Import what the checks need, and prepare the usual dialect of schemas."""
    _fit_schema([{"x": 1}], {"type": "object", "properties": {"x": {"type": "integer"}}})


def answer(request: Mapping[str, Any]) -> Json:
    """Return `fit` of the fields `texts` and `response_format` of `request`."""
    return fit(request["texts"], request["response_format"])
