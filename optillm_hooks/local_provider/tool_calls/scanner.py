"""Reads a text from left to right."""

import json
import re
from collections.abc import Callable
from typing import Any

Matcher = Callable[[str, int], re.Match[str] | None]

_BLANKS = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


class CutOff(ValueError):
    """The text ends inside a string: a marker in that string does not end the call."""


class Scanner:
    """Reads a text from left to right, in linear time; blanks before markers do not matter."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def done(self) -> bool:
        """True if only blanks are left."""
        self._skip_blanks()
        return self.at == len(self.text)

    def take(self, marker: str) -> bool:
        """Move behind `marker` if it comes next; return whether it did. An empty one never does."""
        if not marker:  # blanks that come next may begin an argument
            return False
        self._skip_blanks()
        found = self.text.startswith(marker, self.at)
        self.at += len(marker) if found else 0
        return found

    def expect(self, marker: str) -> None:
        """Move behind `marker`, or raise ValueError."""
        if marker and not self.take(marker):
            raise ValueError(f"no {marker} at {self.at}")

    def until(self, marker: str) -> str:
        """Return the text before the next `marker`, and move behind it; raise ValueError."""
        end = self.text.index(marker, self.at)
        before, self.at = self.text[self.at : end], end + len(marker)
        return before

    def match(self, matcher: Matcher) -> re.Match[str] | None:
        """Return what `matcher`, a pattern's `match`, finds next, and move behind it."""
        self._skip_blanks()
        found = matcher(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def json(self) -> Any:
        """Return the JSON value that comes next; raise CutOff or ValueError."""
        self._skip_blanks()
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except json.JSONDecodeError as exc:
            if exc.msg.startswith("Unterminated string"):
                raise CutOff(exc.msg) from None
            raise
        return value

    def _skip_blanks(self) -> None:
        blanks = _BLANKS.match(self.text, self.at)
        self.at = blanks.end() if blanks else self.at
