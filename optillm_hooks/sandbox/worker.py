"""The code of a worker process: confines itself, then answers one request."""

import importlib
import json
import os
import resource
import sys
from typing import Final, NoReturn

_READS: Final = frozenset({"os.listdir", "os.scandir", "os.putenv", "os.unsetenv"})
"""`os.` audit events without effect outside the process, which imports raise."""

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_REFUSED: Final = ("os.", "subprocess.", "socket.", "shutil.", "pty.", "urllib.", "signal.")


def main(module: str, *, memory_mb: int, cpu_seconds: int) -> NoReturn:
    """Read a request from standard input, write the reply of `module` to standard output, exit.

    A module that starts a sandbox of its own has a `confine` of its own too.
    """
    replies = os.dup(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # solvers may print to standard output
    worker = importlib.import_module(module)  # the zygote has loaded it
    getattr(worker, "confine", confine)(memory_mb=memory_mb, cpu_seconds=cpu_seconds)
    try:
        outcome = {"reply": worker.answer(json.load(sys.stdin.buffer))}
    except MemoryError:
        outcome = {"failed": "memory"}
    text = memoryview(json.dumps(outcome).encode())
    while text:
        text = text[os.write(replies, text) :]
    os._exit(0)


def confine(*, memory_mb: int, cpu_seconds: int) -> None:
    """Limit memory and CPU time; forbid writing files, starting processes and network access.

    A second line of defence, which no text should reach. The kernel's limits also apply to C++
    code, the audit hook applies to Python code, and unprivileged Python code can undo neither.
    """
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_refuse)


def no_more_files() -> None:
    """Forbid opening any more files, even for reading: everything needed has been loaded."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))


def _refuse(event: str, args: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(args[2], int) and args[2] & _WRITES
    if writes or (event.startswith(_REFUSED) and event not in _READS):
        raise PermissionError(f"not allowed in a worker: {event}")
