"""Runs a model-written formalisation in a solver, and reports the result as text for a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.types import Json

Kind = Literal["smtlib", "algebra"]

MAX_CHARACTERS: Final = 1 << 16
"""Maximum length of a formalisation."""

_MAX_SEARCHED: Final = 2 * MAX_CHARACTERS

MAX_REPORTED: Final = 12_000
"""Maximum length of a report, in characters."""

STARTING_S: Final = 1.0
"""Startup time allowed for a worker, in seconds, in addition to the solver's time."""

_KINDS: Final[Mapping[str, Kind]] = {"(": "smtlib", ";": "smtlib", "{": "algebra", "[": "algebra"}

_LABEL: Final = "smt2"

_SIGNS: Final[Mapping[Kind, re.Pattern[str]]] = {
    "smtlib": re.compile(r"\((?:assert|check-sat|declare-|define-fun|maximize|minimize)\b"),
    "algebra": re.compile(r'"operation"'),
}
"""What the formalisations of a kind contain, and other texts hardly ever."""


@dataclass(frozen=True, slots=True)
class Formalisation:
    """A problem in a solver's input language: an SMT-LIB script, or algebra steps as JSON."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a solver, as text for a model."""

    text: str
    statuses: tuple[str, ...]
    """sat, unsat or unknown for each check; the operation for each algebra step."""

    results: tuple[str, ...] = ()
    """For each check its objectives with their optimum; for each algebra step its result."""


class FormalisationBroken(ValueError):
    """The solver cannot parse the formalisation; the message tells the model what to fix."""


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class _Check(_Reply):
    status: str
    reason: str
    model: dict[str, str]
    core: list[str]
    objectives: list[str]
    values: list[str]


class _Step(_Reply):
    operation: str
    result: str = ""
    decimal: str = ""
    error: str = ""


class _Outcome(_Reply):
    error: str = ""
    checks: list[_Check] = []
    results: list[_Step] = []


def find_formalisation(reply: str, *, may_be_answer: bool = False) -> Formalisation | None:
    """Return the last formalisation in a model's reply, or None if there is none.

    It is a fenced block with any label or the whole reply; its first character determines the kind.
    If the reply may be an answer, with code, JSON or parentheses of its own, a formalisation must
    also be labelled as a script or have a command of one, or a step of algebra. Of a long reply,
    the end is searched.
    """
    reply = reply[-_MAX_SEARCHED:]
    blocks = [(block.content, block.language) for block in code_blocks(reply)]
    for content, label in [*reversed(blocks), (reply, "")]:
        text = content.strip()
        kind = _KINDS.get(text[:1])
        if kind is None:
            continue
        if not may_be_answer or label == _LABEL or _SIGNS[kind].search(text):
            return Formalisation(kind, text)
    return None


def attempts_formalisation(reply: str) -> bool:
    """Return whether a reply without a formalisation that can be found was meant to be one.

    A block in it is labelled as a script but does not begin like one, or a formalisation at the
    beginning is longer than what is searched.
    """
    beginning, end = reply[:_MAX_SEARCHED], reply[-_MAX_SEARCHED:]
    blocks = [*code_blocks(beginning), *code_blocks(end)]
    if any(block.language == _LABEL for block in blocks):
        return True
    return find_formalisation(beginning, may_be_answer=True) is not None


async def solve(formalisation: Formalisation, *, seconds: float, memory_mb: int) -> Report:
    """Run the solver for at most `seconds`; return its report. No worker is left running.

    Raises:
        FormalisationBroken: the solver cannot parse the formalisation.
        WorkerFailed: the worker ran out of time or memory, or crashed.
    """
    if len(formalisation.text) > MAX_CHARACTERS:
        raise FormalisationBroken(f"it has more than {MAX_CHARACTERS} characters")
    limits = WorkerLimits(seconds=seconds + STARTING_S, memory_mb=memory_mb)
    request: dict[str, Json] = {"text": formalisation.text, "seconds": seconds}
    reply = await ask_worker(f"optillm_hooks.solver.{formalisation.kind}", request, limits)
    try:
        outcome = _Outcome.model_validate(reply)
    except ValidationError:
        raise WorkerFailed("crash") from None
    broken = outcome.error or "\n".join(
        f"step {n} ({step.operation}): {step.error}"
        for n, step in enumerate(outcome.results, start=1)
        if step.error
    )
    if broken:
        raise FormalisationBroken(broken)
    lines = [
        *(_describe(check, n) for n, check in enumerate(outcome.checks, start=1)),
        *(_line(step, n) for n, step in enumerate(outcome.results, start=1)),
    ]
    return Report(
        text="\n".join(lines)[:MAX_REPORTED],
        statuses=(
            *(check.status for check in outcome.checks),
            *(step.operation for step in outcome.results),
        ),
        results=(
            *("; ".join(check.objectives) for check in outcome.checks),
            *(step.result for step in outcome.results),
        ),
    )


def _describe(check: _Check, number: int) -> str:
    why = f" ({check.reason})" if check.reason else ""
    lines = [f"check {number}: {check.status}{why}"]
    lines += [f"  {name} = {value}" for name, value in check.model.items()]
    lines += [f"  objective {objective}" for objective in check.objectives]
    lines += [f"  value {value}" for value in check.values]
    if check.core:
        lines.append(f"  contradictory together: {', '.join(check.core)}")
    return "\n".join(lines)


def _line(step: _Step, number: int) -> str:
    decimal = f"  (about {step.decimal})" if step.decimal else ""
    return f"step {number}, {step.operation}: {step.result}{decimal}"
