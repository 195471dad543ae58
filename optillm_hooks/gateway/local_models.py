"""Requests for local models: fields of reasoning, which LiteLLM refuses for a custom provider."""

from collections.abc import Mapping
from typing import Any, Final

LOCAL_PROVIDER: Final = "optillm-local"

_REASONING: Final = ("reasoning_effort", "thinking")
"""Fields that LiteLLM refuses or drops for a custom provider unless the request allows them."""


def is_local(call: Mapping[str, Any]) -> bool:
    """Return whether LiteLLM is about to make a call to a local model."""
    return LOCAL_PROVIDER in (
        call.get("custom_llm_provider"),
        str(call.get("model")).partition("/")[0],
    )


def allowing_reasoning(request: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Return a request in which fields of reasoning, and `others`, are allowed."""
    allowed = request.get("allowed_openai_params") or []
    return {**request, "allowed_openai_params": [*allowed, *_REASONING, *others]}


def for_local(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the call to a local model, with its fields of reasoning as they are.

    From Anthropic's `thinking` LiteLLM makes an effort, which has no budget.
    """
    thinking = call.get("thinking")
    extra = call.get("extra_body") or {}
    if isinstance(thinking, dict) and isinstance(extra, dict):
        call = {**call, "extra_body": {"thinking": thinking, **extra}}
    return allowing_reasoning(call)
