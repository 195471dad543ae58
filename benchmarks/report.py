"""Shared by all benchmarks: intervals, tables, and sections of docs/performance.md."""

import argparse
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parent.parent / "docs" / "performance.md"
_HEAD: Final = "# Performance\n\nEach section is the output of the last run of its command.\n"


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and an interval that covers the true one with at least 95 % probability."""

    median: float
    low: float
    high: float

    def show(self, digits: int = 3) -> str:
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the median of `values` and its interval by order statistics, for any distribution.

    The k-th smallest and k-th largest of n enclose the true median with probability
    1 - 2 P(Binomial(n, 1/2) < k). Fewer than 6 values cannot reach 95 %: all of them are then
    the interval.
    """
    ordered, n = sorted(values), len(values)
    k, outside = 1, 2 * 0.5**n
    while 2 * k < n and outside + 2 * math.comb(n, k) * 0.5**n <= 1 - level:
        outside += 2 * math.comb(n, k) * 0.5**n
        k += 1
    return Interval(statistics.median(ordered), ordered[k - 1], ordered[-k])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Return a line on the machine and versions that a benchmark ran with."""
    try:
        litellm = f", LiteLLM {version('litellm')}"
    except PackageNotFoundError:  # benchmarks of the engine itself run without it
        litellm = ""
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}{litellm}"
    )


def with_section(document: str, title: str, body: str) -> str:
    """Return `document` with the section `title` replaced, or added at its end."""
    before, *sections = f"\n{document}".split("\n## ")
    kept = [section.rstrip("\n") for section in sections]
    new = f"{title}\n\n{body.strip()}"
    places = [i for i, section in enumerate(kept) if section.splitlines()[0] == title]
    if places:
        kept[places[0]] = new
    else:
        kept.append(new)
    return "\n\n## ".join([before.strip("\n"), *kept]) + "\n"


def publish(title: str, module: str, body: str, *, write: bool) -> None:
    """Print a benchmark's result and, if asked to, write it to docs/performance.md."""
    text = f"`python -m {module}` ({machine()})\n\n{body}"
    print(f"## {title}\n\n{text}")
    if write:
        DOCS.parent.mkdir(exist_ok=True)
        document = DOCS.read_text() if DOCS.exists() else _HEAD
        DOCS.write_text(with_section(document, title, text))


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--write", action="store_true", help="put it into docs/performance.md")
    return made
