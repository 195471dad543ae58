"""Code execution: runs programs that a model wrote, if the operator allows it."""

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
"""Seconds that a worker and its interpreter may take to start."""

_OWN_MEMORY_MB: Final = 2048
"""MiB of address space that the two processes reserve, whatever the program uses."""


class Ran(BaseModel):
    """The result of one snippet of a session."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    """Its standard output."""

    error: str
    """The exception that ended it, as its type and message; empty if none did."""

    @property
    def out_of_time(self) -> bool:
        return self.error.startswith("TimeoutError")


_RAN: Final = TypeAdapter(list[Ran])


class CodeRunner(Protocol):
    """Runs Python in a sandbox."""

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[Ran]:
        """Return the results of `snippets`, run one after the other in one session.

        A snippet that fails does not end the session. Snippets that were not run, because time or
        memory was used up, are missing at the end.
        """
        ...


@dataclass(frozen=True, slots=True)
class MontyRunner:
    """Runs a subset of Python (no third-party modules, no generators) without host access."""

    seconds: float = 4.0
    """Per snippet."""

    memory_mb: int = 256

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[Ran]:
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
            return _RAN.validate_python(
                await ask_worker("optillm_hooks.code_execution.monty", request, limits)
            )
        except (WorkerFailed, ValidationError):
            return ()


def code_runner(name: RunnerName) -> CodeRunner | None:
    """Return the runner that the operator chose, or None for off.

    Raises:
        RequestRejected: its package is not installed.
    """
    if name == "off":
        return None
    if find_spec("pydantic_monty") is None:
        raise RequestRejected(
            'code_runner "monty" needs the extra "sandbox": pip install "optillm-hooks[sandbox]"',
            param="optillm_settings",
        )
    return MontyRunner()
