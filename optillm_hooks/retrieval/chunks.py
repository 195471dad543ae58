"""Chunks of a long text that each fit into a number of tokens.

The libraries for this cut by characters, or recurse once for each length of a run of blanks, which
a text can be made to exploit. Tokens are counted chunk by chunk with pauses between, so the event
loop stays free however long the text is.
"""

import asyncio
import unicodedata
from collections.abc import Callable
from typing import Final, NamedTuple

_ENDS: Final = (
    ("\n\n", "\r\n\r\n"),
    ("\n", "\r"),
    (". ", "? ", "! ", "\u3002", "\uff01", "\uff1f", "\u0964 "),
    (" ", "\t", "\u3000", "\uff0c", "\u3001"),
)
"""Ends of paragraphs, lines, sentences and words: the best place for a cut comes first."""

_CHARACTERS_PER_TOKEN: Final = 4.0
"""A first guess; each chunk corrects it for the next."""

_MAX_PER_TOKEN: Final = 8
"""A text with more characters for each token of a chunk is cut without being counted as a whole."""

_FULL: Final = 0.9
_LEAST: Final = 0.6
"""Shares of a chunk: how full it is aimed to be, and how full it must be if a better cut is near
its beginning."""

_MAX_CLUSTER: Final = 32
"""Maximum characters that are kept together as one written character."""

CountTokens = Callable[[str], int]


class Chunk(NamedTuple):
    """A piece of a text, which starts at the character `start` of it."""

    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


async def split(text: str, count: CountTokens, size: int, overlap: int = 0) -> list[Chunk]:
    """Return `text` in chunks of at most `size` tokens, in order; none if it is blank.

    Chunks end with a paragraph where possible, or else with a line, a sentence or a word. No
    written character is cut. A single character counts as fitting, whatever `count` says.

    Args:
        text: the text.
        count: returns the tokens of a text.
        size: maximum tokens of a chunk.
        overlap: about how many tokens at the end of a chunk are repeated in the next one; at most
            half of `size` are.
    """
    if not text.strip():
        return []
    if len(text) <= _MAX_PER_TOKEN * size and count(text) <= size:
        return [Chunk(text, 0)]
    found: list[Chunk] = []
    start, per_token = 0, _CHARACTERS_PER_TOKEN
    share = min(max(overlap, 0) / max(size, 1), 0.5)
    while start < len(text):
        end, per_token = _end(text, start, count, size, per_token)
        if text[start:end].strip():
            found.append(Chunk(text[start:end], start))
        if end >= len(text):
            break
        start = _next_start(text, start, end, share)
        await asyncio.sleep(0)
    return found


def _end(
    text: str, start: int, count: CountTokens, size: int, per_token: float
) -> tuple[int, float]:
    """Return where the chunk at `start` ends, and its characters per token."""
    length = max(1, int(size * per_token * _FULL))
    while True:
        whole = start + length >= len(text)
        end = len(text) if whole else _cut(text, start, start + length)
        tokens = count(text[start:end])
        measured = (end - start) / max(tokens, 1)
        if tokens <= size or end - start <= 1:
            return end, min(measured, 2 * per_token)
        shorter = min(int(size * measured * _FULL), (end - start) * 9 // 10)
        if shorter < 1 or _whole_characters(text, start, start + shorter) >= end:
            return end, measured  # one written character of many tokens
        length = shorter


def _next_start(text: str, start: int, end: int, share: float) -> int:
    """Return where the next chunk starts, so that it repeats about `share` of the one before it."""
    back = end - int((end - start) * share)
    if back >= end:
        return end
    latest = back + (end - back) // 2
    for marks in _ENDS:
        after = [at + len(mark) for mark in marks if (at := text.find(mark, back, latest)) >= 0]
        if after:
            return min(after)
    return min(_whole_characters(text, start, back), end)


def _cut(text: str, start: int, end: int) -> int:
    """Return the best place for a cut in the last part of text[start:end]."""
    earliest = start + max(1, int((end - start) * _LEAST))
    for marks in _ENDS:
        after = [at + len(mark) for mark in marks if (at := text.rfind(mark, earliest, end)) >= 0]
        if after:
            return max(after)
    return _whole_characters(text, start, end)


def _whole_characters(text: str, start: int, end: int) -> int:
    """Return `end`, or a place near it that does not cut a written character in two."""
    at = end
    while at < len(text) and end - at < _MAX_CLUSTER and _continues(text, at):
        at -= 1
        if at <= start:
            break
    if at > start and not (at < len(text) and _continues(text, at)):
        return at
    at = end
    while at < len(text) and at - end < _MAX_CLUSTER and _continues(text, at):
        at += 1
    return at


def _continues(text: str, at: int) -> bool:
    """Return whether the character at `at` is part of the written character before it."""
    here, before = text[at], text[at - 1]
    return (
        unicodedata.combining(here) > 0
        or unicodedata.category(here) in ("Mn", "Mc", "Me")
        or here == "\u200d"
        or before == "\u200d"
        or "\U0001f3fb" <= here <= "\U0001f3ff"  # skin tones
        or "\udc00" <= here <= "\udfff"  # the second half of a pair
        or (here == "\n" and before == "\r")
    )
