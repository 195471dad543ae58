"""The worker that searches long texts. It is called through `sandbox.ask_worker`."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from optillm_hooks.privacy.detectors import scan_now
from optillm_hooks.privacy.found import BUILT_IN
from optillm_hooks.privacy.occurrences import occurrences_now
from optillm_hooks.types import Json

_SAMPLE: Final = "My name is Ann, tel. +1 415-555-2671, ann@example.org, 4111 1111 1111 1111."
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "scan": scan_now,
    "occurrences": occurrences_now,
}


def load() -> None:
    """Load the numbering plans and compile the patterns."""
    scan_now([_SAMPLE], BUILT_IN, ["US"])


def answer(request: Mapping[str, Any]) -> Json:
    """Return what the function that `request` names returns. Fields: `function` and `args`."""
    result: Json = _FUNCTIONS[request["function"]](*request["args"])
    return result
