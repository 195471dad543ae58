"""The caller: the key that pays for inner calls, and LiteLLM's check of the models it may use."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, cast

from litellm import Router
from litellm.constants import (
    LITTELM_INTERNAL_HEALTH_SERVICE_ACCOUNT_NAME,
    SESSION_ID_GENERATED_METADATA_KEY,
)
from litellm.litellm_core_utils.internal_call_metadata import forwarded_internal_call_metadata
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import can_key_call_resolved_model

from optillm_hooks.gateway.cooldowns import CountedFailures
from optillm_hooks.gateway.inner_call import InnerCall, inner_call
from optillm_hooks.gateway.payments import Account
from optillm_hooks.gateway.prepared import METADATA_KEY, attached
from optillm_hooks.gateway.request_tags import RequestTags, read_request_tags

CALL_ORIGIN = "optillm"
"""Marks inner calls in LiteLLM's logs. The rate limiter skips marked calls and counts the usage of
the outer response, which is their sum, so each token counts once."""

SPAN_KEY: Final = "litellm_parent_otel_span"
"""The entry of a call's metadata by which LiteLLM traces it below a given OpenTelemetry span."""

stage_span: Final[ContextVar[object]] = ContextVar("optillm_stage_span", default=None)
"""The OpenTelemetry span of the running stage; None without tracing."""

_OF_TRACE: Final = ("litellm_session_id", "litellm_trace_id")
_OF_LOG: Final = (*_OF_TRACE, "no-log")
_SHARED = frozenset(
    {
        "tags",
        "requester_metadata",
        "spend_logs_metadata",
        "requester_ip_address",
        "user_agent",
        METADATA_KEY,
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The identity on whose account a request's inner calls are made."""

    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Identity for inner calls: key, user, team, organisation, end user, tags."""

    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other arguments that inner calls of models get (`logged`, end user, `drop_params`)."""

    cache: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The client's `cache` field for LiteLLM."""

    key: UserAPIKeyAuth | None = None
    """The virtual key, whose budgets and limits apply to each inner call; None without a proxy."""

    reservation: Mapping[str, Any] | None = None
    """LiteLLM's budget reservation for the outer request."""

    needs_price: bool = False
    """Whether the request limits its cost."""

    account: Account = field(default_factory=Account)
    call: InnerCall | None = None
    """The call of another plan that led here by a fallback."""

    failures: CountedFailures = field(default_factory=CountedFailures)
    """The failures of the client's request, whatever plans it leads to."""

    session: str = ""
    """The session that the client names; empty if it names none."""

    tags: RequestTags = field(default_factory=RequestTags)
    """The tags by which LiteLLM's router chooses among deployments."""

    span: object = None
    """The OpenTelemetry span of the client's request; None without tracing."""

    @property
    def share(self) -> str:
        """Whose share of the proxy's time the calls take: the key's, or that of all without one."""
        return str(self.metadata.get("user_api_key") or "")

    @property
    def logged(self) -> Mapping[str, Any]:
        """The arguments by which LiteLLM logs any inner call as the client's request is logged."""
        return {name: self.extra[name] for name in _OF_LOG if name in self.extra}

    def new_call(self, model: str) -> InnerCall:
        """Return a new call of `model` for this caller."""
        tried = set[str]() if self.call is None else self.call.tried
        tried.add(model)
        return InnerCall(tried, self.needs_price)


def read_caller(
    litellm_params: Mapping[str, Any],
    user: str | None,
    cache: Mapping[str, Any],
    *,
    needs_price: bool = False,
    allow_no_log: bool = False,
) -> Caller:
    """Return the caller of a request, from the parameters that LiteLLM gives its provider.

    `no-log` is passed on only if the operator allows it: LiteLLM books no spend for such a call.
    The budget reservation of the outer request is not passed on: an inner call that settles it
    would make LiteLLM lose the outer one's spend.
    """
    parent = metadata_of(litellm_params)
    identity = {k: v for k, v in parent.items() if k.startswith("user_api_key") or k in _SHARED}
    extra = {
        key: litellm_params[key] for key in _OF_TRACE if isinstance(litellm_params.get(key), str)
    }
    if user is not None:
        extra["user"] = user
    if allow_no_log and litellm_params.get("no-log"):
        extra["no-log"] = True
    if litellm_params.get("drop_params"):
        extra["drop_params"] = True
    stamped = forwarded_internal_call_metadata(identity, cast(Any, CALL_ORIGIN))
    key = parent.get("user_api_key_auth")
    client = attached(parent)
    return Caller(
        stamped or {"internal_call_origin": CALL_ORIGIN},
        extra,
        cache,
        key if isinstance(key, UserAPIKeyAuth) else None,
        read_reservation(parent),
        needs_price,
        Account() if client is None else client.account,
        inner_call(parent),
        failures=CountedFailures() if client is None else client.failures,
        session=_session(litellm_params, parent),
        tags=read_request_tags(parent),
        span=parent.get(SPAN_KEY),
    )


def span_metadata() -> dict[str, object]:
    """Return the entry of a call's metadata by which LiteLLM traces it below the running stage.

    Without it LiteLLM would write what it knows of the call, its texts too, on the stage's span.
    """
    span = stage_span.get()
    return {} if span is None else {SPAN_KEY: span}


def _session(litellm_params: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Return the client's session; "" if it is one that LiteLLM has made up for this request.

    Where there is none, LiteLLM puts the id of a trace in its place.
    """
    if metadata.get(SESSION_ID_GENERATED_METADATA_KEY):
        return ""
    named, other = metadata.get("session_id"), litellm_params.get("litellm_session_id")
    if not named and other != metadata.get("trace_id"):
        named = other
    return named if isinstance(named, str) else ""


def metadata_of(litellm_params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request's metadata, which LiteLLM keeps under one of two names, by route."""
    return litellm_params.get("litellm_metadata") or litellm_params.get("metadata") or {}


def is_health_check(metadata: Mapping[str, Any]) -> bool:
    """Return whether a call's metadata is that of LiteLLM's health checks."""
    return LITTELM_INTERNAL_HEALTH_SERVICE_ACCOUNT_NAME in (metadata.get("tags") or ())


def read_reservation(metadata: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return LiteLLM's budget reservation for this request, or None."""
    key = metadata.get("user_api_key_auth")
    return metadata.get("user_api_key_budget_reservation") or getattr(
        key, "budget_reservation", None
    )


def model_for_key(model: str, key: UserAPIKeyAuth, router: Router) -> str:
    """Return the model that LiteLLM calls if a client with `key` asks for `model`.

    The aliases of the team and of the key replace the name of a client's model. LiteLLM checks
    access to what they lead to, and ignores the alias of a team's deployment that is deleted.
    """
    target: str = (key.team_model_aliases or {}).get(model, model)
    if target.startswith(f"model_name_{key.team_id}_") and target not in router.model_names:
        target = model
    called: str = (key.aliases or {}).get(target, target)
    return called


async def check_access(model: str, key: UserAPIKeyAuth, router: Router) -> None:
    """Raise LiteLLM's own error if the caller's key, team or project may not call `model`."""
    await can_key_call_resolved_model(
        model=model, llm_model_list=None, valid_token=key, llm_router=router
    )
