"""The worker that reads tests and programs. It is called through `sandbox.ask_worker`.

To find a program, a text is parsed as Python. The parser takes its time over odd texts, and prints
warnings about them.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.code_execution.public_tests import read_program, read_tests
from optillm_hooks.code_execution.stepping import NotStepped, step
from optillm_hooks.code_execution.wishes import read_programs
from optillm_hooks.types import Json


def load() -> None:
    """Do nothing: all that this worker needs is imported with it."""


def answer(request: Mapping[str, Any]) -> Json:
    """Return what is looked for.

    That is the tests in `tests_in` or the programs to run in `programs_in`, a request's text, or
    the program in `program_in`, a reply. Of a program in `steps_of`, it is the rewritten one, or
    what is wrong with it.
    """
    if "tests_in" in request:
        return asdict(read_tests(request["tests_in"]))
    if "steps_of" in request:
        try:
            source, statements = step(request["steps_of"])
            return [source, [list(each) for each in statements]]
        except NotStepped as exc:
            return str(exc)
    if "programs_in" in request:
        return list(read_programs(request["programs_in"]))
    return read_program(without_reasoning(request["program_in"]))
