"""Whether a model's reply to a problem is right."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from optillm_hooks.answer_format import LIMITS
from optillm_hooks.answers import response_format
from optillm_hooks.answers.equivalence import equivalent
from optillm_hooks.answers.extraction import AnswerFormat, extract_answer, without_reasoning
from optillm_hooks.code_execution.public_tests import CallTest, InputTest, PublicTests
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.code_execution.testing import count_passed, find_program
from optillm_hooks.errors import UnusableReply
from optillm_hooks.evaluation.bills import NOTHING, Bill
from optillm_hooks.sandbox.client import WorkerFailed, ask_worker
from optillm_hooks.types import Json
from optillm_hooks.verifiers.regex import matches

Grade = Literal["right", "wrong", "unread"]
"""`unread`: the reply has no answer that could be read. It counts as wrong, and is reported."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a grader found that waits for a program or a model."""

    grade: Grade | None
    """None: a judge gave no verdict."""

    bill: Bill = NOTHING
    """Of the judge."""

    fault: str = "the judge gave no verdict"
    """Why there is no grade."""


Grader = Callable[[str], Grade]
Checker = Callable[[str], Awaitable[Judged]]

Kind = Literal[
    "auto", "number", "choice", "exact", "regex", "json_schema", "tests", "judge", "preferred"
]

_FORMATS: Final[dict[str, AnswerFormat]] = {"number": "number", "choice": "choice", "auto": "auto"}


def _graded(right: bool) -> Grade:
    return "right" if right else "wrong"


@dataclass(frozen=True, slots=True)
class ByAnswer:
    """Right if the final answer of the reply is equivalent to the answer that is known."""

    answer: str
    kind: Literal["auto", "number", "choice"] = "auto"
    question: str = ""
    """It says what kind of answer is asked for."""

    def __call__(self, reply: str) -> Grade:
        said = extract_answer(reply, _FORMATS[self.kind], question=self.question)
        return "unread" if said is None else _graded(equivalent(said, self.answer))


@dataclass(frozen=True, slots=True)
class Exact:
    """Right if the reply, without its reasoning and outer whitespace, is the answer."""

    answer: str

    def __call__(self, reply: str) -> Grade:
        return _graded(without_reasoning(reply).strip() == self.answer.strip())


@dataclass(frozen=True, slots=True)
class ByPattern:
    """Right if the operator's expression is found in the reply, without its reasoning.

    A worker searches: for some texts, an expression takes for ever.
    """

    pattern: str

    async def __call__(self, reply: str) -> Judged:
        try:
            return Judged(_graded(bool(await matches(self.pattern, without_reasoning(reply)))))
        except UnusableReply:
            return Judged("unread")


@dataclass(frozen=True, slots=True)
class ByFormat:
    """Right if the reply matches a `response_format`: JSON, and the schema if it has one.

    A worker checks it, for the same reason.
    """

    response_format: Json

    async def __call__(self, reply: str) -> Judged:
        texts: Json = [without_reasoning(reply)]
        request = {"task": "fit", "texts": texts, "response_format": self.response_format}
        try:
            fits = await ask_worker(response_format.__name__, request, LIMITS)
        except WorkerFailed:
            return Judged("unread")
        return Judged("unread" if fits is None else _graded(bool(fits)))


@dataclass(frozen=True, slots=True)
class ByTests:
    """Right if the program in the reply passes all tests, in the sandbox."""

    snippets: Sequence[str]
    """Each runs after the program, and fails if it does not run to its end."""

    inputs: Sequence[InputTest]
    runner: CodeRunner
    setup: str = ""
    """Code that runs before the program, which may replace what it defines."""

    async def __call__(self, reply: str) -> Judged:
        try:
            program = await find_program(reply)
        except UnusableReply:
            return Judged("unread")
        if program is None:
            return Judged("unread")
        tests = PublicTests([CallTest(each, "...") for each in self.snippets], self.inputs)
        passed = await count_passed(f"{self.setup}\n\n{program}", tests, self.runner)
        return Judged(_graded(passed == len(tests)))
