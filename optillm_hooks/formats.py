"""Whether a text has the form that a request's `response_format` asks for. Pure functions."""

import json

from optillm_hooks.types import Json

_PATTERNS = ("pattern", "patternProperties")


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
    except ValueError:
        return False
    if kind == "json_object":
        return isinstance(value, dict)
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return not isinstance(schema, dict) or _fits_schema(value, schema)


def _fits_schema(value: Json, schema: dict[str, Json]) -> bool:
    """Return whether `value` fits a client's schema, which must not cost us anything.

    References are followed within the schema only, never over the network, and regular
    expressions are left aside: one of theirs could keep the event loop busy for ever.
    """
    import jsonschema  # slow to import, and few requests need it
    import referencing

    kind = jsonschema.validators.validator_for(schema)
    without_patterns = jsonschema.validators.extend(kind, dict.fromkeys(_PATTERNS, _no_check))
    try:
        kind.check_schema(schema)
        return bool(without_patterns(schema, registry=referencing.Registry()).is_valid(value))
    except (jsonschema.SchemaError, referencing.exceptions.Unresolvable, RecursionError):
        return True


def _no_check(*_: object) -> tuple[()]:
    return ()
