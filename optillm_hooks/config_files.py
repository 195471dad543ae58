"""LiteLLM's YAML files, as commands find and read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path("litellm_config.yaml")
"""The file that is read if none is named."""

SHIPPED: Final = Path(__file__).parent / HERE
"""The file that is served where there is none: the embedded model and a few aliases."""


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
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise CannotRun(f"{path} is not YAML: {' '.join(str(exc).split())}") from exc
    if config is not None and not isinstance(config, dict):
        raise CannotRun(f"{path} must be an object with keys")
    return config or {}


def read_if_there(path: Path | None) -> dict[str, Any]:
    """Return the keys of `path`; of `HERE` if it is None, and none if there is no such file.

    Raises:
        CannotRun: as `read_yaml`.
    """
    if path is None and not HERE.exists():
        return {}
    return read_yaml(path or HERE)


def our_settings(config: Mapping[str, Any]) -> object:
    """Return what a configuration has under `litellm_settings.optillm_settings`."""
    settings = config.get("litellm_settings")
    return settings.get("optillm_settings") if isinstance(settings, dict) else None
