"""Proxy startup: validates our part of the configuration, and sets up our logger."""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from litellm.router_utils.pattern_match_deployments import PatternMatchRouter
from litellm.secret_managers.main import get_secret_bool

from optillm_hooks.code_execution.runner import RunnerName
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import cut_off, model_names, request_tags, web_access
from optillm_hooks.gateway.admission import check_writers
from optillm_hooks.gateway.code_runners import code_runner_for
from optillm_hooks.gateway.deployments import alias_model, is_alias, proxy_module
from optillm_hooks.gateway.model_facts import only_scores
from optillm_hooks.gateway.operator_settings import alias_settings, call_limit, valid_settings
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import Plan, resolve
from optillm_hooks.plugin_files.loading import load_plugins
from optillm_hooks.settings import Settings, plugins_directory

_log = logging.getLogger(__name__)


def use_litellm_logging() -> None:
    """Give our logger LiteLLM's handlers and level, if this process runs the proxy.

    LiteLLM sets up its own loggers only, so that our INFO and DEBUG lines would be lost. The
    operator's logging configuration (`--log_config`) is not changed.
    """
    if proxy_module() is None:
        return
    ours, theirs = logging.getLogger("optillm_hooks"), logging.getLogger("LiteLLM Proxy")
    if ours.level == logging.NOTSET:
        ours.setLevel(theirs.getEffectiveLevel())
    if not ours.hasHandlers():
        ours.propagate = False  # or each line appears twice if LiteLLM gives the root a handler
        for handler in theirs.handlers:
            ours.addHandler(handler)


def spare_the_collector() -> None:
    """Have garbage collections leave out what is loaded so far, if this process runs the proxy.

    LiteLLM loads so much that a full collection would stop every request for about a second, and a
    stream of thousands of pieces is enough to start one.
    """
    if proxy_module() is not None:
        gc.freeze()


def load_plugin_files() -> None:
    """Register the plugins of the operator's directory and of installed packages.

    What is wrong with one is logged, and the proxy starts without it.
    """
    config = getattr(getattr(proxy_module(), "proxy_config", None), "config", None) or {}
    settings = Settings()
    with suppress(RequestRejected):  # `log_problems` says so
        settings = valid_settings((config.get("litellm_settings") or {}).get("optillm_settings"))
    for problem in load_plugins(plugins_directory(settings)):
        _log.error("optillm: %s", problem)


def mount_routes() -> None:
    """Add our own HTTP routes to the proxy's application, if this process runs the proxy."""
    app = getattr(proxy_module(), "app", None)
    if app is not None:
        # These load LiteLLM's authentication.
        from optillm_hooks.gateway import http_routes
        from optillm_hooks.gateway.key_errors import refuse_clearly

        refuse_clearly(app)
        if (lacking := http_routes.mount(app)) is not None:
            _log.error("optillm: %s", lacking)


def log_problems() -> None:
    """Log each problem in the configuration of the proxy, if this process runs one."""
    proxy_config = getattr(proxy_module(), "proxy_config", None)
    config = getattr(proxy_config, "config", None) or {}
    for problem in problems(config, models_come_later=bool(get_secret_bool("STORE_MODEL_IN_DB"))):
        _log.log(problem.level, "optillm: %s", problem.text)
    if proxy_config is not None:
        for lacking in filter(
            None, (cut_off.problem(), request_tags.problem(), web_access.problem())
        ):
            _log.error("optillm: %s", lacking)


class Problem(NamedTuple):
    text: str
    level: int = logging.ERROR
    """That of the log line: a warning, if it may not be a mistake."""


def problems(config: Mapping[str, Any], *, models_come_later: bool = False) -> list[Problem]:
    """Return the mistakes in `config`, the proxy's YAML, that make requests fail.

    Args:
        config: the YAML.
        models_come_later: whether LiteLLM may add models from its database, whatever the YAML says.
    """
    return list(_problems(config, models_come_later))


