"""The zygote: a process that has imported a solver and forks a worker for each request.

It is started by exec and is single-threaded, so a fork copies no held lock and no socket of the
proxy. For each request the client sends the worker's limits and two sockets. `data` becomes the
worker's standard input and output. `life` represents the worker process: the zygote sends `STARTED`
over it when the worker runs, and its exit status when it has ended; the client shuts it down to
have the worker killed. The zygote closes it when the whole process group has ended and is reaped:
on Linux, processes that a worker leaves behind become the zygote's children, not those of process 1
of a container, which may never reap them. All workers end with the zygote, and the zygote ends with
the client.
"""

import ctypes
import fcntl
import gc
import importlib
import os
import select
import signal
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from optillm_hooks.sandbox import worker

FORK_REQUEST: Final = struct.Struct("II")
"""The limits of a new worker: memory in MiB and CPU time in seconds."""

STARTED: Final = b"+"
"""Sent over `life` when the worker has been forked."""

IDLE_S: Final = 600.0
"""Seconds without a worker after which the zygote exits to free its memory."""

_NICENESS: Final = 5
"""Least niceness of a worker: about a third of the proxy's share when the processors are busy."""

_MAX_FILES: Final = 1024
"""File descriptors are below this number: `select` does not accept higher ones."""

_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36


def main(module: str) -> NoReturn:
    """Import what `module` needs, then fork workers until the client closes standard input."""
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.nice(0)))
    _leave_terminal()
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    importlib.import_module(module).load()
    gc.freeze()  # garbage collection in a worker would copy shared memory pages
    _serve(module, socket.socket(fileno=0))
    os._exit(0)


def _leave_terminal() -> None:
    """Give up the proxy's terminal, if it has one.

    A session of its own would have none, but the kernel may share the processors out by session:
    niceness would then mean nothing to the proxy.
    """
    with suppress(OSError), Path("/dev/tty").open() as terminal:
        fcntl.ioctl(terminal, termios.TIOCNOTTY)


def _serve(module: str, control: socket.socket) -> None:
    ended, wake = socket.socketpair()
    ended.setblocking(False)
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    workers: dict[int, socket.socket] = {}
    while ready := _ready([control, ended, *workers.values()], None if workers else IDLE_S):
        if ended in ready:
            ended.recv(1 << 16)
        for pid in [pid for pid, life in workers.items() if life in ready]:
            _kill(pid, workers.pop(pid))
        for pid, status in _ended():
            if life := workers.pop(pid, None):
                _finish(pid, life, status)
        if control in ready:
            fork_request, sockets, _, _ = socket.recv_fds(control, FORK_REQUEST.size, 2)
            if not fork_request:
                break
            data, life = (socket.socket(fileno=number) for number in sockets)
            workers[_fork(module, fork_request, data)] = life
            _send(life, STARTED)
            data.close()
    for pid, life in workers.items():
        _kill(pid, life)


def _ready(sockets: list[socket.socket], seconds: float | None) -> list[socket.socket]:
    return select.select(sockets, [], [], seconds)[0]


def _ended() -> Iterator[tuple[int, int]]:
    """Reap the children that have ended; yield the process id and status of each."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            yield ended


def _kill(pid: int, life: socket.socket) -> None:
    """Kill a worker that has not been reaped."""
    _kill_group(pid)
    _finish(pid, life, os.waitpid(pid, 0)[1])


def _finish(pid: int, life: socket.socket, status: int) -> None:
    """End what a worker has left behind, then send its exit status and close `life`."""
    _kill_group(pid)  # the id is not reused while the group has members
    with suppress(ChildProcessError):
        while os.waitpid(-pid, 0):
            pass
    with life:
        _send(life, str(os.waitstatus_to_exitcode(status)).encode())


def _kill_group(pid: int) -> None:
    with suppress(OSError):  # it may already have ended
        os.killpg(pid, signal.SIGKILL)


def _send(life: socket.socket, message: bytes) -> None:
    with suppress(OSError):  # the client may have closed it
        life.send(message)


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
