"""What an alias of the YAML would run, as far as the checks of its surroundings need it."""

from collections.abc import Mapping
from typing import NamedTuple

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import model_names
from optillm_hooks.gateway.config_check.sections import Entry, Sections
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import cost_of, resolve
from optillm_hooks.settings import Settings


class AliasPlan(NamedTuple):
    """An alias whose plan can run."""

    entry: Entry
    models: frozenset[str]
    """The models that it calls, its base included."""

    calls: int
    """The calls of one request, if nothing fails."""

    width: int
    """The most calls at once."""

    has_max_cost: bool


def plans_of(config: Sections, settings: Settings) -> list[AliasPlan]:
    """Return the aliases with their plans, without those whose plans cannot run."""
    plans = (_plan_of(entry, settings) for entry in config.aliases)
    return [plan for plan in plans if plan is not None]


def _plan_of(entry: Entry, settings: Settings) -> AliasPlan | None:
    try:
        named = model_names.from_deployment(str(entry.alias_model))
        plan = resolve(parse(named.expression), presets=settings.presets)
    except RequestRejected:
        return None
    costs = [cost_of(chain) for chain in plan.chains]
    at_once = sum(cost.calls - cost.depth + 1 for cost in costs)
    given = entry.info.get("optillm")
    own = given if isinstance(given, Mapping) else {}
    most = own.get("max_parallel")
    return AliasPlan(
        entry,
        models=plan.model_groups | {named.base},
        calls=plan.expected_calls,
        width=min(at_once, most) if isinstance(most, int) else at_once,
        has_max_cost=own.get("max_cost_usd") is not None,
    )
