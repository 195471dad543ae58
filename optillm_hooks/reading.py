"""Reads texts of models and clients without holding the event loop.

A short text is read at once. Readers take time in proportion to the text, so a long one, or many of
them, would make every other request of the process wait: those are read in a worker process, which
is killed when its time is up. A thread would not help, as a regular expression keeps Python's lock.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, ParamSpec, TypeVar, get_type_hints

from pydantic import JsonValue, TypeAdapter, ValidationError

from optillm_hooks.answers import worker
from optillm_hooks.context import Context
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker

P = ParamSpec("P")
T = TypeVar("T")

MAX_CHARACTERS: Final = 2048
"""Maximum length of all texts together that are read on the event loop."""

LIMITS: Final = WorkerLimits(seconds=5.0, memory_mb=1024, reply_bytes=1 << 24)


class NotRead(Exception):
    """A text was not read within the limits of time and memory."""


async def read(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return `function(*args, **kwargs)`, computed in a worker if the texts in it are long.

    Args:
        function: a function of a module in `answers`. Its arguments are plain values (text,
            numbers, lists and dictionaries of them), and so is its result, which may be a named
            tuple. They are sent as JSON, so cut a text of megabytes before.
        args: its arguments, in order.
        kwargs: its other arguments.

    Raises:
        NotRead: the worker ran out of time or memory.
    """
    if _are_short(args, kwargs):
        return function(*args, **kwargs)
    request: Any = {
        "module": function.__module__,
        "function": function.__name__,
        "args": args,
        "kwargs": kwargs,
    }
    try:
        reply = await ask_worker(worker.__name__, request, LIMITS)
        result: T = _result(function).validate_python(reply)
    except (WorkerFailed, ValidationError) as exc:
        raise NotRead from exc
    return result


async def read_or(
    unread: T, ctx: Context, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Return what `read` does; if the text was not read, `unread`.

    The trace counts the long texts, and those of them that were not read.
    """
    if _are_short(args, kwargs):
        return function(*args, **kwargs)
    lost = 0
    try:
        return await read(function, *args, **kwargs)
    except NotRead:
        lost = 1
        return unread
    finally:
        ctx.trace.count("readings", lost=lost, of=1)


def _are_short(args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    return _characters([args, kwargs]) <= MAX_CHARACTERS


def _characters(value: object) -> int:
    """Return the characters of all texts in a plain value; each item counts as one too."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value)) + sum(map(_characters, value.values()))
    if isinstance(value, Sequence):
        return sum(map(_characters, value)) + len(value)
    return 1


@cache
def _result(function: Callable[..., Any]) -> TypeAdapter[Any]:
    # Pydantic cannot validate `Json`, whose alias has no name, but has the same type of its own.
    return TypeAdapter(get_type_hints(function, localns={"Json": JsonValue})["return"])
