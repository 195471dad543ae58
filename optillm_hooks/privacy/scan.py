"""Searches texts for private values, in a worker if they are long."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from optillm_hooks.errors import RequestRejected, SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.privacy import worker
from optillm_hooks.privacy.detectors import scan_now
from optillm_hooks.privacy.found import Found
from optillm_hooks.privacy.occurrences import Value, occurrences_now
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.services import ServiceFailed

T = TypeVar("T")

MAX_INLINE: Final = 2048
"""Maximum characters of all texts together that are searched on the event loop."""

MAX_BATCH: Final = 1 << 17
"""Characters of the texts that one worker gets, if no text is longer."""

MAX_CHARACTERS: Final = 1 << 24
"""Maximum characters of all texts together."""

_LIMITS: Final = WorkerLimits(seconds=60.0, memory_mb=2048, reply_bytes=1 << 24)
_SCAN: Final = TypeAdapter(tuple[list[list[Found]], list[str]])
_OCCURRENCES: Final = TypeAdapter(list[list[Found]])


class NotSearched(ServiceFailed):
    """A text was not searched for private values, so it must not be sent."""

    status = 503
    code = "privacy_unavailable"


async def scan(
    texts: Sequence[str], entities: Sequence[str], regions: Sequence[str]
) -> tuple[list[list[Found]], set[str]]:
    """Return what the built-in detectors find in each text, and all words that could be codes.

    Raises:
        NotSearched: a worker ran out of time or memory.
        RequestRejected: the texts are too long.
    """
    if _is_short(texts):
        found, codes = scan_now(texts, entities, regions)
        return found, set(codes)
    parts = await _asked(_SCAN, "scan", texts, [*entities], [*regions])
    found = [each for part, _ in parts for each in part]
    return found, {code for _, codes in parts for code in codes}


async def occurrences(texts: Sequence[str], values: Sequence[Value]) -> list[list[Found]]:
    """Return where each text has one of `values`. Raises as `scan`."""
    if not values:
        return [[] for _ in texts]
    if _is_short(texts):
        return occurrences_now(texts, values)
    parts = await _asked(_OCCURRENCES, "occurrences", texts, [*values])
    return [each for part in parts for each in part]


def _is_short(texts: Sequence[str]) -> bool:
    return sum(map(len, texts)) <= MAX_INLINE


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise RequestRejected(f"privacy searches at most {MAX_CHARACTERS:,} characters")
    batch: list[str] = []
    length = 0
    for text in texts:
        if batch and length + len(text) > MAX_BATCH:
            yield batch
            batch, length = [], 0
        batch.append(text)
        length += len(text)
    if batch:
        yield batch


async def _asked(
    kind: TypeAdapter[T], function: str, texts: Sequence[str], *others: object
) -> list[T]:
    """Return what workers reply about the texts, batch by batch."""

    async def ask(batch: Sequence[str]) -> T:
        request: dict[str, object] = {"function": function, "args": [batch, *others]}
        try:
            reply = await ask_worker(worker.__name__, request, _LIMITS)  # type: ignore[arg-type]
            return kind.validate_python(reply)
        except (WorkerFailed, ValidationError) as exc:
            raise NotSearched("the conversation could not be searched for private values") from exc

    replies: list[T] = []
    for reply in await outcomes([partial(ask, batch) for batch in _batches(texts)]):
        if isinstance(reply, SampleError):
            raise reply
        replies.append(reply)
    return replies
