"""Fallbacks to dearer models, held to what a request's `max_cost_usd` has reserved for the call."""

from collections.abc import Mapping
from typing import Any

import litellm

from optillm_hooks.gateway.inner_call import InnerCall
from optillm_hooks.gateway.model_facts import price_of_deployment


def within_held_cost(
    kwargs: Mapping[str, Any], inner: InnerCall, group: str
) -> dict[str, Any] | None:
    """Return a fallback's call with no more tokens than its reservation pays for.

    The budget reserves a call at the price of the model that the plan calls. `group` is the model
    group that LiteLLM is about to call instead. None means that the call can be made as it is.

    Raises:
        BadRequestError: the fallback has no known price, or its prompt alone costs more.
    """
    held = inner.held
    if held is None or group == held.group:
        return None
    price = price_of_deployment(kwargs, kwargs.get("model_info") or {})
    if price is None:
        raise _refusal(inner, group, "its price is not known")
    left = held.usd - held.prompt_tokens * price.prompt
    per_token = price.completion * (kwargs.get("n") or 1)
    most = int(left / per_token) if per_token and left > 0 else 0
    if left < 0 or (per_token and most < 1):
        raise _refusal(inner, group, "it costs more than is reserved for the call")
    asked = kwargs.get("max_tokens")
    if not per_token or (isinstance(asked, int) and asked <= most):
        return None
    return {**kwargs, "max_tokens": most}


def _refusal(inner: InnerCall, group: str, reason: str) -> litellm.BadRequestError:
    """Return the error of a fallback that may not answer; it says nothing of its health."""
    inner.refused = True
    return litellm.BadRequestError(
        message=f"the fallback {group!r} cannot answer under max_cost_usd: {reason}",
        model=group,
        llm_provider="optillm",
    )
