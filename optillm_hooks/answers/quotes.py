"""Quotations: whether a text contains what is said to be copied from it."""

import unicodedata
from collections.abc import Sequence

from optillm_hooks.answers.patterns import Pattern

_WORD = Pattern(r"[^\W_]+")
_LEFT_OUT = Pattern(r"\[?(?:\.{3,}|\u2026)\]?")
_LEAST = 8
"""Characters that a part of a quotation must have, blanks and marks apart."""

_MAX_QUOTE = 2000
_MAX_PARTS = 6


def quoted(texts: Sequence[str], quotes: Sequence[tuple[int, str]]) -> list[bool]:
    """Return for each quotation whether the text with its index contains it.

    Case, punctuation, line breaks and the forms of characters are ignored. A quotation may leave
    out parts ("..."): the text must contain every part.
    """
    bare = {at: _bare(texts[at]) for at, _ in quotes if 0 <= at < len(texts)}
    return [at in bare and _holds(bare[at], quote) for at, quote in quotes]


def _holds(text: str, quote: str) -> bool:
    parts = [_bare(part).strip() for part in _LEFT_OUT.split(quote[:_MAX_QUOTE])[:_MAX_PARTS]]
    long = [part for part in parts if len(part.replace(" ", "")) >= _LEAST]
    return bool(long) and all(part in text for part in long)


def _bare(text: str) -> str:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words)
