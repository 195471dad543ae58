"""Checks of what LiteLLM does around plans: prices, retries, fallbacks, cooldowns, health."""

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import litellm
from litellm.types.utils import CustomPricingLiteLLMParams

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import model_names
from optillm_hooks.gateway.config_check.names import Names
from optillm_hooks.gateway.config_check.plans import AliasPlan
from optillm_hooks.gateway.config_check.problem import Problem
from optillm_hooks.gateway.config_check.sections import Entry, Sections, listed
from optillm_hooks.gateway.local_models import LOCAL_PROVIDER
from optillm_hooks.gateway.model_facts import price_of_deployment
from optillm_hooks.settings import meant

_PRICES: Final = ("input_cost_per_token", "output_cost_per_token")
_PRICE_FIELDS: Final = frozenset(CustomPricingLiteLLMParams.model_fields)
_FALLBACKS: Final = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
_SECTIONS: Final = ("litellm_settings", "router_settings")
_NO_CHECK: Final = "disable_background_health_check"
_SKIPS: Final = "health_check_skip_disabled_background_models"


def check_prices(config: Sections, plans: Sequence[AliasPlan]) -> Iterator[Problem]:
    """Yield prices of zero by which budgets would not hold, and prices without effect."""
    called = {name for plan in plans for name in plan.models}
    capped = {name for plan in plans if plan.has_max_cost for name in plan.models}
    for entry in config.models:
        path = _place_of_zeros(entry)
        if path is None:
            yield from _without_effect(entry)
        elif entry.alias_model is not None:
            yield Problem(
                path,
                "is 0, so that LiteLLM skips every budget check of requests for "
                f"{entry.name!r}: remove both prices, since the calls of a plan are billed singly",
            )
        elif entry.name in called and (_is_sold(entry) or entry.name in capped):
            yield Problem(
                path,
                f"is 0: calls of {entry.name!r} cost nothing then, so budgets and max_cost_usd do "
                "not hold. Remove both prices for those of LiteLLM's map, or write the real ones",
                logging.WARNING,
            )


def check_limits_in_dollars(config: Sections, plans: Sequence[AliasPlan]) -> Iterator[Problem]:
    """Yield the `max_cost_usd` of aliases that call a model whose price is not known."""
    given = listed(config.litellm.get("custom_provider_map"))
    custom = {each.get("provider") for each in given if isinstance(each, Mapping)}
    for plan in plans:
        called = (each for each in config.models if each.name in plan.models)
        unpriced = next((each for each in called if _lacks_price(each, custom)), None)
        if plan.has_max_cost and unpriced is not None:
            yield Problem(
                f"{plan.entry.path}.model_info.optillm.max_cost_usd",
                f"refuses each request of {plan.entry.name!r}: the price of {unpriced.name!r} is "
                f"not known. Set {' and '.join(_PRICES)} in {unpriced.path}.model_info",
                logging.WARNING,
            )


def _lacks_price(entry: Entry, custom: Container[object]) -> bool:
    """Return whether a model has no price; not of providers that are `custom`, as ours are."""
    if str(entry.params["model"]).partition("/")[0] in custom or "*" in entry.name:
        return False
    with suppress(RequestRejected):  # settings of the model that another check names
        return price_of_deployment(entry.params, entry.info) is None
    return False


def _without_effect(entry: Entry) -> Iterator[Problem]:
    """Yield the first price of an alias, whose plan's calls are billed singly."""
    for section, given in (("litellm_params", entry.params), ("model_info", entry.info)):
        if entry.alias_model is not None and (found := _PRICE_FIELDS & given.keys()):
            yield Problem(
                f"{entry.path}.{section}.{min(found)}",
                f"has no effect: the calls of {entry.name!r} are billed singly, each at the price "
                "of its model. Remove it",
                logging.WARNING,
            )
            return


def _place_of_zeros(entry: Entry) -> str | None:
    """Return where both prices of a model are 0; None if they are not."""
    for section, given in (("litellm_params", entry.params), ("model_info", entry.info)):
        if all(_is_zero(given.get(price)) for price in _PRICES):
            return f"{entry.path}.{section}.{_PRICES[0]}"
    return None


def _is_zero(price: object) -> bool:
    with suppress(TypeError, ValueError):
        return price is not None and float(str(price)) == 0
    return False


def _is_sold(entry: Entry) -> bool:
    """Return whether a provider bills calls: LiteLLM knows a price, or the host is not ours."""
    model = str(entry.params["model"])
    if model.startswith(f"{LOCAL_PROVIDER}/"):
        return False
    if "api_base" not in entry.params:
        return True
    known = litellm.model_cost.get(model) or litellm.model_cost.get(model.partition("/")[2]) or {}
    return any(not _is_zero(known.get(price)) for price in _PRICES if price in known)


def check_retries(config: Sections) -> Iterator[Problem]:
    """Yield the aliases that LiteLLM may run again as a whole, and bill again."""
    default = config.router.get("num_retries", config.litellm.get("num_retries"))
    for entry in config.aliases:
        own = entry.params.get("num_retries")
        if own == 0 or (own is None and default == 0):
            continue
        says = "is missing" if own is None else f"is {own!r}"
        yield Problem(
            f"{entry.path}.litellm_params.num_retries",
            f"{says}: where the alias is a fallback, or is called from Python, LiteLLM would run "
            "and bill its whole plan again after an error. Set num_retries: 0",
            logging.WARNING,
        )


