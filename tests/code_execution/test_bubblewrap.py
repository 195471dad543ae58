"""Programs in Bubblewrap: what they can do, that they reach nothing, and what stops them."""

import asyncio
import os
import socket
import struct
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from optillm_hooks.code_execution import bubblewrap, bubblewrap_runner
from optillm_hooks.code_execution.bubblewrap_runner import BubblewrapRunner
from optillm_hooks.code_execution.runner import SnippetResult
from optillm_hooks.errors import RequestRejected
from tests.solver.processes import children

pytestmark = pytest.mark.anyio

NEW_ID = "echo $$ >> {folder}/new"


def runner(
    *, seconds: float = 5.0, memory_mb: int = 512, binds: tuple[str, ...] = ()
) -> BubblewrapRunner:
    return bubblewrap_runner.bubblewrap_runner(None, binds, seconds, memory_mb)


async def run(*snippets: str, stdin: str = "", **limits: Any) -> list[SnippetResult]:
    return list(await runner(**limits).run(snippets, stdin=stdin))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not children()


async def test_snippets_share_a_session_and_a_failure_does_not_end_it() -> None:
    ran = await run(
        "def double(x):\n    return 2 * x",
        "1 / 0",
        "print(double(int(input())))",
        "import sys; print(sys.stdin.read(), open(0).closed, file=sys.stderr); sys.exit()",
        stdin="21\nrest",
    )
    assert [r.output for r in ran] == ["", "", "42\n", ""]
    assert ran[3].stderr == "rest False\n"
    assert [r.error for r in ran] == ["", "ZeroDivisionError: division by zero", "", ""]


async def test_it_is_all_of_python_with_its_library() -> None:
    program = (
        "import asyncio, decimal, json, sqlite3, statistics, zoneinfo\n"
        "class Base:\n    pass\nclass Derived(Base):\n    pass\n"
        "def squares():\n    yield from (n * n for n in range(4))\n"
        "async def later():\n    await asyncio.sleep(0)\n    return sum(squares())\n"
        "print(asyncio.run(later()), sqlite3.connect(':memory:').execute('select 7').fetchone())\n"
        "open('/tmp/own', 'w').write('mine')\nprint(open('/tmp/own').read())"
    )
    [ran] = await run(program)
    assert (ran.output, ran.error) == ("14 (7,)\nmine\n", "")


async def test_a_run_sees_nothing_of_the_run_before() -> None:
    await run("open('/tmp/left', 'w').write('x')")
    [ran] = await run("import os; print(os.listdir('/tmp'))")
    assert ran.output == "[]\n"


# Where the sandbox fails, none of them may do any harm: they reach for files of the test.
ESCAPES = {
    "a file of the host": "print(open('/etc/passwd').read())",
    "the proxy's own files": "print(open({here!r}).read())",
    "a link to the host": "import os\nos.symlink('/etc/passwd', '/tmp/l')\n"
    "print(open('/tmp/l').read())",
    "a link out of the sandbox": "import os\nos.link({here!r}, '/tmp/l')",
    "files of processes": "print(open('/proc/1/environ').read())",
    "the kernel's settings": "open('/proc/sys/kernel/core_pattern', 'a')",
    "control groups": "print(open('/sys/fs/cgroup/cgroup.procs').read())",
    "disks": "print(open('/dev/vda').read(1), open('/dev/sda').read(1))",
    "memory of the machine": "print(open('/dev/mem', 'rb').read(1))",
    "a new file of the host": "open('{folder}/new', 'w')",
    "a write to what is mounted": "open('{folder}/data', 'w')",
    "removing what is mounted": "import os\nos.remove('{folder}/data')",
    "changing what is mounted": "import os\nos.chmod('{folder}/data', 0o777)",
    "the root folder": "open('/new', 'w')",
    "a new device": "import os, stat\nos.mknod('/tmp/d', stat.S_IFBLK | 0o600, os.makedev(8, 0))",
    "a fork": "import os\nos.fork()",
    "a hundred forks": "import os, time\nfor _ in range(100):\n"
    "    if os.fork() == 0:\n        time.sleep(2)\n        os._exit(0)",
    "a shell": "import os\nassert os.system('" + NEW_ID + "') == 0",
    "a program": "import subprocess\nsubprocess.run(['/usr/bin/touch', '{folder}/new'])",
    "a spawned program": "import os\nos.posix_spawn('/usr/bin/true', ['true'], {{}})",
    "many processes": "import multiprocessing as m\n"
    "m.get_context('spawn').Process(target=print).start()",
    "a socket": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "a socket of the machine": "import socket\nsocket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
    "a packet": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "a socket with a path": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a name": "import socket\nprint(socket.gethostbyname('example.com'))",
    "higher limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "more files at once": "fs = [open('/dev/null') for _ in range(100)]",
    "another user": "import os\nos.setuid(0)",
    "a set-user-id program": "import os\nos.open('/tmp/s', os.O_CREAT)\nos.chown('/tmp/s', 0, 0)",
    "a mount": "import ctypes, os\nl = ctypes.CDLL(None, use_errno=True)\n"
    "if l.mount(b'x', b'/tmp', b'tmpfs', 0, None): raise OSError(ctypes.get_errno())",
    "a namespace": "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
    "if l.unshare(0x10000000): raise OSError(ctypes.get_errno())",
    "tracing process 1": "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
    "if l.ptrace(16, 1, None, None): raise OSError(ctypes.get_errno())",
    "system calls by number": "import ctypes\nl = ctypes.CDLL(None, use_errno=True)\n"
    "calls = [l.syscall(n, 0, 0, 0, 0, 0) for n in (425, 428, 434 + 1, 438, 442)]\n"
    "if set(calls) == {{-1}}: raise OSError(ctypes.get_errno())",
    "a file in memory": "import os\nos.memfd_create('x')",
    "a file that is huge": "f = open('/tmp/f', 'wb', 0)\nf.seek(1 << 40)\nf.write(b'x')",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory as S\n"
    "S(create=True, size=9)",
    "files without end": "for n in range(99):\n"
    "    open(f'/tmp/{{n}}', 'wb').write(b'x' * (1 << 23))",
}  # fmt: skip


