"""All checks of the proxy's YAML. Nothing of it is started."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optillm_hooks.config_files import CannotRun, read_config, repetitions
from optillm_hooks.gateway.config_check.names import Names
from optillm_hooks.gateway.config_check.own_settings import (
    check_entry,
    check_settings,
    level_of_missing,
    misplaced,
    read_settings,
)
from optillm_hooks.gateway.config_check.plans import plans_of
from optillm_hooks.gateway.config_check.problem import Problem
from optillm_hooks.gateway.config_check.references import (
    check_callbacks,
    check_environment,
    check_providers,
    check_tokens,
    resolved,
)
from optillm_hooks.gateway.config_check.routing import (
    check_cooldowns,
    check_fallbacks,
    check_health,
    check_limits_in_dollars,
    check_prices,
    check_retries,
)
from optillm_hooks.gateway.config_check.sections import read_sections
from optillm_hooks.gateway.config_check.services import unreachable


def problems(
    config: Mapping[str, Any], *, folder: Path | None = None, models_come_later: bool = False
) -> list[Problem]:
    """Return all that is wrong in `config`, the proxy's YAML, in the order of the checks.

    Args:
        config: the YAML, with its references to environment variables resolved or not.
        folder: where the YAML is, in which LiteLLM looks for modules first.
        models_come_later: whether LiteLLM may add models from its database, whatever the YAML says.
    """
    sections, found = read_sections(resolved(config))
    names, level = Names(sections), level_of_missing(sections, models_come_later=models_come_later)
    if config.get("model_list") is None and level >= logging.ERROR:
        found.append(Problem("model_list", "is missing: the proxy has no model to serve"))
    settings, wrong = read_settings(sections)
    found += [*misplaced(config, sections), *wrong]
    found += check_settings(settings, sections, names, level)
    for entry in sections.models:
        found += check_entry(entry, settings, sections, names, level)
    plans = plans_of(sections, settings)
    return [
        *found,
        *check_callbacks(sections, folder),
        *check_providers(sections, folder),
        *check_tokens(sections),
        *check_prices(sections, plans),
        *check_limits_in_dollars(sections, plans),
        *check_retries(sections),
        *check_fallbacks(sections, names, plans, level),
        *check_cooldowns(sections, plans),
        *check_health(sections),
        *check_environment(config),
    ]


def malformed(config: Mapping[str, Any]) -> list[Problem]:
    """Return what keeps the sections of the YAML and its models from being read at all."""
    return read_sections(config)[1]


def unset_variables(file: Path) -> list[Problem]:
    """Return a warning for each environment variable that a YAML file refers to and that is unset.

    The proxy's own copy of its configuration has no references any more. If the file cannot be
    read, the list is empty: LiteLLM says so.
    """
    try:
        return list(check_environment(read_config(file)))
    except CannotRun:
        return []


def repeated_keys(file: Path) -> list[Problem]:
    """Return each key that stands twice in one mapping of a YAML file, or of one that it includes.

    If a file cannot be read, the list is empty: LiteLLM says so.
    """
    try:
        found = list(repetitions(file))
    except CannotRun:
        return []
    return [
        Problem(
            each.path,
            f"is in line {each.first} of {each.file.name} and again in line {each.again}, which "
            "alone counts. Put the two together",
        )
        for each in found
    ]


def unreachable_services(config: Mapping[str, Any]) -> list[Problem]:
    """Return a warning for each Redis server and database of the YAML that does not answer.

    It opens connections and blocks, for two seconds at most each.
    """
    return list(unreachable(read_sections(resolved(config))[0]))
