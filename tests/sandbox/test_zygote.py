"""Workers forked from a zygote share nothing, and none outlives its caller."""

import asyncio
import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optillm_hooks.sandbox import client
from optillm_hooks.sandbox.client import MAX_WORKERS, WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.sandbox.places import tenant
from optillm_hooks.types import Json
from tests.proxy import ROOT
from tests.solver.processes import children, children_of, zygotes

pytestmark = pytest.mark.anyio
ENDLESS = "any(iter(int, 1))"
LIMITS = WorkerLimits(seconds=30, memory_mb=512)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def threads(pid: int) -> int:
    found = re.search(r"^Threads:\t(\d+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


async def becomes(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (a process sets no event)
            await asyncio.sleep(0.01)


async def started() -> list[int]:
    """Return the ids of workers, once there are any."""
    await becomes(lambda: children() != [])
    return children()


async def test_a_worker_changes_nothing_for_the_next_one(probe: str) -> None:
    look = "(seen.append(1), seen, 'nonsense' in sys.modules, sys.modules.update(nonsense=1))[1:3]"
    assert [await ask_worker(probe, look, LIMITS) for _ in range(2)] == [[[1], False]] * 2


async def test_workers_are_forks_of_one_process_with_one_thread(probe: str) -> None:
    first, second = [await ask_worker(probe, "os.getppid()", LIMITS) for _ in range(2)]
    assert [first] == [second] == [pid for pid in zygotes() if pid == first]
    assert isinstance(first, int)
    assert threads(first) == 1


@pytest.mark.parametrize("module", ["smtlib", "algebra"])
async def test_the_solvers_start_no_threads_that_a_fork_would_lose(module: str) -> None:
    module = f"optillm_hooks.solver.{module}"
    await ask_worker(module, {"text": "[]", "seconds": 1}, LIMITS)
    assert threads(client._zygotes[module]._process.pid) == 1


async def test_a_worker_has_no_environment_and_no_files_of_others(
    probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    waiting = asyncio.create_task(ask_worker(probe, ENDLESS, LIMITS))
    await started()
    look = (
        "[sorted(os.environ), os.getcwd(), os.getpid() == os.getpgid(0),"
        " {n: os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')"
        " if os.path.exists(f'/proc/self/fd/{n}')}]"
    )
    found: Any = await ask_worker(probe, look, LIMITS)
    environment, folder, leads_group, files = found
    waiting.cancel()
    assert (environment, folder, leads_group) == (["LC_CTYPE"], "/", True)
    sockets = {number for number, path in files.items() if path.startswith("socket:")}
    assert sockets == {"0", "3"}  # the request, and the reply
    assert {path for path in files.values() if not path.startswith("socket:")} == {"/dev/null"}
    assert len({files[number] for number in sockets}) == 1


@pytest.mark.parametrize(
    "code", ["os.fork()", "open('/tmp/new', 'w')", "os.kill(os.getppid(), 9)", "os.system('true')"]
)
async def test_a_forked_worker_is_confined(probe: str, code: str) -> None:
    with pytest.raises(WorkerFailed) as caught:
        await ask_worker(probe, code, LIMITS)
    assert caught.value.reason == "crash"
    assert children() == []


async def test_the_limits_are_those_of_the_request(probe: str) -> None:
    look = "[resource.getrlimit(n)[0] for n in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]"
    for seconds, memory_mb in ((30, 512), (60, 256)):
        limits = WorkerLimits(seconds=seconds, memory_mb=memory_mb)
        assert await ask_worker(probe, look, limits) == [memory_mb << 20, seconds + 1]
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


async def test_what_the_zygote_has_loaded_counts_towards_the_memory(probe: str) -> None:
    size = "int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() >> 20"
    used = await ask_worker(probe, size, LIMITS)
    assert isinstance(used, int)
    tight = WorkerLimits(seconds=30, memory_mb=used + 32)
    assert await ask_worker(probe, "len(bytes(8 << 20))", tight) == 8 << 20
    with pytest.raises(WorkerFailed) as caught:
        await ask_worker(probe, "len(bytes(40 << 20))", tight)
    assert caught.value.reason == "memory"


async def test_a_reply_without_end_is_cut_off_before_the_time_is_up(probe: str) -> None:
    endless = "[os.write(3, b'x' * 65536) for _ in iter(int, 1)]"
    limits = WorkerLimits(seconds=5, memory_mb=512, reply_bytes=1 << 16)
    with pytest.raises(WorkerFailed) as caught:
        await ask_worker(probe, endless, limits)
    assert caught.value.reason == "output"
    assert children() == []


async def test_no_more_workers_run_than_are_allowed(probe: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    wait = f"any(iter(lambda: os.path.exists({str(go)!r}), True))"

    async def ask(who: int) -> None:
        tenant.set(who)
        await ask_worker(probe, wait, LIMITS)

    tasks = [asyncio.create_task(ask(number)) for number in range(MAX_WORKERS + 2)]
    await becomes(lambda: len(children()) >= MAX_WORKERS)
    await asyncio.sleep(0.3)  # in which another would have started
    assert len(children()) == MAX_WORKERS
    go.touch()
    await asyncio.gather(*tasks)


async def test_a_zygote_that_was_killed_is_started_again(probe: str) -> None:
    before = await ask_worker(probe, "os.getppid()", LIMITS)
    assert isinstance(before, int)
    os.kill(before, signal.SIGKILL)
    after = await ask_worker(probe, "os.getppid()", LIMITS)
    assert after != before
    assert not alive(before)


async def test_a_zygote_that_has_gone_is_dropped_and_not_the_one_that_replaced_it(
    probe: str,
) -> None:
    await ask_worker(probe, "1", LIMITS)
    gone = client._zygotes[probe]
    client._drop(probe, gone)
    await ask_worker(probe, "1", LIMITS)
    replaced = client._zygotes[probe]
    client._drop(probe, gone)  # by a second request that ran when it went
    assert client._zygotes[probe] is replaced is not gone


async def test_what_a_worker_has_started_ends_with_it(probe: str) -> None:
    starts = "__import__('ctypes').CDLL(None).fork() or (os.closerange(0, 64), time.sleep(60))"
    started_by_it = await ask_worker(probe, starts, LIMITS)
    assert isinstance(started_by_it, int)
    wait_until(lambda: not alive(started_by_it))


ADOPTING = """\
import asyncio, sys
from benchmarks.cancelled_workers import REQUESTS, cancelled
left = asyncio.run(cancelled(REQUESTS[sys.argv[1]], 12))
print(left.running, left.zombies, left.files)
"""


@pytest.mark.parametrize("kind", ["plansearch", "plansearch, Bubblewrap", "z3"])
def test_cancelled_requests_leave_no_process_no_zombie_and_no_file(kind: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ADOPTING, kind],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["0", "0", "0"]


async def test_a_zygote_reaps_what_its_workers_leave_behind(probe: str) -> None:
    """Also a process that has left the group of its worker, once it has ended."""
    leaves = (
        "(lambda c: c.fork() or (c.setsid(), os.closerange(0, 64), time.sleep(0.2), os._exit(0)))"
        "(__import__('ctypes').CDLL(None))"
    )
    left = await ask_worker(probe, leaves, LIMITS)
    assert isinstance(left, int)
    wait_until(lambda: not Path(f"/proc/{left}").exists())


async def test_workers_leave_the_processors_to_the_proxy(probe: str) -> None:
    look = "[os.nice(0), os.getsid(0)]"
    assert await ask_worker(probe, look, LIMITS) == [max(5, os.nice(0)), os.getsid(0)]


HAS_TERMINAL = """\
import asyncio, os
from pathlib import Path
from optillm_hooks.sandbox import client

os.open(os.ttyname(0), os.O_RDWR)  # becomes the terminal of this session

async def main():
    script = {"text": "(check-sat)", "seconds": 5}
    limits = client.WorkerLimits(seconds=30, memory_mb=1024)
    await client.ask_worker("optillm_hooks.solver.smtlib", script, limits)
    for pid in ("self", client._zygotes["optillm_hooks.solver.smtlib"]._process.pid):
        print(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[4] != "0")

asyncio.run(main())
"""


def test_a_zygote_has_no_terminal() -> None:
    ours, theirs = pty.openpty()
    ran = subprocess.run(
        [sys.executable, "-c", HAS_TERMINAL],
        env={"PYTHONPATH": str(ROOT)},
        stdin=theirs,
        stdout=subprocess.PIPE,
        start_new_session=True,
        check=True,
    )
    os.close(ours)
    os.close(theirs)
    assert ran.stdout.split() == [b"True", b"False"]


async def test_workers_end_with_their_zygote_and_the_request_is_asked_again(
    probe: str, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    wait = f"any(iter(lambda: os.path.exists({str(go)!r}), True)) or os.getppid()"
    task = asyncio.create_task(ask_worker(probe, wait, LIMITS))
    [worker] = await started()
    [zygote] = [pid for pid in zygotes() if pid == client._zygotes[probe]._process.pid]
    os.kill(zygote, signal.SIGKILL)
    await becomes(lambda: not alive(worker))
    go.touch()
    assert await task == client._zygotes[probe]._process.pid != zygote


async def test_a_zygote_that_does_not_kill_is_killed(
    probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_KILL_S", 0.1)
    task = asyncio.create_task(ask_worker(probe, ENDLESS, LIMITS))
    [worker] = await started()
    await becomes(lambda: client._zygotes[probe].loaded)
    stopped = client._zygotes[probe]._process.pid
    os.kill(stopped, signal.SIGSTOP)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    wait_until(lambda: not alive(worker) and not alive(stopped))
    assert isinstance(await ask_worker(probe, "os.getppid()", LIMITS), int)


async def test_an_idle_zygote_ends_and_the_next_request_starts_another(
    probe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = "import optillm_hooks.sandbox.zygote as z; z.IDLE_S = 0.05; z.main(sys.argv[2])"
    patched = client._BOOTSTRAP.replace("main(sys.argv[2])", idle)
    monkeypatch.setattr(client, "_BOOTSTRAP", patched)
    before = await ask_worker(probe, "os.getppid()", LIMITS)
    assert isinstance(before, int)
    wait_until(lambda: not alive(before))
    assert children() == []
    assert await ask_worker(probe, "os.getppid()", LIMITS) != before


OTHER_CLIENT = """\
import asyncio, json, os, signal, sys
from optillm_hooks.sandbox.client import WorkerLimits, ask_worker
from tests.solver.processes import children, zygotes

async def main():
    limits = WorkerLimits(seconds=60, memory_mb=512)
    request = {"text": "(push 1000000000)", "seconds": 60}
    task = asyncio.create_task(ask_worker("optillm_hooks.solver.smtlib", request, limits))
    while not children():
        await asyncio.sleep(0.01)
    print(json.dumps(zygotes() + children()), flush=True)
    if sys.argv[1] == "forks" and os.fork() == 0:
        os.closerange(0, 3)
        signal.pause()
    if sys.argv[1] == "exits":
        sys.exit()
    await task

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["is killed", "exits", "forks"])
def test_nothing_outlives_the_client(how: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_CLIENT, how],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        zygote, worker = json.loads(process.stdout.readline())
        if how == "forks":
            wait_until(lambda: len(children_of(process.pid)) == 2)
        forked = [pid for pid in children_of(process.pid) if pid != zygote]
        if how != "exits":
            process.kill()
    wait_until(lambda: not alive(zygote) and not alive(worker))
    for pid in forked:
        assert alive(pid)
        os.kill(pid, signal.SIGKILL)


async def test_a_request_that_no_zygote_survives_is_a_crash(probe: str) -> None:
    broken: Json = {}  # no text, so that `eval` raises
    with pytest.raises(WorkerFailed) as caught:
        await ask_worker(probe, broken, LIMITS)
    assert caught.value.reason == "crash"
