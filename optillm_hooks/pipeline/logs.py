"""Logging of stages: names, code locations and figures, never text of users or models."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import FrameType

from optillm_hooks.context import Context
from optillm_hooks.trace import StageRun

_log = logging.getLogger(__name__)

_FIRST, _LAST = 10, 20
"""How many frames of a deep traceback are logged, from its start and from its end."""


@contextmanager
def logged_stage(name: str, ctx: Context) -> Iterator[None]:
    """Run the block as a stage of the request's trace; log its start and its end at DEBUG."""
    with ctx.trace.stage(StageRun(name, ctx.stage, ctx.run)), _logged(name, ctx):
        yield


@contextmanager
def _logged(name: str, ctx: Context) -> Iterator[None]:
    if not _log.isEnabledFor(logging.DEBUG):
        yield
        return
    clock = asyncio.get_running_loop().time
    started, calls_before = clock(), _calls(ctx)
    outcome = "ok"
    where = f"call_id={ctx.trace.call_id} approach={name} chain={ctx.stage} choice={ctx.run}"
    _log.debug("stage started: %s", where)
    try:
        yield
    except BaseException as exc:
        outcome = type(exc).__name__
        raise
    finally:
        _log.debug(
            "stage ended: %s outcome=%s seconds=%.3f calls=%d",
            where,
            outcome,
            clock() - started,
            _calls(ctx) - calls_before,
        )


def _calls(ctx: Context) -> int:
    return sum(call.run == ctx.run for call in ctx.trace.calls)


def format_traceback(error: BaseException) -> str:
    """Return an exception on one line: its type, and its traceback as `file:line`, innermost last.

    Its causes and the members of an exception group follow. Messages are left out, because they may
    contain a prompt.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        implicit = None if cause.__suppress_context__ else cause.__context__
        cause = cause.__cause__ or implicit
    return ", caused by ".join(map(_format_one, chain))


def _format_one(error: BaseException) -> str:
    frames = [_location(frame, line) for frame, line in walk_tb(error.__traceback__)]
    if len(frames) > _FIRST + _LAST:
        frames = [*frames[:_FIRST], "...", *frames[-_LAST:]]
    where = f"{type(error).__name__} at {' > '.join(frames)}" if frames else type(error).__name__
    if not isinstance(error, BaseExceptionGroup):
        return where
    return f"{where} [{'; '.join(map(format_traceback, error.exceptions))}]"


def _location(frame: FrameType, line: int) -> str:
    """Return `package/module.py:line`, without the folder that the package is installed in."""
    depth = str(frame.f_globals.get("__name__", "")).count(".") + 1
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-depth:])}:{line}"
