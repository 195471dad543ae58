"""List the approaches: their packages, what they need, and what they cost.

Approaches of other packages and plugin files are listed as a proxy with this configuration would
load them. Calls and depth (calls that wait for each other) are those at default parameters.
"""

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optillm_hooks.commands.loading import load_extensions_of
from optillm_hooks.commands.table import table
from optillm_hooks.config_files import read_if_there


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, help="LiteLLM's YAML; by default litellm_config.yaml, if it is here"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(given: argparse.Namespace) -> int:
    from optillm_hooks.extensions import not_loaded

    problems = load_extensions_of(read_if_there(given.config))
    left_out = not_loaded()
    rows = _rows()
    if given.json:
        packages = [
            {"package": each.package, "version": each.version, "offers": each.offers}
            for each in left_out
        ]
        listed = {"approaches": rows, "not_loaded": packages, "problems": problems}
        sys.stdout.write(f"{json.dumps(listed, indent=1)}\n")
        return 0
    sys.stdout.write(table([_shown(row) for row in rows]))
    for line in (*problems, *map(str, left_out)):
        sys.stderr.write(f"{line}\n")
    return 0


def _rows() -> list[dict[str, Any]]:
    from optillm_hooks.pipeline.plan import cost_of, stage_of
    from optillm_hooks.registry import all_approaches

    rows = list[dict[str, Any]]()
    for approach in all_approaches():
        cost = cost_of(chain := (stage_of(approach.name, {}, None),))
        rows.append(
            {
                "name": approach.name,
                "kind": approach.kind,
                "package": approach.origin,
                "version": _version(approach.origin),
                "needs": sorted(approach.needs),
                "calls": cost.calls,
                "depth": cost.depth,
                "remote_calls": chain[0].cost.remote_calls,
            }
        )
    return rows


def _version(origin: str) -> str | None:
    """Return the version of a package; None of a plugin file."""
    try:
        return version(origin)
    except (PackageNotFoundError, ValueError):
        return None


def _shown(row: dict[str, Any]) -> dict[str, str]:
    remote, needs = row["remote_calls"], row["needs"]
    calls = f"{row['calls']} (remote: {remote})" if remote else str(row["calls"])
    return {
        "name": row["name"],
        "kind": row["kind"],
        "package": row["package"],
        "version": row["version"] or "-",
        "needs": ", ".join(needs) or "-",
        "calls": calls,
        "depth": str(row["depth"]),
    }
