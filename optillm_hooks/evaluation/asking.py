"""Asks models for replies to problems, at a bounded rate, and keeps each outcome at once.

Outcomes are lines of a JSONL file. A run that was killed goes on where it stopped: only the calls
under way are lost.
"""

import asyncio
import fcntl
import random
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import openai
from openai import AsyncOpenAI
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.grading import Grade, Judged
from optillm_hooks.evaluation.questions import Problem
from optillm_hooks.evaluation.replies import FieldNames, Reply, Report, ask_host, failure
from optillm_hooks.evaluation.spend_log import Run
from optillm_hooks.pauses import asked_pause_s

_TRIES: Final = 4
"""Requests for a reply, not counting those that an overloaded host has refused."""

_UNDER_WAY: Final = 2
"""Problems under way for each request at once: while some are asked, others wait after a failure.
Not all of them are: a large set would take a gigabyte."""

_REFUSALS: Final = 30
"""How often an overloaded host may refuse the same request."""

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_OVERLOADED: Final = frozenset({429, 503, 529})
_MAY_PASS: Final = frozenset({408, 409, 500, 502, 504})


class AutoChoice(BaseModel):
    """What the report of `auto` says."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    chosen: Literal["answer", "escalate", "abstain", "plain"]
    samples: int = Field(ge=0)
    votes: int = Field(default=0, ge=0)
    """The samples that agreed."""

    expected: float | None = Field(default=None, ge=0, le=1)
    """The accuracy that its calibration expects."""

    kind: str = ""
    size: int = 0
    """The signals of the request; see `optillm_hooks.policies.Signals`."""


class Outcome(BaseModel):
    """What came of asking a model for one problem."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    model: str
    problem: str
    version: str = ""
    """Of the problem; "" where it has none, and in older files."""

    grade: Grade | None = None
    """None if there is no reply, or no verdict on it."""

    unjudged: bool = False
    """There is a reply, but the judge gave no verdict on it."""

    error: str | None = None
    """The last failure: status, code and message. An outcome with one is asked for again."""

    seconds: float
    """From the request that was answered, or the last that failed, to its end."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    """As the response says; None if it does not."""

    judge_tokens: int = 0
    judge_usd: float | None = 0.0
    """What the judge's calls for the verdict have cost; None if any cost is unknown."""

    calls: int = 1
    depth: int = 1
    degraded: tuple[str, ...] = ()
    approach: str | None = None
    """As our report says; None of a plain model."""

    auto: AutoChoice | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and how."""

    url: str
    key: str
    run: Run
    at_once: int = 8
    per_second: float | None = None
    timeout_s: float = 600.0
    fields: Mapping[str, Any] | None = None
    """Fields of every request, such as `max_tokens` and `temperature`."""


class Pace:
    """Lets requests start: so many at once, so many a second, and none while a host is overloaded.

    A host that answers 429 slows down all requests, so that a storm of them costs no request its
    reply.
    """

    def __init__(self, at_once: int, per_second: float | None) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._gap_s = 1 / per_second if per_second else 0.0
        self._next = self._closed_until = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the block ends."""
        async with self._free:
            clock = asyncio.get_running_loop().time
            start = max(clock(), self._next)
            self._next = start + self._gap_s
            # `pause` may move the time that this waits for.
            while (wait_s := max(start, self._closed_until) - clock()) > 0:  # noqa: ASYNC110
                await asyncio.sleep(wait_s)
            yield

    def pause(self, seconds: float) -> None:
        """Start no request for so long."""
        until = asyncio.get_running_loop().time() + seconds
        self._closed_until = max(self._closed_until, until)


