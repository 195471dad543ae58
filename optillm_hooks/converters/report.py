"""What a conversion reports, and the values that it reads on the way."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ENVIRON: Final = "os.environ/"
"""LiteLLM's prefix of a value that is a variable of the environment."""

_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?\}", re.DOTALL)
_ANY_REFERENCE: Final = re.compile(r"\$\{[A-Za-z_]")


class NotConvertible(Exception):
    """The file is not a valid configuration; the message says where."""


@dataclass(slots=True)
class Report:
    """Lines for the user, each with a key of the file and what has become of it."""

    lines: list[str] = field(default_factory=list[str])
    variables: dict[str, str] = field(default_factory=dict[str, str])
    """What each variable of the environment has to hold, as the file says it."""

    def say(self, where: str, what: str) -> None:
        """Add a line, unless it is there."""
        line = f"{where}: {what}"
        if line not in self.lines:
            self.lines.append(line)

    def rest(self, where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """Report the keys of `given` that no table knows."""
        for name in given:
            if name not in known:
                self.say(f"{where}.{name}" if where else str(name), "unknown key, left out")

    def variable(self, where: str, wanted: str, value: str, *, secret: bool) -> str:
        """Return a reference to a new variable that holds `value`.

        Args:
            where: the key of the file that the value comes from.
            wanted: the name of the variable, if it is free.
            value: what it has to hold, which may have references itself.
            secret: whether the report must not show it.
        """
        name, number = re.sub(r"[^A-Z0-9_]", "_", wanted.upper()), 1
        name = f"_{name}" if name[:1].isdigit() else name
        while self.variables.get(name, value) != value:
            number += 1
            name = f"{re.sub(r'_[0-9]+$', '', name)}_{number}"
        self.variables[name] = value
        shown = "the value in the file" if secret else repr(value)
        self.say(where, f"set the environment variable {name} to {shown}")
        return f"{ENVIRON}{name}"


def read_text(where: str, wanted: str, value: Any, report: Report, *, secret: bool = False) -> str:
    """Return a text with its `${VAR}` and `${VAR:-default}` in LiteLLM's form.

    LiteLLM knows only values that are one variable as a whole. One with more than that becomes a
    variable of its own. A default has no place in LiteLLM's YAML, and is reported.
    """
    if not isinstance(value, str):
        raise NotConvertible(f"{where} must be a text")
    whole = whole_reference(value)
    if whole is None:
        if _ANY_REFERENCE.search(value):
            return report.variable(where, wanted, value, secret=False)
        return value
    name, default = whole
    if default is not None:
        shown = "the default in the file" if secret and "${" not in default else repr(default)
        report.say(where, f"LiteLLM knows no defaults: unless {name} is set, set it to {shown}")
    return f"{ENVIRON}{name}"


def whole_reference(value: str) -> tuple[str, str | None] | None:
    """Return the variable and the default of a text that is one reference; None if it is not.

    A default may have references in it: `${A:-${B:-c}}`.
    """
    found = _REFERENCE.fullmatch(value)
    if found is None:
        return None
    depth = 0
    for at, character in enumerate(value):
        depth += character == "{"
        depth -= character == "}"
        if depth == 0 and character == "}" and at < len(value) - 1:
            return None  # two references next to each other
    return found[1], found[2]


def read_number(where: str, value: Any, report: Report) -> float | int | None:
    """Return a number; of a reference, its default; None if there is none.

    Raises:
        NotConvertible: it is neither.
    """
    given = value
    if isinstance(value, str):
        whole = whole_reference(value)
        if whole is not None:
            report.say(where, "a number cannot be a variable in LiteLLM: write it into the YAML")
            if whole[1] is None:
                return None
            value = whole[1]
        try:
            value = float(value)
        except ValueError:
            raise NotConvertible(f"{where} must be a number, got {given!r}") from None
        value = int(value) if value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise NotConvertible(f"{where} must be a number, got {given!r}")
    return value


def read_object(where: str, value: Any) -> dict[str, Any]:
    """Return an object; nothing is an empty one.

    Raises:
        NotConvertible: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NotConvertible(f"{where} must be an object with keys")
    return {str(name): item for name, item in value.items()}
