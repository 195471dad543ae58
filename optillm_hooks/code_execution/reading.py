"""Finds the programs in a request, and prepares programs to be stepped, in a worker process."""

from typing import Final

from pydantic import TypeAdapter

from optillm_hooks.code_execution import reader
from optillm_hooks.code_execution.stepping import NotStepped, Stepped
from optillm_hooks.code_execution.testing import LIMITS, MAX_CHARACTERS
from optillm_hooks.sandbox.client import WorkerFailed, ask_worker

_PROGRAMS: Final = TypeAdapter(list[str])
_STEPPED: Final = TypeAdapter[Stepped | str](Stepped | str)


async def programs_to_run(request: str) -> list[str]:
    """Return the Python code blocks in a request's text that asks for them to be run, in order.

    Raises:
        WorkerFailed: it is too long, or reading it takes too much time or memory.
    """
    if not any(fence in request for fence in ("```", "~~~")):
        return []
    if len(request) > MAX_CHARACTERS:
        raise WorkerFailed("memory")
    found = await ask_worker(reader.__name__, {"programs_in": request}, LIMITS)
    return _PROGRAMS.validate_python(found)


async def stepped_program(program: str) -> Stepped:
    """Return `program` with the means to leave statements to a model.

    Raises:
        NotStepped: it is not Python, or too long; the message is for the model.
    """
    try:
        found = await ask_worker(reader.__name__, {"steps_of": program}, LIMITS)
    except WorkerFailed as exc:
        raise NotStepped("the program is too large to be read") from exc
    stepped = _STEPPED.validate_python(found)
    if isinstance(stepped, str):
        raise NotStepped(stepped)
    return stepped
