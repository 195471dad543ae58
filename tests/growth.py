"""How the time of a function grows with the length of a text."""

import gc
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from optillm_hooks.answers import equivalence, extraction
from optillm_hooks.answers.values import values

_LAST_LENGTH: Final = 40_000
_SURE_LENGTH: Final = 2_496
_FAST: Final = 40e-9
"""Seconds per character up to which a text of `_SURE_LENGTH` is taken for harmless. One scan of the
rest from every thirtieth character takes more."""

_ENOUGH: Final = 0.002
"""Seconds from which a measured time counts; shorter ones are mostly noise."""

_LINEAR: Final = 7.0
"""Growth over four times the length that is still linear: 4, and 75 % for noise. A quadratic time
grows 16 times."""

_REPEATS: Final = 5
_BEYOND_NOISE: Final = 0.1
"""Seconds from which a time is measured no more than twice: a machine can stall that long once."""


class Growth(NamedTuple):
    """The CPU seconds that a text and one of a quarter of its length take."""

    length: int
    short: float
    long: float

    @property
    def is_linear(self) -> bool:
        """Whether the time grows with the length at most."""
        return self.long < _ENOUGH or self.long < self.short * _LINEAR


def growth(run: Callable[[str], object], text_of: Callable[[int], str]) -> Growth:
    """Return how the CPU time of `run` grows with `text_of(length)`.

    Lengths grow until a text takes long enough to compare. Times that grow faster than the length
    are measured again, and the least ones count.
    """
    for length in _lengths():
        found = _measured(run, text_of, length)
        if not found.is_linear or found.long >= _ENOUGH:
            return found
        if length == _SURE_LENGTH and found.long < _FAST * length:
            return found
    return found


def _lengths() -> Iterator[int]:
    """Yield lengths in small steps first: time that grows exponentially is seen early."""
    length = 8
    while length < 312:
        yield length
        length += max(4, length // 4)
    length = 312
    while length < _LAST_LENGTH:
        yield length
        length *= 2


def _measured(run: Callable[[str], object], text_of: Callable[[int], str], length: int) -> Growth:
    text = text_of(length)
    long = cpu_seconds(run, text)
    if long < _ENOUGH:
        return Growth(len(text), long, long)
    part = text_of(length // 4)
    found = Growth(len(text), cpu_seconds(run, part), long)
    for repeats in range(_REPEATS):
        if found.is_linear or (repeats and found.long > _BEYOND_NOISE):
            break
        found = Growth(
            len(text),
            min(found.short, cpu_seconds(run, part)),
            min(found.long, cpu_seconds(run, text)),
        )
    return found


def cpu_seconds(run: Callable[[str], object], text: str) -> float:
    """Return the CPU time of `run` with `text`."""
    forget_readings()
    gc.disable()
    started = time.thread_time()
    run(text)
    taken = time.thread_time() - started
    gc.enable()
    return taken


def forget_readings() -> None:
    """Have texts read anew that the readers remember, so that reading them takes its time."""
    for remembered in (extraction._first_found, equivalence._parsed_form, values):
        remembered.cache_clear()
