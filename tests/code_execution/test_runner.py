"""Programs out of a model's mouth: what they can do, and that they reach nothing."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from optillm_hooks.code_execution.runner import MontyRunner, SnippetResult, monty_runner
from optillm_hooks.errors import RequestRejected
from tests.solver.processes import children

pytestmark = pytest.mark.anyio


async def test_snippets_share_a_session_and_a_failure_does_not_end_it() -> None:
    ran = await MontyRunner().run(
        ["def double(x):\n    return 2 * x", "1 / 0", "print(double(int(input())))", "input()"],
        stdin="21\n",
    )
    assert [r.output for r in ran] == ["", "", "42\n", ""]
    assert [r.error.partition(":")[0] for r in ran] == ["", "ZeroDivisionError", "", "Exception"]


async def test_what_programs_use_is_there() -> None:
    program = (
        "from collections import Counter, defaultdict, deque\n"
        "from dataclasses import dataclass\n"
        "import itertools, math, re\n"
        "class Solution:\n    def top(self, words: list[str]) -> str:\n"
        "        return max(Counter(words).items(), key=lambda p: (p[1], p[0]))[0]\n"
        "if __name__ == '__main__':\n"
        "    print(f'{Solution().top(list(\"abca\"))} {math.gcd(4, 6)}')"
    )
    assert await MontyRunner().run([program]) == [SnippetResult(output="a 2\n", error="")]


ESCAPES = {
    "a file": "print(open('/etc/passwd').read())",
    "a new file": "open('{folder}/new', 'w').write('x')",
    "a path": "from pathlib import Path\nprint(Path('/etc/passwd').read_text())",
    "the environment": "import os\nprint(dict(os.environ))",
    "a shell": "import os\nos.system('touch {folder}/new')",
    "a program": "import subprocess\nsubprocess.run(['touch', '{folder}/new'])",
    "a process": "import os\nos.fork()",
    "a socket": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "C": "import ctypes\nctypes.CDLL(None).system(b'touch {folder}/new')",
    "a pickle": "import pickle\npickle.loads(b\"cos\\nsystem\\n(S'touch {folder}/new'\\ntR.\")",
    "an import by name": "__import__('os').system('touch {folder}/new')",
    "classes of classes": "print(().__class__.__base__.__subclasses__())",
    "the frame": "import sys\nprint(sys._getframe().f_back.f_globals)",
    "globals of a function": "def f(): pass\nprint(f.__globals__['__builtins__'])",
    "the host's function": "print(input.__globals__)",
    "code of code": "exec(compile(\"import os; os.system('touch {folder}/new')\", 'x', 'exec'))",
}


@pytest.mark.parametrize("code", ESCAPES.values(), ids=ESCAPES)
async def test_nothing_outside_is_reached(code: str, tmp_path: Path) -> None:
    (ran,) = await MontyRunner().run([code.replace("{folder}", str(tmp_path))])
    assert ran.error
    assert "root:" not in ran.output
    assert os.environ["PATH"] not in ran.output
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        pytest.param("while True: pass", "TimeoutError", id="an endless loop"),
        pytest.param("x = [0] * 10**9", "MemoryError", id="a list"),
        pytest.param("x = 'a'\nwhile True: x += x", "MemoryError", id="a growing text"),
        pytest.param("x = 9 ** 9 ** 9", "MemoryError", id="a number"),
        pytest.param("def f(): f()\nf()", "RecursionError", id="a recursion"),
        pytest.param("while True: print('x' * 1000)", "MemoryError", id="output"),
    ],
)
async def test_what_takes_too_much_is_stopped(code: str, error: str) -> None:
    ran = await MontyRunner(seconds=1.0, memory_mb=64).run([code, "print(1)"])
    assert ran[0].error.startswith(error)
    assert (len(ran) == 1) == ran[0].timed_out
    assert not children()


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(1000)",
        "import asyncio\nasyncio.run(asyncio.sleep(1000))",
        "import time\nfor _ in range(10_000):\n    time.sleep(1)",
    ],
)
async def test_sleeping_takes_no_time(code: str) -> None:
    ran = await MontyRunner().run([code, "print(1)"])
    assert [(r.output, r.error) for r in ran] == [("", ""), ("1\n", "")]


ENDS_THE_SESSION = {
    "waiting until a time": (
        "import time\nt = time.time()\nwhile time.time() < t + 99: pass",
        True,
    ),
    "one operation that Monty cannot interrupt": ("x = 7 ** 12_000_000", True),
    "a value without end": ("[[0] * 3 * 10**6 for _ in range(100)]", False),
    "a text in a text": ("x = []\nx.append('x' * 10**8)\nx * 10", False),
}


@pytest.mark.parametrize(
    ("code", "timed_out"), ENDS_THE_SESSION.values(), ids=ENDS_THE_SESSION.keys()
)
async def test_what_ends_a_session_leaves_the_results_before_it(code: str, timed_out: bool) -> None:
    ran = await MontyRunner(seconds=1.0, memory_mb=64).run(["print(1)", code, "print(2)"])
    assert ran[0] == SnippetResult(output="1\n", error="")
    assert not timed_out or (len(ran) == 2 and ran[1].timed_out)


async def test_the_value_of_a_last_expression_is_not_sent_back() -> None:
    ran = await MontyRunner().run(["int('7' * 4000) ** 200", "# nothing", "x = 1;", "print(x)"])
    assert [r.error for r in ran] == [""] * 4


@pytest.mark.parametrize("code", ["(" * 10_000, "x" + ".y" * 50_000, "\0", "-" * 100_000 + "1"])
async def test_a_text_that_breaks_a_parser_breaks_nothing_else(code: str) -> None:
    ran = await MontyRunner(seconds=1.0).run([code])
    assert not ran or ran[0].error
    assert not children()


async def test_cancelling_leaves_no_process() -> None:
    task = asyncio.create_task(MontyRunner(seconds=60).run(["while True: pass"]))
    while not children():  # noqa: ASYNC110 (another process tells nobody)
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not children()


async def test_standard_error_is_no_failure_and_is_kept_apart() -> None:
    (ran,) = await MontyRunner().run(["import sys\nprint('odd', file=sys.stderr)\nprint(1)"])
    assert ran == SnippetResult(output="1\n", stderr="odd\n", error="")


async def test_a_program_that_ends_itself_has_not_failed() -> None:
    ran = await MontyRunner().run(["raise SystemExit", "print(1)"])
    assert [r.error for r in ran] == ["", ""]


async def test_the_program_of_monty_may_be_anywhere_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = monty_runner(4.0, 256).program
    assert program is not None
    there, empty = tmp_path / "there", tmp_path / "empty"
    there.mkdir()
    found = there / "monty"
    found.write_text("#!/bin/sh\nexit 1\n")
    found.chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(empty))
    monkeypatch.setenv("PATH", str(there))
    printed = [SnippetResult(output="1\n", error="")]
    assert await monty_runner(4.0, 256).run(["print(1)"]) != printed, "another monty was run"
    found.unlink()
    found.symlink_to(program)
    assert await monty_runner(4.0, 256).run(["print(1)"]) == printed
    monkeypatch.setenv("PATH", str(empty))
    with pytest.raises(RequestRejected, match="nor on the PATH"):
        monty_runner(4.0, 256)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert replace(monty_runner(4.0, 256), program=None) == MontyRunner()
    monkeypatch.setattr("optillm_hooks.code_execution.runner.find_spec", lambda _: None)
    with pytest.raises(RequestRejected, match=r"optillm-hooks\[sandbox\]"):
        monty_runner(4.0, 256)
