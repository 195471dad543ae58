"""Checking a request's answers against its `response_format`, in a worker process."""

import asyncio
import json
from collections.abc import Sequence
from typing import Final

from optillm_hooks.answers import response_format as worker
from optillm_hooks.answers.response_format import Fitted, fit, is_json_mode
from optillm_hooks.reading import MAX_CHARACTERS
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.types import Json

LIMITS: Final = WorkerLimits(seconds=2.0, memory_mb=512)
_MAX_CHARACTERS: Final = 1_000_000
"""Maximum length of the answers and the format together."""

_MAX_WAIT_S: Final = 4.0
"""Maximum time of a check that only informs, with the time that it waits for its turn."""


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
        reply = await _asked({"task": "fit", "texts": list(texts)}, response_format, latest)
    except NotChecked:
        return None
    return reply if isinstance(reply, bool) else None


class NotChecked(Exception):
    """A check took too long."""


async def fault_in_schema(response_format: Json, deadline: float) -> str | None:
    """Return what is wrong in the schema of a JSON `response_format`; None if it can be used."""
    try:
        fault = await _asked({"task": "fault"}, response_format, deadline)
    except NotChecked:
        return "it takes too long to check"
    return None if fault is None else str(fault)


async def fitted(
    text: str, response_format: Json, deadline: float, *, whole: bool = True
) -> Fitted:
    """Return the JSON of a reply that matches a JSON `response_format`, or what is wrong in it.

    It is the function of the same name of `answers.response_format`, in a worker.
    """
    task: dict[str, Json] = {"task": "fitted", "text": text, "whole": whole}
    try:
        reply = await _asked(task, response_format, deadline)
        return Fitted(*reply) if isinstance(reply, list) else _UNCHECKED  # type: ignore[arg-type]
    except NotChecked:
        return _UNCHECKED


_UNCHECKED: Final = Fitted(None, ["it cannot be checked"])


async def _asked(task: dict[str, Json], response_format: Json, deadline: float) -> Json:
    """Return the worker's reply to a task.

    Raises:
        NotChecked: it takes too long: beyond its own limits, or beyond `deadline`.
    """
    request: Json = {**task, "response_format": response_format}
    try:
        if len(json.dumps(request)) > _MAX_CHARACTERS:
            raise NotChecked
        async with asyncio.timeout_at(deadline):
            return await ask_worker(worker.__name__, request, LIMITS)
    except (WorkerFailed, TimeoutError, RecursionError) as exc:  # the last by too deep a schema
        raise NotChecked from exc
