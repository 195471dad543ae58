"""When a model reasons by itself: by LiteLLM's model map, the operator's settings, and its name."""

import re
from collections.abc import Mapping
from typing import Any

from optillm_hooks.llm import Reasoning

CAPABILITIES = (
    "supports_reasoning", "thinking_always_on", "default_reasoning_effort",
    "supports_sampling_params",
)  # fmt: skip
"""Fields of LiteLLM's model map, and of an operator's `model_info`, that hold on any host."""

_NEVER = re.compile(r"non-?(?:reasoning|thinking)|no-?think|gpt-5-(?:chat|search)|-instruct|-image")

_BY_DEFAULT = re.compile(
    r"""(?<![a-z0-9])(?:
        o[1-9](?![a-z0-9]) | gpt-(?:[5-9]|[1-9]\d)(?!\d)(?!.{0,100}-chat) | gpt-oss | codex-mini
      | deepseek-r\d | (?:deepseek-)?reasoner | r1(?![a-z0-9]) | qwq | qvq
      | gemini-(?:2\.5|[3-9](?:\.\d)?)-(?:pro|flash)(?!-lite) | gemini-(?:pro|flash)-latest
      | grok-(?:3-mini|[4-9]|code|build)
      | magistral | minimax-m\d | sonar-(?:reasoning|deep)
      | qwen3(?:[.p]\d)?[-:][\d.]+b(?!.{0,100}coder)
      | glm-(?:4[.p][5-9]|[5-9]) | kimi-k(?:2[.p][5-9]|[3-9])
      | reasoning | reasoner | think(?:ing|er)?
    )""",
    re.VERBOSE,
)
"""Names of models that reason unless a request switches it off. LiteLLM's map says which models
can reason, and only for a few of them whether they do so by default."""

_SWITCHED_OFF = ("none", "disable")


def reasoning(model: str, info: Mapping[str, Any]) -> Reasoning:
    """Return when a deployment's model reasons by itself.

    Args:
        model: its name.
        info: the entry of LiteLLM's model map, with what the operator's `litellm_params` and
            `model_info` replace in it.
    """
    name = model.lower()
    if info.get("supports_reasoning") is False:
        return "never"
    if info.get("thinking_always_on"):
        return "always"
    if (set_by_operator := _switch(info)) is not None:
        return "always" if set_by_operator else "on_request"
    if _NEVER.search(name):
        return "never"
    effort = info.get("default_reasoning_effort")
    if effort != "none" and (effort is not None or _BY_DEFAULT.search(name)):
        return "always"
    can = info.get("supports_reasoning") or effort is not None or "claude" in name
    return "on_request" if can else "never"


def _switch(info: Mapping[str, Any]) -> bool | None:
    """Return whether the deployment's own parameters switch reasoning on, or None."""
    effort, thinking = info.get("reasoning_effort"), info.get("thinking")
    if isinstance(thinking, dict):
        return thinking.get("type") != "disabled"
    return None if effort is None else effort not in _SWITCHED_OFF


def of_all(each: list[Reasoning]) -> Reasoning:
    """Return what holds for every deployment of a group."""
    order: list[Reasoning] = ["never", "on_request", "always"]
    return min(each, key=order.index, default="never")
