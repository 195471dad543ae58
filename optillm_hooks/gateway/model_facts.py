"""What we ask LiteLLM's router: which names exist, what they are, what they cost."""

from typing import Any

import litellm
from litellm import Router
from pydantic import ValidationError

from optillm_hooks.decoding.field import FIELD
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.deployments import deployments
from optillm_hooks.llm import Price
from optillm_hooks.settings import DeploymentSettings

LOCAL_PROVIDER = "optillm-local"

_LOCAL_FIELDS = (FIELD, "logprobs", "n", "response_format", "tools", "top_logprobs")
"""What local models take, which LiteLLM cannot know. It lets no `reasoning_effort` through."""

_PREFIX_FIELDS = ("continue_final_message", "logprobs", "top_logprobs")
"""What a deployment takes of which the operator says that it continues a prefix."""

_MAX_CHOICES = 128
"""The most choices that OpenAI's API takes in one call."""


class ModelFacts:
    """What LiteLLM's model map says of a group; asked for once per request, when needed."""

    def __init__(self, router: Router | None, model: str) -> None:
        self._router = router
        self._model = model
        self._found: list[dict[str, Any]] | None = None

    @property
    def max_n(self) -> int:
        """How many choices one call may ask for: 1 unless every deployment takes `n`."""
        return _MAX_CHOICES if self.supports("n") else 1

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that a reply of every deployment can have, of those that are known."""
        known = [fact["info"].get("max_output_tokens") for fact in self._facts()]
        return min((most for most in known if isinstance(most, int)), default=None)

    def price_at(self, deployment: object) -> Price | None:
        """Return the price of the deployment with that id; of an unknown one, the dearest."""
        prices = [_price(fact) for fact in self._facts() if fact["info"].get("id") == deployment]
        return prices[0] if prices else self.price

    @property
    def price(self) -> Price | None:
        """The dearest price among the deployments, or None if one of them has none."""
        prices = [_price(facts) for facts in self._facts()]
        known = [price for price in prices if price is not None]
        if not known or len(known) < len(prices):
            return None
        return Price(max(p.prompt for p in known), max(p.completion for p in known))

    def supports(self, name: str) -> bool:
        facts = self._facts()
        return bool(facts) and all(name in (fact["supported"] or ()) for fact in facts)

    def _facts(self) -> list[dict[str, Any]]:
        if self._found is None:
            if self._router is None:
                self._found = [_facts_of({"model": self._model}, {})]
            else:
                self._found = [
                    _facts_of(found["litellm_params"], found.get("model_info") or {})
                    for found in deployments(self._router, self._model)
                ]
        return self._found


def _facts_of(params: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    try:
        model, provider, _, _ = litellm.get_llm_provider(
            model=params["model"], custom_llm_provider=params.get("custom_llm_provider")
        )
    except litellm.BadRequestError:
        return {"provider": None, "supported": None, "info": info}
    supported = litellm.get_supported_openai_params(model=model, custom_llm_provider=provider)
    if provider == LOCAL_PROVIDER:
        supported = [*_LOCAL_FIELDS]
    if _continues_prefix(info):
        supported = [*(supported or ()), *_PREFIX_FIELDS]
    mapped: dict[str, Any] = litellm.model_cost.get(
        f"{provider}/{model}"
    ) or litellm.model_cost.get(model, {})
    return {"provider": provider, "supported": supported, "info": {**mapped, **params, **info}}


def _continues_prefix(info: dict[str, Any]) -> bool:
    try:
        return DeploymentSettings.model_validate(info.get("optillm") or {}).continues_prefix
    except ValidationError as exc:
        error = exc.errors()[0]
        place = ".".join(["model_info.optillm", *map(str, error["loc"])])
        raise RequestRejected(f"{place}: {error['msg']}", param=place) from None


def _price(facts: dict[str, Any]) -> Price | None:
    if facts["provider"] == LOCAL_PROVIDER:
        return Price(0.0, 0.0)
    prompt = facts["info"].get("input_cost_per_token")
    completion = facts["info"].get("output_cost_per_token")
    if prompt is None or completion is None:
        return None
    return Price(float(prompt), float(completion))
