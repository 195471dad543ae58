"""An admitted request, as `admission.admit` returns it, and how it gets to the provider.

The hook puts it, as an object, into the request's metadata for LiteLLM, which LiteLLM passes on to
the provider and to the response hooks: in every task, to fallbacks, and on every route. A context
variable would be lost where LiteLLM reads a stream in another task. No client can forge the object:
a body has only JSON. It is freed with the request, and never logged or sent to a provider.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from litellm.litellm_core_utils.core_helpers import get_or_create_metadata_bucket

from optillm_hooks.budget import Limits
from optillm_hooks.decoding.field import FIELD as DECODING
from optillm_hooks.errors import OptiLLMError
from optillm_hooks.gateway.cooldowns import CountedFailures
from optillm_hooks.gateway.model_facts import FactsOf
from optillm_hooks.gateway.payments import Account
from optillm_hooks.gateway.selection import Selection
from optillm_hooks.gateway.shadowed import Shadowed
from optillm_hooks.pipeline.events import Outcome
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.settings import RunSettings
from optillm_hooks.trace import Trace
from optillm_hooks.types import Fields, Json, Usage

Route = Literal["chat", "messages", "responses", "completions"]


@dataclass(slots=True, kw_only=True)
class Prepared:
    selection: Selection
    facts_of: FactsOf
    is_final: bool = True
    """Whether this plan will run. If not, the router chooses among several deployments of an alias,
    and the provider admits the plan of the chosen one."""

    n: int = 1
    """The choices that the client asks for."""

    route: Route = "chat"
    user: str | None = None
    fields: Fields = field(default_factory=dict[str, Json])
    """Fields of the client's request that LiteLLM does not carry to a provider on this route."""

    body: Fields = field(default_factory=dict[str, Json])
    """On the messages route, what `messages_route.for_claude` converts."""

    cache: Fields = field(default_factory=dict[str, Json])
    """The client's `cache` field for LiteLLM, which applies to the inner calls."""

    prompt_tokens: int = 0
    """About how many tokens the client's text has; 0 outside a proxy."""

    trace: Trace = field(default_factory=Trace)
    host_s: float | None = None
    """Seconds that LiteLLM's own timeouts leave to the request, once it runs."""

    outcome: Outcome | None = None
    """The result, once there is one; the response headers are made from it."""

    error: OptiLLMError | None = None
    """The error of a request that failed."""

    @property
    def plan(self) -> Plan:
        return self.selection.plan

    @property
    def base(self) -> str:
        return self.selection.called_base

    @property
    def settings(self) -> RunSettings:
        return self.selection.settings

    @property
    def limits(self) -> Limits:
        return self.selection.limits

    @property
    def asked(self) -> Limits:
        """The client's own limits, which hold for a fallback's plan too."""
        return self.selection.asked

    @property
    def estimated_calls(self) -> int:
        """The calls of the request if nothing fails, as `plan_calls` limits them."""
        return self.n * self.plan.calls(decoded_remotely=self.is_decoded_remotely)

    @property
    def has_known_prices(self) -> bool:
        """Whether the price of each of its models is known."""
        return all(self.facts_of(model).price is not None for model in self.selection.models)

    @property
    def is_decoded_remotely(self) -> bool:
        """Whether a decoder of the plan makes calls, because the base does not run its method."""
        return self.plan.has_remote_decoder and not self.facts_of(self.base).supports(DECODING)

    @property
    def of_whole_request(self) -> Limits:
        """The limits that every plan of the request shares, a fallback's too."""
        return self.asked.lowered(self.selection.of_key)

    @property
    def deployment(self) -> str:
        """The model name that the hook wrote into the request, and that the provider looks for."""
        return self.selection.deployment

    @property
    def requested(self) -> str:
        """The model name that the client sent."""
        return self.selection.requested


@dataclass(slots=True, eq=False, repr=False)
class ClientRequest:
    """A client's request as the hook has seen it. A copy of its metadata has this same object."""

    route: Route
    model: str
    """The model name in the request that the hook returned."""

    prepared: Prepared | None = None
    """None if the request names no approach: then only a router's fallback leads to a plan."""

    refused_deployments: frozenset[str] = frozenset()
    """Ids of deployments of the requested model that may not serve this request."""

    ignores_tag: bool = False
    """Whether the request has a tag without effect."""

    instead: str | None = None
    """The model that answers plainly in place of an approach that is switched off."""

    is_plain: bool = False
    """Whether the router has chosen a plain deployment, of a model that has aliases too."""

    outcome: Outcome | None = None
    """The result of the plan that has answered, which may be a fallback's."""

    began: float = field(default_factory=time.monotonic)
    until: float = float("inf")
    """Instant on `time.monotonic`, as `began`: the deadline of the request."""

    is_hurried: bool = False
    """Whether the deadline is not that of the plan that has begun last."""

    runs: list[Trace] = field(default_factory=list[Trace])
    """The traces of the plans that have run, fallbacks' included; each once."""

    def begin(self, prepared: Prepared) -> Limits:
        """Note that a plan runs, and return what is left of its limits.

        It may have run before: LiteLLM's gateway of MCP calls a model again with a tool's result.
        The limits of the client and of its key are for its whole request, with every fallback, and
        so is the deadline of each plan for those after it.
        """
        now = time.monotonic()
        for since, limits in ((self.began, prepared.of_whole_request), (now, prepared.limits)):
            if limits.deadline_s is not None:
                self.until = min(self.until, since + limits.deadline_s)
        spent = sum((trace.usage for trace in self.runs), Usage())
        shared = prepared.of_whole_request.left(spent)
        limits = prepared.limits.left(prepared.trace.usage).lowered(shared)
        if all(trace is not prepared.trace for trace in self.runs):
            self.runs.append(prepared.trace)
        if self.until == float("inf"):
            return limits
        own = prepared.limits.deadline_s
        self.is_hurried = own is None or self.until < now + own
        return replace(limits, deadline_s=max(0.0, self.until - now))

    failures: CountedFailures = field(default_factory=CountedFailures)
    """The failures of its inner calls."""

    account: Account = field(default_factory=Account)
    """What its inner calls cost."""

    shadowed: Shadowed = field(default_factory=Shadowed)
    """What a shadow of the request needs."""

    failed: dict[str | None, OptiLLMError] = field(default_factory=dict[str | None, OptiLLMError])
    """The error of each deployment whose plan has failed, by the deployment's id.

    The router's retries of it are answered with the error: a plan runs, and is paid, once.
    """

    @property
    def answering(self) -> Prepared | None:
        """The plan that answers; None if a plain model does."""
        return None if self.is_plain else self.prepared

    def __repr__(self) -> str:
        return "<optillm request>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


METADATA_KEY = "optillm_request"


def attach(request: ClientRequest, data: dict[str, Any]) -> None:
    """Put `request` into the metadata of `data`, the body as LiteLLM serves it."""
    name, metadata = get_or_create_metadata_bucket(data)
    metadata[METADATA_KEY] = request
    if request.route == "responses" and name == "metadata":
        # LiteLLM's route for Cursor: on the way to the provider, this field is OpenAI's own.
        data["litellm_metadata"] = metadata


def attached(metadata: Mapping[str, Any]) -> ClientRequest | None:
    """Return the client's request from its metadata; None if no hook ran."""
    found = metadata.get(METADATA_KEY)
    return found if isinstance(found, ClientRequest) else None


def attached_to(data: dict[str, Any]) -> ClientRequest | None:
    """Return the client's request from `data`, the body as LiteLLM serves it."""
    return attached(get_or_create_metadata_bucket(data)[1])
