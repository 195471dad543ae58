"""Requests that merge solutions, each of which shows a random subset of a population."""

from collections.abc import Sequence
from random import Random
from typing import Final

from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.types import Chat

MERGE: Final = """\
Above are {count} attempts at the request before them. Any of them may be wrong, and all may be. \
Decide where they disagree by working it out, keep what is right and useful in each, or start anew \
if none holds. Write one complete answer that is better than each of them, with all its steps, and \
without referring to them."""


def merge_requests(
    chat: Chat, texts: Sequence[str], rng: Random, *, count: int, size: int
) -> list[str]:
    """Return `count` requests to merge `size` random ones of `texts`, which answer `chat`.

    If there are fewer than `size`, all of them are shown.
    """
    size = min(size, len(texts))
    return [_request(chat, rng.sample(texts, size)) for _ in range(count)]


def _request(chat: Chat, texts: Sequence[str]) -> str:
    mark = fence(chat, texts)
    shown = f"{data_notice('attempt', mark)}\n\n{enclose(texts, 'attempt', mark)}"
    return f"{shown}\n\n{MERGE.format(count=len(texts))}"
