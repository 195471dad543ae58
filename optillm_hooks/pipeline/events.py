"""What goes into a pipeline and what comes out of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from optillm_hooks.budget import Limits, StoppedBy
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.llm import LLM
from optillm_hooks.memory import Memory
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.trace import CallRecord
from optillm_hooks.types import (
    Answer,
    Chat,
    Delta,
    Sampling,
    Usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to the pipeline, validated and allowed."""

    plan: Plan
    base: str
    chat: Chat
    client: Sampling = field(default_factory=Sampling)
    n: int = 1
    limits: Limits = field(default_factory=Limits)
    on_error: Literal["error", "plain"] = "error"
    progress: bool = False
    """Whether a streaming client is told what is being done."""

    code_runner: CodeRunner | None = None
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened, without any text of the user or of a model."""

    approach: str
    base: str
    calls: int
    depth: int
    usage: Usage
    seconds: float
    stopped_by: StoppedBy | None
    degraded: tuple[str, ...]
    """What did not go as planned: codes of failures that were worked around."""

    choices: tuple[str, ...]
    """Label of the chain that gave each choice."""

    notes: tuple[tuple[str, Mapping[str, object]], ...]
    trace: tuple[CallRecord, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    answers: tuple[Answer, ...]
    report: Report


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the choice with number `choice`."""

    choice: int
    delta: Delta


@dataclass(frozen=True, slots=True)
class Progress:
    """Something has been done: the first inner call ended well, or a stage says so in `text`."""

    text: str = ""


Event = Piece | Progress | Outcome


Models = Callable[[str], LLM]
