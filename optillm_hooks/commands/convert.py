"""Convert OptiLLM's configuration into LiteLLM's YAML.

Put `optillm-hooks convert` in the place of `optillm`, with the same options and the same variables
of the environment. The YAML is printed, and on stderr what became of each option.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from optillm_hooks.config_files import CannotRun, read_yaml
from optillm_hooks.converters.options import add_options, read_options
from optillm_hooks.converters.report import NotConvertible, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files = parser.add_argument_group("files of OptiLLM")
    files.add_argument("--proxy-config", type=Path, help="a proxy_config.yaml of the proxy plugin")
    files.add_argument("--mcp-config", type=Path, help="an mcp_config.json")
    files.add_argument("--env-file", type=Path, help="a .env file that OptiLLM is started with")
    add_options(parser)


def run(given: argparse.Namespace) -> int:
    from optillm_hooks.converters.mcp_servers import convert_mcp
    from optillm_hooks.converters.providers import convert_proxy
    from optillm_hooks.converters.server import convert, with_cepo

    report = Report()
    environment = dict(os.environ) | _variables(given.env_file)
    try:
        options = read_options(vars(given), environment)
        parts = [
            _converted(given.proxy_config, convert_proxy, report),
            _converted(given.mcp_config, convert_mcp, report),
        ]
        if (file := options.get("cepo_config_file")) is not None:
            options = with_cepo(options, read_yaml(Path(file.value)), report)
        converted = convert(options, environment, parts, report)
    except NotConvertible as exc:
        raise CannotRun(str(exc)) from exc
    for line in report.lines:
        sys.stderr.write(f"{line}\n")
    sys.stdout.write(yaml.safe_dump(converted, sort_keys=False, allow_unicode=True))
    return 0


def _converted(
    path: Path | None, convert: Callable[[Any, Report], dict[str, Any]], report: Report
) -> dict[str, Any]:
    """Return the part of LiteLLM's YAML that stands for a file; nothing for none."""
    if path is None:
        return {}
    try:
        return convert(read_yaml(path), report)  # JSON is YAML too
    except NotConvertible as exc:
        raise NotConvertible(f"{path}: {exc}") from exc


def _variables(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    if not path.is_file():
        raise CannotRun(f"{path} is no file")
    return {name: value for name, value in dotenv_values(path).items() if value is not None}
