"""Admission control: which requests may run, whichever way they came.

There are two ways in. The hook admits a request that names an approach, before LiteLLM routes it.
The provider admits a plan that no hook has seen:

* A router's fallback leads from another model to an alias.
* A comma in the model name asks LiteLLM for several models, one of them an alias.
* A Python program calls LiteLLM's router or SDK itself.

All checks are in `admit`, so that no way in is easier than another. A check that has nothing to
look at passes:

* Forms, which say what a client may name: an alias's plan is the operator's. In a proxy, a plan
  that a client writes in the request must come through the hook, and is refused elsewhere.
* Access, budgets and rate limits belong to a key. A Python program has none.
* Only a router knows which models are configured. The SDK alone has none.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.budgets import check_budgets
from optillm_hooks.gateway.caller import check_access
from optillm_hooks.gateway.deployments import alias_model, deployments, is_configured
from optillm_hooks.gateway.model_facts import FactsOf, facts_by
from optillm_hooks.gateway.model_names import PROVIDER
from optillm_hooks.gateway.prepared import Prepared, Route, current
from optillm_hooks.gateway.rates import ModelRates
from optillm_hooks.gateway.selection import Selection
from optillm_hooks.settings import Settings, forbidden

_ONE_ANSWER: frozenset[Route] = frozenset({"messages", "responses"})
"""Routes whose responses have no choices."""


async def admit(
    selection: Selection,
    settings: Settings,
    router: Router | None,
    key: UserAPIKeyAuth | None,
    *,
    n: object,
    route: Route,
    reservation: Mapping[str, Any] | None = None,
) -> Prepared:
    """Return the request as the provider will run it, or raise the reason why it must not run.

    Nothing has been paid for by then.

    Args:
        selection: the plan and its base model.
        settings: the operator's, for all requests.
        router: where the models are configured; None for LiteLLM's SDK alone.
        key: the caller's; None outside a proxy.
        n: the request's `n`, as the client sent it.
        route: the route that the client called.
        reservation: what LiteLLM has reserved of the key's budgets for this request.

    Raises:
        RequestRejected: the plan cannot run, or nobody may run it.
        ProviderFailed: a rate limit of the key is reached.
        BudgetExceededError, ProxyException: LiteLLM's own refusals of the key.
    """
    _check_forms(selection, settings)
    _check_choices(selection, n, route, settings.max_choices)
    if router is not None:
        _check_base(selection, router)
        _check_named_models(selection, router)
    facts_of = facts_by(router)
    _check_prices(selection, facts_of)
    _check_decoders(selection, facts_of)
    if router is not None and key is not None:
        await _check_key(selection, router, key, reservation)
    if not (selection.on_alias or selection.passes_through):
        _check_free_forms(router)
    if not selection.passes_through:
        await _count_request(selection, key)
    return Prepared(
        plan=selection.plan,
        base=selection.base,
        settings=selection.settings,
        limits=selection.limits,
        deployment=selection.deployment,
        requested=selection.requested,
        route=route,
        facts_of=facts_of,
    )


def _check_forms(selection: Selection, settings: Settings) -> None:
    for form, approaches in selection.named:
        refused = forbidden(approaches, getattr(settings.forms, form))
        if refused:
            raise RequestRejected(
                f"a {form} may not name {', '.join(sorted(set(refused)))} on this proxy",
                param="optillm_approach",
            )


def _check_choices(selection: Selection, n: object, route: Route, max_choices: int) -> None:
    if n is not None and (type(n) is not int or not 1 <= n <= max_choices):
        raise RequestRejected(f"n must be a whole number from 1 to {max_choices}", param="n")
    repeated = n if isinstance(n, int) else 1
    choices = len(selection.plan.chains) * repeated
    if choices > max_choices:
        raise RequestRejected(
            f"n times the approaches between '|' is {choices}, more than the {max_choices} choices "
            "that one request can have",
            param="n",
        )
    selection.calls.check(selection.plan, repeated)
    if route in _ONE_ANSWER and choices > 1:
        raise RequestRejected(
            "this route has one answer, which several choices (n, or '|' between approaches) would "
            "be mixed into: ask for one, or ask /v1/chat/completions"
        )


def _check_base(selection: Selection, router: Router) -> None:
    """Refuse a base that is no model: an alias, or a name that nobody serves."""
    base = selection.base
    found = deployments(router, base)
    is_alias = any(alias_model(deployment) is not None for deployment in found)
    if is_configured(router, base):
        if is_alias:
            raise RequestRejected(
                f"the base model {base!r} is itself an alias of an approach: the base must be an "
                f"ordinary model. To replace the approach of {base!r}, name another one in the "
                "body field optillm_approach",
                param="model",
            )
    elif is_alias or not found:
        raise RequestRejected(
            f"no model {base!r} is configured (asked for as {selection.requested!r})",
            param="model",
        )


def _check_named_models(selection: Selection, router: Router) -> None:
    """Refuse parameters that name no model, or an alias: a plan that runs plans has no end."""
    for model in sorted(selection.plan.model_groups):
        found = deployments(router, model)
        if any(alias_model(deployment) is not None for deployment in found):
            raise RequestRejected(
                f"the model {model!r} is itself an alias of an approach: parameters can only name "
                "ordinary models",
                param="optillm_params",
            )
        if not found:
            raise RequestRejected(f"no model {model!r} is configured", param="optillm_params")


def _check_prices(selection: Selection, facts_of: FactsOf) -> None:
    """Refuse a limit on money where one model has no price: its calls would count as free."""
    if selection.limits.max_cost_usd is None:
        return
    for model in selection.models:
        if facts_of(model).price is None:
            raise RequestRejected(
                f"max_cost_usd is set, but the price of {model!r} is not known", param="model"
            )


def _check_decoders(selection: Selection, facts_of: FactsOf) -> None:
    """Refuse a decoder that cannot run on a model whose replies it is to decode."""

    def supports(model: str, name: str) -> bool:
        return facts_of(model).supports(name)

    for chain in selection.plan.chains:
        for at, stage in enumerate(chain):
            named = [model for later in chain[at:] for model in later.params.generators()]
            for model in dict.fromkeys((selection.base, *named)):
                stage.params.check_model(model, partial(supports, model))


async def _check_key(
    selection: Selection,
    router: Router,
    key: UserAPIKeyAuth,
    reservation: Mapping[str, Any] | None,
) -> None:
    if not selection.inherits_access:
        await check_access(selection.base, key, router)
    for model in sorted(selection.plan.model_groups):
        await check_access(model, key, router)
    for model in selection.models:
        await check_budgets(model, key, router, reservation)


def _check_free_forms(router: Router | None) -> None:
    if router is not None and not is_configured(router, f"{PROVIDER}/*"):
        raise RequestRejected(
            f"approaches can only be used through configured models here: the model "
            f"'{PROVIDER}/*' that opens other ways is not configured",
            param="model",
        )


async def _count_request(selection: Selection, key: UserAPIKeyAuth | None) -> None:
    """Count the client's request towards the rate limits of each model that it calls, once.

    A fallback from one alias to another is the same request.
    """
    before = current.get()
    counted = set() if before is None else {before.base, *before.plan.model_groups}
    for model in selection.models:
        if model not in counted:
            await ModelRates(model, key).count_request()
