"""Time limits after which LiteLLM ends a whole request itself, without the best answer so far."""

import asyncio
import importlib
from typing import Final

from litellm import constants

_MARGIN: Final = 0.1
_MAX_MARGIN_S: Final = 2.0
"""Time for the last step and for what LiteLLM does with an answer."""


def in_time_for(limit_s: float) -> float:
    """Return the seconds in which a plan must end to be answered within a limit of the host."""
    return limit_s - min(_MARGIN * limit_s, _MAX_MARGIN_S)


def seconds_left(*, stream: bool) -> float | None:
    """Return the seconds in which a plan must end, so that LiteLLM does not end it."""
    left = constants.LITELLM_MAX_STREAMING_DURATION_SECONDS if stream else _total_timeout()
    return None if left is None else in_time_for(float(left))


def _total_timeout() -> float | None:
    """Return what is left of the request's `total_timeout`, which LiteLLM has from 1.110 on."""
    try:
        module = importlib.import_module("litellm.litellm_core_utils.total_deadline")
    except ModuleNotFoundError:
        return None
    deadline = module.current_total_deadline()
    at = getattr(deadline, "_scope_at", None)
    return None if at is None else max(0.0, at - asyncio.get_running_loop().time())