@pytest.fixture(scope="module")
def escaped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, SnippetResult]]:
    """Run all attempts, several in one session to save time; return their folder and results."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "data").write_text("the operator's")
    (folder / "data").chmod(0o644)
    codes = {
        name: code.format(folder=folder, here=__file__, port=os.getpid() % 999 + 20000)
        for name, code in ESCAPES.items()
    }

    async def attempt() -> list[SnippetResult]:
        return await run(*codes.values(), binds=(str(folder),))

    ran = asyncio.run(attempt())
    return folder, dict(zip(codes, ran, strict=True))


@pytest.mark.parametrize("attempt", ESCAPES)
def test_nothing_outside_is_reached(
    attempt: str, escaped: tuple[Path, dict[str, SnippetResult]]
) -> None:
    folder, ran = escaped
    assert ran[attempt].error, ran[attempt].output
    assert "root:" not in ran[attempt].output
    assert os.listdir(folder) == ["data"]
    assert (folder / "data").read_text() == "the operator's"
    assert (folder / "data").stat().st_mode & 0o777 == 0o644


async def test_the_environment_is_the_sandboxs_own() -> None:
    [ran] = await run(
        "import os; print(os.environ, os.getuid(), os.listdir('/'), os.listdir('/dev'))"
    )
    assert os.environ["PATH"] not in ran.output
    assert "LITELLM" not in ran.output
    environment, _, rest = ran.output.partition(") ")
    assert environment.count("':") == len(bubblewrap._VARIABLES) + 1  # and PWD
    uid, folders, devices = rest.replace("] [", "]|[").replace(" [", "|[", 1).split("|")
    assert uid == "65534"
    assert set(eval(folders)) <= {"tmp", "dev", "usr", "lib", "lib64", "etc", "root", "opt", "home"}  # noqa: S307
    assert set(eval(devices)) == {"null", "zero", "full", "random", "urandom"}  # noqa: S307


async def test_only_its_own_processes_exist_and_the_first_cannot_be_killed() -> None:
    code = (
        "import os, signal\n"
        "def alive(pid):\n    try:\n        os.kill(pid, 0)\n        return True\n"
        "    except ProcessLookupError:\n        return False\n"
        "os.kill(1, signal.SIGKILL)\nprint([pid for pid in range(1, 40000) if alive(pid)])"
    )
    [ran] = await run(code)
    assert ran.output == "[1, 2]\n"


async def test_a_signal_to_its_group_ends_the_program_alone() -> None:
    """A group may reach across namespaces: that of the worker is none of the program's business."""
    ran = await run("print(1)", "import os, signal\nos.kill(0, signal.SIGKILL)", "print(2)")
    assert [result.error for result in ran] == ["", "the program ended its process"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        pytest.param("while True: pass", "TimeoutError", id="an endless loop"),
        pytest.param("import time\ntime.sleep(1000)", "TimeoutError", id="sleeping"),
        pytest.param(
            "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
            "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
            "TimeoutError",
            id="a loop that ignores all signals and errors",
        ),
        pytest.param("x = [0] * 10**9", "MemoryError", id="a list"),
        pytest.param("x = 'a'\nwhile True: x += x", "MemoryError", id="a growing text"),
        pytest.param("def f(): f()\nf()", "RecursionError", id="a recursion"),
        pytest.param("while True: print('x' * 1000)", "OSError", id="output"),
        pytest.param(
            "import os\nwhile True: os.write(2, b'x' * 1000)", "OSError", id="standard error"
        ),
        pytest.param("import os\nos._exit(0)", "the program ended", id="leaving"),
        pytest.param("import os\nos.abort()", "the program ended", id="a crash"),
        pytest.param("import ctypes\nctypes.string_at(0)", "the program ended", id="a bad pointer"),
        pytest.param(
            "import os\nos.execv('/usr/bin/env', ['env'])", "", id="another program in its place"
        ),
    ],
)
async def test_what_takes_too_much_is_stopped(code: str, error: str) -> None:
    started = time.monotonic()
    ran = await run("print(1)", code, "print(2)", seconds=0.5, memory_mb=128)
    assert ran[0] == SnippetResult(output="1\n", error="")
    assert ran[1].error.startswith(error)
    assert ran[1].timed_out == (error == "TimeoutError")
    assert len(ran[1].output) <= 1 << 16
    assert time.monotonic() - started < 60


