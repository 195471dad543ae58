"""Proxy startup: validates our part of the configuration, and sets up our logger."""

import gc
import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Final

from litellm.litellm_core_utils.streaming_handler import CustomStreamWrapper
from litellm.secret_managers.main import get_secret_bool

from optillm_hooks.extensions import extension_settings, load_extensions, not_loaded
from optillm_hooks.gateway import cut_off, request_tags, web_access
from optillm_hooks.gateway.config_check import (
    Problem,
    problems,
    repeated_keys,
    unreachable_services,
    unset_variables,
)
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.settings import approaches_disabled

_log = logging.getLogger(__name__)

_THEIRS: Final = "LiteLLM Proxy"
"""The name of LiteLLM's logger."""


def use_litellm_logging() -> None:
    """Give our logger LiteLLM's handlers and level, if this process runs the proxy.

    LiteLLM sets up its own loggers only, so that our INFO and DEBUG lines would be lost. The
    operator's logging configuration (`--log_config`) is not changed.
    """
    if proxy_module() is None:
        return
    ours, theirs = logging.getLogger("optillm_hooks"), logging.getLogger(_THEIRS)
    if ours.level == logging.NOTSET:
        ours.setLevel(theirs.getEffectiveLevel())
    if not ours.hasHandlers():
        ours.propagate = False  # or each line appears twice if LiteLLM gives the root a handler
        ours.addHandler(_LikeLiteLLM())


class _LikeLiteLLM(logging.Handler):
    """Hands each record to the handlers that LiteLLM's logger has by then.

    LiteLLM may replace them after it has loaded us, by those of its JSON logs.
    """

    def emit(self, record: logging.LogRecord) -> None:
        for handler in logging.getLogger(_THEIRS).handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


def spare_the_collector() -> None:
    """Have garbage collections leave out what is loaded so far, if this process runs the proxy.

    LiteLLM loads so much that a full collection would stop every request for about a second, and a
    stream of thousands of pieces is enough to start one.
    """
    if proxy_module() is not None:
        gc.freeze()


def remember_what_is_missing() -> None:
    """Have Python remember that Prisma is not installed, if this process runs the proxy.

    Without a database it is not, but LiteLLM tries to import it for every call that it counts, and
    Python looks through all folders each time for a package that it has not found.
    """
    if proxy_module() is not None and find_spec("prisma") is None:
        sys.modules["prisma"] = None  # type: ignore[assignment] # Python's mark of a missing module


def keep_finalizers_off_contexts() -> None:
    """Take the finalizer from LiteLLM's streams, if this process runs the proxy below Python 3.12.

    It sets context variables. There, a garbage collection may begin within `ContextVar.set`; what a
    finalizer then sets frees what the interrupted call reads, and the process ends with SIGSEGV.
    The finalizer only corrects the ids in log lines after a stream that nobody read to its end.
    """
    if sys.version_info < (3, 12) and proxy_module() is not None:
        with suppress(AttributeError):
            del CustomStreamWrapper.__del__


def load_what_is_allowed() -> None:
    """Register the operator's plugin files, and what the packages that are allowed offer.

    What is wrong with one is logged, and the proxy starts without it.
    """
    config = getattr(getattr(proxy_module(), "proxy_config", None), "config", None) or {}
    given = (config.get("litellm_settings") or {}).get("optillm_settings")
    for problem in load_extensions(extension_settings(given)):
        _log.error("optillm: %s", problem)
    for each in not_loaded():
        _log.warning("optillm: %s", each)


def mount_routes() -> None:
    """Add our own HTTP routes to the proxy's application, if this process runs the proxy."""
    app = getattr(proxy_module(), "app", None)
    if app is not None:
        # These load LiteLLM's authentication.
        from optillm_hooks.gateway import http_routes, page_routes
        from optillm_hooks.gateway.key_errors import refuse_clearly

        refuse_clearly(app)
        if (
            lacking := http_routes.mount(app, [http_routes.router, page_routes.router])
        ) is not None:
            _log.error("optillm: %s", lacking)


def log_problems() -> None:
    """Log each problem in the configuration of the proxy, if this process runs one."""
    proxy = proxy_module()
    proxy_config = getattr(proxy, "proxy_config", None)
    if proxy_config is None:
        return
    if approaches_disabled():
        _log.warning(
            "optillm: OPTILLM_DISABLED is set: every approach is a plain call of its base model"
        )
    config, file = proxy_config.config or {}, getattr(proxy, "user_config_file_path", None)
    path = None if file is None else Path(file)
    found = problems(
        config,
        folder=None if path is None else path.parent,
        models_come_later=bool(get_secret_bool("STORE_MODEL_IN_DB")),
    )
    of_file = [] if path is None else [*repeated_keys(path), *unset_variables(path)]
    _log_all([*found, *of_file])
    for lacking in filter(None, (cut_off.problem(), request_tags.problem(), web_access.problem())):
        _log.error("optillm: %s", lacking)
    # A connection may take seconds, and this runs in LiteLLM's event loop.
    Thread(target=lambda: _log_all(unreachable_services(config)), daemon=True).start()


def _log_all(found: Iterable[Problem]) -> None:
    for problem in found:
        _log.log(problem.level, "optillm: %s", problem)
