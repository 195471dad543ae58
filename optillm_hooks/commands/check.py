"""Check a LiteLLM configuration: each problem with its place and its cure.

The exit status is 1 if requests would fail (an error), and 0 if there are warnings only. It is
what the proxy checks when it starts. Variables of the environment and of .env count, as they do
there.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Final, NamedTuple

from optillm_hooks.commands.loading import load_gateway
from optillm_hooks.config_files import HERE, CannotRun, read_config

_ERROR: Final = "error"
_ALLOWED: Final = "litellm_settings.optillm_settings.allowed_packages"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config", nargs="?", default=HERE, type=Path, help="LiteLLM's YAML (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")


class _Found(NamedTuple):
    level: str
    path: str
    text: str


def run(given: argparse.Namespace) -> int:
    found = _found(given.config)
    if given.json:
        sys.stdout.write(f"{json.dumps([each._asdict() for each in found], indent=1)}\n")
    else:
        for each in found:
            sys.stdout.write(": ".join(filter(None, each)) + "\n")
        if not found:
            sys.stdout.write(f"{given.config}: no problems\n")
    return int(any(each.level == _ERROR for each in found))


def _found(path: Path) -> list[_Found]:
    """Return what is wrong with a file; one that cannot be read is a problem too."""
    try:
        config = read_config(path)
    except CannotRun as exc:
        return [_Found(_ERROR, "", str(exc))]
    lacking = load_gateway(config)
    from optillm_hooks.extensions import not_loaded
    from optillm_hooks.gateway.config_check import problems, repeated_keys, unreachable_services

    of_yaml = problems(config, folder=path.parent)
    found = [*repeated_keys(path), *of_yaml, *unreachable_services(config)]
    return [
        *(_Found(logging.getLevelName(p.level).lower(), p.path, p.text) for p in found),
        *(_Found(_ERROR, "", text) for text in lacking),
        *(_Found("warning", _ALLOWED, str(each)) for each in not_loaded()),
    ]
