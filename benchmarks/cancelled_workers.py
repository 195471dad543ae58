"""What cancelled requests leave: processes, zombies and open files, after many of them.

Each request runs a program without an end (plansearch's tests) or a solver's endless script, and is
cancelled at a random moment, from before the fork to long after it. This process adopts what its
descendants leave behind, as process 1 of a container does, and it reaps nothing of that.
"""

import asyncio
import ctypes
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from benchmarks.report import parser, publish, table
from optillm_hooks.code_execution.bubblewrap_runner import bubblewrap_runner
from optillm_hooks.code_execution.runner import CodeRunner, MontyRunner
from optillm_hooks.services import Services
from optillm_hooks.solver.client import Formalisation, solve
from optillm_hooks.testing import AnsweringLLM, chat, context, run
from tests.solver.processes import children, zygotes

_PR_SET_CHILD_SUBREAPER: Final = 36
_LATEST_S: Final = 0.1
"""The last moment of a cancellation; a worker runs after about 5 ms."""

_STARTING_S: Final = 2.0
"""In this time, the zygotes start, and Bubblewrap is tried, which may leave one zombie."""

_ENDLESS: Final = "```python\ndef f(x):\n    while True:\n        pass\n```"
_POWER: Final = '[{"operation": "evaluate", "expression": "sqrt(2)^(10^18)"}]'


async def _plansearch() -> None:
    await _testing(MontyRunner())


async def _bubblewrap() -> None:
    await _testing(bubblewrap_runner(None, (), 60.0, 512))


async def _testing(runner: CodeRunner) -> None:
    ctx = replace(context(), services=Services(code_runner=runner))
    asked = chat("Write f, the square.\n\nassert f(2) == 4")
    await run("plansearch", asked, AnsweringLLM(lambda *_: _ENDLESS), ctx, leaves=2)


async def _z3() -> None:
    await solve(Formalisation("smtlib", "(push 1000000000)"), seconds=60, memory_mb=1024)


async def _sympy() -> None:
    await solve(Formalisation("algebra", _POWER), seconds=60, memory_mb=1024)


REQUESTS: Final[Mapping[str, Callable[[], Awaitable[None]]]] = {
    "plansearch": _plansearch,
    "plansearch, Bubblewrap": _bubblewrap,
    "z3": _z3,
    "SymPy": _sympy,
}


@dataclass(frozen=True, slots=True)
class Left:
    """What is left after cancelled requests."""

    running: int
    zombies: int
    files: int
    """Open files of this process and of the zygotes, more than before."""

    seconds: float


async def cancelled(request: Callable[[], Awaitable[None]], count: int) -> Left:
    """Return what is left of `count` cancelled requests. The process should run nothing else."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    rng = random.Random(1)  # noqa: S311 (no secret)
    await _cancel(request, _STARTING_S)
    files, before = _files(), _zombies()
    started = time.monotonic()
    for _ in range(count):
        await _cancel(request, rng.uniform(0, _LATEST_S))
    seconds = time.monotonic() - started
    zombies = _zombies()
    return Left(len(children()) - zombies, zombies - before, _files() - files, seconds)


async def _cancel(request: Callable[[], Awaitable[None]], after_s: float) -> None:
    task = asyncio.ensure_future(request())
    await asyncio.wait([task], timeout=after_s)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _files() -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in (os.getpid(), *zygotes()))


def _zombies() -> int:
    return [_state(pid) for pid in children()].count("Z")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]


def show(left: Mapping[str, Left], count: int) -> str:
    return table(
        ("requests", "processes", "zombies", "open files", "ms per request"),
        [
            (
                f"{count} of {name}",
                f"{row.running:+}",
                f"{row.zombies:+}",
                f"{row.files:+}",
                f"{1000 * row.seconds / count:.0f}",
            )
            for name, row in left.items()
        ],
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=1000, help="of each kind")
    given = options.parse_args()
    left = {
        name: asyncio.run(cancelled(request, given.requests)) for name, request in REQUESTS.items()
    }
    note = (
        f"Requests cancelled at a random moment of their first {1000 * _LATEST_S:.0f} ms, and what "
        "was left after the last. The process adopts orphans, as process 1 of a container does."
    )
    body = f"{note}\n\n{show(left, given.requests)}"
    publish("Cancelled requests", "benchmarks.cancelled_workers", body, write=given.write)


if __name__ == "__main__":
    main()
