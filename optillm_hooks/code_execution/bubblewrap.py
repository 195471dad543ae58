"""The worker that runs programs with Bubblewrap: all of Python, in namespaces of its own.

It is called through `sandbox.ask_worker`. The worker watches over `bwrap`, which sets up the
namespaces and starts the `harness` in them. Nothing of the host is mounted but the interpreter, the
C library and what the operator names, all read-only. There is no `/proc`: nothing in it is needed.
"""

import json
import os
import resource
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from optillm_hooks.code_execution.seccomp import filter_program
from optillm_hooks.types import Json

MAX_LINE: Final = 1 << 20
"""Maximum length of a snippet's result, in bytes."""

STARTING_S: Final = 10.0
"""Seconds that the interpreter may take to start on a busy machine."""

_TMP_BYTES: Final = 64 << 20
_MAX_THREADS: Final = 64
_NOBODY: Final = "65534"
_LIBRARIES: Final = (
    "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"
)  # fmt: skip
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_VARIABLES: Final = {
    "HOME": "/tmp",  # noqa: S108 (the sandbox's own)
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_HARNESS: Final = (Path(__file__).parent / "harness.py").read_text()


def load() -> None:
    """Do nothing: all that this worker needs is imported with it."""


def confine(*, memory_mb: int, cpu_seconds: int) -> None:  # noqa: ARG001 (the program's, see harness)
    """Limit CPU time, of the program too. What the worker starts is confined by Bubblewrap."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def answer(request: Mapping[str, Any]) -> Json:
    """Return the result of each snippet; all run in one session.

    Fields of the request: `bwrap` and `python`, paths of programs; `binds`, further paths to mount;
    `snippets`; `stdin`; and the limits `seconds` per snippet and `memory_mb`. A snippet that
    exceeds its time, or that ends its process, ends the session.
    """
    ran: list[Json] = []
    with started(request) as process:
        lines = _lines(_pipe(process.stdout), request["seconds"])
        try:
            next(lines)  # it is ready
            while len(ran) < len(request["snippets"]):
                ran.append(next(lines))
        except TimeoutError:
            error = f"TimeoutError: it ran for more than {request['seconds']:g} seconds"
            ran.append({"output": "", "error": error, "timed_out": True})
        except (StopIteration, ValueError, RecursionError):
            ran.append({"output": "", "error": "the program ended its process"})
        process.kill()
    return ran


def started(
    request: Mapping[str, Any], *, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Return the process of `bwrap`, which has been given the request."""
    rules = os.memfd_create("seccomp")
    is_root = os.geteuid() == 0  # the kernel does not limit the number of its threads
    os.write(rules, filter_program(threads=not is_root))
    os.lseek(rules, 0, os.SEEK_SET)
    process = subprocess.Popen(  # noqa: S603 (the operator's programs)
        command(request, rules),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={},
        cwd="/",
        pass_fds=[rules],
    )
    os.close(rules)
    given = {name: request[name] for name in ("snippets", "stdin", "memory_mb")}
    with suppress(BrokenPipeError), _pipe(process.stdin) as asked:
        asked.write(json.dumps({**given, "threads": _MAX_THREADS}).encode())
    process.stdin = None  # `communicate` would write to it
    return process


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise ValueError("not a pipe")
    return pipe


def command(request: Mapping[str, Any], rules: int) -> list[str]:
    """Return the command line; `rules` is the file descriptor of the filter of system calls."""
    options = [request["bwrap"], "--unshare-all", "--die-with-parent", "--clearenv"]
    options += ["--uid", _NOBODY, "--gid", _NOBODY]
    for name, value in _VARIABLES.items():
        options += ["--setenv", name, value]
    options += ["--size", str(_TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108 (the sandbox's own)
    for path in (*_LIBRARIES, *request["binds"]):
        options += ["--ro-bind-try" if path in _LIBRARIES else "--ro-bind", path, path]
    for path in _DEVICES:
        options += ["--dev-bind", path, path]
    options += ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(rules)]  # noqa: S108
    return [*options, "--", request["python"], "-s", "-B", "-c", _HARNESS]


def _lines(replies: IO[bytes], seconds: float) -> Iterator[Json]:
    """Yield the lines of `replies` as JSON, each with `seconds` of its own; end at the last.

    Raises:
        TimeoutError: a line took longer.
        ValueError, RecursionError: a line is not JSON, or too long.
    """
    received, until = bytearray(), time.monotonic() + STARTING_S
    while True:
        line, found, rest = received.partition(b"\n")
        if found:
            received, until = rest, time.monotonic() + seconds
            yield json.loads(line)
            continue
        if len(received) > MAX_LINE:
            raise ValueError("the line is too long")
        left = until - time.monotonic()
        if left < 0 or not select.select([replies], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(replies.fileno(), 1 << 16)
        if not piece:
            return
        received += piece
