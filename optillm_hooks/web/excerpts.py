"""The parts of several long texts that a question is about, within a number of tokens."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from optillm_hooks.retrieval.bm25 import ranking
from optillm_hooks.retrieval.chunks import Chunk, CountTokens, split

_PASSAGE: Final = 250
"""Tokens of a passage, which is kept or left out as a whole."""

_MAX_READ: Final = 200_000
"""Characters of each text that are looked at."""

_GAP: Final = "\n[...]\n"


class Excerpt(NamedTuple):
    text: str
    whole: bool
    """Whether nothing was left out."""


async def excerpts(
    texts: Sequence[str], query: str, count: CountTokens, max_tokens: int
) -> list[Excerpt]:
    """Return what of each text fits into `max_tokens` for all of them.

    They share the tokens equally; what a short one leaves goes to the others. Of a text that is too
    long, its beginning is kept, and the passages that are most relevant to `query`.
    """
    size = max(1, min(_PASSAGE, max_tokens // max(1, len(texts))))
    cut = [await split(text[:_MAX_READ], count, size) for text in texts]
    rooms = _shares([len(passages) for passages in cut], max_tokens // size)
    return [
        await _best(text, passages, query, room)
        for text, passages, room in zip(texts, cut, rooms, strict=True)
    ]


def _shares(wanted: Sequence[int], total: int) -> list[int]:
    """Return how many of `total` each gets: what it wants, or an equal share of what is left."""
    given = [0] * len(wanted)
    for left, at in enumerate(sorted(range(len(wanted)), key=lambda i: wanted[i])):
        given[at] = min(wanted[at], total // (len(wanted) - left))
        total -= given[at]
    return given


async def _best(text: str, passages: Sequence[Chunk], query: str, room: int) -> Excerpt:
    if len(passages) <= room and len(text) <= _MAX_READ:
        return Excerpt(text, whole=True)
    order = await ranking(query, [passage.text for passage in passages])
    kept = list(dict.fromkeys((0, *order)))[:room]
    found, end = "", 0
    for at in sorted(kept):
        found += (_GAP if passages[at].start > end else "") + passages[at].text
        end = passages[at].end
    return Excerpt(found.strip() + ("" if end == len(text) else _GAP.rstrip()), whole=False)
