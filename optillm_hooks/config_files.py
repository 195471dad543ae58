"""LiteLLM's YAML files, as commands find and read them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from optillm_hooks.types import has_more_entries

HERE: Final = Path("litellm_config.yaml")
"""The file that is read if none is named."""

SHIPPED: Final = Path(__file__).parent / HERE
"""The file that is served where there is none: the embedded model and a few aliases."""

_MERGE: Final = "tag:yaml.org,2002:merge"
"""The tag of the key `<<`, which may be repeated: each adds a mapping."""

_MAX_ENTRIES: Final = 1_000_000
"""Of a file; where its aliases repeat a list, each time counts, as it does for who reads it."""


class CannotRun(Exception):
    """A command cannot run; the message is one line for the user."""


class Repeated(NamedTuple):
    """A key that a mapping of a YAML file has again."""

    file: Path
    path: str
    """Its place, such as `litellm_settings.callbacks`."""

    first: int
    again: int
    """Line numbers, from 1."""


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
    for _, read in _with_included(path):
        for key, value in read.items():
            merged[key] = _together(merged.get(key), value)
    return merged


def repetitions(path: Path) -> Iterator[Repeated]:
    """Yield the keys that `path`, or a file that it includes, has more than once in a mapping.

    Only the last counts: YAML forbids them, and LiteLLM reads such a file nevertheless.

    Raises:
        CannotRun: as `read_config`.
    """
    for file, _ in _with_included(path):
        with file.open(encoding="utf-8") as text:
            root = yaml.compose(text, yaml.SafeLoader)
        for node, place in _nodes(root):
            if isinstance(node, yaml.MappingNode):
                yield from _repeated(file, node, place)


def _nodes(root: yaml.Node | None) -> Iterator[tuple[yaml.Node, str]]:
    """Yield each node below `root` once, with its place: YAML's aliases repeat nodes."""
    pending, seen = [(root, "")], set[int]()
    while pending:
        node, place = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        yield node, place
        inner = list[tuple[yaml.Node, str]]()
        if isinstance(node, yaml.SequenceNode):
            inner = [(each, f"{place}[{at}]") for at, each in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            inner = [(value, _below(place, key)) for key, value in node.value]
        pending += reversed(inner)


def _repeated(file: Path, node: yaml.MappingNode, place: str) -> Iterator[Repeated]:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        line, name = key.start_mark.line + 1, (key.tag, str(key.value))
        if name in lines and key.tag != _MERGE:
            yield Repeated(file, _below(place, key), lines[name], line)
        lines[name] = line


def _below(place: str, key: yaml.Node) -> str:
    return f"{place}.{key.value}" if place else str(key.value)


def _with_included(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield `path` and the files that it includes, each once, with their other keys."""
    pending, seen = [path], set[Path]()
    while pending:
        file = pending.pop(0)
        if file.resolve() in seen:
            continue
        seen.add(file.resolve())
        read = read_yaml(file)
        pending += _included(read.pop("include", []), file, path)
        yield file, read


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
