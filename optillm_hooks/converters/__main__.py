"""The command: `python -m optillm_hooks.converters mcp|proxy FILE > part.yaml`.

The YAML is a part of LiteLLM's configuration. What has no place in it is reported on stderr, line
by line, with what to do instead. A file that is not valid ends it with status 2 and without YAML.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from optillm_hooks.converters.mcp_servers import convert_mcp
from optillm_hooks.converters.providers import convert_proxy
from optillm_hooks.converters.report import NotConvertible, Report

_KINDS: Final[dict[str, Callable[[Any, Report], dict[str, Any]]]] = {
    "mcp": convert_mcp,
    "proxy": convert_proxy,
}


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m optillm_hooks.converters",
        description="Convert a configuration file of OptiLLM into a part of LiteLLM's YAML.",
    )
    parser.add_argument(
        "kind",
        choices=_KINDS,
        help="mcp: an mcp_config.json; proxy: a proxy_config.yaml of the proxy plugin",
    )
    parser.add_argument("file", type=Path)
    given = parser.parse_args(arguments)
    report = Report()
    try:
        document = yaml.safe_load(given.file.read_text(encoding="utf-8"))  # JSON is YAML too
        converted = _KINDS[given.kind](document, report)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, NotConvertible) as exc:
        sys.stderr.write(f"{given.file}: {exc}\n")
        return 2
    for line in report.lines:
        sys.stderr.write(f"{line}\n")
    sys.stdout.write(yaml.safe_dump(converted, sort_keys=False, allow_unicode=True))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
