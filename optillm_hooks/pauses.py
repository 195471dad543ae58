"""Pauses that overloaded providers ask for with a `retry-after` header, kept by one request."""

import asyncio
import time
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz

from optillm_hooks.errors import SampleError

LONGEST_S = 10.0
"""Seconds that a request waits for a model that keeps refusing. After a longer pause the client
should come back itself: it gets the header."""


def asked_pause_s(retry_after: str | None) -> float | None:
    """Return the seconds that a `retry-after` header asks for, as a number or by a date.

    0 if the date has passed; None if the header says neither.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        return _until(retry_after)
    return seconds if 0 <= seconds < float("inf") else None


def _until(date: str) -> float | None:
    """Return the seconds until `date`; None if it is none, or one that no calendar has."""
    try:
        parsed = parsedate_tz(date)
        return None if parsed is None else max(0.0, mktime_tz(parsed) - time.time())
    except (ValueError, OverflowError):
        return None


@dataclass(slots=True)
class _Pause:
    error: SampleError
    began: float
    """When the model first refused, with no call answered since."""

    until: float


class Pauses:
    """The pauses of one request, by model. Instants are those of the loop's clock."""

    def __init__(self) -> None:
        self._pauses: dict[str, _Pause] = {}

    def note(self, model: str, error: SampleError) -> None:
        """Begin or lengthen a pause of `model`, if its failed call was told how long to wait."""
        if error.wait_s is None:
            return
        now = _now()
        before = self._pauses.get(model)
        began = now if before is None else before.began
        until = max(now + error.wait_s, now if before is None else before.until)
        self._pauses[model] = _Pause(error, began, until)

    def answered(self, model: str) -> None:
        """Forget a pause of `model` that has passed, now that the model has answered again."""
        pause = self._pauses.get(model)
        if pause is not None and pause.until <= _now():
            del self._pauses[model]

    async def over(self, model: str, deadline: float) -> None:
        """Wait for the end of a pause of `model`, if there is one.

        Raises:
            SampleError: it ends after the deadline, or later than a request waits. This is the
                error that the pause began with.
        """
        while (pause := self._pauses.get(model)) is not None and (now := _now()) < pause.until:
            if pause.until > min(deadline, pause.began + LONGEST_S):
                raise pause.error
            await asyncio.sleep(pause.until - now)


def _now() -> float:
    return asyncio.get_running_loop().time()
