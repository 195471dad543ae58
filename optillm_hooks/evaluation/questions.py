"""Questions with what grades replies to them: the lines of one's own files, and rows of sets."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any, Final, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    ValidationError,
    model_validator,
)

from optillm_hooks.answers.response_format import fault_in_schema, schema_of
from optillm_hooks.code_execution.public_tests import InputTest
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.config_files import CannotRun
from optillm_hooks.errors import RequestRejected
from optillm_hooks.evaluation.grading import (
    ByAnswer,
    ByFormat,
    ByPattern,
    ByTests,
    Checker,
    Exact,
    Grader,
    Kind,
)
from optillm_hooks.evaluation.judge import ByJudge, ByPreference, EndpointModel
from optillm_hooks.messages import read_chat, write_chat
from optillm_hooks.types import Chat, Message
from optillm_hooks.wrong_values import wrong_value

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Problem:
    """A request whose reply can be graded."""

    id: str
    """The same in each run with the same tasks and seed."""

    messages: Messages
    grade: Grader | Checker
    version: str = ""
    """Another one if the question or its check has been changed; "" if it cannot be."""


@dataclass(frozen=True, slots=True)
class Graders:
    """What some checks need."""

    runner: CodeRunner | None = None
    """For `tests`."""

    judge: EndpointModel | None = None
    """For `judge` and `preferred`."""

    baseline: EndpointModel | None = None
    """For `preferred`: replies are compared with those of this model."""


_VERSION: Final = 12
"""Characters that tell versions of a question apart."""

NO_GRADERS: Final = Graders()


class _InputOutput(BaseModel):
    """What a program is to print for an input."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    input: str
    output: str


def _answer(given: object) -> str | int | float:
    """Return an answer that a reply can agree with."""
    if isinstance(given, str) and given.strip():
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    if isinstance(given, float) and isfinite(given):
        return given
    raise ValueError("must be a text that is not empty, or a finite number")


class Question(BaseModel):
    """A line of a file of one's own questions."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    id: str | None = None
    question: str | None = None
    messages: Messages | None = None
    answer: Annotated[str | int | float, PlainValidator(_answer)] | None = None
    check: Kind = "auto"
    pattern: re.Pattern[str] | None = Field(default=None, description="with check: regex")
    response_format: JsonValue = Field(default=None, description="with check: json_schema")
    tests: list[str | _InputOutput] | None = Field(
        default=None, min_length=1, description="with check: tests"
    )
    setup: str = Field(default="", description="with check: tests; code before the program")
    baseline: str | None = Field(default=None, description="with check: preferred")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.question is None) == (self.messages is None):
            raise ValueError("needs either question or messages")
        self._chat()
        needed = _NEEDED.get(self.check, "answer")
        if needed and getattr(self, needed) is None:
            raise ValueError(f"check {self.check!r} needs {needed}")
        if self.check == "json_schema" and (
            fault := fault_in_schema(schema_of(self.response_format))
        ):
            raise ValueError(f"response_format has a schema that cannot be used: {fault}")
        return self

    def problem(self, name: str, graders: Graders) -> Problem:
        """Return the problem, which is called `name` if the question has no id.

        Raises:
            CannotRun: `graders` lacks what the check needs.
        """
        chat = self._chat()
        grader = self._grader(chat, graders)
        return Problem(self.id or name, write_chat(chat), grader, self._version())

    def _version(self) -> str:
        told = self.model_dump_json(exclude_defaults=True)
        return hashlib.sha256(told.encode()).hexdigest()[:_VERSION]

    def _chat(self) -> Chat:
        """Return the messages, or the question as one.

        Raises:
            ValueError: the messages are none.
        """
        if self.messages is None:
            return (Message("user", self.question),)
        try:
            return read_chat(self.messages)
        except RequestRejected as exc:
            raise ValueError(str(exc)) from None

    def _grader(self, chat: Chat, graders: Graders) -> Grader | Checker:
        answer, asked = str(self.answer), chat[-1].text
        match self.check:
            case "exact":
                return Exact(answer)
            case "regex" if self.pattern is not None:
                return ByPattern(self.pattern.pattern)
            case "json_schema":
                return ByFormat(self.response_format)
            case "tests":
                tests = self.tests or []
                return ByTests(
                    [test for test in tests if isinstance(test, str)],
                    [InputTest(t.input, t.output) for t in tests if isinstance(t, _InputOutput)],
                    _needed(graders.runner, "tests", "--code-runner"),
                    self.setup,
                )
            case "judge":
                return ByJudge(_needed(graders.judge, "judge", "--judge"), asked, answer)
            case "preferred":
                judge = _needed(graders.judge, "preferred", "--judge")
                return ByPreference(
                    judge,
                    chat,
                    _needed(graders.baseline, "preferred", "--baseline")
                    if self.baseline is None
                    else self.baseline,
                )
            case "auto" | "number" | "choice" as kind:
                return ByAnswer(answer, kind, question=asked)
        raise AssertionError(self.check)  # `_is_whole` has refused it


_NEEDED: Final = {
    "regex": "pattern",
    "json_schema": "response_format",
    "tests": "tests",
    "preferred": "",
}
"""The fields that checks need; the others need `answer`."""

N = TypeVar("N")


def _needed(given: N | None, check: Kind, option: str) -> N:
    if given is None:
        raise CannotRun(f"check {check!r} needs the option {option}")
    return given


def question_of(fields: Mapping[str, Any] | str, where: str) -> Question:
    """Return the question that is in a line of JSON, or has these fields.

    Args:
        fields: the line, or the fields.
        where: it is, for the message.

    Raises:
        CannotRun: it is none.
    """
    try:
        if isinstance(fields, str):
            return Question.model_validate_json(fields)
        return Question.model_validate(fields)
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"])) or "line"
        raise CannotRun(f"{where}: {place}: {wrong_value(first)}") from None
