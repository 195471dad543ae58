"""The zygote: a process that has imported a solver and forks a worker for each request.

It is started by exec and is single-threaded, so a fork copies no held lock and no socket of the
proxy. For each request the client sends the worker's limits and two sockets. `data` becomes the
worker's standard input and output. `life` represents the worker process: the client shuts it down
to have the worker killed; the zygote sends the exit status over it, and closes it when the whole
process group has ended. All workers end with the zygote, and the zygote ends with the client.
"""

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Final, NoReturn

from optillm_hooks.sandbox import worker

FORK_REQUEST: Final = struct.Struct("II")
"""The limits of a new worker: memory in MiB and CPU time in seconds."""

IDLE_S: Final = 600.0
"""Seconds without a worker after which the zygote exits to free its memory."""

_MAX_FILES: Final = 1024
"""File descriptors are below this number: `select` does not accept higher ones."""

_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


def main(module: str) -> NoReturn:
    """Import what `module` needs, then fork workers until the client closes standard input."""
    importlib.import_module(module).load()
    gc.freeze()  # garbage collection in a worker would copy shared memory pages
    _serve(module, socket.socket(fileno=0))
    os._exit(0)


def _serve(module: str, control: socket.socket) -> None:
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    workers: dict[socket.socket, int] = {}
    while ready := _ready([control, ended, *workers], None if workers else IDLE_S):
        if ended in ready:
            ended.recv(1 << 16)
        for life, pid in list(workers.items()):
            status = _exit_status(pid, kill=life in ready)
            if status is not None:
                del workers[life]
                _send_status(life, status)
        if control in ready:
            fork_request, sockets, _, _ = socket.recv_fds(control, FORK_REQUEST.size, 2)
            if not fork_request:
                break
            data, life = (socket.socket(fileno=number) for number in sockets)
            workers[life] = _fork(module, fork_request, data)
            data.close()
    for pid in workers.values():
        _kill_group(pid)


def _ready(sockets: list[socket.socket], seconds: float | None) -> list[socket.socket]:
    return select.select(sockets, [], [], seconds)[0]


def _exit_status(pid: int, *, kill: bool) -> int | None:
    """Return the exit status of a worker whose process group has ended; None while it runs."""
    if kill:
        _kill_group(pid)
    reaped, status = os.waitpid(pid, 0 if kill else os.WNOHANG)
    if not reaped:
        return None
    _kill_group(pid)  # its children; the id is not reused while the group has members
    return os.waitstatus_to_exitcode(status)


def _kill_group(pid: int) -> None:
    with suppress(OSError):  # it may already have ended
        os.killpg(pid, signal.SIGKILL)


def _send_status(life: socket.socket, status: int) -> None:
    with life, suppress(OSError):  # the client may have closed it
        life.send(str(status).encode())


def _fork(module: str, fork_request: bytes, data: socket.socket) -> int:
    """Return the process id of a new worker, which leads its own process group."""
    zygote = os.getpid()
    if pid := os.fork():
        with suppress(OSError):  # both processes do this: the group must exist on return
            os.setpgid(pid, pid)
        return pid
    try:
        os.setpgid(0, 0)
        _die_with(zygote)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(data.fileno(), 0)
        os.dup2(data.fileno(), 1)
        os.closerange(3, _MAX_FILES)
        memory_mb, cpu_seconds = FORK_REQUEST.unpack(fork_request)
        worker.main(module, memory_mb=memory_mb, cpu_seconds=cpu_seconds)
    finally:
        os._exit(1)


def _die_with(parent: int) -> None:
    """On Linux, have the kernel kill this process when `parent` ends."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
