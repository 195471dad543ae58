"""A text as the detectors read it: in plain characters, whatever way it is written."""

import html
import unicodedata
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.privacy.found import Found

_UNSEEN: Final = r"\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_WRITTEN = Pattern(
    r"(?P<url>(?:%[0-9A-Fa-f]{2}){1,32})"
    r"|(?P<html>&(?:#[0-9]{1,6}|#[xX][0-9A-Fa-f]{1,5}|[A-Za-z]{2,8});)"
    r"|(?P<escape>\\u[0-9A-Fa-f]{4})"
    rf"|(?P<unseen>[{_UNSEEN}]{{1,64}})"
    r"|(?P<accents>[^\W\d_][\u0300-\u036f]{1,4})"
)
"""What stands for other characters, of another number."""

_WIDTHS: Final = ("<wide>", "<narrow>", "<noBreak>", "<font>")


class _Characters(dict[int, str]):
    """The plain character for each: of another width or font, a digit, a blank, a hyphen."""

    def __missing__(self, code: int) -> str:
        self[code] = plain = _plain(chr(code))
        return plain


def _plain(char: str) -> str:
    kind = unicodedata.category(char)
    if kind == "Nd":
        return str(unicodedata.digit(char))
    if kind == "Zs":
        return " "
    if kind == "Pd" or char == "\u2212":
        return "-"
    form, _, codes = unicodedata.decomposition(char).partition(" ")
    return chr(int(codes, 16)) if form in _WIDTHS and " " not in codes else char


_CHARACTERS: Final = _Characters()


@dataclass(slots=True)
class PlainText:
    """A text in plain characters, and where each stands in the original."""

    text: str
    _starts: list[int] = field(default_factory=lambda: [0])
    """Where pieces of `text` begin: what stands for others and what lies between, in turn."""

    _origins: list[int] = field(default_factory=lambda: [0])
    """Where the same pieces begin in the original."""

    @classmethod
    def of(cls, original: str) -> Self:
        """Return `original` as it is read."""
        text = original if original.isascii() else original.translate(_CHARACTERS)
        made = cls("")
        pieces: list[str] = []
        length = end = 0
        for at in _WRITTEN.finditer(text):
            if (meant := _meant(at.lastgroup, at[0])) == at[0]:
                continue
            pieces += [text[end : at.start()], meant]
            begin = length + at.start() - end
            length, end = begin + len(meant), at.end()
            made._starts += [begin, length]
            made._origins += [at.start(), end]
        made.text = "".join((*pieces, text[end:]))
        return made

    def in_original(self, found: Found) -> Found:
        """Return what was found in the plain text, with its place in the original."""
        return found._replace(start=self._origin(found.start), end=self._end(found.end))

    def _origin(self, at: int) -> int:
        piece = bisect_right(self._starts, at) - 1
        within = at - self._starts[piece] if piece % 2 == 0 else 0
        return self._origins[piece] + within

    def _end(self, at: int) -> int:
        """Return where a character that ends at `at` ends in the original."""
        piece = bisect_right(self._starts, at - 1) - 1
        if piece % 2:
            return self._origins[piece + 1]
        return self._origins[piece] + at - self._starts[piece]


def _meant(kind: str | None, written: str) -> str:
    """Return the characters that `written` stands for; itself if it stands for none."""
    if kind == "url":
        try:
            return unquote(written, errors="strict").translate(_CHARACTERS)
        except UnicodeDecodeError:
            return written
    if kind == "html":
        return html.unescape(written).translate(_CHARACTERS)
    if kind == "escape":
        code = int(written[2:], 16)
        return written if 0xD800 <= code < 0xE000 else chr(code).translate(_CHARACTERS)
    return "" if kind == "unseen" else unicodedata.normalize("NFC", written)
