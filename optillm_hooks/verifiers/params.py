"""The parameters of approaches that verify answers."""

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Params
from optillm_hooks.services import Services
from optillm_hooks.types import Chat
from optillm_hooks.verifiers.panel import AUTO, check_names, missing
from optillm_hooks.verifiers.protocol import Asked


class VerifyingParams(Params):
    """Base class of the parameters of an approach that verifies answers."""

    verifiers: tuple[str, ...] = Field(
        default=(AUTO,),
        min_length=1,
        max_length=16,
        description="Verifiers: tests, sympy, z3, schema, regex, calculator, http, those of other "
        "packages, and auto, which is all that apply and cost no model call.",
    )
    json_schema: dict[str, Any] | None = Field(
        default=None,
        max_length=64,
        description="JSON Schema of the JSON in the answer; unset: that of `response_format`.",
    )
    pattern: str | None = Field(
        default=None,
        max_length=1000,
        description="Regular expression (of Python's re) that is found in a right answer.",
    )

    @field_validator("verifiers")
    @classmethod
    def _are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_names(names)
        return names

    @model_validator(mode="after")
    def _has_a_pattern(self) -> Self:
        if "regex" in self.verifiers and self.pattern is None:
            raise ValueError("verifiers: regex needs the parameter pattern")
        return self

    def check_services(self, services: Services) -> None:
        """Raise `RequestRejected` if a verifier that is named needs something that is missing."""
        if problem := missing(self.verifiers, services):
            raise RequestRejected(problem, param="verifiers")

    def asked(self, chat: Chat, llm: LLM, ctx: Context) -> Asked:
        """Return the request whose answers are verified."""
        schema, pattern = self.json_schema, self.pattern
        return Asked(chat=chat, llm=llm, ctx=ctx, schema=schema, pattern=pattern)
