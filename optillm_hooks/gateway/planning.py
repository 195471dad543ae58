"""Plans a client's request: selects its approach and admits it, for each deployment of an alias."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from litellm import BudgetExceededError, Router
from litellm.proxy._types import ProxyException, UserAPIKeyAuth

from optillm_hooks.errors import OptiLLMError, RequestRejected
from optillm_hooks.gateway.admission import admit, refuse_unknown_model
from optillm_hooks.gateway.deployments import deployments, is_alias
from optillm_hooks.gateway.kill_switch import as_plain, check_one_base, is_off
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.prepared import Prepared, Route
from optillm_hooks.gateway.routes import check_fields_of_base, check_request
from optillm_hooks.gateway.selection import deployment_id, select
from optillm_hooks.gateway.tags import read_tags
from optillm_hooks.pipeline.optillm_names import AUTO
from optillm_hooks.settings import Settings

_REFUSALS = (OptiLLMError, ProxyException, BudgetExceededError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A client's request after all checks."""

    request: dict[str, Any]
    """The request without our own fields, and without the tags if one has chosen the approach."""

    prepared: Prepared | None
    """None if the request names no approach."""

    refused_deployments: frozenset[str] = frozenset()
    """Ids of deployments of the requested model that may not serve this request."""

    ignores_tag: bool = False
    """Whether the request has a tag without effect."""

    switched_off: bool = False
    """Whether the plain call of `prepared` stands in for an approach that is switched off."""


async def plan_request(
    data: Mapping[str, Any], route: Route, router: Router, key: UserAPIKeyAuth
) -> Planned:
    """Return the request `data` with its plan.

    Text of a stranger may hold a tag. It must not make a request fail, so a tag whose plan cannot
    run is ignored, whatever the reason.

    Raises:
        OptiLLMError, ProxyException, BudgetExceededError: the request is refused.
    """
    await refuse_unknown_model(data, router, key)
    found = read_tags(data)
    tag = None if found.approach == AUTO else found.approach
    if tag is not None:
        try:
            return await _for_each({**data, **found.changed}, route, router, key, tag)
        except _REFUSALS:
            return replace(await _for_each(data, route, router, key, None), ignores_tag=True)
    return await _for_each({**data, **found.changed}, route, router, key, None)


async def _for_each(
    data: Mapping[str, Any], route: Route, router: Router, key: UserAPIKeyAuth, tag: str | None
) -> Planned:
    """Return the request as planned for the first deployment of an alias that can serve it.

    The router chooses among those that can. Plain deployments of the same name can, if the request
    asks for nothing but the model.

    Raises:
        OptiLLMError, ProxyException, BudgetExceededError: no deployment can; this is the first
            one's error.
    """
    requested = data.get("model")
    found = deployments(router, requested, key) if isinstance(requested, str) else []
    aliases: list[dict[str, Any] | None] = [each for each in found if is_alias(each)]
    planned: list[Planned] = []
    refused: list[Mapping[str, Any]] = []
    errors: list[Exception] = []
    for each in aliases or [None]:
        try:
            planned.append(await _for(each, data, route, router, key, tag, final=len(found) < 2))
        except _REFUSALS as exc:
            errors.append(exc)
            refused += [] if each is None else [each]
    if not planned:
        raise errors[0]
    if planned[0].switched_off:
        return _plain_form(requested, planned, found)
    prepared = planned[0].prepared
    if aliases and not (prepared and prepared.selection.is_aliass_own):
        refused += [each for each in found if not is_alias(each)]
    served = {each.prepared.selection.deployment_id for each in planned if each.prepared}
    ids = {deployment_id(each) for each in refused} - served
    return replace(planned[0], refused_deployments=frozenset(filter(None, ids)))


def _plain_form(
    requested: object, planned: Sequence[Planned], found: Sequence[Mapping[str, Any]]
) -> Planned:
    """Return what answers in place of plans that are switched off.

    It is their base model, or the plain deployments of the same name where there are some.

    Raises:
        RequestRejected: the plans have several base models.
    """
    aliases = [each for each in found if is_alias(each)]
    if aliases and len(aliases) < len(found):
        ids = filter(None, map(deployment_id, aliases))
        return replace(planned[0], prepared=None, refused_deployments=frozenset(ids))
    check_one_base(requested, [each.prepared.base for each in planned if each.prepared])
    return planned[0]


async def _for(
    deployment: Mapping[str, Any] | None,
    data: Mapping[str, Any],
    route: Route,
    router: Router,
    key: UserAPIKeyAuth,
    tag: str | None,
    *,
    final: bool,
) -> Planned:
    request = dict(data)
    settings, invalid = _settings()
    selection = select(request, router, settings, key=key, tag=tag, deployment=deployment)
    if selection is None:
        return Planned(request=request, prepared=None)
    switched_off = is_off(key) and not selection.passes_through
    if switched_off:
        selection = as_plain(selection)
    elif invalid is not None:
        raise invalid
    if not selection.passes_through:
        check_request(request, route)
    prepared = await admit(
        selection,
        settings,
        router,
        key,
        n=request.get("n"),
        route=route,
        reservation=key.budget_reservation,
        final=final or not selection.on_alias,
    )
    if not selection.passes_through:
        check_fields_of_base(request, route, prepared.facts_of(prepared.base))
    return Planned(request=request, prepared=prepared, switched_off=switched_off)


def _settings() -> tuple[Settings, RequestRejected | None]:
    """Return the operator's settings; if they are invalid, the defaults and the error.

    Requests for plain models do not depend on them.
    """
    try:
        return read_settings(), None
    except RequestRejected as exc:
        return Settings(), exc
