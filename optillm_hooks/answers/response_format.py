"""Validating replies against the request's `response_format`, in a worker process.

The schema is the client's, and checking a text against it has no useful bound: a few lines of
schema can mean minutes of work, and so can a regular expression in it. The module is a worker of
`sandbox`, which is killed when its time is up.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import cache
from itertools import islice
from typing import Any, Final, NamedTuple

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.json_reply import repaired, strict_loads, values_amid_prose
from optillm_hooks.types import Json

_MAX_PROBLEMS: Final = 5
_MAX_RETYPED: Final = 100
"""Maximum values of a reply whose type is changed."""

_MAX_PROBLEM: Final = 240
"""Maximum characters of the description of one."""

_NO_SCHEMAS: Final = frozenset({"const", "default", "enum", "example", "examples"})
"""Keywords of a schema whose values are plain data."""


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
        values = [*map(strict_loads, texts)]
    except (ValueError, RecursionError):
        return False
    if response_format["type"] == "json_object":
        return all(isinstance(value, dict) for value in values)
    return _fit_schema(values, schema_of(response_format))


def schema_of(response_format: Json) -> Json:
    """Return the schema that a JSON `response_format` requires; one without schema allows all."""
    if not isinstance(response_format, dict):
        return {}
    if response_format.get("type") == "json_object":
        return {"type": "object"}
    wrapper = response_format.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    return {} if schema is None else schema


def fault_in_schema(schema: Json) -> str | None:
    """Return what is wrong in a client's schema, so that no reply could be checked against it."""
    if not isinstance(schema, dict | bool):
        return "it has to be an object"
    try:
        checker = _checker(schema)
        if (reference := _unknown_reference(schema)) is not None:
            return _shortened(f"{reference!r} is not a part of it")
        values: list[Json] = [{}, [], "", 0]
        for value in values:
            checker.is_valid(value)
    except RecursionError:
        return "it has no end"
    except Exception as exc:  # as above
        return _shortened(str(getattr(exc, "message", exc)))
    return None


def _unknown_reference(schema: Json) -> str | None:
    """Return a reference of a schema to something that is not in it."""
    import referencing.jsonschema

    specification = referencing.jsonschema.DRAFT202012
    contents: Any = schema
    resource = referencing.Resource.from_contents(contents, default_specification=specification)
    resolver = referencing.Registry().with_resource("", resource).resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except referencing.exceptions.Unresolvable:
            return reference
    return None


def _references(schema: Json) -> Iterator[str]:
    """Yield the references of a schema that has no other base than itself."""
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each)
    if not isinstance(schema, dict) or isinstance(schema.get("$id"), str):
        return
    if isinstance(reference := schema.get("$ref"), str):
        yield reference
    for key, each in schema.items():
        if key not in _NO_SCHEMAS:
            yield from _references(each)


class Fitted(NamedTuple):
    """A reply as its `response_format` wants it."""

    text: str | None
    """The JSON text; None if the reply has none that matches."""

    problems: list[str]
    """What is wrong in it, for the model that wrote it."""


def fitted(text: str, response_format: Json, *, whole: bool = True) -> Fitted:
    """Return the JSON of a reply that matches a JSON `response_format`, or what is wrong in it.

    What can mean only one thing is put right: reasoning, prose or a fence around the JSON, quotes,
    commas and brackets, a number as a text, a choice in other letters. The text is left as it is
    if it matches as it is. Of a reply that is not `whole`, nothing is completed.

    Raises:
        Exception: any, by jsonschema, if the reply cannot be checked.
    """
    checker = _checker(schema_of(response_format))
    said = without_reasoning(text).strip().lstrip("\ufeff")
    try:
        found: list[tuple[Json, str | None]] = [(strict_loads(said), said)]
    except (ValueError, RecursionError):
        found = _inside(said)
    if whole and not found and (value := _repaired(said)) is not None:
        found = [(value, None)]
    return _matching(found, checker)


def _inside(text: str) -> list[tuple[Json, str | None]]:
    """Return the values of the fenced blocks in `text`, or else those amid its prose."""
    found: list[tuple[Json, str | None]] = []
    for block in code_blocks(text):
        with suppress(ValueError, RecursionError):
            found.append((strict_loads(block.content), block.content.strip()))
    return found or [*values_amid_prose(text)]


def _repaired(text: str) -> Json:
    """Return the object or array that the last fenced block or else `text` is meant to be.

    It must be closed: of a text that ends within a value, nobody knows the rest.
    """
    blocks = [block.content for block in code_blocks(text)]
    text = next((block for block in reversed(blocks) if block.lstrip()[:1] in ("{", "[")), text)
    starts = [at for at in map(text.find, "{[") if at >= 0]
    end = max(map(text.rfind, "}]"), default=-1)
    return repaired(text[min(starts) : end + 1]) if starts else None


