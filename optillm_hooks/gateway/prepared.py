"""A request that the hook has parsed, checked and allowed, kept on the server for the provider.

It travels in a context variable, set in the task that serves the request: no client can forge it,
and two requests with the same call id cannot take each other's.
"""

from contextvars import ContextVar
from dataclasses import dataclass, field

from optillm_hooks.pipeline import Outcome
from optillm_hooks.plan import Plan
from optillm_hooks.settings import RunSettings


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
    chat_route: bool = True
    outcome: Outcome | None = field(default=None)
    """What came of it, once it has; the headers are made of it."""


current: ContextVar[Prepared | None] = ContextVar("optillm_prepared", default=None)
