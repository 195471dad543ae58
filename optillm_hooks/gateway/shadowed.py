"""What a client's request leaves for its shadow: a copy of what was sent, in OpenAI's chat form."""

import asyncio
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final, cast

from litellm.llms.anthropic.pass_through.adapters.transformation import AnthropicAdapter
from litellm.responses.litellm_completion_transformation.transformation import (
    LiteLLMCompletionResponsesConfig,
)
from litellm.types.utils import CallTypes

from optillm_hooks.settings import ShadowSettings

_FIELDS: Final = {
    CallTypes.acompletion: "messages temperature top_p stop max_completion_tokens max_tokens "
    "presence_penalty frequency_penalty logit_bias response_format seed tools tool_choice "
    "parallel_tool_calls reasoning_effort",
    CallTypes.anthropic_messages: "messages max_tokens stop_sequences system temperature thinking "
    "tool_choice tools top_p",
    CallTypes.aresponses: "input instructions max_output_tokens parallel_tool_calls reasoning "
    "temperature text tool_choice tools top_p",
}
"""What a shadow gets of a request. Fields of identity, transport and other answers stay behind."""


@dataclass(frozen=True, slots=True)
class Copied:
    """A request as LiteLLM has sent it on: what its guardrails have hidden stays hidden."""

    call_type: CallTypes
    fields: Mapping[str, Any]

    def as_chat(self) -> dict[str, Any]:
        """Return the request as one for chat completions."""
        match self.call_type:
            case CallTypes.anthropic_messages:
                made = AnthropicAdapter().translate_completion_input_params(
                    {**self.fields, "model": "shadow"}
                )
                request: dict[str, Any] = dict(made or {})
            case CallTypes.aresponses:
                asked = {name: value for name, value in self.fields.items() if name != "input"}
                request = (
                    LiteLLMCompletionResponsesConfig
                    .transform_responses_api_request_to_chat_completion_request(
                        "shadow", self.fields["input"], cast(Any, asked)
                    )
                )  # fmt: skip
            case _:
                request = dict(self.fields)
        known = _FIELDS[CallTypes.acompletion].split()
        return {name: request[name] for name in known if request.get(name) is not None}


def copy_of(call_type: CallTypes | None, call: Mapping[str, Any]) -> Copied | None:
    """Return a copy of a call; None if no shadow can be given the same.

    That is one for several answers, one whose conversation the provider keeps, and one of a route
    that makes no chat.
    """
    if call_type is None or call_type not in _FIELDS:
        return None
    if (call.get("n") or 1) != 1 or call.get("previous_response_id") or call.get("no-log"):
        return None
    known = _FIELDS[call_type].split()
    return Copied(call_type, {k: deepcopy(call[k]) for k in known if call.get(k) is not None})


@dataclass(slots=True)
class Shadowed:
    """A request that may have a shadow."""

    task: asyncio.Task[Any] | None = None
    """It sends the answer. Only when it has ended may the shadow begin."""

    is_drawn: bool = False
    """Whether chance has been asked: once for a request, whatever its retries."""

    settings: ShadowSettings | None = None
    """Those of the shadow that the request has; None without one."""

    copied: Copied | None = None
