"""What an installation takes: distributions, disk, and the time and memory of an import.

The distributions are those that pip would install for the default dependencies, found in the
environment that this runs in; extras, such as local models, are left out. CPU times are the median
of several fresh processes, with compiled bytecode.
"""

import json
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import cache_from_source
from pathlib import Path
from typing import Final, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.report import parser, table

ROOT: Final = Path(__file__).parent.parent
RUNS: Final = 5

IMPORTS: Final = {
    "the package": "import optillm_hooks",
    "the package with every approach": "import optillm_hooks.approaches",
    "LiteLLM's proxy": "import litellm.proxy.proxy_server",
    "LiteLLM's proxy with this package": "import litellm.proxy.proxy_server, optillm_hooks.gateway",
}

_MEASURE: Final = """\
import json, resource, time
started = time.process_time()
{statement}
seconds = time.process_time() - started
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


class Installed(NamedTuple):
    """What is on the disk."""

    distributions: int
    megabytes: float


class Imported(NamedTuple):
    """What an import takes."""

    seconds: float
    """CPU time."""

    megabytes: float
    """Memory of the process after it."""


def dependencies() -> list[str]:
    """Return the requirements of a default installation of this package."""
    found: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "dependencies"
    ]
    return found


def needed(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Return the distributions that are installed for `requirements`, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    left = list(map(Requirement, requirements))
    while left:
        wanted = left.pop()
        key, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (key, extras) in seen:
            continue
        seen.add((key, extras))
        try:
            found[key] = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        for line in found[key].requires or ():
            inner = Requirement(line)
            chosen = [{"extra": extra} for extra in ("", *extras)]
            if inner.marker is None or any(map(inner.marker.evaluate, chosen)):
                left.append(inner)
    return found


def installed(requirements: Iterable[str]) -> Installed:
    """Return how much an installation of `requirements` takes, its compiled modules included."""
    found = needed(requirements)
    files = {Path(str(file.locate())) for each in found.values() for file in each.files or ()}
    # A module that was not compiled by pip is not listed.
    files |= {Path(cache_from_source(str(file))) for file in files if file.suffix == ".py"}
    total = sum(file.stat().st_size for file in files if file.is_file())
    return Installed(len(found), total / 1e6)


def imported(statement: str, runs: int = RUNS) -> Imported:
    """Return what `statement` takes in a fresh process: the median of `runs`."""
    measured = [_measured(statement) for _ in range(runs + 1)][1:]  # the first compiles
    return Imported(*map(statistics.median, zip(*measured, strict=True)))


def _measured(statement: str) -> Sequence[float]:
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURE.format(statement=statement)],
        env={"PATH": "/usr/bin:/bin", "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser(__doc__).parse_args()
    theirs = [each for each in dependencies() if each.startswith("litellm")]
    for what, requirements in {"in all": dependencies(), "LiteLLM's proxy": theirs}.items():
        size = installed(requirements)
        print(f"{what}: {size.distributions} distributions, {size.megabytes:,.0f} MB on disk\n")
    rows = [
        (what, f"{took.seconds:.2f} s", f"{took.megabytes:,.0f} MB")
        for what, statement in IMPORTS.items()
        for took in [imported(statement)]
    ]
    print(table(("import", "CPU time", "memory after it"), rows))


if __name__ == "__main__":
    main()
