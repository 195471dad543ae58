"""Code runners: run model-written programs, if the operator allows it."""

import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from optillm_hooks.errors import RequestRejected
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.types import Json

RunnerName = Literal["off", "monty", "bubblewrap", "litellm"]

_STARTING_S: Final = 2.0
"""Startup time allowed for a worker and its interpreter, in seconds."""

_OWN_MEMORY_MB: Final = 2048
"""Address space, in MiB, that the two processes reserve in addition to the program's."""


_MONTY: Final = (
    "It runs in a small interpreter of Python: no classes that inherit, no generator functions, no "
    "`del`, no files, no network, and no modules but math, re, json, random, datetime, itertools, "
    "collections, functools, bisect, decimal, copy and dataclasses."
)


class SnippetResult(BaseModel):
    """The result of one snippet of a session."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    """The beginning of the snippet's standard output."""

    stderr: str = ""
    """The beginning of its standard error. A program that writes there has not failed."""

    error: str
    """The exception that ended it, as its type and message; empty if it succeeded."""

    timed_out: bool = False


_RESULTS: Final = TypeAdapter(list[SnippetResult])


class CodeRunner(Protocol):
    """Runs Python in a sandbox."""

    @property
    def note(self) -> str:
        """What a model has to know to write programs for it."""
        ...

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        """Run `snippets` in order in one session; return their results.

        A snippet that fails does not end the session. If time or memory runs out, the results of
        the remaining snippets are missing.

        Raises:
            SampleError: the sandbox itself failed.
        """
        ...


async def run_in_worker(
    module: str, request: dict[str, Json], limits: WorkerLimits
) -> Sequence[SnippetResult]:
    """Return the results of the snippets that the worker `module` ran; none if it failed."""
    try:
        return _RESULTS.validate_python(await ask_worker(module, request, limits))
    except (WorkerFailed, ValidationError):
        return ()


@dataclass(frozen=True, slots=True)
class MontyRunner:
    """Runs a subset of Python (no third-party modules, no generators) without host access."""

    seconds: float = 4.0
    """Time limit per snippet."""

    memory_mb: int = 256
    program: str | None = None
    """Path of Monty's program; None: next to Python."""

    @property
    def note(self) -> str:
        return _MONTY

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        limits = WorkerLimits(
            seconds=_STARTING_S + self.seconds * len(snippets),
            memory_mb=_OWN_MEMORY_MB + self.memory_mb,
            reply_bytes=1 << 22,
        )
        request: dict[str, Json] = {
            "snippets": list(snippets),
            "stdin": stdin,
            "seconds": self.seconds,
            "memory_mb": self.memory_mb,
            "program": self.program,
        }
        return await run_in_worker("optillm_hooks.code_execution.monty", request, limits)


def monty_runner(seconds: float, memory_mb: int) -> MontyRunner:
    """Return Monty with these limits.

    Its program is looked up here: the worker has no PATH.

    Raises:
        RequestRejected: its package is not installed, or its program is not found.
    """
    if find_spec("pydantic_monty") is None:
        raise RequestRejected(
            'code_runner "monty" needs the extra "sandbox": pip install "optillm-hooks[sandbox]"',
            param="optillm_settings",
        )
    scripts = sysconfig.get_path("scripts")
    program = shutil.which("monty", path=scripts) or shutil.which("monty")
    if program is None:
        raise RequestRejected(
            f'code_runner "monty": its program "monty" is neither in {scripts} nor on the PATH',
            param="optillm_settings",
        )
    return MontyRunner(seconds, memory_mb, program)
