"""BM25: how relevant texts are to a question, in any language.

Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond". The
terms are words, and their first five letters in place of a stemmer, which does as well in most
languages (McNamee et al. 2009, "Addressing morphological variation in alphabetic languages").
Scripts that are written without blanks are read as characters and pairs of them.

LiteLLM's own scorer knows only ASCII letters, and bm25s needs numpy.
"""

import asyncio
import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from optillm_hooks.answers.patterns import Pattern

_K1: Final = 1.5
_B: Final = 0.75

_STEM: Final = 5
"""Letters of a word that stand for its inflections too."""

_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese; and Korean, whose words carry their particles."""

_MARKS: Final = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0d7f"
"""Vowel signs and accents that are parts of words."""

_TERM: Final = Pattern(f"(?P<unspaced>[{_UNSPACED}]+)|(?:[^\\W{_UNSPACED}]|[{_MARKS}])+")

_SLICE: Final = 8192
"""Characters that are read at once; then others get a turn."""

MAX_QUERY: Final = 20_000
"""Characters of a question that are read: its last ones."""


async def scores(query: str, texts: Sequence[str]) -> list[float]:
    """Return how relevant each text is to `query`; 0 for a text without any of its words.

    The event loop stays free, however long the texts are.
    """
    wanted = set(_terms(query[-MAX_QUERY:]))
    found: list[Counter[str]] = []
    lengths: list[int] = []
    for text in texts:
        terms, length = Counter[str](), 0
        for piece in _slices(text):
            for term in _terms(piece):
                length += 1
                if term in wanted:
                    terms[term] += 1
            await asyncio.sleep(0)
        found.append(terms)
        lengths.append(length)
    mean = sum(lengths) / max(1, len(lengths)) or 1.0
    holding = Counter(term for terms in found for term in terms)
    weight = {t: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for t, n in holding.items()}
    return [
        sum(
            weight[term] * n * (_K1 + 1) / (n + _K1 * (1 - _B + _B * length / mean))
            for term, n in terms.items()
        )
        for terms, length in zip(found, lengths, strict=True)
    ]


async def ranking(query: str, texts: Sequence[str]) -> list[int]:
    """Return the indices of `texts`, the most relevant to `query` first; ties in their order."""
    relevance = await scores(query, texts)
    return sorted(range(len(texts)), key=lambda i: -relevance[i])


def _slices(text: str) -> Iterator[str]:
    """Yield `text` in slices, which end at a blank if there is one near."""
    start = 0
    while start < len(text):
        end = start + _SLICE
        blank = text.rfind(" ", end - 200, end) if end < len(text) else -1
        end = blank + 1 or end
        yield text[start:end]
        start = end


def _terms(text: str) -> Iterator[str]:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    for found in _TERM.finditer(text.casefold()):
        term = found[0]
        if found["unspaced"] is None:
            yield term
            if len(term) > _STEM:
                yield f"{term[:_STEM]}\u2026"
        else:
            yield from term
            yield from map("".join, pairwise(term))
