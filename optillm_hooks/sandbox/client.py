"""Runs work on untrusted text in a separate process, limited in time, memory and output.

A worker is a module with two functions: `load()`, which imports its dependencies, and
`answer(request)`. A process that has loaded the module, the zygote, forks a process for each
request, so that no request waits for an import or sees another request. The zygote runs in a fresh
interpreter without environment variables, user packages or a terminal, at low priority, and
`worker` drops further permissions. Request and reply are JSON. A worker's process group is killed
when its time is up, when its reply is too long, and when the caller is cancelled. Each module has
`places` of its own.
"""

import asyncio
import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from weakref import WeakKeyDictionary

from optillm_hooks.errors import OptiLLMError
from optillm_hooks.machine import cpus
from optillm_hooks.sandbox.places import Places
from optillm_hooks.sandbox.zygote import FORK_REQUEST, STARTED
from optillm_hooks.types import Json

MAX_WORKERS: Final = max(3, cpus())
"""Maximum number of concurrent workers per event loop and module; further requests wait.

One tenant gets all but one of them, at least two.
"""

PATIENCE: Final = 4
"""How much longer than its CPU time a worker may take: the proxy and its other workers go first."""

# Bypasses the package's own __init__, which takes as long to import as a solver.
_BOOTSTRAP: Final = """\
import sys, types
package = types.ModuleType("optillm_hooks")
package.__path__ = [sys.argv[1]]
sys.modules["optillm_hooks"] = package
from optillm_hooks.sandbox.zygote import main
main(sys.argv[2])
"""
_PACKAGE: Final = str(Path(__file__).parent.parent)
_CHUNK: Final = 1 << 16
_OUT_OF_CPU_TIME: Final = -signal.SIGXCPU
_LOAD_S: Final = 60.0
"""Seconds that a zygote may take to import its module, or to fork a worker."""

_KILL_S: Final = 5.0
"""Seconds that a zygote may take to kill a worker before it is killed itself."""

_EXIT_S: Final = 2.0
"""Seconds that a zygote may take to end its workers and itself when this process ends."""

FailureReason = Literal["time", "memory", "output", "crash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Limits of one worker."""

    seconds: float
    """CPU time, to a second. The wall-clock time from the fork may be `PATIENCE` times as long."""

    memory_mb: int
    """Address space in MiB."""

    reply_bytes: int = 1 << 18


class WorkerFailed(OptiLLMError):
    """The worker ended without a valid reply."""

    status = 502
    code = "worker_failed"

    def __init__(self, reason: FailureReason) -> None:
        super().__init__(f"the worker ended without a reply: {reason}")
        self.reason = reason


async def ask_worker(module: str, request: Json, limits: WorkerLimits) -> Json:
    """Return the reply of the worker `module` to `request`. No worker is left running.

    Raises:
        WorkerFailed: it ran out of time or memory, its reply was too long, or it crashed.
    """
    async with _places_of(module).take():
        reply, status = await _ask_with_retry(module, json.dumps(request).encode(), limits)
    if status == _OUT_OF_CPU_TIME:
        raise WorkerFailed("time")
    try:
        outcome = json.loads(reply)
    except (ValueError, RecursionError):
        raise WorkerFailed("crash") from None
    match outcome:
        case {"reply": answer}:
            return answer  # type: ignore[no-any-return] # any JSON value
        case {"failed": "memory"}:
            raise WorkerFailed("memory")
        case _:
            raise WorkerFailed("crash")


def command(module: str) -> list[str]:
    """Return the command line of a zygote."""
    return [sys.executable, "-I", "-B", "-c", _BOOTSTRAP, _PACKAGE, module]


class _ZygoteGone(Exception):
    """The zygote ended before its worker: it was idle for too long, or was killed."""


class _Zygote:
    """A running zygote, seen from the client's side."""

    def __init__(self, module: str) -> None:
        self.loaded = False
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own interpreter)
                command(module),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                process_group=0,
            )
        threading.Thread(target=self._process.wait, daemon=True).start()  # reaps it at its end

    def fork(self, limits: WorkerLimits) -> tuple[socket.socket, socket.socket]:
        """Return the `data` and `life` sockets of a new worker.

        Raises:
            _ZygoteGone: the zygote has ended.
        """
        (data, data_there), (life, life_there) = socket.socketpair(), socket.socketpair()
        fork_request = FORK_REQUEST.pack(limits.memory_mb, int(limits.seconds) + 1)
        with data_there, life_there:
            try:
                socket.send_fds(
                    self._control, [fork_request], [data_there.fileno(), life_there.fileno()]
                )
            except OSError as exc:
                data.close()
                life.close()
                raise _ZygoteGone from exc
        data.setblocking(False)
        life.setblocking(False)
        return data, life

    def close(self) -> None:
        """Tell the zygote to end its workers and itself."""
        self._control.close()

    def end(self, seconds: float) -> None:
        """Wait until the zygote has ended; kill it and its workers after `seconds`."""
        self.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        self._process.wait()

    def disown(self) -> None:
        """Release the zygote in a forked child: it belongs to the parent process."""
        self._control.close()
        self._process.returncode = 0


