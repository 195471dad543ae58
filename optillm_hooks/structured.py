"""Structured replies: a model fills in a form, which is a pydantic model."""

import json
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from optillm_hooks.answers.json_reply import read_object
from optillm_hooks.context import Context
from optillm_hooks.errors import UnusableReply
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, follow_up
from optillm_hooks.reading import read_or
from optillm_hooks.types import Chat, Fields, Json, Sampling

F = TypeVar("F", bound=BaseModel)

_REQUEST: Final = """\
Reply with one JSON object and nothing else. It must match this JSON Schema:
{schema}"""

_AGAIN: Final = """\
That reply does not match the JSON Schema: {problems}
Reply again with one complete JSON object that does, and nothing else."""

_MAX_PROBLEMS: Final = 5


async def fill(
    form: type[F], chat: Chat, llm: LLM, ctx: Context, *, attempts: int = 2, sample: int = 0
) -> F:
    """Return what `llm` replies to `chat`, as a valid `form`.

    The schema is in the prompt, and in `response_format` where the model is known to accept it. A
    reply that is not valid is shown to the model with what is wrong in it, and asked for again.

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
    asked = ask(chat, _REQUEST.format(schema=json.dumps(schema)))
    fields: Fields = _response_format(form, schema) if llm.facts.supports("response_format") else {}
    for attempt in range(attempts):
        sampling = Sampling(purpose="judge", fields=fields, sample=sample + attempt)
        reply = await llm.complete(asked, sampling)
        found = await read_or(None, ctx, read_object, reply.text)
        try:
            return form.model_validate(found)
        except ValidationError as exc:
            problems = _problems(exc) if found is not None else "it has no JSON object"
            asked = follow_up(asked, reply.text, _AGAIN.format(problems=problems))
    raise UnusableReply(f"no valid {form.__name__} after {attempts} attempts")


def _response_format(form: type[BaseModel], schema: Json) -> Fields:
    wanted: Json = {"name": form.__name__, "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def _problems(error: ValidationError) -> str:
    found = error.errors()[:_MAX_PROBLEMS]
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'object'}: {e['msg']}" for e in found)
