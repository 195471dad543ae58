"""Facts about model groups, from LiteLLM's router and model map."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import litellm
from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth
from pydantic import ValidationError

from optillm_hooks.decoding.field import FIELD
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.deployments import alias_model, deployments
from optillm_hooks.gateway.local_models import LOCAL_PROVIDER, allowing_reasoning
from optillm_hooks.gateway.model_names import from_deployment
from optillm_hooks.gateway.prompt_tokens import PromptTokens
from optillm_hooks.gateway.reasoning import CAPABILITIES, of_all, reasoning
from optillm_hooks.gateway.refusals import REFUSALS
from optillm_hooks.gateway.sampling_rules import (
    Deployment,
    all_take,
    by_sampling,
    max_thinking,
)
from optillm_hooks.gateway.score_provider import SCORE_PROVIDER, route_of
from optillm_hooks.llm import ModelFacts, Price
from optillm_hooks.local_provider.thinking import template_reasons
from optillm_hooks.settings import DeploymentSettings, mistakes
from optillm_hooks.types import Fields, Sampling

_LOCAL_FIELDS = (
    FIELD, "continue_final_message", "logprobs", "n", "reasoning_effort", "response_format",
    "thinking", "tools", "top_logprobs",
)  # fmt: skip
"""Fields that local models accept, which LiteLLM does not know."""

_PREFIX_FIELDS = ("continue_final_message", "logprobs", "top_logprobs")
"""Fields that a deployment accepts if the operator has set its `continues_prefix`."""

_MAX_CHOICES = 128
"""The maximum `n` of OpenAI's API."""

_MAX_SCORED = 32
"""Texts that one call of a reranker takes: the default limit of Text Embeddings Inference, which is
the strictest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFacts(ModelFacts):
    """The facts of a model group: what holds for every deployment of it."""

    prices: Mapping[object, Price | None]
    """Prices by deployment id."""

    deployments: Sequence[Deployment]

    def price_at(self, deployment: object) -> Price | None:
        """Return the price of the deployment with that id; the group's for an unknown id."""
        return self.prices.get(deployment, self.price)

    def price_of(self, sampling: Sampling) -> Price | None:
        """Return the highest price of a call, whichever deployment of the group answers it."""
        return _highest([_price(each, sampling.fields) for each in self.deployments])


FactsOf = Callable[[str], GroupFacts]


def cached_model_facts(router: Router | None, key: UserAPIKeyAuth | None = None) -> FactsOf:
    """Return `model_facts` for the models of one request, each looked up once."""
    return cache(partial(model_facts, router, key=key))


def model_facts(router: Router | None, model: str, key: UserAPIKeyAuth | None = None) -> GroupFacts:
    """Return the facts of a model group, from LiteLLM's model map and the operator's settings.

    The price is the highest among its deployments, and None if one of them has no price.
    """
    found = _found(router, model, key)
    windows = [each.info.get("max_input_tokens") for each in found]
    lengths = [each.info.get("max_output_tokens") for each in found]
    prices = [_price(each) for each in found]
    fields = [each.supported for each in found]
    supported = frozenset.intersection(*fields) if fields else frozenset[str]()
    return GroupFacts(
        count_tokens=PromptTokens(model).count,
        max_n=_MAX_CHOICES if "n" in supported else 1,
        max_output_tokens=min((n for n in lengths if isinstance(n, int)), default=None),
        max_input_tokens=min((n for n in windows if isinstance(n, int)), default=None),
        price=_highest(prices),
        reasoning=of_all([reasoning(each.name, each.info) for each in found]),
        sees_images=bool(found) and all(each.info.get("supports_vision") for each in found),
        supported=supported,
        takes=partial(
            _takes, model, by_sampling(all_take([*found, *_fallbacks(router, model, key)]))
        ),
        thinking_tokens=by_sampling(max_thinking(found)),
        remember=partial(REFUSALS.add, model),
        deployments=tuple(found),
        max_scored=min(map(_max_scored, found), default=0),
        prices={each.info.get("id"): price for each, price in zip(found, prices, strict=True)},
    )


def _max_scored(deployment: Deployment) -> int:
    """Return how many texts one call scores; 0 if the deployment writes."""
    if deployment.provider == SCORE_PROVIDER:
        several = route_of(deployment.params.get("api_base")) in ("score", "rerank")
        return _MAX_SCORED if several else 1
    return _MAX_SCORED if deployment.info.get("mode") == "rerank" else 0


def only_scores(params: dict[str, Any], info: dict[str, Any]) -> bool:
    """Return whether a deployment of the YAML is a reranker or a reward model.

    Not if its `model_info` is wrong: requests for it say how.
    """
    try:
        return _max_scored(_deployment(params, info)) > 0
    except RequestRejected:
        return False


