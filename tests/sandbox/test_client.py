"""The worker's confinement, from inside; and that nothing of it outlives the caller."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optillm_hooks.sandbox.client import FailureReason, WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.types import Json
from tests.solver.processes import children

pytestmark = pytest.mark.anyio
SMTLIB = "optillm_hooks.solver.smtlib"
ENDLESS = "(push 1000000000)"


def limits(
    seconds: float = 30.0, memory_mb: int = 1024, reply_bytes: int = 1 << 18
) -> WorkerLimits:
    return WorkerLimits(seconds=seconds, memory_mb=memory_mb, reply_bytes=reply_bytes)


def confined(code: str, *, memory_mb: int = 512, cpu_seconds: int = 5) -> str:
    """Return the last line that `code` says in a process after `confine`."""
    script = (
        "import os, socket, subprocess\n"
        "from optillm_hooks.sandbox.worker import confine, no_more_files\n"
        f"confine(memory_mb={memory_mb}, cpu_seconds={cpu_seconds})\n"
        f"try:\n    {code}\n    print('done')\n"
        "except BaseException as exc:\n    print(type(exc).__name__)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    return ran.stdout.strip() or str(ran.returncode)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("open('/etc/hostname').read()", "done", id="reading is left to imports"),
        pytest.param("no_more_files(); open('/etc/hostname')", "OSError", id="reading, later"),
        pytest.param("open('{new}', 'w')", "PermissionError", id="writing a new file"),
        pytest.param("open('{new}', 'ab')", "PermissionError", id="appending"),
        pytest.param("os.open('{new}', os.O_CREAT)", "PermissionError", id="making an empty file"),
        pytest.param("os.remove('{old}')", "PermissionError", id="removing"),
        pytest.param("os.rename('{old}', '{new}')", "PermissionError", id="renaming"),
        pytest.param("os.mkdir('{new}')", "PermissionError", id="making a folder"),
        pytest.param("os.system('touch {new}')", "PermissionError", id="a shell"),
        pytest.param("os.fork()", "PermissionError", id="a fork"),
        pytest.param("os.kill(os.getppid(), 0)", "PermissionError", id="a signal"),
        pytest.param("subprocess.run(['true'])", "PermissionError", id="a program"),
        pytest.param("socket.socket().bind(('', 0))", "PermissionError", id="a socket"),
        pytest.param("bytearray(1 << 30)", "MemoryError", id="memory"),
        pytest.param("for _ in iter(int, 1): pass", "-24", id="time of the processor"),
    ],
)
def test_what_a_worker_may_not_do(code: str, expected: str, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.write_text("old")
    code = code.replace("{new}", str(tmp_path / "new")).replace("{old}", str(old))
    assert confined(code, memory_mb=256, cpu_seconds=1) == expected
    assert old.read_text() == "old"


async def failure(text: str, given: WorkerLimits, module: str = SMTLIB) -> FailureReason:
    with pytest.raises(WorkerFailed) as caught:
        await ask_worker(module, {"text": text, "seconds": 60}, given)
    assert children() == []
    return caught.value.reason


async def test_a_worker_that_takes_too_long_is_killed() -> None:
    started = time.monotonic()
    assert await failure(ENDLESS, limits(seconds=0.5, memory_mb=8192)) == "time"
    assert time.monotonic() - started < 30  # of the 60 that the solver was given


async def test_a_worker_that_breaks_is_told_from_one_that_is_slow() -> None:
    assert await failure("", limits(), "optillm_hooks.solver.missing") == "crash"


async def test_a_worker_without_memory_says_so() -> None:
    power = '[{"operation": "evaluate", "expression": "sqrt(2)^(10^18)"}]'
    roomy = limits(seconds=60, memory_mb=300)
    assert await failure(power, roomy, "optillm_hooks.solver.algebra") == "memory"


async def test_a_worker_that_says_too_much_is_cut_off() -> None:
    assert await failure("(check-sat)", limits(reply_bytes=16)) == "output"


async def test_cancelling_the_caller_kills_the_worker() -> None:
    task = asyncio.create_task(
        ask_worker(SMTLIB, {"text": ENDLESS, "seconds": 60}, limits(seconds=60))
    )
    while not children():  # noqa: ASYNC110 (a process sets no event)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []


@pytest.mark.parametrize(
    "anyio_backend", [pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)
async def test_all_this_holds_on_the_loop_of_the_proxy() -> None:
    request: Json = {"text": "(check-sat)", "seconds": 5}
    assert isinstance(await ask_worker(SMTLIB, request, limits()), dict)
    assert await failure(ENDLESS, limits(seconds=0.5, memory_mb=8192)) == "time"
    for moments in range(0, 30, 3):
        task = asyncio.create_task(ask_worker(SMTLIB, request, limits()))
        for _ in range(moments):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    async with asyncio.timeout(5):  # this loop reaps a process it was just starting a bit later
        while children():  # noqa: ASYNC110 (a process sets no event)
            await asyncio.sleep(0)


async def test_cancelling_at_any_moment_leaves_no_process() -> None:
    for moments in range(0, 60, 3):
        task = asyncio.create_task(
            ask_worker(SMTLIB, {"text": "(check-sat)", "seconds": 60}, limits())
        )
        for _ in range(moments):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert children() == []


async def test_requests_do_not_see_each_other() -> None:
    first: Json = {"text": "(declare-const x Int)(assert (= x 41))", "seconds": 5}
    second: Json = {"text": "(assert (= x 41))", "seconds": 5}
    await ask_worker(SMTLIB, first, limits())
    reply = await ask_worker(SMTLIB, second, limits())
    assert reply == {"error": "unknown constant x in (assert (= x 41))"}


def test_what_a_solver_prints_is_no_part_of_the_reply() -> None:
    script = (
        "import os, sys, types\n"
        "noisy = sys.modules['noisy'] = types.ModuleType('noisy')\n"
        "noisy.answer = lambda request: os.write(1, b'noise') and request\n"
        "from optillm_hooks.sandbox.worker import main\n"
        "main('noisy', memory_mb=512, cpu_seconds=5)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], input=b"[1]", capture_output=True, check=True
    )
    assert ran.stdout == b'{"reply": [1]}'


def test_a_worker_has_no_environment_and_loads_nothing_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    from optillm_hooks.sandbox import client

    look = "import os, sys; print(sorted(os.environ), 'pydantic' in sys.modules)"
    command = client.command("json")
    assert "-I" in command
    at = command.index("-c")
    probe = command[at + 1].replace("main(sys.argv[2])", look)
    ran = subprocess.run(
        [*command[: at + 1], probe, *command[at + 2 :]],
        capture_output=True,
        text=True,
        check=True,
        env={},
        cwd="/",
    )
    assert ran.stdout.split("]")[-1].strip() == "False"
    assert "SOME_API_KEY" not in ran.stdout


def test_the_package_loads_without_a_solver() -> None:
    look = (
        "import json, sys, optillm_hooks, optillm_hooks.approaches;"
        "print(json.dumps([m for m in ('z3', 'sympy', 'torch', 'litellm') if m in sys.modules]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    assert json.loads(ran.stdout) == []
