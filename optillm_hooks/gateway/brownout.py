"""Brown-out: while a worker is busy, plans take fewer samples instead of queueing up.

The width of a plan is the number of its samples. It is lowered in steps, to 3 and then to 1, by
the load: the model calls of plans that are under way or wait in the worker. The first step begins
at the operator's number of calls, the second at twice that. A step begins at once. It ends once the
load has stayed below 70 % of where it began for the operator's time, so that a load around the
limit does not switch it on and off; the second step ends in the first.
"""

import time
from collections.abc import Callable
from typing import Final

from optillm_hooks.gateway.call_queue import QUEUE
from optillm_hooks.settings import BrownoutSettings

_WIDTHS: Final = (None, 3, 1)
"""The most samples of a plan in each step."""

_CALM: Final = 0.7
"""The share of the load at which a step began below which it may end."""


class Brownout:
    """The step that a worker is in. It is told of each change of the load."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._settings = BrownoutSettings()
        self._step = 0
        self._load = 0
        self._calm_since: float | None = None
        """Since when the load has been low enough for the step to end; None if it is not."""

    def changed(self, *, running: int, waiting: int) -> None:
        self._end_steps()
        self._load = running + waiting
        calls = self._settings.calls
        if calls is None:
            return
        wanted = min(len(_WIDTHS) - 1, self._load // calls)
        if wanted > self._step:
            self._step, self._calm_since = wanted, None
        elif not self._is_calm():
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = self._clock()

    def began(self, waited_s: float) -> None:
        """Ignore it: how long calls wait says nothing that the load does not."""

    def width(self, settings: BrownoutSettings) -> int | None:
        """Return the most samples of a plan that begins now; None if it is not limited."""
        if settings != self._settings:
            self._settings, self._step, self._calm_since = settings, 0, None
            self.changed(running=self._load, waiting=0)
        self._end_steps()
        return _WIDTHS[self._step]

    def _end_steps(self) -> None:
        """End the steps whose time of calm has passed, with the load as it was until now."""
        now = self._clock()
        while self._calm_since is not None and now - self._calm_since >= self._settings.hold_s:
            self._step -= 1
            self._calm_since = self._calm_since + self._settings.hold_s if self._is_calm() else None

    def _is_calm(self) -> bool:
        calls = self._settings.calls
        return calls is not None and self._step > 0 and self._load < _CALM * self._step * calls


BROWNOUT: Final = Brownout()
"""That of this process."""

QUEUE.watches.append(BROWNOUT)