async def test_threads_are_bounded() -> None:
    """Root, whose threads the kernel does not count, has none."""
    code = (
        "import threading\nstop = threading.Event()\nthreading.stack_size(1 << 16)\n"
        "started = 0\ntry:\n    while started < 999:\n"
        "        threading.Thread(target=stop.wait, daemon=True).start()\n        started += 1\n"
        "except RuntimeError:\n    pass\nstop.set()\nprint(started)"
    )
    [ran] = await run(code)
    assert int(ran.output) < 64
    assert (int(ran.output) > 0) == (os.geteuid() != 0)


FORGED = {
    "a result": 'os.write(n, b\'{"output": "forged", "error": ""}\\n\')',
    "not JSON": "os.write(n, b'}\\n')",
    "deep JSON": "os.write(n, b'[' * 100_000 + b'\\n')",
    "another type": "os.write(n, b'[1]\\n')",
    "another field": 'os.write(n, b\'{"output": "", "error": "", "more": 1}\\n\')',
    "a line without end": "\n    while True: os.write(n, b'x' * 65536)",
    "lines without end": "\n    while True: os.write(n, b'0\\n' * 9999)",
}


@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED)
async def test_a_program_that_writes_results_itself_forges_its_own_only(code: str) -> None:
    """There is nothing else in the protocol: what is not a result ends the session."""
    attack = f"import os\nfor n in range(3, 9):\n  try:\n    {code}\n  except OSError: pass"
    ran = await run("print(1)", attack, seconds=1.0)
    assert not any(result.timed_out for result in ran)
    [after] = await run("print(2)")
    assert after.output == "2\n"


async def test_what_the_operator_mounts_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("to read")
    code = f"print(open('{tmp_path}/data').read())\nopen('{tmp_path}/data', 'w')"
    [ran] = await run(code, binds=(str(tmp_path),))
    assert ran.output == "to read\n"
    assert ran.error.startswith("OSError")


async def test_an_interpreter_of_the_operators_brings_its_packages(tmp_path: Path) -> None:
    """A virtual environment: its packages can be imported, and the proxy's cannot."""
    venv.create(tmp_path / "v")
    [site] = (tmp_path / "v").glob("lib/python*/site-packages")
    (site / "operators_own.py").write_text("value = 42")
    python = str(tmp_path / "v/bin/python")
    own = bubblewrap_runner.bubblewrap_runner(python, (), 5.0, 512)
    ran = await own.run(["import operators_own\nprint(operators_own.value)", "import litellm"])
    assert ran[0].output == "42\n"
    assert ran[1].error.startswith("ModuleNotFoundError")


DAEMON = (
    "import ctypes, os, signal, time\nctypes.CDLL(None).prctl(1, 0)\n"
    "try:\n    os.setsid()\nexcept OSError: pass\n"
    "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
    "while True:\n    try:\n        time.sleep(100)\n    except BaseException: pass"
)
"""A program that does what it can to live on when its parent has ended."""


@pytest.mark.parametrize("code", ["import time\ntime.sleep(100)", DAEMON], ids=["plain", "daemon"])
async def test_cancelling_leaves_no_process(code: str) -> None:
    task = asyncio.create_task(run(code, seconds=60.0))
    while len(children()) < 4:  # noqa: ASYNC110 (worker, bwrap, its process 1, the interpreter)
        await asyncio.sleep(0)
    await asyncio.sleep(0.3)  # the program has begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children()


# ------------------------------------------------------- each layer, where the others do not help


@pytest.fixture
def unfiltered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Run snippets in this process's own Bubblewrap, with a filter that allows all calls."""
    allow_all = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    monkeypatch.setattr(bubblewrap, "filter_program", lambda **_: allow_all)
    chosen = runner()

    def answer(*snippets: str) -> list[dict[str, Any]]:
        request = {**asdict(chosen), "snippets": list(snippets), "stdin": ""}
        ran: Any = bubblewrap.answer(request)
        return list(ran)

    return answer