_zygotes: Final[dict[str, _Zygote]] = {}
_starting: Final = threading.Lock()


def _zygote(module: str) -> _Zygote:
    """Return the zygote of `module`, starting it if necessary."""
    with _starting:
        if module not in _zygotes:
            _zygotes[module] = _Zygote(module)
        return _zygotes[module]


def _drop(module: str, zygote: _Zygote) -> None:
    with _starting:
        if _zygotes.get(module) is zygote:
            del _zygotes[module]
    zygote.end(0)


@atexit.register
def _end_all() -> None:
    for zygote in _zygotes.values():
        zygote.close()
    for zygote in _zygotes.values():
        zygote.end(_EXIT_S)


def _disown_all() -> None:
    for zygote in _zygotes.values():
        zygote.disown()
    _zygotes.clear()


os.register_at_fork(after_in_child=_disown_all)


async def _ask_with_retry(module: str, request: bytes, limits: WorkerLimits) -> tuple[bytes, int]:
    """Return a worker's reply and exit status; retry once if the zygote has ended."""
    with suppress(_ZygoteGone):
        return await _ask_once(module, request, limits)
    try:
        return await _ask_once(module, request, limits)
    except _ZygoteGone:
        raise WorkerFailed("crash") from None


async def _ask_once(module: str, request: bytes, limits: WorkerLimits) -> tuple[bytes, int]:
    zygote = _zygote(module)
    try:
        data, life = zygote.fork(limits)
        with data, life:
            try:
                async with asyncio.timeout(_LOAD_S):
                    await _started(life)
                zygote.loaded = True
                async with asyncio.timeout(PATIENCE * limits.seconds):
                    reply = await _exchange(data, request, limits.reply_bytes)
                    return reply, await _exit_status(life)
            finally:
                if zygote.loaded and not await _kill_worker(life):
                    _drop(module, zygote)
    except _ZygoteGone:
        _drop(module, zygote)
        raise
    except TimeoutError:
        if not zygote.loaded:
            _drop(module, zygote)
        raise WorkerFailed("time") from None


async def _started(life: socket.socket) -> None:
    """Wait until the worker has been forked."""
    if not await asyncio.get_running_loop().sock_recv(life, len(STARTED)):
        raise _ZygoteGone


async def _exchange(data: socket.socket, request: bytes, max_bytes: int) -> bytes:
    """Send `request`; return the reply when the worker has closed its output."""
    loop = asyncio.get_running_loop()
    reply = bytearray()
    with suppress(ConnectionError):  # a worker that died is detected by its incomplete reply
        await loop.sock_sendall(data, request)
        data.shutdown(socket.SHUT_WR)
        while piece := await loop.sock_recv(data, _CHUNK):
            reply += piece
            if len(reply) > max_bytes:
                raise WorkerFailed("output")
    return bytes(reply)


async def _exit_status(life: socket.socket) -> int:
    sent = await asyncio.get_running_loop().sock_recv(life, _CHUNK)
    if not sent:
        raise _ZygoteGone
    return int(sent)


async def _kill_worker(life: socket.socket) -> bool:
    """Have the zygote kill the worker if it still runs; return True if it confirms in time."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        life.shutdown(socket.SHUT_WR)
    try:
        async with asyncio.timeout(_KILL_S):
            while await loop.sock_recv(life, _CHUNK):
                pass
    except TimeoutError:
        return False
    return True


_places: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Places]] = WeakKeyDictionary()


def _places_of(module: str) -> Places:
    places = _places.setdefault(asyncio.get_running_loop(), {})
    return places.setdefault(module, Places(MAX_WORKERS))
