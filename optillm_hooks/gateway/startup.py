"""Proxy startup: validates our part of the configuration, and sets up our logger."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import cut_off, model_names
from optillm_hooks.gateway.deployments import alias_model, proxy_module
from optillm_hooks.gateway.operator_settings import alias_settings, call_limit, valid_settings
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.settings import Settings

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


def log_problems() -> None:
    """Log each problem in the configuration of the proxy, if this process runs one."""
    proxy_config = getattr(proxy_module(), "proxy_config", None)
    for problem in problems(getattr(proxy_config, "config", None) or {}):
        _log.error("optillm: %s", problem)
    if proxy_config is not None and (unbooked := cut_off.problem()) is not None:
        _log.error("optillm: %s", unbooked)


def problems(config: Mapping[str, Any]) -> list[str]:
    """Return one line per mistake in `config`, the proxy's YAML, that makes requests fail."""
    return list(_problems(config))


def _problems(config: Mapping[str, Any]) -> Iterator[str]:
    settings = Settings()
    try:
        given = (config.get("litellm_settings") or {}).get("optillm_settings")
        settings = valid_settings(given)
        if settings.default_approach is not None:
            _check_plan(settings.default_approach, settings)
    except RequestRejected as exc:
        yield f"litellm_settings: {exc}; requests that name an approach are refused"
    for entry in config.get("model_list") or ():
        try:
            alias = alias_model(entry)
            if alias is None or "*" in alias:
                continue
            alias_settings(entry)
            _check_plan(model_names.from_deployment(alias).expression, settings)
        except RequestRejected as exc:
            yield f"model {entry.get('model_name')!r}: {exc}; requests for it are refused"


def _check_plan(text: str, settings: Settings) -> None:
    call_limit(settings, by_operator=True).check(resolve(parse(text)), 1)
