"""Other installed packages: which of their entry points the operator allows to be loaded.

Loading an entry point runs code of its package with all rights of the process, so that being
installed, perhaps as a dependency of something else, is not enough.
"""

import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Final, Literal

AllowedPackages = Literal["all"] | tuple[str, ...]
"""The names of packages on PyPI, in any spelling."""


class _Allowed:
    """What the operator of this process allows; nothing before `allow` is called."""

    packages: AllowedPackages = ()


_ALLOWED: Final = _Allowed()


def allow(packages: AllowedPackages) -> None:
    """Let entry points of these packages, and of no others, be loaded from now on."""
    _ALLOWED.packages = packages


def allowed_entries(group: str) -> list[EntryPoint]:
    """Return the entry points of `group` that may be loaded, by name."""
    if not _ALLOWED.packages:
        return []  # looking for them reads the metadata of every installed package
    return sorted(filter(_may_load, entry_points(group=group)), key=lambda entry: entry.name)


def not_allowed(groups: Iterable[str]) -> dict[str, list[EntryPoint]]:
    """Return the entry points of `groups` that may not be loaded, by the name of their package."""
    found: dict[str, list[EntryPoint]] = {}
    installed = entry_points()
    for group in groups:
        for entry in installed.select(group=group):
            if not _may_load(entry):
                found.setdefault(package_of(entry), []).append(entry)
    return found


def package_of(entry: EntryPoint) -> str:
    """Return the name of the package that has an entry point; "unknown" without metadata."""
    return entry.dist.name if entry.dist else "unknown"


def _may_load(entry: EntryPoint) -> bool:
    allowed = _ALLOWED.packages
    return allowed == "all" or _spelt(package_of(entry)) in map(_spelt, allowed)


def _spelt(name: str) -> str:
    """Return the name of a package in the one spelling that PyPI compares by."""
    return re.sub(r"[-_.]+", "-", name).lower()
