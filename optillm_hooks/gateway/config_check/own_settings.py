"""Checks of our own settings: `optillm_settings`, and `model_info.optillm` of each model."""

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from optillm_hooks.code_execution.runner import RunnerName
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import model_names
from optillm_hooks.gateway.admission import check_writers
from optillm_hooks.gateway.code_runners import code_runner_for
from optillm_hooks.gateway.config_check.names import Names
from optillm_hooks.gateway.config_check.problem import Problem
from optillm_hooks.gateway.config_check.sections import Entry, Sections
from optillm_hooks.gateway.operator_settings import call_limit
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import Plan, resolve
from optillm_hooks.settings import (
    AliasSettings,
    DeploymentSettings,
    Settings,
    ShadowSettings,
    meant,
    mistakes,
)

S = TypeVar("S", bound=BaseModel)

PLACE = "litellm_settings.optillm_settings"
_REFUSED = "requests that name an approach are refused"
_NO_SHADOW = "no shadow runs"


def read_settings(config: Sections) -> tuple[Settings, list[Problem]]:
    """Return the settings of all requests, without those that are wrong, and what is wrong."""
    given = config.litellm.get("optillm_settings") or {}
    try:
        return Settings.model_validate(given), []
    except ValidationError as exc:
        wrong = {error["loc"][0] for error in exc.errors() if error["loc"]}
        known = given.items() if isinstance(given, Mapping) else ()
        rest = {name: value for name, value in known if name not in wrong}
        found = mistakes(exc, Settings, PLACE).items()
        problems = [Problem(path, f"{text}; {_REFUSED}") for path, text in found]
        return Settings.model_validate(rest), problems


def misplaced(config: Mapping[str, Any], sections: Sections) -> Iterator[Problem]:
    """Yield the places where our settings stand, or seem to be meant, and nobody reads them."""
    for name in config:
        if name == "optillm_settings":
            yield Problem(name, f"is not read here: move it to {PLACE}")
    for section, settings in (("general", sections.general), ("router", sections.router)):
        if "optillm_settings" in settings:
            path = f"{section}_settings.optillm_settings"
            yield Problem(path, f"is not read here: move it to {PLACE}")
    yield from _misspelt("litellm_settings", sections.litellm, ["optillm_settings"])
    for entry in sections.models:
        yield from _misspelt(f"{entry.path}.model_info", entry.info, ["optillm", "optillm_local"])
        if "optillm" in entry.params:
            place = f"{entry.path}.litellm_params.optillm"
            yield Problem(place, f"is not read here: move it to {entry.path}.model_info.optillm")


def _misspelt(path: str, given: Mapping[str, Any], ours: list[str]) -> Iterator[Problem]:
    for key in given:
        if key not in ours and (asked := meant(str(key), ours)):
            yield Problem(f"{path}.{key}", f"unknown setting{asked}")


def check_settings(settings: Settings, config: Sections, names: Names, level: int) -> list[Problem]:
    """Return the problems of what the settings of all requests name: approaches and models.

    `level` is that of a model which does not exist.
    """
    found: list[Problem] = []
    if settings.default_approach is not None:
        path = f"{PLACE}.default_approach"
        try:
            plan = _checked(settings.default_approach, settings)
        except RequestRejected as exc:
            found.append(Problem(path, f"{exc}; {_REFUSED}"))
        else:
            said = names.missing(plan.model_groups)
            found += [Problem(path, f"it names {each}", level) for each in said]
    for name in settings.fusion.presets:
        path = f"{PLACE}.fusion.presets.{name}"
        try:
            plan = _of_preset(name, settings, names)
        except RequestRejected as exc:
            found.append(Problem(path, f"{exc}; requests for it are refused"))
        else:
            said = names.missing(plan.model_groups)
            refused = "requests for it are refused"
            found += [Problem(path, f"it names {each}; {refused}", level) for each in said]
    directory = settings.conversation_log.directory
    if directory is not None and not _can_be_written(Path(directory)):
        path = f"{PLACE}.conversation_log.directory"
        lost = f"this process may not write to {directory!r}: no conversation is logged"
        found.append(Problem(path, lost, logging.WARNING))
    if (lacking := _runner_problem(settings.code_runner, settings, config)) is not None:
        found.append(Problem(f"{PLACE}.code_runner", f"{lacking}; {_REFUSED}"))
    return found