def _problems(config: Mapping[str, Any], models_come_later: bool) -> Iterator[Problem]:
    settings, names = Settings(), _Names(config)
    later = models_come_later or bool(
        (config.get("general_settings") or {}).get("store_model_in_db")
    )
    level = logging.WARNING if later else logging.ERROR
    try:
        given = (config.get("litellm_settings") or {}).get("optillm_settings")
        settings = valid_settings(given)
        if settings.default_approach is not None:
            plan = _checked(settings.default_approach, settings)
            for said in names.missing(plan.model_groups):
                yield Problem(f"litellm_settings: default_approach names {said}", level)
        for name in settings.fusion.presets:
            plan = _of_preset(name, settings, names)
            for said in names.missing(plan.model_groups):
                yield Problem(
                    f"litellm_settings: optillm_settings.fusion.presets.{name} names {said}; "
                    "requests for it are refused",
                    level,
                )
        _check_runner(settings.code_runner, settings, config)
    except RequestRejected as exc:
        yield Problem(f"litellm_settings: {exc}; requests that name an approach are refused")
    for entry in config.get("model_list") or ():
        if not is_alias(entry):
            continue
        where = f"model {entry.get('model_name')!r}"
        try:
            _check_runner(alias_settings(entry).code_runner, settings, config)
            named = model_names.from_deployment(str(alias_model(entry)))
            plan = _checked(named.expression, settings)
            check_writers(plan, named.base, names.only_scores)
        except RequestRejected as exc:
            yield Problem(f"{where}: {exc}; requests for it are refused")
            continue
        for said in names.missing({named.base, *plan.model_groups}):
            yield Problem(f"{where}: it calls {said}; requests for it are refused", level)


def _check_runner(name: RunnerName, settings: Settings, config: Mapping[str, Any]) -> None:
    """Refuse a code runner that does not run here. LiteLLM registers its sandboxes only later."""
    if name != "litellm":
        code_runner_for(name, settings.code_runner_options, {})
        return
    wanted = settings.code_runner_options.litellm.sandbox_tool
    known = [entry.get("sandbox_tool_name") for entry in config.get("sandbox_tools") or ()]
    if wanted not in known:
        raise RequestRejected(f'code_runner "litellm": sandbox_tools has no entry {wanted!r}')


def _checked(text: str, settings: Settings) -> Plan:
    plan = resolve(parse(text), presets=settings.presets)
    call_limit(settings, by_operator=True).check(plan, 1)
    return plan


def _of_preset(name: str, settings: Settings, names: "_Names") -> Plan:
    """Return the plan of a panel of `fusion`.

    Raises:
        RequestRejected: the message names the panel.
    """
    given = {"fusion": {"preset": name}}
    try:
        plan = resolve(parse("fusion"), given=given, presets=settings.presets)
        check_writers(plan, None, names.only_scores)
    except RequestRejected as exc:
        place = f"optillm_settings.fusion.presets.{name}"
        raise RequestRejected(f"{place}: {exc}", param=place) from None
    return plan


class _Names:
    """The model names that the proxy's YAML serves."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._aliases: set[str] = set()
        self._names: set[str] = set()
        self._writers: set[str] = set()
        self._scorers: set[str] = set()
        self._wildcards = PatternMatchRouter()
        router = config.get("router_settings") or {}
        groups = [each.get("group_name") for each in router.get("routing_groups") or ()]
        self._names.update(router.get("model_group_alias") or {}, map(str, groups))
        for entry in config.get("model_list") or ():
            info = entry.get("model_info") or {}
            for name in (
                entry.get("model_name"),
                info.get("team_public_model_name"),
                info.get("id"),
            ):
                self._add(name, entry)

    def _add(self, name: object, entry: dict[str, Any]) -> None:
        if not isinstance(name, str):
            return
        if "*" in name and alias_model(entry) is None:
            self._wildcards.add_pattern(name, entry)
        if is_alias(entry):
            self._aliases.add(name)
            return
        self._names.add(name)
        params, info = entry.get("litellm_params") or {}, entry.get("model_info") or {}
        (self._scorers if only_scores(params, info) else self._writers).add(name)

    def only_scores(self, name: str) -> bool:
        """Return whether all deployments of a name are rerankers or reward models."""
        return name in self._scorers and name not in self._writers

    def missing(self, named: Iterable[str]) -> Iterator[str]:
        """Yield what is wrong with each of `named` that cannot be a plan's model."""
        for name in sorted(named):
            if name in self._aliases:
                yield f"{name!r}, which is itself an alias of an approach"
            elif name not in self._names and not self._wildcards.get_deployments_by_pattern(name):
                yield f"{name!r}, which is not configured"
