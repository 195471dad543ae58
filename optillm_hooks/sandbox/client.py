"""Work on untrusted text in a process of its own, limited in time, memory and output.

A worker is a module of this package with a function `answer(request)`. It runs in a fresh
interpreter without environment, user packages or terminal, in a process group of its own, and
`worker` gives up there whatever else a text could abuse. Request and reply are JSON on the
process's standard input and output. The group is killed when its time is up, when it says too
much, and when the caller is cancelled.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from weakref import WeakKeyDictionary

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.types import Json

MAX_WORKERS: Final = max(2, os.cpu_count() or 1)
"""Workers that run at once in one proxy process; more wait for their turn."""

# The package's own __init__ would cost a worker as long as its solver takes to load.
_BOOTSTRAP: Final = """\
import sys, types
package = types.ModuleType("optillm_hooks")
package.__path__ = [sys.argv[1]]
sys.modules["optillm_hooks"] = package
from optillm_hooks.sandbox.worker import main
main(*sys.argv[2:])
"""
_PACKAGE: Final = str(Path(__file__).parent.parent)
_CHUNK: Final = 1 << 16
_OUT_OF_CPU_TIME: Final = -signal.SIGXCPU

FailureReason = Literal["time", "memory", "output", "crash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What one worker may use."""

    seconds: float
    """Of wall-clock time, its start included; and of CPU time, a second more."""

    memory_mb: int
    """MiB of address space."""

    reply_bytes: int = 1 << 18


class WorkerFailed(OptiLLMError):
    """The worker gave no reply."""

    status = 502
    code = "worker_failed"

    def __init__(self, reason: FailureReason) -> None:
        super().__init__(f"the worker ended without a reply: {reason}")
        self.reason = reason


async def ask_worker(module: str, request: Json, limits: WorkerLimits) -> Json:
    """Return the reply of the worker `module` to `request`; leave no process behind.

    Raises:
        WorkerFailed: it ran out of time or memory, said too much, or broke.
    """
    async with _turn(), _process(module, limits) as process:
        try:
            async with asyncio.timeout(limits.seconds):
                reply = await _exchange(process, json.dumps(request).encode(), limits.reply_bytes)
                await process.wait()
        except TimeoutError:
            raise WorkerFailed("time") from None
    if process.returncode == _OUT_OF_CPU_TIME:
        raise WorkerFailed("time")
    try:
        outcome = json.loads(reply)
    except (ValueError, RecursionError):
        raise WorkerFailed("crash") from None
    match outcome:
        case {"reply": answer}:
            return answer  # type: ignore[no-any-return] # whatever JSON holds
        case {"failed": "memory"}:
            raise WorkerFailed("memory")
        case _:
            raise WorkerFailed("crash")


def command(module: str, limits: WorkerLimits) -> list[str]:
    """Return the command line of a worker."""
    given = [_PACKAGE, module, str(limits.memory_mb), str(int(limits.seconds) + 1)]
    return [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, *given]


@asynccontextmanager
async def _process(module: str, limits: WorkerLimits) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *command(module, limits),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


async def _exchange(process: asyncio.subprocess.Process, request: bytes, most: int) -> bytes:
    """Send `request`; return the reply once the worker has closed its output."""
    assert process.stdin is not None  # noqa: S101 (both are pipes)
    assert process.stdout is not None  # noqa: S101
    with suppress(ConnectionError):  # a worker that died is seen in its reply
        process.stdin.write(request)
        await process.stdin.drain()
    process.stdin.close()
    reply = b""
    while piece := await process.stdout.read(_CHUNK):
        reply += piece
        if len(reply) > most:
            raise WorkerFailed("output")
    return reply


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


@asynccontextmanager
async def _turn() -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    async with _turns.setdefault(loop, asyncio.Semaphore(MAX_WORKERS)):
        yield
