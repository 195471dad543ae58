"""Errors of a step or of one row, as the errors that clients get.

Their tracebacks are logged here and not kept: they hold the memory of the failed step.
"""

import logging
from traceback import walk_tb

from optillm_hooks.errors import OptiLLMError, ProviderFailed

_log = logging.getLogger(__name__)

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""Torch raises RuntimeError with these words; only CUDA has an error type of its own."""


def step_failure(error: BaseException) -> OptiLLMError:
    """Return the error for the requests that a failed forward pass cannot serve."""
    return _failure(error, "the model failed", str(error).partition("\n")[0])


def row_failure(error: BaseException) -> OptiLLMError:
    """Return the error for the one request in which `error` was raised.

    Its message is withheld: it may quote the conversation.
    """
    return _failure(error, "the reply failed")


def is_out_of_memory(error: BaseException) -> bool:
    message = str(error).lower()
    return isinstance(error, MemoryError) or any(words in message for words in _OUT_OF_MEMORY)


def _failure(error: BaseException, what: str, detail: str = "") -> OptiLLMError:
    if isinstance(error, OptiLLMError):
        return error
    _log.error("%s: %s at %s", what, type(error).__name__, _where(error))
    if is_out_of_memory(error):
        return ProviderFailed("the engine is out of memory; try later", status=503)
    text = ": ".join(filter(None, (what, type(error).__name__, detail)))
    return ProviderFailed(text, status=500)


def _where(error: BaseException) -> str:
    """Return the frames of an error, innermost last, without messages, which may quote a prompt."""
    frames = walk_tb(error.__traceback__)
    return " > ".join(f"{frame.f_globals.get('__name__')}:{line}" for frame, line in frames)