def test_without_the_filter_the_network_is_still_empty(
    unfiltered: Callable[..., list[dict[str, Any]]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        connect = f"socket.create_connection(('127.0.0.1', {listening.getsockname()[1]}), 1)"
        [named, connected] = unfiltered(
            "import socket\nprint([name for _, name in socket.if_nameindex()])",
            f"import socket\n{connect}",
        )
        assert named["output"] == "['lo']\n"
        assert connected["error"].startswith(("OSError", "ConnectionRefusedError"))
        with pytest.raises(BlockingIOError):
            listening.accept()


def test_without_the_filter_other_processes_are_still_out_of_reach(
    unfiltered: Callable[..., list[dict[str, Any]]],
) -> None:
    code = f"import os\nos.kill({os.getpid()}, 0)"
    [killed, forked] = unfiltered(
        code, "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass"
    )
    assert killed["error"].startswith("ProcessLookupError")
    assert forked["error"] == ""  # and what it has left behind ends with the sandbox


def test_without_the_filter_nothing_can_be_mounted_or_owned(
    unfiltered: Callable[..., list[dict[str, Any]]],
) -> None:
    load = "import ctypes, os\nl = ctypes.CDLL(None, use_errno=True)\n"
    ran = unfiltered(
        load + "if l.mount(b'x', b'/tmp', b'tmpfs', 0, None): raise OSError(ctypes.get_errno())",
        load + "if l.mount(None, b'/', None, 32, None): raise OSError(ctypes.get_errno())",
        load + "if l.chroot(b'/tmp'): raise OSError(ctypes.get_errno())",
        "import os\nos.setuid(0)",
        "import os\nopen('/tmp/s', 'w')\nos.chown('/tmp/s', 0, 0)",
        "import os, stat\nos.mknod('/tmp/d', stat.S_IFBLK | 0o600, os.makedev(8, 0))",
    )
    assert [bool(each["error"]) for each in ran] == [True] * 6


def test_the_limits_of_a_program_cannot_be_raised_by_it() -> None:
    code = (
        "import resource as r\nraised = []\n"
        "for name in ('AS', 'FSIZE', 'NOFILE', 'NPROC', 'CPU'):\n"
        "    kind = getattr(r, 'RLIMIT_' + name)\n"
        "    soft, hard = r.getrlimit(kind)\n    assert hard != r.RLIM_INFINITY, kind\n"
        "    try:\n        r.setrlimit(kind, (hard + 1, hard + 1))\n        raised.append(kind)\n"
        "    except ValueError:\n        pass\nprint(raised)"
    )
    [ran] = asyncio.run(run(code))
    assert (ran.output, ran.error) == ("[]\n", "")


# --------------------------------------------------------------------------- where it cannot run


@pytest.fixture
def unchecked() -> Iterator[None]:
    bubblewrap_runner._tried.cache_clear()
    yield
    bubblewrap_runner._tried.cache_clear()


@pytest.mark.usefixtures("unchecked")
def test_a_missing_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap_runner, "which", lambda _: None)
    monkeypatch.setattr(bubblewrap_runner, "find_spec", lambda _: None)
    with pytest.raises(RequestRejected, match=r"optillm-hooks\[bubblewrap\]"):
        runner()


@pytest.mark.usefixtures("unchecked")
def test_a_machine_without_user_namespaces_is_refused_with_bwraps_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text(
        "#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"
    )
    bwrap.chmod(0o755)
    monkeypatch.setattr(bubblewrap_runner, "which", lambda _: str(bwrap))
    with pytest.raises(RequestRejected, match=r"No permissions .* \(user namespaces are needed\)"):
        runner()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("python", ["/no/such/python", "/usr/bin/env"])
def test_an_interpreter_that_is_none_is_refused(python: str) -> None:
    with pytest.raises(RequestRejected, match="not a Python interpreter"):
        bubblewrap_runner.bubblewrap_runner(python, (), 5.0, 512)


@pytest.mark.usefixtures("unchecked")
def test_a_missing_mount_is_refused() -> None:
    with pytest.raises(RequestRejected, match="no/such/folder"):
        runner(binds=("/no/such/folder",))


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_run_is_tried_once(tmp_path: Path) -> None:
    """Not by each request, all of which would wait."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho tried >> {tmp_path}/log\nexit 1\n")
    python.chmod(0o755)
    for _ in range(3):
        with pytest.raises(RequestRejected):
            bubblewrap_runner.bubblewrap_runner(str(python), (), 5.0, 512)
    assert (tmp_path / "log").read_text() == "tried\n"


@pytest.mark.usefixtures("unchecked")
def test_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(RequestRejected, match="processor"):
        runner()
