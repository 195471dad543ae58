"""What other packages and plugin files add to this process, as far as the operator allows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from optillm_hooks import registry
from optillm_hooks.packages import allow, not_allowed
from optillm_hooks.plugin_files import loading
from optillm_hooks.settings import Settings, allowed_packages, plugins_directory
from optillm_hooks.verifiers import panel

_KINDS: Final[Mapping[str, str]] = {
    registry.ENTRY_POINT_GROUP: "approach",
    loading.ENTRY_POINT_GROUP: "plugin",
    panel.ENTRY_POINT_GROUP: "verifier",
}
"""What the entry points of a group are."""

_READ: Final = ("allowed_packages", "plugins_dir")
"""The settings that say what is loaded."""


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """An installed package that the operator does not allow to be loaded."""

    package: str
    version: str | None
    offers: tuple[str, ...]
    """What it would add, such as "approach 'twice'"."""

    def __str__(self) -> str:
        return (
            f"the package {self.package} is not loaded ({', '.join(self.offers)}): add its name to "
            "optillm_settings.allowed_packages if you trust its code, or uninstall it"
        )


class _Loading:
    """Whether this process has loaded its extensions: it does so once."""

    done = False


def load_extensions(settings: Settings) -> list[str]:
    """Register what plugin files and the packages that `settings` allow have to offer.

    Only the first call in a process has an effect.

    Returns:
        What is wrong with those that cannot be loaded.
    """
    if _Loading.done:
        return []
    _Loading.done = True
    allow(allowed_packages(settings))
    return registry.load_entry_points() + loading.load_plugins(plugins_directory(settings))


def not_loaded() -> list[NotLoaded]:
    """Return the installed packages that are not allowed, by name."""
    return [
        NotLoaded(
            package,
            entries[0].dist.version if entries[0].dist else None,
            tuple(f"{_KINDS[entry.group]} {entry.name!r}" for entry in entries),
        )
        for package, entries in sorted(not_allowed(_KINDS).items())
    ]


def extension_settings(given: object) -> Settings:
    """Return the settings in `given`, the YAML's `optillm_settings`, that say what is loaded.

    Invalid ones count as not given, and so do all others.
    """
    read = {name: given[name] for name in _READ if name in given} if isinstance(given, dict) else {}
    try:
        return Settings.model_validate(read)
    except ValidationError:
        return Settings()
