"""Verifies the form of an answer by JSON Schema: that of the request, or that of a parameter."""

from dataclasses import dataclass

from optillm_hooks.answer_format import answers_fit, fault_in_schema, fitted
from optillm_hooks.answers.response_format import is_json_mode
from optillm_hooks.errors import Refused
from optillm_hooks.services import Services
from optillm_hooks.types import Json
from optillm_hooks.verifiers.protocol import UNKNOWN, Asked, Check, Verdict


@dataclass(frozen=True, slots=True)
class _FormatCheck(Check):
    """The whole answer has to match, as the client reads it."""

    response_format: Json
    deadline: float

    async def verify(self, answer: str) -> Verdict:
        fits = await answers_fit([answer], self.response_format, self.deadline)
        return UNKNOWN if fits is None else _verdict(fits)


@dataclass(frozen=True, slots=True)
class _SchemaCheck(Check):
    """The JSON in the answer has to match."""

    wanted: Json
    """A `response_format` with the schema."""

    deadline: float

    async def verify(self, answer: str) -> Verdict:
        return _verdict((await fitted(answer, self.wanted, self.deadline)).text is not None)


def _verdict(fits: bool) -> Verdict:
    return Verdict("pass" if fits else "fail", float(fits))


class Schema:
    """The verifier `schema`."""

    automatic = True

    def missing(self, _: Services) -> str:
        return ""

    async def check_for(self, asked: Asked) -> Check | None:
        deadline = asked.ctx.deadline
        if asked.schema is None:
            wanted = asked.ctx.client.fields.get("response_format")
            return _FormatCheck(wanted, deadline) if is_json_mode(wanted) else None
        wanted = {"type": "json_schema", "json_schema": {"schema": dict(asked.schema)}}
        if fault := await fault_in_schema(wanted, deadline):
            raise Refused(f"json_schema cannot be used: {fault}")
        return _SchemaCheck(wanted, deadline)
