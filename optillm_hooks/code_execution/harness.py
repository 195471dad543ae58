"""The script inside Bubblewrap: limits itself, then runs snippets in one session.

The operator's interpreter gets it as text, and may be older than the proxy's. Standard input is a
JSON object with `snippets`, `stdin` and the limits. It writes "ready", then for each snippet its
result, as lines of JSON. A program can forge these lines: they are its own results, nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import traceback
from typing import IO, Any

MAX_PRINTED = 1 << 16
"""Maximum bytes of each output stream of a snippet that are returned."""

MAX_FILE = 1 << 24
"""Maximum bytes of a file, and of a snippet's output."""


def main() -> None:
    """Run the snippets of the request."""
    request: dict[str, Any] = json.loads(sys.stdin.buffer.read().decode())
    replies = os.dup(1)
    os.setpgid(0, 0)  # or a signal to the group would reach processes outside
    _read_from(request["stdin"])
    _limit(request)
    _reply(replies, "ready")
    session: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    for snippet in request["snippets"]:
        _reply(replies, _run(snippet, session))


def _reply(replies: int, value: object) -> None:
    line = json.dumps(value).encode() + b"\n"
    while line:
        line = line[os.write(replies, line) :]


def _limit(request: dict[str, Any]) -> None:
    memory = request["memory_mb"] << 20
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, MAX_FILE),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, request["threads"]),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _read_from(text: str) -> None:
    """Make `text` the standard input, also for `open(0)`."""
    given = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
    given.write(text.encode("utf-8", "replace"))
    given.seek(0)
    os.dup2(given.fileno(), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def _run(snippet: str, session: dict[str, Any]) -> dict[str, str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        error = ""
        try:
            exec(compile(snippet, "program.py", "exec"), session)  # noqa: S102 (its purpose)
        except BaseException as exc:
            error = _shown(exc)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                error = error or "OSError: the output is too long, or is closed"
        return {"output": _beginning(out), "stderr": _beginning(err), "error": error}


def _shown(exc: BaseException) -> str:
    if isinstance(exc, SystemExit) and not exc.code:
        return ""
    try:
        return "".join(traceback.format_exception_only(type(exc), exc)).strip()[-2000:]
    except BaseException:  # its `__str__` is the program's
        return "Exception"


def _beginning(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), MAX_PRINTED, 0).decode("utf-8", "replace")


if __name__ == "__main__":
    main()
