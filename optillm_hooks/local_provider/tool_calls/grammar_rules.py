"""Grammar rules for the arguments of calls, in llguidance's dialect of Lark."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.grammar import as_regex, json_rule
from optillm_hooks.local_provider.tool_calls.schema import with_definitions

_ANNOTATIONS = frozenset(
    {"type", "properties", "required", "additionalProperties", "title", "description", "$defs",
     "definitions", "$schema", "$id", "$comment", "examples", "default", "strict"}
)  # fmt: skip
"""Keywords of an object's schema that the formats without JSON can follow."""


class Property(NamedTuple):
    """An argument of a function: its name, its JSON schema, and whether it must be given."""

    name: str
    schema: Mapping[str, Any]
    required: bool


class GrammarRules:
    """A set of grammar rules with generated names.

    `symbol` returns a marker as a grammar symbol.
    """

    def __init__(self, symbol: Callable[[str], str]) -> None:
        self.symbol = symbol
        self._lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def add(self, right: str) -> str:
        """Return the name of a new rule with this right side."""
        name = f"rule_{len(self._lines)}"
        self._lines.append(f"{name}: {right}")
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        """Return the name of a rule for JSON documents that match `schema`."""
        return self.add(json_rule(schema))

    def choice(self, options: Sequence[str]) -> str:
        """Return the name of a rule for one of `options`."""
        return self.add(" | ".join(options))

    def text_before(self, closing: str, schema: Mapping[str, Any]) -> str:
        """Return an expression for a text that obeys a string's `schema`, and `closing`.

        Raises:
            RequestRejected: the schema asks for a pattern or a format.
        """
        if refused := schema.keys() & {"pattern", "format"}:
            raise RequestRejected(
                f"tools cannot be enforced: {min(refused)!r} of a string is not supported in this "
                "model's tool-call format",
                param="tools",
            )
        if options := allowed_texts(schema):
            return f"{self.choice([json.dumps(text) for text in options])} {self.symbol(closing)}"
        bounds = f"{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}}"
        spelled = self.symbol(closing)
        if spelled.startswith("<["):  # a special token, which no regular expression matches
            return f"{self.add(f'/(?s:.{bounds})/')} {spelled}"
        first, special, rest = spelled.partition(" <[")
        end = as_regex(json.loads(first))
        # The text must not contain its own closing marker, even if it is too short yet.
        name = f"TEXT_{len(self._lines)}"
        self._lines.append(rf"{name}: /(?s:.{bounds}){end}/ & ~/(?s:.*){end}(?s:.+)/")
        return f"{name}{special}{rest}"

    def in_order(self, items: Sequence[tuple[str, bool]], separator: str = "") -> str:
        """Return an expression for `items` in order; those that are not required may be missing."""
        if not separator:
            return " ".join(item if required else f"({item})?" for item, required in items)
        options: list[str] = []
        rest = ""
        for item, required in reversed(items):
            options = [*([] if required else options), f"{item} {rest}"]
            next_item = f"{separator} {item}" if required else f"({separator} {item})?"
            rest = self.add(f"{next_item} {rest}")
        if not options:
            return ""
        needed = any(required for _, required in items)
        return f"({' | '.join(options)})" + ("" if needed else "?")


def properties(schema: Mapping[str, Any]) -> Iterator[Property]:
    """Yield the arguments that the schema of a function names.

    Raises:
        RequestRejected: it has keywords that need JSON.
    """
    if refused := schema.keys() - _ANNOTATIONS:
        raise RequestRejected(
            f"tools cannot be enforced: {min(refused)!r} beside 'properties' is not supported in "
            "this model's tool-call format",
            param="tools",
        )
    required = schema.get("required", ())
    for name, described in schema.get("properties", {}).items():
        known = described if isinstance(described, Mapping) else {}
        yield Property(name, with_definitions(known, schema), name in required)


def allowed_texts(schema: Mapping[str, Any]) -> list[str]:
    """Return the strings that an `enum` allows; empty if any string is allowed."""
    return [value for value in schema.get("enum", ()) if isinstance(value, str)]


def is_text(schema: Mapping[str, Any]) -> bool:
    """Return True if `schema` is that of a string, or does not say its type."""
    return bool(schema.get("type", "string") == "string")
