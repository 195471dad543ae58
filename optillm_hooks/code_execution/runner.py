"""Code runners: run model-written programs, if the operator allows it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final, Literal, Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from optillm_hooks.errors import RequestRejected
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.types import Json

RunnerName = Literal["off", "monty"]

_STARTING_S: Final = 2.0
"""Startup time allowed for a worker and its interpreter, in seconds."""

_OWN_MEMORY_MB: Final = 2048
"""Address space, in MiB, that the two processes reserve in addition to the program's."""


class SnippetResult(BaseModel):
    """The result of one snippet of a session."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    """The standard output of the snippet."""

    error: str
    """The exception that ended it, as its type and message; empty if it succeeded."""

    @property
    def timed_out(self) -> bool:
        return self.error.startswith("TimeoutError")


_RESULTS: Final = TypeAdapter(list[SnippetResult])


class CodeRunner(Protocol):
    """Runs Python in a sandbox."""

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        """Run `snippets` in order in one session; return their results.

        A snippet that fails does not end the session. If time or memory runs out, the results of
        the remaining snippets are missing.
        """
        ...


@dataclass(frozen=True, slots=True)
class MontyRunner:
    """Runs a subset of Python (no third-party modules, no generators) without host access."""

    seconds: float = 4.0
    """Time limit per snippet."""

    memory_mb: int = 256

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
        }
        try:
            return _RESULTS.validate_python(
                await ask_worker("optillm_hooks.code_execution.monty", request, limits)
            )
        except (WorkerFailed, ValidationError):
            return ()


def code_runner(name: RunnerName) -> CodeRunner | None:
    """Return the runner that the operator chose, or None for off.

    Raises:
        RequestRejected: the runner's package is not installed.
    """
    if name == "off":
        return None
    if find_spec("pydantic_monty") is None:
        raise RequestRejected(
            'code_runner "monty" needs the extra "sandbox": pip install "optillm-hooks[sandbox]"',
            param="optillm_settings",
        )
    return MontyRunner()
