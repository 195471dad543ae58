"""Checking a request's answers against its `response_format`, in a worker process."""

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from optillm_hooks.answers import response_format as worker
from optillm_hooks.answers.response_format import fit, is_json_mode
from optillm_hooks.reading import MAX_CHARACTERS
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.types import Json

LIMITS: Final = WorkerLimits(seconds=2.0, memory_mb=512)
_MAX_CHARACTERS: Final = 1_000_000
"""Maximum length of the answers and the format together."""

_MAX_WAIT_S: Final = 4.0
"""Maximum time of a check, with the time that it waits for its turn."""


async def answers_fit(texts: Sequence[str], response_format: Json, deadline: float) -> bool | None:
    """Return whether all `texts` satisfy `response_format`; None if that was not checked.

    It is not checked if the schema is invalid, or if the check would take too long: beyond its own
    limits, or beyond `deadline`, an instant on the loop's clock.
    """
    if not is_json_mode(response_format):
        return True
    length = sum(map(len, texts))
    if response_format == {"type": "json_object"} and length <= MAX_CHARACTERS:
        return fit(texts, response_format)
    latest = min(deadline, asyncio.get_running_loop().time() + _MAX_WAIT_S)
    try:
        if length + len(json.dumps(response_format)) > _MAX_CHARACTERS:
            return None
        request: Json = {"texts": list(texts), "response_format": response_format}
        async with asyncio.timeout_at(latest):
            reply = await ask_worker(worker.__name__, request, LIMITS)
    except (WorkerFailed, TimeoutError, RecursionError):  # the last by a schema that is too deep
        return None
    return reply if isinstance(reply, bool) else None