async def ask_all(
    endpoint: Endpoint,
    models: Sequence[str],
    problems: Sequence[Problem],
    done: Iterable[Outcome],
    keep: Callable[[Outcome], None],
) -> None:
    """Ask every model every problem that `done` lacks, and `keep` each outcome when it comes.

    Models and problems come in random order, so that a host that slows down slows all models. What
    `keep` raises ends the run.
    """
    answered = {(each.model, each.problem) for each in done if each.error is None}
    pairs = [(m, p) for p in problems for m in models if (m, p.id) not in answered]
    random.Random(0).shuffle(pairs)  # noqa: S311
    pace = Pace(endpoint.at_once, endpoint.per_second)
    names = FieldNames()
    try:
        async with (
            AsyncOpenAI(
                base_url=endpoint.url,
                api_key=endpoint.key,
                max_retries=0,
                timeout=endpoint.timeout_s,
            ) as client,
            asyncio.TaskGroup() as group,
        ):

            async def solve(model: str, problem: Problem) -> None:
                traced = client.with_options(default_headers=endpoint.run.headers())
                fields = endpoint.fields or {}
                ask = partial(ask_host, traced, names, model, problem.messages, fields)
                keep(await _outcome(ask, pace, model, problem))

            room = asyncio.Semaphore(_UNDER_WAY * endpoint.at_once)
            for model, problem in pairs:
                await room.acquire()
                group.create_task(solve(model, problem)).add_done_callback(lambda _: room.release())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _outcome(
    ask: Callable[[], Awaitable[Reply]], pace: Pace, model: str, problem: Problem
) -> Outcome:
    tries = refusals = 0
    while True:
        async with pace.turn():
            begun = time.perf_counter()
            try:
                reply = await ask()
            except openai.OpenAIError as exc:
                failed = exc
            else:
                return await _graded(model, problem, reply)
        status = getattr(failed, "status_code", None)
        if status in _OVERLOADED and refusals < _REFUSALS:
            pace.pause(_pause_s(failed, refusals))
            refusals += 1
        elif (status is None or status in _MAY_PASS) and tries + 1 < _TRIES:
            await asyncio.sleep(_pause_s(failed, tries))
            tries += 1
        else:
            seconds = time.perf_counter() - begun
            return Outcome(
                model=model,
                problem=problem.id,
                version=problem.version,
                error=failure(failed),
                seconds=seconds,
            )


def _pause_s(failed: openai.OpenAIError, before: int) -> float:
    """Return what the host asks for in seconds, or a time that doubles with each pause before."""
    response = getattr(failed, "response", None)
    asked = asked_pause_s(response.headers.get("retry-after")) if response is not None else None
    doubled = _FIRST_PAUSE_S * 2.0 ** min(before, 10)
    return min(doubled if asked is None else asked, _LONGEST_PAUSE_S)


async def _graded(model: str, problem: Problem, reply: Reply) -> Outcome:
    """Return the outcome of a reply."""
    report = reply.report
    try:
        judged = await judged_of(problem, reply.text)
    except Exception as exc:  # a check of another package; it may not end the run
        judged = Judged(None, fault=f"the check failed: {type(exc).__name__}")
    return Outcome(
        model=model,
        problem=problem.id,
        version=problem.version,
        grade=judged.grade,
        unjudged=judged.grade is None,
        error=judged.fault if judged.grade is None else None,
        seconds=reply.seconds,
        prompt_tokens=reply.bill.prompt_tokens,
        completion_tokens=reply.bill.completion_tokens,
        cost_usd=reply.bill.cost_usd,
        judge_tokens=judged.bill.prompt_tokens + judged.bill.completion_tokens,
        judge_usd=judged.bill.cost_usd,
        calls=report.calls,
        depth=report.depth,
        degraded=report.degraded,
        approach=report.approach,
        auto=_choice_of(report),
    )


async def grade_of(problem: Problem, text: str) -> Grade | None:
    """Return the grade of a reply; None: a judge gave no verdict."""
    return (await judged_of(problem, text)).grade


async def judged_of(problem: Problem, text: str) -> Judged:
    """Return what the grader of a problem finds in a reply.

    It reads the reply in a thread, because that may take a second.
    """
    found = await asyncio.to_thread(problem.grade, text)
    return Judged(found) if isinstance(found, str) else await found


def _choice_of(report: Report) -> AutoChoice | None:
    note = report.note("auto")
    try:
        return None if note is None else AutoChoice.model_validate(note)
    except ValidationError:
        return None


def read_outcomes(path: Path) -> list[Outcome]:
    """Return the outcomes in a file; none if it is missing. A line that was cut off is left out."""
    if not path.exists():
        return []
    found = list[Outcome]()
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found.append(Outcome.model_validate_json(line))
        except ValidationError:
            continue
    return found


def of_problems(outcomes: Iterable[Outcome], problems: Iterable[Problem]) -> list[Outcome]:
    """Return the outcomes that are of these problems, as they are now."""
    versions = {problem.id: {problem.version, ""} for problem in problems}
    return [each for each in outcomes if each.version in versions.get(each.problem, ())]


@contextmanager
def kept(path: Path) -> Iterator[Callable[[Outcome], None]]:
    """Yield a function that adds an outcome to a file, as a line that the system gets at once.

    Both raise CannotRun if the file cannot be written to, or if another run writes to it.
    """

    def write(line: bytes) -> None:
        try:
            file.write(line)
        except OSError as exc:
            raise CannotRun(f"{path} cannot be written to: {exc.strerror}") from None

    try:
        cut_off = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        file = path.open("ab", buffering=0)
    except OSError as exc:
        raise CannotRun(f"{path} cannot be written to: {exc.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # closing it unlocks
        except BlockingIOError:
            raise CannotRun(f"{path}: another run writes to it") from None
        if cut_off:
            write(b"\n")
        yield lambda outcome: write(f"{outcome.model_dump_json(exclude_defaults=True)}\n".encode())