def _can_be_written(directory: Path) -> bool:
    """Return whether files can be made in `directory`, which is made if it does not exist."""
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def check_entry(
    entry: Entry, settings: Settings, config: Sections, names: Names, level: int
) -> Iterator[Problem]:
    """Yield the problems of one entry of `model_list`.

    `level` is that of a model which does not exist.
    """
    if entry.is_alias:
        yield from _check_alias(entry, settings, config, names, level)
    elif entry.alias_model is None:
        own, wrong = _of_model(entry, DeploymentSettings)
        yield from wrong
        yield from _check_shadow(entry, None if own is None else own.shadow, settings, names, level)


def _check_alias(
    entry: Entry, settings: Settings, config: Sections, names: Names, level: int
) -> Iterator[Problem]:
    own, wrong = _of_model(entry, AliasSettings)
    yield from wrong
    lacking = None if own is None else _runner_problem(own.code_runner, settings, config)
    if lacking is not None:
        path = f"{entry.path}.model_info.optillm.code_runner"
        yield Problem(path, f"{lacking}; {_refused(entry)}")
    path = f"{entry.path}.litellm_params.model"
    try:
        named = model_names.from_deployment(str(entry.alias_model))
        plan = _checked(named.expression, settings)
        check_writers(plan, named.base, names.only_scores)
    except RequestRejected as exc:
        yield Problem(path, f"{exc}; {_refused(entry)}")
        return
    for said in names.missing({named.base, *plan.model_groups}):
        yield Problem(path, f"it calls {said}; {_refused(entry)}", level)
    shadow = None if own is None else own.shadow
    yield from _check_shadow(entry, shadow, settings, names, level)
    if shadow is not None and plan.is_confidential:
        place = f"{entry.path}.model_info.optillm.shadow"
        yield Problem(
            place, f"the alias keeps texts from models, which a shadow would not; {_NO_SHADOW}"
        )


def _check_shadow(
    entry: Entry, shadow: ShadowSettings | None, settings: Settings, names: Names, level: int
) -> Iterator[Problem]:
    if shadow is None:
        return
    path = f"{entry.path}.model_info.optillm.shadow"
    if settings.shadow.directory is None:
        yield Problem(path, f"needs a folder in {PLACE}.shadow.directory; {_NO_SHADOW}")
    try:
        plan = _checked(shadow.approach, settings)
    except RequestRejected as exc:
        yield Problem(f"{path}.approach", f"{exc}; {_NO_SHADOW}")
        return
    judges = set() if shadow.judge is None else {shadow.judge}
    for said in names.missing({*judges, *plan.model_groups}):
        yield Problem(path, f"it calls {said}; {_NO_SHADOW}", level)


def _of_model(entry: Entry, model: type[S]) -> tuple[S | None, list[Problem]]:
    """Return the settings of ours that a model has, None if they are wrong, and what is wrong."""
    try:
        return model.model_validate(entry.info.get("optillm") or {}), []
    except ValidationError as exc:
        found = mistakes(exc, model, f"{entry.path}.model_info.optillm").items()
        return None, [Problem(path, f"{text}; {_refused(entry)}") for path, text in found]


def _refused(entry: Entry) -> str:
    return f"requests for {entry.name!r} are refused"


def level_of_missing(config: Sections, *, models_come_later: bool) -> int:
    """Return the level of a model that does not exist: with a database, it may come later."""
    later = models_come_later or bool(config.general.get("store_model_in_db"))
    return logging.WARNING if later else logging.ERROR


def _runner_problem(name: RunnerName, settings: Settings, config: Sections) -> str | None:
    """Return why a code runner does not run here. LiteLLM registers its sandboxes only later."""
    options = settings.code_runner_options
    if name == "litellm":
        wanted = options.litellm.sandbox_tool
        known = [tool.get("sandbox_tool_name") for tool in config.sandbox_tools]
        return None if wanted in known else f'"litellm": sandbox_tools has no entry {wanted!r}'
    try:
        code_runner_for(name, options, {})
    except RequestRejected as exc:
        return str(exc)
    return None


def _checked(text: str, settings: Settings) -> Plan:
    plan = resolve(parse(text), presets=settings.presets)
    call_limit(settings, by_operator=True).check(plan, 1)
    return plan


def _of_preset(name: str, settings: Settings, names: Names) -> Plan:
    """Return the plan of a panel of `fusion`.

    Raises:
        RequestRejected: the panel cannot run.
    """
    given = {"fusion": {"preset": name}}
    plan = resolve(parse("fusion"), given=given, presets=settings.presets)
    check_writers(plan, None, names.only_scores)
    return plan
