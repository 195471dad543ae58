"""On whose account inner calls are made, and who may make them: LiteLLM's own rules, applied."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from litellm import Router
from litellm.litellm_core_utils.internal_call_metadata import forwarded_internal_call_metadata
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import can_key_call_resolved_model
from litellm.proxy.auth.fallback_budget import is_token_within_budget_for_model

from optillm_hooks.gateway.router import proxy_module

CALL_ORIGIN = "optillm"
"""Marks inner calls in LiteLLM's logs. The rate limiter skips marked calls and counts the tokens
of the outer response, which is the sum of theirs: so each token counts once."""

_SHARED = frozenset(
    {"tags", "requester_metadata", "spend_logs_metadata", "requester_ip_address", "user_agent"}
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The account of one request."""

    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Identity for inner calls: key, user, team, organisation, end user, tags."""

    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Other arguments that every inner call gets (session, end user)."""

    cache: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the client says of LiteLLM's cache."""

    key: UserAPIKeyAuth | None = None
    """The key whose budget each inner call is held to; None if there is none, or if LiteLLM has
    reserved the request's cost already."""


def read_caller(
    litellm_params: Mapping[str, Any], user: str | None, cache: Mapping[str, Any]
) -> Caller:
    """Return the account of a request from what LiteLLM gives its provider.

    The budget reservation of the outer request is not passed on: an inner call that settles it
    would make LiteLLM lose the outer one's spend.
    """
    parent = litellm_params.get("litellm_metadata") or litellm_params.get("metadata") or {}
    identity = {k: v for k, v in parent.items() if k.startswith("user_api_key") or k in _SHARED}
    extra = {
        key: litellm_params[key]
        for key in ("litellm_session_id", "litellm_trace_id")
        if isinstance(litellm_params.get(key), str)
    }
    if user is not None:
        extra["user"] = user
    if litellm_params.get("no-log"):
        extra["no-log"] = True
    stamped = forwarded_internal_call_metadata(identity, cast(Any, CALL_ORIGIN))
    key = parent.get("user_api_key_auth")
    reserved = parent.get("user_api_key_budget_reservation") or getattr(
        key, "budget_reservation", None
    )
    return Caller(
        stamped or {"internal_call_origin": CALL_ORIGIN},
        extra,
        cache,
        key if isinstance(key, UserAPIKeyAuth) and reserved is None else None,
    )


async def is_within_budget(model: str, key: UserAPIKeyAuth | None, router: Router) -> bool:
    """Return whether the key, and the user behind it, can still pay for `model`.

    LiteLLM checks budgets before a request against the model that is asked for; of an alias, it
    knows no price, so the base is checked here. What LiteLLM has reserved, it has checked.
    """
    if key is None or (key.max_budget is None and key.user_max_budget is None):
        return True
    if key.budget_reservation is not None:
        return True
    within: bool = await is_token_within_budget_for_model(
        model=model, valid_token=key, llm_router=router
    )
    return within


async def check_model_budgets(model: str, key: UserAPIKeyAuth) -> None:
    """Raise LiteLLM's own refusal if a budget that holds for `model` alone is used up.

    LiteLLM checks them before a request against the name that is asked for, and charges the base.
    """
    limiter = getattr(proxy_module(), "model_max_budget_limiter", None)
    if limiter is None:
        return
    if key.model_max_budget:
        await limiter.is_key_within_model_budget(user_api_key_dict=key, model=model)
    if key.user_id is not None and key.user_model_max_budget:
        await limiter.is_user_within_model_budget(
            user_id=key.user_id, user_model_max_budget=key.user_model_max_budget, model=model
        )
    if key.team_id is not None and key.team_model_max_budget:
        await limiter.is_team_within_model_budget(
            team_id=key.team_id,
            team_model_max_budget=key.team_model_max_budget,
            key_model_max_budget=key.model_max_budget,
            model=model,
        )
    if key.end_user_id is not None and key.end_user_model_max_budget:
        await limiter.is_end_user_within_model_budget(
            end_user_id=key.end_user_id,
            end_user_model_max_budget=key.end_user_model_max_budget,
            model=model,
        )


async def check_access(model: str, key: UserAPIKeyAuth, router: Router) -> None:
    """Raise LiteLLM's own refusal if the caller's key, team or project may not call `model`."""
    await can_key_call_resolved_model(
        model=model, llm_model_list=None, valid_token=key, llm_router=router
    )
