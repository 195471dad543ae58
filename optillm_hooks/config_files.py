"""LiteLLM's YAML files, as commands find and read them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from optillm_hooks.types import has_more_entries

HERE: Final = Path("litellm_config.yaml")
"""The file that is read if none is named."""

SHIPPED: Final = Path(__file__).parent / HERE
"""The file that is served where there is none: the embedded model and a few aliases."""

_MAX_ENTRIES: Final = 1_000_000
"""Of a file; where its aliases repeat a list, each time counts, as it does for who reads it."""


class CannotRun(Exception):
    """A command cannot run; the message is one line for the user."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of the YAML file `path`; none of an empty file.

    Raises:
        CannotRun: it cannot be read, it is not YAML, or it has no keys.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise CannotRun(f"{path} cannot be read: {exc.strerror}") from exc
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise CannotRun(f"{path}{where}: {exc.problem}") from exc
    except Exception as exc:  # PyYAML's own, and what it lets through of a date or deep nesting
        raise CannotRun(f"{path} is not YAML: {' '.join(str(exc).split())}") from exc
    if config is not None and not isinstance(config, dict):
        raise CannotRun(f"{path} must be an object with keys")
    if has_more_entries(config, _MAX_ENTRIES):
        raise CannotRun(f"{path} repeats itself by its aliases (*) more than {_MAX_ENTRIES} times")
    return config or {}


def read_config(path: Path) -> dict[str, Any]:
    """Return the keys of `path` and of the files that it includes, merged as LiteLLM merges them.

    Lists are put together; of other values, the included file's is taken. The name of an included
    file is relative to the file that includes it, or else to `path`.

    Raises:
        CannotRun: as `read_yaml`, or `include` is no list of names.
    """
    merged: dict[str, Any] = {}
    pending, seen = [path], set[Path]()
    while pending:
        file = pending.pop(0)
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        read = read_yaml(file)
        pending += _included(read.pop("include", []), file, path)
        for key, value in read.items():
            merged[key] = _together(merged.get(key), value)
    return merged


def _together(before: object, value: object) -> object:
    if isinstance(before, list) and isinstance(value, list):
        return [*before, *value]
    return value


def _included(given: object, file: Path, root: Path) -> Iterator[Path]:
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise CannotRun(f"{file}: include must be a list of file names")
    for name in given:
        beside, below_root = file.parent / name, root.parent / name
        yield below_root if below_root.exists() and not beside.exists() else beside


def read_if_there(path: Path | None) -> dict[str, Any]:
    """Return the keys of `path`; of `HERE` if it is None, and none if there is no such file.

    Raises:
        CannotRun: as `read_config`.
    """
    if path is None and not HERE.exists():
        return {}
    return read_config(path or HERE)


def our_settings(config: Mapping[str, Any]) -> object:
    """Return what a configuration has under `litellm_settings.optillm_settings`."""
    settings = config.get("litellm_settings")
    return settings.get("optillm_settings") if isinstance(settings, dict) else None
