"""The worker that reads long texts. It is called through `sandbox.ask_worker`."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final

from optillm_hooks.types import Json

PACKAGE: Final = "optillm_hooks.answers."
"""Where the functions are that the worker may call."""

_SAMPLE: Final = "**Question 1.** First, $x^2 = 4$, so \\boxed{2}.\n\nANSWER: 2\nRATING: 7\nBEST: 1"
"""A text that makes the readers compile their patterns, so that no worker has to."""


def load() -> None:
    """Import the readers and compile their patterns."""
    from optillm_hooks.answers.extraction import extract_answer
    from optillm_hooks.answers.verdicts import read_choice, read_rating
    from optillm_hooks.answers.voting import majority

    extract_answer(_SAMPLE, question="What is $x$?")
    extract_answer("The train leaves at 5:30 pm.", question="When does the train leave?")
    read_rating(_SAMPLE)
    read_choice(_SAMPLE, 2)
    majority(["\\frac{1}{2}", "0.5", "half past two", "3 km", "(1, 2)"])


def answer(request: Mapping[str, Any]) -> Json:
    """Return what a function of `PACKAGE` returns for the arguments in `request`.

    Fields of the request: `module`, `function`, `args` and `kwargs`.
    """
    if not request["module"].startswith(PACKAGE):
        raise PermissionError(request["module"])
    function: Callable[..., Json] = getattr(import_module(request["module"]), request["function"])
    return function(*request["args"], **request["kwargs"])
