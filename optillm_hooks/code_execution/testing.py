"""Testing: reads the tests of a request and the program in a reply, and runs the one on the other.

Both are read in a worker, and the program runs in one.
"""

import secrets
from typing import Final

from pydantic import TypeAdapter

from optillm_hooks.code_execution import reader
from optillm_hooks.code_execution.public_tests import CallTest, PublicTests
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.errors import UnusableReply
from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker

MAX_CHARACTERS: Final = 1 << 20
"""Maximum length of a request or a reply that is read."""

LIMITS: Final = WorkerLimits(seconds=3.0, memory_mb=1024, reply_bytes=1 << 22)

_TESTS: Final = TypeAdapter(PublicTests)
_PROGRAM: Final = TypeAdapter[str | None](str | None)


async def find_tests(request: str) -> PublicTests:
    """Return the tests in a request's text.

    Raises:
        WorkerFailed: it is too long, or reading it takes too much time or memory.
    """
    if len(request) > MAX_CHARACTERS:
        raise WorkerFailed("memory")
    return _TESTS.validate_python(await ask_worker(reader.__name__, {"tests_in": request}, LIMITS))


async def find_program(reply: str) -> str | None:
    """Return the program in a model's reply, or None if there is none.

    Raises:
        UnusableReply: it is too long, or reading it takes too much time or memory.
    """
    if len(reply) > MAX_CHARACTERS:
        raise UnusableReply("the reply is too long to look for a program")
    try:
        found = await ask_worker(reader.__name__, {"program_in": reply}, LIMITS)
    except WorkerFailed as exc:
        raise UnusableReply("no program could be read from the reply") from exc
    return _PROGRAM.validate_python(found)


async def count_passed(program: str, tests: PublicTests, runner: CodeRunner) -> int:
    """Return the number of `tests` that a program passes; 0 if the program itself fails.

    A snippet that the program leaves by `exit()` has not passed, although that is no error: it
    does not print the mark at its end.
    """
    passed, mark = 0, secrets.token_hex(8)
    if tests.calls:
        ran = await runner.run([program, *(_to_its_end(test, mark) for test in tests.calls)])
        if ran and not ran[0].error:
            passed += sum(
                test.passed(before, result.error)
                for test, result in zip(tests.calls, ran[1:], strict=False)
                for before, found, _ in [result.output.rpartition(mark)]
                if found or test.raises
            )
    for case in tests.inputs:
        ran = await runner.run([program], stdin=case.stdin)
        if not ran or ran[0].timed_out:  # the next input would probably time out too
            break
        passed += case.passed(ran[0].output, ran[0].error)
    return passed


def _to_its_end(test: CallTest, mark: str) -> str:
    return test.snippet if test.raises else f"{test.snippet}\nprint({mark!r})"
