"""Parses model names: `<expression>-<base>` of a client, `<expression>/<base>` of a deployment."""

from dataclasses import dataclass
from typing import NamedTuple

from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.registry import all_approaches

PROVIDER = "optillm"
"""The provider's name: a deployment whose model begins with it and a slash is an alias."""


class Named(NamedTuple):
    """The approach expression, as text, and the base model in a model name."""

    expression: str
    base: str


@dataclass(frozen=True, slots=True)
class _Split:
    left: str
    right: str


def from_prefix(name: str) -> Named | None:
    """Return the parts of a name such as `bon|moa-gpt-4o`; None if it begins with no approach.

    The expression ends at the first "-" outside parentheses and quotes, so values and base names
    may contain more. The caller checks first whether the name is a configured model.

    Raises:
        RequestRejected: the base is missing, or an approach follows where a base should.
    """
    split = _split(name, "-")
    left = split.left if split else name
    if not _looks_like_approach(left):
        return None
    if split is None or not split.right:
        parse(left)  # if a missing parenthesis hides the base, this error gives the column
        raise RequestRejected(
            f"the model name {_short(name)!r} lacks a base model: write {_short(left)}-<model>",
            param="model",
        )
    return Named(left, split.right)


def from_deployment(model: str) -> Named:
    """Return the parts of a deployment's model `<expression>/<base>`.

    Raises:
        RequestRejected: the slash is missing, or one side of it is empty.
    """
    split = _split(model.removeprefix(f"{PROVIDER}/"), "/")
    if split is None or not split.left or not split.right:
        raise RequestRejected(
            f"{_short(model)!r} is not <expression>/<base model>, such as bon(n=5)/gpt-4o-mini",
            param="model",
        )
    return Named(split.left, split.right)


def refuse_second_prefix(named: Named) -> None:
    """Refuse a base model that begins with another approach: a common mistake for `&` or `|`.

    Raises:
        RequestRejected: the base begins with an approach and "-".
    """
    split = _split(named.base, "-")
    if split is not None and _looks_like_approach(split.left):
        raise RequestRejected(
            f"two approaches with '-' between them: write {named.expression}&{split.left}-… to run "
            f"one after the other, or {named.expression}|{split.left}-… to run both",
            param="model",
        )


def _looks_like_approach(text: str) -> bool:
    name = text.strip()
    if any(mark in name for mark in "&|()"):
        return "/" not in name.split("(")[0]
    return name in {approach.name for approach in all_approaches()}


def _split(text: str, mark: str) -> _Split | None:
    depth, quoted, skip = 0, False, False
    for at, char in enumerate(text):
        if skip:
            skip = False
        elif quoted:
            skip, quoted = char == "\\", char != '"'
        elif char == '"':
            quoted = True
        elif char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == mark and depth <= 0:
            return _Split(text[:at], text[at + 1 :])
    return None


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:80]}…"