def _matching(found: Sequence[tuple[Json, str | None]], checker: Any) -> Fitted:
    """Return the text of the one value among `found` that matches."""
    matching: dict[str, str] = {}
    problems: list[str] = []
    for value, text in found:
        wrong = list(islice(checker.iter_errors(value), _MAX_RETYPED))
        if not wrong:
            matching[_dumped(value)] = text or _dumped(value)
        elif (other := _meant(value, wrong, checker)) is not None:
            matching[_dumped(other[0])] = _dumped(other[0])
        else:
            problems = problems or [_problem(each) for each in wrong[:_MAX_PROBLEMS]]
    if len(matching) == 1:
        return Fitted(next(iter(matching.values())), [])
    if matching:
        return Fitted(None, ["it has several JSON values, so it is not clear which one counts"])
    return Fitted(None, problems or ["it is not JSON"])


def _meant(value: Json, wrong: Sequence[Any], checker: Any) -> tuple[Json] | None:
    """Return what a value that does not match can only mean, or None."""
    retyped = [deepcopy(value)]
    for error in wrong:
        for each in (error, *(error.context or ())):
            _retype(retyped, [0, *each.absolute_path], each)
    candidates = [*retyped]
    if isinstance(value, dict) and len(value) == 1:
        candidates += [each for each in value.values() if isinstance(each, dict | list)]
    return next(((each,) for each in candidates if checker.is_valid(each)), None)


def _retype(value: Any, place: Sequence[int | str], error: Any) -> None:
    """Change what is at `place` in `value` to the type or the choice that `error` misses."""
    with suppress(LookupError, TypeError, ValueError, RecursionError):
        for key in place[:-1]:
            value = value[key]
        given = value[place[-1]]
        if error.validator == "type":
            value[place[-1]] = _as_type(given, error.validator_value)
        elif error.validator in ("enum", "const"):
            choices = (
                error.validator_value if error.validator == "enum" else [error.validator_value]
            )
            same = [each for each in choices if _letters(each) == _letters(given) is not None]
            [value[place[-1]]] = same


def _letters(value: Json) -> str | None:
    return value.strip().casefold() if isinstance(value, str) else None


def _as_type(value: Json, wanted: Json) -> Json:
    """Return a text as the number or other value that it spells, or a number as a text.

    Raises:
        ValueError: it has no such meaning.
    """
    types = wanted if isinstance(wanted, list) else [wanted]
    if isinstance(value, str):
        spelt = strict_loads(value.strip().lower() if "boolean" in types else value)
        if not isinstance(spelt, str):
            return spelt
    elif isinstance(value, int | float) and not isinstance(value, bool) and "string" in types:
        return json.dumps(value)
    raise ValueError


def _dumped(value: Json) -> str:
    """Return `value` as JSON in a form that can be sent: lone surrogates stay escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _problem(error: Any) -> str:
    """Return a mismatch in words; of several alternatives, that of the closest one."""
    import jsonschema

    closest = jsonschema.exceptions.best_match([error])
    return _shortened(f"{closest.json_path}: {closest.message}")


def _shortened(text: str) -> str:
    half = _MAX_PROBLEM // 2
    return text if len(text) <= _MAX_PROBLEM else f"{text[:half]} ... {text[-half:]}"


def _fit_schema(values: Sequence[Json], schema: Json) -> bool | None:
    """Return whether all `values` match a client's schema; None if that cannot be checked."""
    try:
        checked = _checker(schema)
        return all(checked.is_valid(value) for value in values)
    except Exception:  # jsonschema may raise any exception for a malformed schema
        return None


def _checker(schema: Json) -> Any:
    """Return the validator of a client's schema, which checks formats too.

    References are resolved only within the schema, never over the network.

    Raises:
        Exception: any, by jsonschema, for a schema that is invalid.
    """
    import referencing

    validator = _validator(schema)
    validator.check_schema(schema)
    return validator(
        schema, registry=referencing.Registry(), format_checker=validator.FORMAT_CHECKER
    )


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
    schema: Json = {"type": "object", "properties": {"x": {"type": "integer"}}}
    format_: Json = {"type": "json_schema", "json_schema": {"schema": schema}}
    fitted("{'x': 1}", format_)


def answer(request: Mapping[str, Any]) -> Json:
    """Return the result of the function that the field `task` of `request` names."""
    response_format = request["response_format"]
    match request["task"]:
        case "fault":
            return fault_in_schema(schema_of(response_format))
        case "fitted":
            try:
                text, problems = fitted(request["text"], response_format, whole=request["whole"])
            except Exception:  # as above
                return None
            return [text, [*problems]]
        case _:
            return fit(request["texts"], response_format)
