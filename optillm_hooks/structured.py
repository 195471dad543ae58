"""Structured replies: a model fills in a form, which is a pydantic model."""

import json
from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.json_reply import read_objects
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, ProviderFailed, UnusableReply
from optillm_hooks.llm import LLM, ModelFacts
from optillm_hooks.prompts import ask, follow_up
from optillm_hooks.reading import read_or
from optillm_hooks.types import Answer, Chat, Json, Sampling
from optillm_hooks.wrong_values import wrong_value

F = TypeVar("F", bound=BaseModel)

_REQUEST: Final = """\
Reply with one JSON object and nothing else. It must match this JSON Schema:
{schema}"""

_AGAIN: Final = """\
That reply does not match the JSON Schema: {problems}
Reply again with one complete JSON object that does, and nothing else."""

_SHORTER: Final = """\
That reply was cut off. Reply again with one complete JSON object that matches the JSON Schema, \
much shorter than before, and nothing else."""

_MAX_PROBLEMS: Final = 5
_MAX_PROBLEM: Final = 200
"""Maximum characters of one."""

_PLAIN_KEYWORDS: Final = frozenset(
    {"type", "properties", "required", "items", "enum", "const", "anyOf", "description"}
)
"""Keywords of JSON Schema that the structured outputs of every provider accept."""

_CONTAINERS: Final = frozenset({"list_type", "dict_type", "model_type"})
"""Errors of a value that has to be an array or an object."""


async def fill(
    form: type[F], chat: Chat, llm: LLM, ctx: Context, *, attempts: int = 2, sample: int = 0
) -> F:
    """Return what `llm` replies to `chat`, as a valid `form`.

    The schema is in the prompt. It is in `response_format` too, unless the model is not known to
    accept that or has refused it. A reply that is not valid is shown to the model with what is
    wrong in it, and asked for again. Fill in several forms at once with `fanout.outcomes`.

    Args:
        form: its field descriptions tell the model what to write. Its values are data of a model.
        chat: the conversation, which ends with the task.
        llm: the model.
        ctx: the run.
        attempts: maximum number of calls.
        sample: number of the first call's sample.

    Raises:
        UnusableReply: no attempt was valid.
        SampleError: a call failed.
    """
    schema = form.model_json_schema()
    first = asked = ask(chat, _REQUEST.format(schema=json.dumps(schema)))
    for attempt in range(attempts):
        sampling = _formatted(form, schema, llm.facts, sample + attempt)
        try:
            reply = await llm.complete(asked, sampling)
        except EmptyCompletion:
            continue
        except ProviderFailed as exc:
            if not exc.answered:
                raise
            continue
        said = _said(reply)
        found = await read_or([], ctx, read_objects, said, repair=not reply.truncated)
        filled, problems = _read(form, found)
        if filled is not None:
            return filled
        plea = _SHORTER if reply.truncated else _AGAIN.format(problems=problems)
        shown = without_reasoning(said)
        asked = follow_up(first, shown, plea) if shown.strip() else first
    raise UnusableReply(f"no valid {form.__name__} after {attempts} attempts")


def _said(reply: Answer) -> str:
    """Return the text of a reply, or the arguments of a tool call that it consists of.

    LiteLLM has models without structured outputs call a tool instead, and may leave it so.
    """
    if reply.text.strip() or not reply.tool_calls:
        return reply.text
    return reply.tool_calls[0].arguments


def _read(form: type[F], found: Sequence[dict[str, Json]]) -> tuple[F | None, str]:
    """Return the first of the objects found that is a valid `form`, or what is wrong in the first.

    An object that has a form as its only value counts too.
    """
    problems = ""
    for value in (*found, *(inner for each in found if (inner := _only_value(each)) is not None)):
        try:
            return _validated(form, value), ""
        except ValidationError as exc:
            problems = problems or _problems(exc)
    return None, problems or "it has no JSON object"


def _only_value(value: dict[str, Json]) -> dict[str, Json] | None:
    values = list(value.values())
    return values[0] if len(values) == 1 and isinstance(values[0], dict) else None


def _validated(form: type[F], value: dict[str, Json]) -> F:
    """Return `value` as a `form`, if need be with values in the type that the form wants.

    Models write numbers where a text is wanted, JSON as a text where a list is wanted, null for
    what they leave out, and names in capitals.
    """
    try:
        return form.model_validate(value)
    except ValidationError as exc:
        retyped = deepcopy(value)
        for error in exc.errors():
            _retype(retyped, error["loc"], error["type"])
        return form.model_validate(retyped)


def _retype(value: Any, place: Sequence[int | str], wrong: str) -> None:
    """Change the type of what is at `place` in `value`, as far as the error `wrong` says how."""
    with suppress(AttributeError, LookupError, TypeError, ValueError, RecursionError):
        for key in place[:-1]:
            value = value[key]
        given = value[place[-1]]
        if given is None and isinstance(value, dict):
            del value[place[-1]]
        elif wrong == "literal_error":
            value[place[-1]] = given.strip().lower()
        elif wrong == "string_type" and type(given) in (int, float):
            value[place[-1]] = json.dumps(given)
        elif wrong in _CONTAINERS and isinstance(given, str):
            value[place[-1]] = json.loads(given)


def _problems(error: ValidationError) -> str:
    found = [
        f"{'.'.join(map(str, each['loc'])) or 'object'}: {wrong_value(each)}"
        for each in error.errors()[:_MAX_PROBLEMS]
    ]
    return "; ".join(problem[:_MAX_PROBLEM] for problem in found)


def _formatted(form: type[BaseModel], schema: Json, facts: ModelFacts, sample: int) -> Sampling:
    """Return the sampling of a call, with the `response_format` that the model takes best."""
    plain = Sampling(purpose="judge", sample=sample)
    if not facts.supports("response_format"):
        return plain
    portable = _portable(schema)
    wanted: Json = {"name": form.__name__, "schema": portable, "strict": _is_closed(portable)}
    formats: list[Json] = [
        {"type": "json_schema", "json_schema": wanted},
        {"type": "json_object"},
    ]
    offered = [replace(plain, fields={"response_format": each}) for each in formats]
    return next((each for each in offered if facts.takes(each)), plain)


def _portable(schema: Json) -> Json:
    """Return a schema of pydantic's in the part of JSON Schema that every provider accepts.

    Every property is required, no other is allowed, and there are no limits: `form` checks those.
    """
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and "$defs" not in schema:
        return {"$ref": schema["$ref"]}
    kept = {key: value for key, value in schema.items() if key in _PLAIN_KEYWORDS}
    for key in ("properties", "$defs"):
        if isinstance(by_name := schema.get(key), dict):
            kept[key] = {name: _portable(each) for name, each in by_name.items()}
    for key in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(key), dict):
            kept[key] = _portable(inner)
    if isinstance(variants := schema.get("anyOf"), list):
        kept["anyOf"] = [_portable(each) for each in variants]
    if isinstance(properties := kept.get("properties"), dict):
        kept |= {"required": list(properties), "additionalProperties": False}
    return kept


def _is_closed(schema: Json) -> bool:
    """Return whether a portable schema names every property, as strict structured outputs need."""
    if isinstance(schema, list):
        return all(map(_is_closed, schema))
    if not isinstance(schema, dict):
        return True
    is_open = schema.get("type") == "object" and schema.get("additionalProperties") is not False
    return not is_open and all(map(_is_closed, schema.values()))
