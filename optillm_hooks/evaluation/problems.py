"""Problems that models are compared on: generated, from a package, or the operator's own."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.code_execution.public_tests import InputTest
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation import worked_examples
from optillm_hooks.evaluation.grading import (
    ByAnswer,
    ByFormat,
    ByPattern,
    ByTests,
    Checker,
    Exact,
    Grade,
    Grader,
    Kind,
)
from optillm_hooks.evaluation.judge import ByJudge, ReferenceJudge
from optillm_hooks.evaluation.number_puzzles import solves
from optillm_hooks.wrong_values import wrong_value

Messages = list[dict[str, Any]]

REASONING_GYM: Final = (
    "basic_arithmetic", "calendar_arithmetic", "chain_sum", "countdown", "family_relationships",
    "gsm_symbolic", "knights_knaves", "letter_counting", "mini_sudoku", "puzzle24", "syllogism",
    "word_sorting", "zebra_puzzles",
)  # fmt: skip
"""Families of reasoning-gym whose verifiers accept right answers and refuse wrong ones.

Left out are families whose verifiers accept nonsense or fail, such as `game_of_life_halting`,
`prime_factorization` and `figlet_font`. Of `countdown` and `puzzle24` only the problems are used.
"""

_DEFAULT_COUNT: Final = 50
_DRAWS: Final = 20
"""How many problems are drawn for each that is kept: equal ones are left out."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A request whose reply can be graded."""

    id: str
    """The same in each run with the same tasks and seed."""

    messages: Messages
    grade: Grader | Checker


@dataclass(frozen=True, slots=True)
class Graders:
    """What some checks need."""

    runner: CodeRunner | None = None
    """For `tests`."""

    judge: ReferenceJudge | None = None
    """For `judge`."""


NO_GRADERS: Final = Graders()


class _InputOutput(BaseModel):
    """What a program is to print for an input."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    input: str
    output: str


class _Own(BaseModel):
    """A line of a file of one's own questions."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    id: str | None = None
    question: str | None = None
    messages: Messages | None = None
    answer: str | int | float | None = None
    check: Kind = "auto"
    pattern: re.Pattern[str] | None = Field(default=None, description="with check: regex")
    response_format: JsonValue = Field(default=None, description="with check: json_schema")
    tests: list[str | _InputOutput] | None = Field(
        default=None, min_length=1, description="with check: tests"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.question is None) == (self.messages is None):
            raise ValueError("needs either question or messages")
        needed = _NEEDED.get(self.check, "answer")
        if getattr(self, needed) is None:
            raise ValueError(f"check {self.check!r} needs {needed}")
        return self

    def grader(self, graders: Graders) -> Grader | Checker:
        """Return what grades a reply.

        Raises:
            CannotRun: `graders` lacks what the check needs.
        """
        answer = str(self.answer)
        match self.check:
            case "exact":
                return Exact(answer)
            case "regex" if self.pattern is not None:
                return ByPattern(self.pattern)
            case "json_schema":
                return ByFormat(self.response_format)
            case "tests":
                tests = self.tests or []
                return ByTests(
                    [test for test in tests if isinstance(test, str)],
                    [InputTest(t.input, t.output) for t in tests if isinstance(t, _InputOutput)],
                    _needed(graders.runner, "tests", "--code-runner"),
                )
            case "judge":
                judge = _needed(graders.judge, "judge", "--judge")
                return ByJudge(judge, self.question or _last_text(self.messages or []), answer)
            case "auto" | "number" | "choice" as kind:
                return ByAnswer(answer, kind, question=self.question or "")
        raise AssertionError(self.check)  # `_is_whole` has refused it


_NEEDED: Final = {"regex": "pattern", "json_schema": "response_format", "tests": "tests"}

N = TypeVar("N")


def _needed(given: N | None, check: Kind, option: str) -> N:
    if given is None:
        raise CannotRun(f"check {check!r} needs the option {option}")
    return given


def _last_text(messages: Messages) -> str:
    return str(messages[-1].get("content") or "") if messages else ""


def problems_of(task: str, seed: int, graders: Graders = NO_GRADERS) -> list[Problem]:
    """Return the problems of a task.

    Args:
        task: `worked_examples`, `one_step`, `reasoning_gym/FAMILY`, or the path of a JSONL file;
            `:N` at the end takes N problems. Generated tasks have 50 by default, a file has all.
        seed: chooses the problems.
        graders: what the checks of a file need.

    Raises:
        CannotRun: there is no such task, the file cannot be read, or `graders` lacks something.
    """
    name, _, number = task.rpartition(":") if re.search(r":\d+$", task) else (task, "", "")
    count = int(number) if number else None
    if count == 0:
        raise CannotRun(f"{task}: at least one problem is needed")
    if (make := _GENERATED.get(name)) is not None:
        return _generated(name, make, seed, count or _DEFAULT_COUNT)
    if name.startswith("reasoning_gym/"):
        return _from_gym(name.partition("/")[2], seed, count or _DEFAULT_COUNT)
    return _sampled(_from_file(Path(name), graders), seed, count)


