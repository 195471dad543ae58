"""Books calls that are cut off, of which LiteLLM books nothing, in LiteLLM's own spend tracking.

A call is cut off if its client disconnects, at a deadline, or because other calls are enough. Its
provider may bill the prompt and what it has written. LiteLLM logs calls that end, with a reply or
an error; one that is cancelled leaves no trace. It is logged here, as LiteLLM itself logs the
stream of a client that disconnects: as a success with the tokens so far. So spend logs, budgets,
counters and metrics all see it.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

from litellm.litellm_core_utils.litellm_logging import Logging
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.litellm_core_utils.token_counter import offload_token_count
from litellm.types.utils import Choices, ModelResponse
from litellm.types.utils import Message as LiteLLMMessage

from optillm_hooks.gateway.caller import metadata_of
from optillm_hooks.gateway.convert import write_usage
from optillm_hooks.gateway.inner_call import InnerCall, inner_call
from optillm_hooks.types import Usage

_UNKNOWN = [
    name
    for name in ("claim_async_success_log", "dispatch_success_handlers")
    if not hasattr(Logging, name)
]
"""What this version's log of a call lacks."""


def problem() -> str | None:
    """Return why calls that are cut off cannot be booked with this version of LiteLLM."""
    if not _UNKNOWN:
        return None
    return (
        f"LiteLLM {version('litellm')} has no {', '.join(_UNKNOWN)}: calls that are cut off are "
        "not billed"
    )


def note_log(kwargs: Mapping[str, Any]) -> None:
    """Note LiteLLM's log of a call that it is about to make, if the call belongs to a plan."""
    call = inner_call(metadata_of(kwargs))
    log = kwargs.get("litellm_logging_obj")
    if call is not None and isinstance(log, Logging) and not _UNKNOWN:
        call.log = log


def book(call: InnerCall, received: Callable[[Any], object]) -> None:
    """Book a call that is cut off now, unless it was not sent yet or LiteLLM books it itself.

    It does not wait: LiteLLM's logging worker does the rest, whatever becomes of the request.

    Args:
        call: the call.
        received: returns the reply as LiteLLM would have got it, given the name of the model; it is
            called in a thread, since counting tokens takes time.
    """
    log = call.log
    if log is None or not _is_owed(log):
        return
    call.payment.owed = True
    GLOBAL_LOGGING_WORKER.ensure_initialized_and_enqueue(_logged(log, received))


def _is_owed(log: Any) -> bool:
    """Return whether the call was sent and LiteLLM has not logged its success; claim the log."""
    details: Mapping[str, Any] = log.model_call_details
    if details.get("first_api_call_start_time") is None:
        return False
    if details.get("has_logged_async_failure") or details.get(
        "has_dispatched_final_stream_success"
    ):
        return False
    return bool(log.claim_async_success_log())


async def _logged(log: Any, received: Callable[[Any], object]) -> None:
    """Log the call as one whose reply was cut off."""
    reply = await offload_token_count(received)(log.model_call_details.get("model"))
    await log.dispatch_success_handlers(
        reply, start_time=None, end_time=None, cache_hit=False, prefer_async_handlers=True
    )


def cut_reply(model: Any, text: str, usage: Usage) -> ModelResponse:
    """Return the reply of a chat model that was cut off after `text`."""
    message = LiteLLMMessage(role="assistant", content=text)
    return ModelResponse(
        model=model,
        choices=[Choices(index=0, finish_reason="length", message=message)],
        usage=write_usage(usage),
    )
