"""Admission control: checks whether a plan may run, before any model is called.

Requests are admitted in two places. The hook admits a request that names an approach, before
LiteLLM routes it. The provider admits a plan that has not passed through the hook:

* A router's fallback leads from another model to an alias.
* A comma in the model name asks LiteLLM for several models, one of them an alias.
* A Python program calls LiteLLM's router or SDK directly.

Both call `admit`, which makes every check, so neither path is more permissive. Checks that do not
apply are skipped:

* `forms` restricts what a client may name, and an alias's plan is the operator's. In a proxy, only
  the hook admits a plan that a client wrote; the provider refuses it.
* Access, budgets and rate limits belong to a key. A Python program has none.
* Only a router knows which models are configured. The SDK has none.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from litellm import Router
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

from optillm_hooks.decoding.field import FIELD as DECODING
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.budgets import check_budgets
from optillm_hooks.gateway.caller import Caller, check_access, model_for_key
from optillm_hooks.gateway.deployments import alias_model, deployments, is_configured, names_for
from optillm_hooks.gateway.inner_call import InnerCall
from optillm_hooks.gateway.key_limits import key_limits
from optillm_hooks.gateway.model_facts import FactsOf, cached_model_facts
from optillm_hooks.gateway.model_names import PROVIDER, Named, refuse_second_prefix
from optillm_hooks.gateway.prepared import Prepared, Route
from optillm_hooks.gateway.rates import ModelRates
from optillm_hooks.gateway.selection import Selection, is_served, unknown_prefix
from optillm_hooks.gateway.services import services_for
from optillm_hooks.pipeline.plan import Chain, Plan
from optillm_hooks.settings import Settings, forbidden, meant

_SINGLE_ANSWER_ROUTES: frozenset[Route] = frozenset({"messages", "responses"})
"""Routes whose responses have no list of choices."""


async def admit(
    selection: Selection,
    settings: Settings,
    router: Router | None,
    key: UserAPIKeyAuth | None,
    *,
    n: object,
    route: Route,
    reservation: Mapping[str, Any] | None = None,
    before: Prepared | None = None,
    final: bool = True,
) -> Prepared:
    """Return the request as the provider will run it, after all checks.

    Access comes first of those that depend on what is configured: a key learns nothing about models
    that it may not call, not even whether they exist.

    Args:
        selection: the plan and its base model.
        settings: the operator's settings for all requests.
        router: the router that has the models; None if only LiteLLM's SDK is used.
        key: the caller's key; None outside a proxy.
        n: the request's `n`, as the client sent it.
        route: the route that the client called.
        reservation: LiteLLM's budget reservation for this request.
        before: the plan that the same request was admitted with before, if this is that of a
            fallback or of another deployment.
        final: whether this plan will run. If the router has yet to choose among several, it is not
            counted as a request yet.

    Raises:
        RequestRejected: the plan is invalid or not allowed, whoever the caller is.
        ProviderFailed: a rate limit of the key is reached.
        BudgetExceededError, ProxyException: LiteLLM's own refusals of the key.
    """
    _check_forms(selection, settings)
    _check_choices(selection, n, route, settings.max_choices)
    if router is not None and key is not None:
        await _check_access(selection, router, key)
        selection = _as_called(selection, router, key)
    if router is not None:
        _check_base(selection, router, key)
        _check_named_models(selection, router, key)
    if key is not None and not selection.passes_through:
        of_key = key_limits(key)
        limits = selection.limits.lowered(of_key)
        selection = replace(selection, of_key=of_key, limits=limits)
    facts_of = cached_model_facts(router, key)
    _check_prices(selection, facts_of)
    base = selection.base if not selection.passes_through else None

    def scores(name: str) -> bool:
        return facts_of(selection.called.get(name, name)).max_scored > 0

    check_writers(selection.plan, base, scores)
    _check_decoders(selection, n, facts_of)
    _check_services(selection, settings, router, key)
    if router is not None and key is not None:
        for model in selection.models:
            await check_budgets(model, key, router, reservation)
    if not (selection.on_alias or selection.passes_through):
        _check_wildcard(router)
    if final and not (selection.passes_through or selection.dry_run):
        await _count_request(selection, key, before)
    choices = n if isinstance(n, int) else 1
    prepared = Prepared(
        selection=selection, n=choices, route=route, facts_of=facts_of, is_final=final
    )
    if before is not None:
        prepared.user, prepared.fields, prepared.cache = before.user, before.fields, before.cache
        prepared.body, prepared.prompt_tokens = before.body, before.prompt_tokens
    return prepared


async def admit_base(
    selection: Selection, router: Router | None, key: UserAPIKeyAuth | None, call: InnerCall
) -> str:
    """Return the plain base model of an alias, as which it answers a call of another plan.

    Raises:
        RequestRejected: the base is not a plain model, has failed already in this call, or has no
            known price under `max_cost_usd`.
        ProxyException: LiteLLM's own refusal of the key.
    """
    if router is not None and key is not None:
        if not selection.inherits_access:
            await check_access(selection.base, key, router)
        selection = _as_called(selection, router, key)
    base = selection.called_base
    if base in call.tried:
        raise RequestRejected(
            f"{selection.requested!r} is a fallback here, and its base model {base!r} has failed "
            "already",
            param="model",
        )
    if router is not None:
        _check_base(selection, router, key)
    if call.needs_price:
        _check_price(base, cached_model_facts(router, key))
    return base


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
            f"the request asks for {choices} choices (n times the branches between '|'), but the "
            f"maximum is {max_choices}",
            param="n",
        )
    selection.calls.check(selection.plan, repeated)
    if route in _SINGLE_ANSWER_ROUTES and choices > 1:
        raise RequestRejected(
            "this route returns one answer and cannot return several choices (n, or '|' between "
            "approaches): ask for one choice, or use /v1/chat/completions"
        )


async def refuse_unknown_model(
    data: Mapping[str, Any], router: Router, key: UserAPIKeyAuth
) -> None:
    """Refuse a model name with a misspelt approach, or one that is nearly that of a model.

    Only models that the key may call are named. Other unknown names, and all where there is a
    fallback for them, are left to LiteLLM.

    Raises:
        RequestRejected: the message has the approaches, or the name that is meant.
    """
    model = data.get("model")
    if not isinstance(model, str) or is_served(model, router, key):
        return
    mistake = unknown_prefix(model, router, key)
    if mistake is not None:
        with suppress(ProxyException):
            await check_access(mistake.base, key, router)
            raise mistake.error
        return
    if data.get("fallbacks") or _may_answer_any_name(router, model):
        return
    if hint := meant(model, names_for(router, key)):
        raise RequestRejected(f"no model {model!r} is configured{hint}", param="model")


def _may_answer_any_name(router: Router, model: str) -> bool:
    """Return whether LiteLLM may have an answer for a model that is not configured."""
    return bool(
        model in router.deployment_names
        or router.fallbacks
        or router.default_deployment
        or router.router_general_settings.pass_through_all_models
    )


async def _check_access(selection: Selection, router: Router, key: UserAPIKeyAuth) -> None:
    if not selection.inherits_access:
        await check_access(selection.base, key, router)
    for model in sorted(selection.plan.model_groups):
        await check_access(model, key, router)


def _as_called(selection: Selection, router: Router, key: UserAPIKeyAuth) -> Selection:
    """Return `selection` with the models that are called for `key`, as LiteLLM would call them.

    LiteLLM has done it for the model that the client requests. The base that an alias lends is the
    operator's choice.
    """
    names = set(selection.plan.model_groups)
    if not (selection.inherits_access or selection.base == selection.requested):
        names.add(selection.base)
    targets = {name: model_for_key(name, key, router) for name in names}
    called = {name: target for name, target in targets.items() if target != name}
    return replace(selection, called=called) if called else selection


def _check_base(selection: Selection, router: Router, key: UserAPIKeyAuth | None) -> None:
    """Refuse a base model that is an alias, or that no deployment serves."""
    base = selection.called_base
    found = deployments(router, base, key)
    is_alias = any(alias_model(deployment) is not None for deployment in found)
    configured = is_configured(router, base, key)
    if not configured:
        refuse_second_prefix(Named(selection.plan.label, base))
    if not found or (is_alias and not configured):
        hint = "" if key is None else meant(base, names_for(router, key))
        raise RequestRejected(
            f"no model {base!r} is configured{hint} (requested as {selection.requested!r})",
            param="model",
        )
    if is_alias:
        raise RequestRejected(
            f"the base model {base!r} is itself an alias of an approach: the base must be an "
            f"ordinary model. To replace the approach of {base!r}, name another one in the "
            "body field optillm_approach",
            param="model",
        )


def _check_named_models(selection: Selection, router: Router, key: UserAPIKeyAuth | None) -> None:
    """Refuse parameters that name an unknown model, or an alias, which could recurse endlessly."""
    for model in selection.called_by_parameters:
        found = deployments(router, model, key)
        if any(alias_model(deployment) is not None for deployment in found):
            raise RequestRejected(
                f"the model {model!r} is itself an alias of an approach: parameters can only name "
                "ordinary models",
                param="optillm_params",
            )
        if not found:
            raise RequestRejected(f"no model {model!r} is configured", param="optillm_params")


def _check_prices(selection: Selection, facts_of: FactsOf) -> None:
    """Refuse `max_cost_usd` if a model has no known price: its calls would count as free."""
    if selection.limits.max_cost_usd is None:
        return
    for model in selection.models:
        _check_price(model, facts_of)


def _check_price(model: str, facts_of: FactsOf) -> None:
    if facts_of(model).price is None:
        raise RequestRejected(
            f"max_cost_usd is set, but the price of {model!r} is not known: have the operator set "
            "input_cost_per_token and output_cost_per_token in its model_info",
            param="model",
        )


def check_writers(plan: Plan, base: str | None, scores: Callable[[str], bool]) -> None:
    """Refuse a reranker or reward model where words are needed: it only scores.

    Args:
        plan: whose models are checked.
        base: its base model; None if the plan does not call it.
        scores: whether a model only scores.

    Raises:
        RequestRejected: the message names the model.
    """
    if base is not None and scores(base):
        raise RequestRejected(
            f"the base model {base!r} only scores answers: it can be a judge", param="model"
        )
    for stage in plan.stages:
        for name in stage.params.writers():
            if scores(name):
                raise RequestRejected(
                    f"the model {name!r} only scores answers, but {stage.approach.name!r} needs "
                    f"words from it: a scorer can stand in "
                    f"{' and '.join(stage.params.scorer_fields) or 'none of its parameters'}",
                    param="optillm_params",
                )


def _check_decoders(selection: Selection, n: object, facts_of: FactsOf) -> None:
    """Refuse a decoder that does not support a model whose replies it would decode.

    Also one that would make more calls on such a model than allowed.
    """

    def supports(model: str, name: str) -> bool:
        return facts_of(model).supports(name)

    def check(chain: Chain, base: str) -> None:
        for at, stage in enumerate(chain):
            named = [*stage.params.generators(), *_called_by(chain[at + 1 :])]
            for name in dict.fromkeys((base, *named)):
                model = selection.called.get(name, name)
                stage.params.check_model(model, partial(supports, model))
            if (aside := stage.params.aside()) is not None:
                check(stage.inside, aside.model or base)

    for chain in selection.plan.chains:
        check(chain, selection.base)
    base = selection.called.get(selection.base, selection.base)
    if selection.plan.has_remote_decoder and not supports(base, DECODING):
        repeated = n if isinstance(n, int) else 1
        selection.calls.check(selection.plan, repeated, decoded_remotely=True)


def _called_by(stages: Chain) -> Iterator[str]:
    """Yield the models that parameters of `stages` have write text, beside the base."""
    for stage in stages:
        for each in (stage, *stage.inside):
            yield from each.params.generators()
        aside = stage.params.aside()
        if aside is not None and aside.model is not None:
            yield aside.model


def _check_services(
    selection: Selection, settings: Settings, router: Router | None, key: UserAPIKeyAuth | None
) -> None:
    """Refuse a stage that needs a service that the operator has not switched on."""
    services = services_for(selection.settings, settings, router, Caller(key=key))
    for stage in selection.plan.stages:
        stage.params.check_services(services)


def _check_wildcard(router: Router | None) -> None:
    """Refuse approaches on other models than aliases, unless the operator has allowed them."""
    if router is not None and not is_configured(router, f"{PROVIDER}/*"):
        raise RequestRejected(
            f"on this proxy, approaches can only be used through aliases: the model "
            f"'{PROVIDER}/*', which allows them on every model, is not configured",
            param="model",
        )


async def _count_request(
    selection: Selection, key: UserAPIKeyAuth | None, before: Prepared | None
) -> None:
    """Count the client's request towards the rate limits of each model that it calls, once.

    A fallback from one alias to another is the same request.
    """
    counted = set()
    if before is not None and before.is_final:
        counted = set(before.selection.models)
    for model in selection.models:
        if model not in counted:
            await ModelRates(model, key).count_request()