_GENERATED: Final[dict[str, Callable[[random.Random], worked_examples.Problem]]] = {
    "worked_examples": worked_examples.shown,
    "one_step": worked_examples.bare,
}


def _generated(
    name: str, make: Callable[[random.Random], worked_examples.Problem], seed: int, count: int
) -> list[Problem]:
    rng = random.Random(f"{name} {seed}")  # noqa: S311 (problems, not secrets)
    drawn = dict[str, worked_examples.Problem]()
    for _ in range(_DRAWS * count):
        problem = make(rng)
        drawn.setdefault(problem.messages[-1]["content"], problem)
        if len(drawn) == count:
            break
    else:
        raise CannotRun(f"{name} has fewer than {count} different problems")
    return [
        Problem(f"{name}/{seed}/{index}", [*each.messages], _LastNumber(each.answer))
        for index, each in enumerate(drawn.values())
    ]


@dataclass(frozen=True, slots=True)
class _LastNumber:
    """Right if the last number of the reply is the answer; worked examples end so."""

    answer: int

    def __call__(self, reply: str) -> Grade:
        said = worked_examples.last_number(without_reasoning(reply))
        if said is None:
            return "unread"
        return "right" if said == self.answer else "wrong"


def _from_gym(family: str, seed: int, count: int) -> list[Problem]:
    if family not in REASONING_GYM:
        raise CannotRun(
            f"reasoning_gym/{family}: not a family that can be graded; "
            f"known: {', '.join(REASONING_GYM)}"
        )
    try:
        gym = import_module("reasoning_gym")
    except ImportError:
        raise CannotRun(
            f"reasoning_gym/{family} needs the extra eval: pip install 'optillm-hooks[eval]'"
        ) from None
    dataset = gym.create_dataset(family, seed=seed, size=count)
    return [
        Problem(
            f"reasoning_gym/{family}/{seed}/{index}",
            [{"role": "user", "content": f"{entry['question']}\n\n{_FINAL_ANSWER}"}],
            _gym_grader(family, dataset, entry),
        )
        for index, entry in enumerate(dataset)
    ]


_FINAL_ANSWER: Final = "Put the answer alone between <answer> and </answer> at the end."


def _gym_grader(family: str, dataset: Any, entry: dict[str, Any]) -> Grader:
    """Return the family's own verifier, or ours where that runs a reply as Python."""
    told = entry.get("metadata", {})
    match family:
        case "countdown":
            return _Tagged(partial(solves, numbers=told["numbers"], value=told["target"]))
        case "puzzle24":
            return _Tagged(partial(solves, numbers=told["numbers"], value=24))
        case _:
            return _Tagged(partial(_gym_agrees, dataset, entry))


def _gym_agrees(dataset: Any, entry: dict[str, Any], answer: str) -> bool:
    """Return whether a family's verifier gives an answer its full score."""
    try:
        return bool(dataset.score_answer(answer, entry) >= 1.0)
    except Exception:  # any, by another package that reads what a model has written
        return False


@dataclass(frozen=True, slots=True)
class _Tagged:
    """Right if what stands between the last tags is."""

    is_right: Callable[[str], bool]

    def __call__(self, reply: str) -> Grade:
        _, tag, rest = without_reasoning(reply).rpartition("<answer>")
        said, end, _ = rest.partition("</answer>")
        if not tag or not end:
            return "unread"
        return "right" if self.is_right(said.strip()) else "wrong"


def _from_file(path: Path, graders: Graders) -> list[Problem]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise CannotRun(
            f"{path}: no task of that name, and it cannot be read as a file ({_reason(exc)})"
        ) from None
    found = [*_parsed(path, lines, graders)]
    if not found:
        raise CannotRun(f"{path} has no questions")
    return found


def _reason(exc: Exception) -> str:
    return exc.strerror or "" if isinstance(exc, OSError) else "it is not UTF-8"


def _parsed(path: Path, lines: Sequence[str], graders: Graders) -> Iterator[Problem]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            own = _Own.model_validate_json(line)
        except ValidationError as exc:
            first = exc.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise CannotRun(
                f"{path}, line {number}: {where or 'line'}: {wrong_value(first)}"
            ) from None
        messages = own.messages or [{"role": "user", "content": own.question}]
        yield Problem(own.id or f"{path.name}/{number}", messages, own.grader(graders))


def _sampled(problems: list[Problem], seed: int, count: int | None) -> list[Problem]:
    if count is None or count >= len(problems):
        return problems
    rng = random.Random(f"sample {seed}")  # noqa: S311
    return [problems[index] for index in sorted(rng.sample(range(len(problems)), count))]
