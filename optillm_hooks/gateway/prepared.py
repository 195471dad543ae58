"""An admitted request: what `admission.admit` returns, kept on the server for the provider.

It is passed on in a context variable of the task that serves the request. No client can forge it,
and requests with the same call id cannot get each other's.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from optillm_hooks.budget import Limits
from optillm_hooks.errors import OptiLLMError
from optillm_hooks.gateway.model_facts import FactsOf
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
    limits: Limits
    asked: Limits
    """The client's own limits, which hold for a fallback's plan too."""

    deployment: str
    """The model name that the hook wrote into the request, and that the provider looks for."""

    requested: str
    """The model name that the client sent."""

    facts_of: FactsOf
    route: Route = "chat"
    user: str | None = None
    fields: Fields = field(default_factory=dict[str, Json])
    """Fields of the client's request that LiteLLM does not carry to a provider on this route."""

    cache: Fields = field(default_factory=dict[str, Json])
    """The client's `cache` field for LiteLLM, which applies to the inner calls."""

    trace: Trace = field(default_factory=Trace)
    outcome: Outcome | None = None
    """The result, once there is one; the response headers are made from it."""

    error: OptiLLMError | None = None
    """The error of a request that failed."""


current: ContextVar[Prepared | None] = ContextVar("optillm_prepared", default=None)

current_route: ContextVar[Route] = ContextVar("optillm_route", default="chat")
"""The route of the request that this task serves; chat outside a proxy."""
