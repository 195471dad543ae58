"""What LiteLLM lists of an alias (`/model/info`, `/v1/models`): the window and skills of its base.

Clients look there before they send an image, offer tools or shorten a conversation. What is not
listed does not exist for them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import litellm
from litellm.router_utils.pattern_match_deployments import PatternMatchRouter

from optillm_hooks.approach_docs import good_for
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.config_check.sections import Sections, read_sections
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.gateway.model_facts import told_of
from optillm_hooks.gateway.model_names import PROVIDER, from_deployment
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import Plan, resolve

_SKILLS: Final = (
    "supports_audio_input", "supports_function_calling", "supports_parallel_function_calling",
    "supports_pdf_input", "supports_reasoning", "supports_response_schema",
    "supports_system_messages", "supports_tool_choice", "supports_vision",
)  # fmt: skip
_LENGTHS: Final = ("max_tokens", "max_output_tokens", "max_input_tokens")
"""Fields of LiteLLM's model map that hold for an alias if they do for its base. Prices do not."""


def list_aliases() -> None:
    """Enter the aliases of the YAML into LiteLLM's model map, if this process runs the proxy.

    An alias's own `model_info` takes precedence there. Models of a database are not entered.
    """
    config = getattr(getattr(proxy_module(), "proxy_config", None), "config", None)
    if config:
        litellm.register_model(entries(config))


def entries(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entries of the aliases of a YAML, by their names in LiteLLM's model map."""
    sections, _ = read_sections(config)
    return dict(_entries(sections))


def _entries(sections: Sections) -> Iterator[tuple[str, dict[str, Any]]]:
    plain = [entry.deployment for entry in sections.models if entry.alias_model is None]
    for entry in sections.aliases:
        with suppress(RequestRejected):  # the log of the start says what is wrong
            named = from_deployment(str(entry.alias_model))
            plan = resolve(parse(named.expression), presets=read_settings().presets)
            listed = _entry([told_of(each) for each in _serving(plain, named.base)], plan)
            yield f"{PROVIDER}/{entry.alias_model}", listed
            yield str(entry.params["model"]), listed  # without the provider, if that is a field


def _serving(plain: Sequence[Mapping[str, Any]], base: str) -> list[Any]:
    """Return the deployments of the base, or those of a wildcard that matches it."""
    wildcards = PatternMatchRouter()
    for each in plain:
        if "*" in each["model_name"]:
            wildcards.add_pattern(each["model_name"], dict(each))
    return [each for each in plain if each["model_name"] == base] or wildcards.route(base) or []


def _entry(facts: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """Return what holds whichever deployment of the base answers.

    A plan that reads long texts takes more than its base.
    """
    listed: dict[str, Any] = {"litellm_provider": PROVIDER, "mode": "chat"}
    listed |= {name: True for name in _SKILLS if facts and all(f.get(name) is True for f in facts)}
    reads_long = any(good_for(stage.approach) == "long texts" for stage in plan.stages)
    for name in _LENGTHS[:-1] if reads_long else _LENGTHS:
        known = [each[name] for each in facts if isinstance(each.get(name), int)]
        listed |= {name: min(known)} if known else {}
    return listed
