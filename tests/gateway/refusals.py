"""Aliases that must be refused, with the reason, which is the same on every path to a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.proxy import Config, alias, model_group
from tests.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Refusal:
    """An alias, and why a request for it is refused."""

    expression: str
    reason: str
    optillm: Mapping[str, Any] = field(default_factory=dict[str, Any])
    base: str = "base"
    key: str = "sk-all"
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More fields of the request."""


CAPPED = {"max_cost_usd": 1.0}
REFUSALS = {
    "unpriced_base": Refusal("re2", "the price of 'unpriced'", CAPPED, base="unpriced"),
    "unpriced_judge": Refusal("bon(n=2;judge=unpriced)", "the price of 'unpriced'", CAPPED),
    "base_denied": Refusal("re2", "model 'base' is not available", key="sk-other"),
    "judge_denied": Refusal(
        "bon(n=2;judge=priced)",
        "model 'priced' is not available",
        {"inherit_access": True},
        key="sk-other",
    ),
    "undecodable": Refusal("cot_decoding", "which 'base' is not"),
    "undecodable_proposer": Refusal(
        "cot_decoding&moa(models=[base])", "which 'base' is not", base="continuing"
    ),
    "dear": Refusal("bon(n=64;ratings=16)", "1088 model calls, but the maximum is 256"),
    "many": Refusal("re2", "from 1 to 64", fields={"n": 65}),
    "branched": Refusal("re2|none", "asks for 66 choices", fields={"n": 33}),
    "judge_missing": Refusal("bon(n=2;judge=nobody)", "no model 'nobody' is configured"),
    "judge_alias": Refusal("bon(n=2;judge=careful)", "'careful' is itself an alias"),
    "base_missing": Refusal("re2", "no model 'nobody' is configured", base="nobody"),
    "base_alias": Refusal("re2", "'careful' is itself an alias", base="careful"),
    "misspelt_setting": Refusal("re2", "max_call", {"max_call": 3}),
    "misspelt_approach": Refusal("ree2", "unknown approach 'ree2'"),
}
"""By the alias's name, which has no dash: what is before one is read as an approach."""


def refused_models(upstream: Upstream) -> list[Config]:
    """Return the YAML entries of the aliases, and of models that only they name."""
    unpriced = model_group("unpriced", upstream.url)
    for price in ("input_cost_per_token", "output_cost_per_token"):
        del unpriced["litellm_params"][price]
    continuing = model_group("continuing", upstream.url)
    continuing["model_info"] = {"optillm": {"continues_prefix": True}}
    return [
        unpriced,
        continuing,
        model_group("priced", upstream.url),
        *(alias(name, r.expression, r.base, **r.optillm) for name, r in REFUSALS.items()),
    ]
