"""A request that the hook has parsed, checked and allowed, kept on the server for the provider.

It travels in a context variable, set in the task that serves the request: no client can forge it,
and two requests with the same call id cannot take each other's.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.pipeline.events import Outcome
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.settings import RunSettings
from optillm_hooks.trace import Trace
from optillm_hooks.types import Fields, Json

Route = Literal["chat", "messages", "responses", "completions"]


@dataclass(slots=True, kw_only=True)
class Prepared:
    plan: Plan
    base: str
    settings: RunSettings
    deployment: str
    """The model name that the hook wrote into the request, by which the provider knows it."""

    requested: str
    """The model name that the client sent."""

    user: str | None = None
    fields: Fields = field(default_factory=dict[str, Json])
    """Fields of the client's request that LiteLLM does not carry to a provider on this route."""

    cache: Fields = field(default_factory=dict[str, Json])
    """What the client says of LiteLLM's cache; it holds for the inner calls."""

    route: Route = "chat"
    trace: Trace = field(default_factory=Trace)
    outcome: Outcome | None = None
    """What came of it, once it has; the headers are made of it."""

    error: OptiLLMError | None = None
    """What it failed with, if it has."""


current: ContextVar[Prepared | None] = ContextVar("optillm_prepared", default=None)