class _Fallback(NamedTuple):
    path: str
    source: str | None
    """None for that of every model."""

    target: object


def check_fallbacks(
    config: Sections, names: Names, plans: Sequence[AliasPlan], level: int
) -> Iterator[Problem]:
    """Yield the fallbacks that cannot be used, and those by which one call becomes a plan.

    `level` is that of a model which does not exist.
    """
    calls = {plan.entry.name: plan.calls for plan in plans}
    for section, settings in zip(_SECTIONS, (config.litellm, config.router), strict=True):
        for name in _FALLBACKS:
            given = settings.get(name)
            if isinstance(given, Mapping) and name != "context_window_fallbacks":
                yield Problem(
                    f"{section}.{name}",
                    "must be a list, or LiteLLM does not start: write each entry as "
                    "`- model: [fallback]`",
                )
            for fallback in _fallbacks(f"{section}.{name}", given):
                yield from _check_fallback(fallback, names, calls, level)
        given = settings.get("default_fallbacks")
        for at, target in enumerate(listed(given)):
            path = f"{section}.default_fallbacks[{at}]"
            yield from _check_fallback(_Fallback(path, None, target), names, calls, level)


def _fallbacks(path: str, given: object) -> Iterator[_Fallback]:
    places = [(path, given)]
    if isinstance(given, list):
        places = [(f"{path}[{at}]", each) for at, each in enumerate(given)]
    for place, each in places:
        for source, targets in each.items() if isinstance(each, Mapping) else ():
            for at, target in enumerate(listed(targets)):
                name = None if source == "*" else str(source)
                yield _Fallback(f"{place}.{source}[{at}]", name, target)


def _check_fallback(
    fallback: _Fallback, names: Names, calls: Mapping[str, int], level: int
) -> Iterator[Problem]:
    target, source = fallback.target, fallback.source
    target = target.get("model") if isinstance(target, Mapping) else target
    if not isinstance(target, str):
        return
    if source is not None and not names.serves(source):
        text = f"{source!r}{meant(source, names.all)} is not configured: the fallback has no use"
        yield Problem(fallback.path, text, logging.WARNING)
    elif target in names.aliases and source not in names.aliases:
        of = "every model" if source is None else f"the plain model {source!r}"
        yield Problem(
            fallback.path,
            f"leads from {of} to the alias {target!r}: after an error of one call, a plan runs, "
            f"with {calls.get(target, 'many')} calls or more, which may fail for the same reason. "
            "Name an ordinary model",
            logging.WARNING,
        )
    elif not names.serves(target):
        why = f"which is not configured{meant(target, names.all)}"
        if _has_prefix(target):
            why = "but a name with an approach cannot be a fallback: make it an alias"
        yield Problem(fallback.path, f"leads to {target!r}, {why}", level)


def _has_prefix(name: str) -> bool:
    with suppress(RequestRejected):
        return model_names.from_prefix(name) is not None
    return True


def check_cooldowns(config: Sections, plans: Iterable[AliasPlan]) -> Iterator[Problem]:
    """Yield the numbers of allowed failures that are below the calls at once of an alias."""
    widest = max(plans, key=lambda plan: plan.width, default=None)
    if widest is None or widest.width < 2 or config.router.get("disable_cooldowns") is True:
        return
    for section, settings in zip(_SECTIONS, (config.litellm, config.router), strict=True):
        policy = settings.get("allowed_fails_policy")
        allowed = {f"{section}.allowed_fails": settings.get("allowed_fails")}
        for name, value in policy.items() if isinstance(policy, Mapping) else ():
            allowed[f"{section}.allowed_fails_policy.{name}"] = value
        for path, fails in allowed.items():
            if isinstance(fails, int) and fails < widest.width:
                yield Problem(
                    path,
                    f"is {fails}, but a request for {widest.entry.name!r} makes up to "
                    f"{widest.width} calls at once, and counts as a failure if one of them fails: "
                    "a few such requests take a model away from all. Set it to "
                    f"{widest.width} or more",
                    logging.WARNING,
                )


def check_health(config: Sections) -> Iterator[Problem]:
    """Yield the wildcard for all plans, if health checks include it: they cannot check it."""
    for entry in config.models:
        if entry.alias_model is None or entry.is_alias:
            continue
        if entry.info.get(_NO_CHECK) is not True:
            yield Problem(
                f"{entry.path}.model_info.{_NO_CHECK}",
                f"is not set: health checks report {entry.name!r} as unhealthy, since a wildcard "
                f"cannot be checked. Set {_NO_CHECK}: true",
                logging.WARNING,
            )
        elif config.general.get(_SKIPS) is not True:
            yield Problem(
                f"general_settings.{_SKIPS}",
                f"is not set: GET /health checks {entry.name!r} in spite of its {_NO_CHECK}, and "
                f"reports it as unhealthy. Set {_SKIPS}: true",
                logging.WARNING,
            )
