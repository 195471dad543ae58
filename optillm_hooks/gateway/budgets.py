"""LiteLLM's budgets (`max_budget`, `model_max_budget`), checked for the models that a plan calls.

LiteLLM checks budgets once per request, against the requested name. A plan makes many calls to its
base model, so budgets are checked again when the plan is known, and before each call.
"""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from litellm import BudgetExceededError, Router
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import is_model_cost_zero

from optillm_hooks.gateway.deployments import proxy_module


class _Budget(NamedTuple):
    owner: str
    counter: str
    """LiteLLM's name for its spend counter."""

    max_usd: float | None
    spent_before: float
    """The spend when the key was read, for a counter that is still empty."""


async def check_budgets(
    model: str,
    key: UserAPIKeyAuth | None,
    router: Router,
    reservation: Mapping[str, Any] | None = None,
) -> None:
    """Raise LiteLLM's own error if a budget that pays for `model` is used up.

    These are the budgets of the key and of its user, team, organisation and end user, and their
    budgets for this model alone. What LiteLLM has reserved for this request does not count as
    spent. A model that costs nothing is always allowed, as in LiteLLM.

    Raises:
        BudgetExceededError: LiteLLM's.
    """
    proxy = proxy_module()
    if key is None or proxy is None or is_model_cost_zero(model=model, llm_router=router):
        return
    reserved = _reserved(reservation)
    for budget in _budgets(key, proxy):
        if not budget.max_usd or budget.max_usd < 0:
            continue
        spent = await proxy.get_current_spend(
            counter_key=budget.counter,
            fallback_spend=budget.spent_before,
            max_budget=budget.max_usd,
        )
        spent -= reserved.get(budget.counter, 0.0)
        if spent >= budget.max_usd:
            raise BudgetExceededError(
                current_cost=spent,
                max_budget=budget.max_usd,
                message=f"Budget has been exceeded! {budget.owner}: current cost: {spent}, "
                f"max budget: {budget.max_usd}",
            )
    await _check_model_budgets(model, key, proxy)


def _budgets(key: UserAPIKeyAuth, proxy: ModuleType) -> Iterator[_Budget]:
    yield _Budget("Key", f"spend:key:{key.token}", key.max_budget, key.spend or 0.0)
    shared = (proxy.general_settings or {}).get("apply_user_budget_to_team_keys") is True
    if key.user_id is not None and (key.team_id is None or shared):
        counter = f"spend:user:{key.user_id}"
        yield _Budget("User", counter, key.user_max_budget, key.user_spend or 0.0)
    if key.team_id is not None:
        counter = f"spend:team:{key.team_id}"
        yield _Budget("Team", counter, key.team_max_budget, key.team_spend or 0.0)
    if key.org_id is not None:
        counter = f"spend:org:{key.org_id}"
        yield _Budget("Organization", counter, key.organization_max_budget, 0.0)
    if key.end_user_id is not None:
        counter = f"spend:end_user:{key.end_user_id}"
        yield _Budget("End user", counter, key.end_user_max_budget, 0.0)


def _reserved(reservation: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the amount that each counter includes for a reservation not yet settled."""
    if not reservation or reservation.get("finalized"):
        return {}
    whole = reservation.get("reserved_cost") or 0.0
    return {
        entry["counter_key"]: float(entry.get("reserved_cost", whole))
        for entry in reservation.get("entries") or ()
    }


async def _check_model_budgets(model: str, key: UserAPIKeyAuth, proxy: ModuleType) -> None:
    limiter = getattr(proxy, "model_max_budget_limiter", None)
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
