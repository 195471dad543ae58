"""Requests to the pipeline, its outcome and report, and the events of a stream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from optillm_hooks.budget import Limits
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.llm import LLM, Scorer
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.services import Services
from optillm_hooks.trace import CallRecord
from optillm_hooks.types import (
    Answer,
    Chat,
    Delta,
    Fields,
    Sampling,
    StoppedBy,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to the pipeline, validated and admitted."""

    plan: Plan
    base: str
    chat: Chat
    client: Sampling = field(default_factory=Sampling)
    n: int = 1
    limits: Limits = field(default_factory=Limits)
    on_error: Literal["error", "plain"] = "error"
    progress: bool = False
    """Whether a streaming client gets progress messages."""

    scorers: Callable[[str], Scorer | None] = lambda _: None
    """Returns the scorer that a model group is, or None if its models write."""

    services: Services = field(default_factory=Services)
    caller: str = ""
    """The key of the caller, who shares the places of workers with others; empty if unknown."""

    caller_cache: CallerCache = field(default_factory=CallerCache)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Summary of a request, without any text of the user or of a model."""

    approach: str
    base: str
    calls: int
    calls_saved: int
    """Planned calls that were not needed, because the result was settled before."""

    depth: int
    usage: Usage
    seconds: float
    stopped_by: StoppedBy | None
    degraded: tuple[str, ...]
    """Codes of the failures that were worked around, and the steps lost, such as "ratings:2/6"."""

    choices: tuple[str, ...]
    """Label of the chain that produced each choice."""

    notes: tuple[tuple[str, Mapping[str, object]], ...]
    trace: tuple[CallRecord, ...]
    plan: Fields | None = None
    """What a dry run has planned, which called no model; None if a plan has run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers to a request, one per choice, and the report."""

    answers: tuple[Answer, ...]
    report: Report


@dataclass(frozen=True, slots=True)
class Piece:
    """A streamed piece of the choice with index `choice`."""

    choice: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage reports `text`; without text: a call has succeeded before anything was shown."""

    text: str = ""


Event = Piece | Progress | Outcome

Models = Callable[[str], LLM]
