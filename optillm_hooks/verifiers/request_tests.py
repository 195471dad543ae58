"""Verifies a program by the tests in the request: it passes if all pass."""

from dataclasses import dataclass
from typing import Final

from optillm_hooks.code_execution.public_tests import PublicTests
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.code_execution.testing import count_passed, find_program, find_tests
from optillm_hooks.errors import UnusableReply
from optillm_hooks.prompts import question
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.services import Services
from optillm_hooks.verifiers.protocol import Asked, Check, Verdict

NO_PROGRAM: Final = Verdict("fail", 0.0)


@dataclass(frozen=True, slots=True)
class _TestsCheck(Check):
    tests: PublicTests
    runner: CodeRunner
    proves: bool = True

    async def verify(self, answer: str) -> Verdict:
        program = await find_program(answer)
        if program is None:
            return NO_PROGRAM
        passed = await count_passed(program, self.tests, self.runner)
        share = passed / len(self.tests)
        return Verdict("pass" if share == 1 else "fail", share, proven=share == 1)


class RequestTests:
    """The verifier `tests`."""

    automatic = True

    def missing(self, services: Services) -> str:
        return "" if services.code_runner else "the operator has to set code_runner"

    async def check_for(self, asked: Asked) -> Check | None:
        runner = asked.ctx.services.code_runner
        if runner is None:
            return None
        try:
            tests = await find_tests(question(asked.chat))
        except WorkerFailed as exc:
            raise UnusableReply("the request's tests could not be read") from exc
        return _TestsCheck(tests, runner) if len(tests) else None
