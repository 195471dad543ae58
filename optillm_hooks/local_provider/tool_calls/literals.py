"""Reads the literals in which models write arguments: Python's, JSON's, and Gemma's own."""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

from optillm_hooks.local_provider.tool_calls.scanner import CutOff, Scanner

_STRING = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"""|"(?:[^"\\]|\\.)*"'
    r"|'''(?:[^'\\]|\\.|'(?!''))*'''|'(?:[^'\\]|\\.)*'",
    re.DOTALL,
)
"""A string of Python, which may go over several lines with any quotation marks: some chat templates
write strings as they are."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]++\.?[0-9]*+|\.[0-9]++)(?:[eE][-+]?[0-9]++)?(?![\w.])")
_WORD = re.compile(r"[\w$@][\w.$-]*")
_KEY = re.compile(r"[^\s=:,(){}\[\]'\"<>][^=:,(){}\[\]'\"<>\n]*")
"""The name of an argument, which may be no name in Python: `from`, `size in cm`."""

_ESCAPE = re.compile(r"\\(.)|[\n\r]", re.DOTALL)
_LINE_ENDS: Mapping[str, str] = {"\n": r"\n", "\r": r"\r"}
_ESCAPES = "\n\\'\"abfnrtvxuUN01234567"
_WORDS: Mapping[str, Any] = {
    "True": True, "true": True, "False": False, "false": False, "None": None, "null": None,
}  # fmt: skip


class LiteralReader(Scanner):
    """Reads names and literals. `quotes`: quotation marks of the format's own, without escapes."""

    def __init__(self, text: str, quotes: Sequence[str] = ()) -> None:
        super().__init__(text)
        self._quotes = quotes

    def name(self) -> str:
        """Return the name of a function or an argument; raise ValueError."""
        found = self.match(_WORD.match)
        if found is None:
            raise ValueError(f"no name at {self.at}")
        return found[0]

    def value(self) -> Any:
        """Return the literal that comes next; raise CutOff or ValueError."""
        for opening, end in (("[", "]"), ("(", ")")):
            if self.take(opening):
                return self._items(end)
        if self.take("{"):
            return self.pairs(":", "}")
        if (text := self._string()) is not None:
            return text
        if found := self.match(_NUMBER.match):
            number = found[0]
            return int(number) if number.lstrip("+-").isdigit() else float(number)
        word = self.name()
        if word not in _WORDS:
            raise ValueError(f"{word} is not a literal")
        return _WORDS[word]

    def pairs(self, sign: str, end: str) -> dict[str, Any]:
        """Return the names and values up to `end`, with `sign` between them."""
        found: dict[str, Any] = {}
        while not self.take(end):
            key = self._string()
            if key is None:
                found_key = self.match(_KEY.match)
                key = found_key[0].rstrip() if found_key else ""
            self.expect(sign)
            found[key] = self.value()
            if not self.take(","):
                self.expect(end)
                break
        return found

    def _items(self, end: str) -> list[Any]:
        found: list[Any] = []
        while not self.take(end):
            found.append(self.value())
            if not self.take(","):
                self.expect(end)
                break
        return found

    def _string(self) -> str | None:
        """Return the string that comes next, or None."""
        for quote in self._quotes:
            if self.take(quote):
                if self.text.find(quote, self.at) < 0:
                    raise CutOff("a string without an end")
                return self.until(quote)
        found = self.match(_STRING.match)
        if found is None:
            if self.text[self.at : self.at + 1] in ("'", '"'):
                raise CutOff("a string without an end")
            return None
        return str(ast.literal_eval(_ESCAPE.sub(_escaped, found[0])))


def _escaped(found: re.Match[str]) -> str:
    """Return an escape or the end of a line as Python reads it in any string.

    Python warns of escapes that it does not know. JSON has one more.
    """
    if found[1] is None:
        return _LINE_ENDS[found[0]]
    if found[1] == "/":
        return "/"
    return found[0] if found[1] in _ESCAPES else rf"\\{found[1]}"
