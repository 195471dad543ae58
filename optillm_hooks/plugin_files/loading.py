"""Loads plugin files from a directory of the operator's, and the plugins of installed packages."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from optillm_hooks.packages import allowed_entries, package_of
from optillm_hooks.plugin_files.running import PluginParams, runner
from optillm_hooks.registry import Cost, approach, is_registered, registering

ENTRY_POINT_GROUP: Final = "optillm_hooks.plugins"
"""Other packages name a module with `SLUG` and `run` under it."""

OPTILLM_FOLDER: Final = Path("optillm", "plugins")
"""Where OptiLLM looks for plugin files below its plugins directory."""

EXPECTED_CALLS: Final = 8
"""Estimated model calls of a plugin that does not say it."""

_MOST_CALLS: Final = 1024


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin that can be registered."""

    slug: str
    run: Callable[..., Any]
    calls: int


@dataclass(frozen=True, slots=True)
class _Source:
    """A module that may be a plugin."""

    name: str
    """For error messages."""

    origin: str
    """See `registry.Approach`."""

    load: Callable[[], object]


class BadPlugin(Exception):
    """A module is not a plugin; the message says why."""


def load_plugins(directory: Path | None) -> list[str]:
    """Register all plugins, and return what is wrong with those that cannot be.

    The modules are executed with all rights of this process.

    Args:
        directory: the operator's; its `*.py` files, and those in `optillm/plugins` below it.
            Installed packages are loaded if the operator allows them (`packages.allow`).
    """
    problems: list[str] = []
    for source in _sources(directory, problems):
        try:
            with registering(source.origin):
                _register(_plugin(source.load()))
        # An import can end in any way, such as by sys.exit(). The proxy starts all the same.
        except (Exception, SystemExit) as exc:
            reason = str(exc) if isinstance(exc, BadPlugin) else f"{type(exc).__name__}: {exc}"
            problems.append(f"plugin {source.name}: {reason}")
    return problems


def _sources(directory: Path | None, problems: list[str]) -> Iterator[_Source]:
    """Yield each module of the directory and of the packages that the operator allows."""
    if directory is not None:
        if not directory.is_absolute():
            problems.append(f"plugins_dir {str(directory)!r} must be an absolute path")
        elif not directory.is_dir():
            problems.append(f"plugins_dir {str(directory)!r} is not a directory")
        else:
            for file in [*_files(directory), *_files(directory / OPTILLM_FOLDER)]:
                yield _Source(str(file), str(file), partial(_module, file))
    for entry in allowed_entries(ENTRY_POINT_GROUP):
        yield _Source(f"{entry.name!r} ({entry.value})", package_of(entry), entry.load)


def _files(directory: Path) -> list[Path]:
    return sorted(f for f in directory.glob("*.py") if f.is_file() and f.name[0] not in "_.")


def _module(file: Path) -> ModuleType:
    name = f"optillm_plugin_file_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise BadPlugin("it cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _plugin(module: object) -> Plugin:
    slug, run = getattr(module, "SLUG", None), getattr(module, "run", None)
    if not isinstance(slug, str) or not callable(run):
        raise BadPlugin("it has no SLUG (a string) or no run (a function)")
    calls = getattr(module, "EXPECTED_CALLS", EXPECTED_CALLS)
    if type(calls) is not int or not 1 <= calls <= _MOST_CALLS:
        raise BadPlugin(f"EXPECTED_CALLS must be a whole number from 1 to {_MOST_CALLS}")
    return Plugin(slug, run, calls)


def _register(plugin: Plugin) -> None:
    if not plugin.slug.isidentifier():
        raise BadPlugin(f"its slug {plugin.slug!r} must be letters, digits and underscores")
    if is_registered(plugin.slug):
        raise BadPlugin(f"its slug {plugin.slug!r} is the name of another approach")
    cost = Cost(calls=plugin.calls, depth=plugin.calls)
    register = approach(plugin.slug, PluginParams, cost=lambda _: cost, needs=("code", "network"))
    register(runner(plugin.run))
