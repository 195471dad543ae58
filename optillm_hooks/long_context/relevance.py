"""Which texts matter to a question: by their words, and by their meaning where that is set up."""

from collections.abc import Sequence
from itertools import chain
from math import sqrt
from typing import Final

from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.retrieval.bm25 import ranking

_MAX_EMBEDDED: Final = 128
"""Maximum texts that are embedded for one request: those that BM25 ranks first."""

_MAX_CHARACTERS: Final = 8000
"""Maximum characters of a text that are embedded; models take about 8000 tokens."""

Vector = Sequence[float]


async def most_relevant(question: str, texts: Sequence[str], ctx: Context) -> list[int]:
    """Return the indices of `texts`, the most relevant to `question` first.

    With an embedding model, they come in turn from the ranking by BM25 and from that by the cosine
    of embeddings. If it fails, the trace counts that, and the ranking is BM25's.
    """
    by_words = await ranking(question, texts)
    if ctx.services.embed is None or len(texts) < 2:
        return by_words
    order = by_words[:_MAX_EMBEDDED]
    asked = [text[:_MAX_CHARACTERS] for text in (question, *(texts[i] for i in order))]
    try:
        with ctx.trace.step("embeddings"):
            (wanted, *vectors), usage = await ctx.services.embed(asked)
            ctx.spend(usage)
    except SampleError:
        return by_words
    by_meaning = sorted(range(len(order)), key=lambda at: -cosine(wanted, vectors[at]))
    in_turn = chain.from_iterable(zip(by_words, (order[at] for at in by_meaning), strict=False))
    return list(dict.fromkeys([*in_turn, *by_words]))


def cosine(one: Vector, other: Vector) -> float:
    """Return the cosine of the angle between two vectors; 0 if they cannot be compared."""
    if len(one) != len(other):
        return 0.0
    length = sqrt(sum(x * x for x in one) * sum(y * y for y in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / length if length else 0.0
