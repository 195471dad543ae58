"""What passes of a request's tests; and that the process that serves requests parses no program."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from optillm_hooks.code_execution import testing
from optillm_hooks.code_execution.public_tests import InputTest, PublicTests, read_tests
from optillm_hooks.code_execution.runner import MontyRunner, SnippetResult
from optillm_hooks.code_execution.testing import (
    MAX_CHARACTERS,
    count_passed,
    find_program,
    find_tests,
)
from optillm_hooks.errors import UnusableReply
from optillm_hooks.sandbox.client import WorkerFailed

pytestmark = pytest.mark.anyio
PROGRAM = "def f(x):\n    return x * x\n"
TESTS = read_tests(
    ">>> f(2)\n4\n>>> print(f(3))\n9\n\nassert f(1) == 1\nassert isinstance(f(0), int)\n\n"
    ">>> f('a')\nTraceback (most recent call last):\nTypeError: no\n"
)


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        pytest.param(PROGRAM, 4, id="all but the exception"),
        pytest.param(
            f"{PROGRAM}g = f\ndef f(x):\n"
            "    if isinstance(x, str):\n        raise TypeError('no')\n    return g(x)",
            5,
            id="all",
        ),
        pytest.param("def f(x):\n    return x + x", 2, id="two that agree by chance"),
        pytest.param("def g(x):\n    return x", 0, id="another function"),
        pytest.param("import nothing_of_the_kind\n" + PROGRAM, 0, id="a program that fails"),
        pytest.param("while True: pass", 0, id="a program without an end"),
        pytest.param("def f(x):\n    return", 0, id="a function that returns nothing"),
        pytest.param("def f(x):\n    raise SystemExit(0)", 0, id="a function that exits"),
    ],
)
async def test_how_many_calls_come_out_as_shown(program: str, passed: int) -> None:
    assert await count_passed(program, TESTS, MontyRunner(seconds=1.0)) == passed


@pytest.mark.parametrize(
    ("program", "passed"),
    [
        pytest.param("print(sum(map(int, input().split())))", 2, id="a sum"),
        pytest.param("print(3)", 1, id="a constant"),
        pytest.param(
            "print(sum(map(int, input().split())), end='')\nraise ValueError", 0, id="fails"
        ),
        pytest.param("print(sum(map(int, input().split())))\nwhile True: pass", 0, id="no end"),
    ],
)
async def test_how_many_outputs_follow_from_their_inputs(program: str, passed: int) -> None:
    tests = read_tests("Input:\n1 2\n\nOutput:\n3\n\nInput:\n2 2\n\nOutput:\n 4 \n")
    assert await count_passed(program, tests, MontyRunner(seconds=1.0)) == passed


async def test_after_running_out_of_time_no_other_input_is_tried() -> None:
    class Endless:
        note = ""
        runs = 0

        async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
            del snippets, stdin
            self.runs += 1
            return [SnippetResult(output="", error="TimeoutError", timed_out=True)]

    runner = Endless()
    assert await count_passed("...", PublicTests(inputs=[InputTest("", "")] * 5), runner) == 0
    assert runner.runs == 1


ASKED = (
    "Sample input:\n1\n\nSample output:\n2\n\n>>> f(2)\n4\n"
    ">>> f()\nTraceback (most recent call last):\nTypeError: no\nassert f(1)"
)
ODD = "x = 1if 2else 3\ny = '\\q' is ()"


async def test_a_worker_reads_what_is_read_here() -> None:
    assert await find_tests(ASKED) == read_tests(ASKED)
    assert await find_program(f"```\n{PROGRAM}```") == PROGRAM
    assert await find_program("Nothing.") is None
    assert (
        await find_program(f"<think>```py\n{PROGRAM * 2}```</think>```py\n{PROGRAM}```") == PROGRAM
    )


async def test_odd_literals_of_models_and_clients_give_no_warnings_here() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert await find_program(f"```\n{ODD}\n```") == f"{ODD}\n"
        assert await find_tests("assert 1if 2else 3\n>>> '\\q'\n")
    assert not caught


@pytest.mark.parametrize("text", ["(" * 60_000, "x" + ".y" * 30_000, "-" * 60_000 + "1", "\0"])
async def test_a_text_that_breaks_the_parser_is_no_program(text: str) -> None:
    with suppress(UnusableReply):  # as good: it is said in the report
        assert await find_program(f"```\n{text}\n```") is None


async def test_what_is_too_long_or_takes_too_long_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = " " * (MAX_CHARACTERS + 1)
    with pytest.raises(WorkerFailed):
        await find_tests(long)
    with pytest.raises(UnusableReply):
        await find_program(long)
    monkeypatch.setattr(testing, "LIMITS", replace(testing.LIMITS, seconds=0.001))
    with pytest.raises(WorkerFailed):
        await find_tests("assert f(1) == 2\n" * 60_000)
    with pytest.raises(UnusableReply):
        await find_program(f"```\n[{'[1, 2, 3],' * 6_000}]\n```")