def told_of(deployment: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what LiteLLM's model map and the operator tell of a deployment's model.

    Raises:
        RequestRejected: its `model_info` is wrong.
    """
    return _deployment(deployment["litellm_params"], deployment.get("model_info") or {}).info


def _takes(model: str, known: Callable[[Sampling], bool], sampling: Sampling) -> bool:
    return REFUSALS.takes(model, sampling) and known(sampling)


def _found(router: Router | None, model: str, key: UserAPIKeyAuth | None) -> list[Deployment]:
    if router is None:
        return [_deployment({"model": model}, {})]
    return [
        _deployment(found["litellm_params"], found.get("model_info") or {})
        for found in deployments(router, model, key)
    ]


def _fallbacks(router: Router | None, model: str, key: UserAPIKeyAuth | None) -> list[Deployment]:
    """Return the deployments that may answer in place of a group's own; of an alias, its base's."""
    if router is None:
        return []
    lists = (router.fallbacks, router.context_window_fallbacks, router.content_policy_fallbacks)
    names = [
        name
        for by_group in lists
        for entry in by_group or ()
        for group, named in entry.items()
        if group in (model, "*")
        for name in named
    ]
    named = dict.fromkeys(name["model"] if isinstance(name, dict) else name for name in names)
    answering = dict.fromkeys(base for name in named for base in _answering(router, name, key))
    return [each for name in answering for each in _found(router, name, key)]


def _answering(router: Router, name: str, key: UserAPIKeyAuth | None) -> list[str]:
    """Return the group itself, or the base models of an alias that can be read."""
    aliases = [alias_model(deployment) for deployment in deployments(router, name, key)]
    if not any(aliases):
        return [name]
    bases = list[str]()
    for alias in filter(None, aliases):
        with suppress(RequestRejected):
            bases.append(from_deployment(alias).base)
    return [
        base
        for base in bases
        if not any(alias_model(each) for each in deployments(router, base, key))
    ]


def _deployment(params: dict[str, Any], info: dict[str, Any]) -> Deployment:
    name, base = str(params.get("model")), info.get("base_model") or params.get("base_model")
    try:
        model, provider, _, _ = litellm.get_llm_provider(
            model=name, custom_llm_provider=params.get("custom_llm_provider")
        )
    except litellm.BadRequestError:
        return Deployment(name, name, None, base, params, frozenset(), info)
    supported = litellm.get_supported_openai_params(
        model=model, custom_llm_provider=provider, base_model=base
    )
    if provider == LOCAL_PROVIDER:
        params, supported = allowing_reasoning(params), [*_LOCAL_FIELDS]
    if _continues_prefix(info):
        supported = [*(supported or ()), *_PREFIX_FIELDS]
    known: dict[str, Any] = next(
        filter(None, map(litellm.model_cost.get, (base, f"{provider}/{model}", model))), {}
    )
    path, shown = _local(info)
    told = [_capabilities(base or model), known, shown, params, info]  # the last one wins
    return Deployment(
        base or path or model,
        model,
        provider,
        base,
        params,
        frozenset(supported or ()),
        {k: v for each in told for k, v in each.items() if v is not None},
    )


def _capabilities(model: str) -> dict[str, Any]:
    """Return what the map says of reasoning in the entry that names a model without its host."""
    twin: dict[str, Any] = litellm.model_cost.get(model.rsplit("/", 1)[-1], {})
    return {name: twin[name] for name in CAPABILITIES if name in twin}


_OF_TEMPLATE: Mapping[str, dict[str, Any]] = {
    "never": {"supports_reasoning": False},
    "on_request": {"supports_reasoning": True, "default_reasoning_effort": "none"},
    "always": {"thinking_always_on": True},
}
"""What a local model's chat template shows, in the words of LiteLLM's model map."""


def _local(info: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Return the path of a local model, and what its chat template shows of reasoning."""
    spec = info.get("optillm_local")
    path = spec.get("path") if isinstance(spec, dict) else None
    if not isinstance(spec, dict) or not isinstance(path, str):
        return None, {}
    shown = None if spec.get("gguf_file") else template_reasons(path, spec.get("revision"))
    return path, {} if shown is None else _OF_TEMPLATE[shown]


def _continues_prefix(info: dict[str, Any]) -> bool:
    try:
        return DeploymentSettings.model_validate(info.get("optillm") or {}).continues_prefix
    except ValidationError as exc:
        found = mistakes(exc, DeploymentSettings, "model_info.optillm")
        place, text = next(iter(found.items()))
        raise RequestRejected(f"{place}: {text}", param=place) from None


def _highest(prices: Sequence[Price | None]) -> Price | None:
    """Return the highest of `prices`; None if one of them is not known, or there are none."""
    known = [price for price in prices if price is not None]
    if not known or len(known) < len(prices):
        return None
    return Price(max(p.prompt for p in known), max(p.completion for p in known))


def price_of_deployment(params: Mapping[str, Any], info: Mapping[str, Any]) -> Price | None:
    """Return the price of a call that LiteLLM makes with `params` to the deployment of `info`."""
    return _price(_deployment(dict(params), dict(info)), params)


def _price(deployment: Deployment, fields: Fields | None = None) -> Price | None:
    """Return the price of a deployment, for a call with `fields` that may make it dearer."""
    if deployment.provider == LOCAL_PROVIDER:
        return Price(0.0, 0.0)
    if _max_scored(deployment):
        return _price_of_scores(deployment)
    prompt, completion = ["input_cost_per_token"], ["output_cost_per_token"]
    if any(deployment.info.get(name) is None for name in (*prompt, *completion)):
        return None
    if fields is None:
        return Price(_max_price(deployment, prompt), _max_price(deployment, completion))
    completion.append("output_cost_per_reasoning_token")
    tier = fields.get("service_tier")
    prompt.append(f"{prompt[0]}_{tier}")
    completion.append(f"{completion[0]}_{tier}")
    if "audio" in fields:
        completion.append("output_cost_per_audio_token")
    if "prediction" in fields:  # what is wrong of it is billed as completion
        prompt += completion
    return Price(_max_price(deployment, prompt), _max_price(deployment, completion))


def _price_of_scores(deployment: Deployment) -> Price | None:
    """Return the price of a scorer, whose reply is one token at the price of a call."""
    prices = [deployment.info.get(f"input_cost_per_{unit}") for unit in ("token", "query")]
    if prices == [None, None]:
        return None
    token, call = (float(price or 0.0) for price in prices)
    return Price(token, call)


def _max_price(deployment: Deployment, names: Sequence[str]) -> float:
    return max(float(deployment.info.get(name) or 0.0) for name in names)
