"""Converts OpenAI's and LiteLLM's objects to our types and back. No other module sees both."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, NamedTuple, cast, get_args

from litellm.constants import (
    DEFAULT_CHAT_COMPLETION_PARAM_VALUES,
    OPENAI_CHAT_COMPLETION_PARAMS,
)
from litellm.types.utils import (
    ChatCompletionTokenLogprob,
    ChoiceLogprobs,
    Choices,
    CompletionTokensDetailsWrapper,
    ModelResponse,
    ModelResponseStream,
    PromptTokensDetailsWrapper,
    StreamingChoices,
    TopLogprob,
    all_litellm_params,
)
from litellm.types.utils import Delta as LiteLLMDelta
from litellm.types.utils import Message as LiteLLMMessage
from litellm.types.utils import Usage as LiteLLMUsage

from optillm_hooks.answers.deltas import other_fields
from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.gateway.call_fields import check_call_fields, counts_choices, limits_length
from optillm_hooks.types import (
    Answer,
    Completion,
    Delta,
    Fields,
    FinishReason,
    Json,
    Sampling,
    TokenLogprob,
    ToolCall,
    Usage,
)

_FINISH_REASONS = frozenset(get_args(FinishReason))

_TEXT_FIELDS = ("content", "reasoning_content", "reasoning")
_ANSWER_FIELDS = frozenset({"role", "content", "tool_calls", "function_call", "reasoning_content"})
"""Fields of a reply's message that have their own attribute in `Answer`."""

_TOKEN_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""OpenAI's and Anthropic's names of the token limit, which hold before those of other providers."""

_SAMPLING_FIELDS = frozenset({"temperature", "top_p", "stop", "seed", *_TOKEN_LIMITS})
"""Request fields that have their own attribute in `Sampling`."""

_REQUEST_FIELDS = frozenset(
    {
        "model", "messages", "n", "stream", "stream_options", "metadata", "drop_params",
        "additional_drop_params",
    }
)  # fmt: skip
"""Fields that apply to the client's request as a whole."""

_ROUTER_ARGUMENTS = frozenset(
    {
        "content_policy_fallbacks", "context_window_fallbacks", "disable_fallbacks",
        "include_fallback_errors", "litellm_params", "model_group_retry_policy", "model_id",
        "original_function", "original_generic_function", "priority", "routing_strategy_args",
        "specific_deployment", "standard_callback_dynamic_params", "standard_logging_object",
    }
)  # fmt: skip
"""Arguments of the router that are in none of LiteLLM's lists."""

_LITELLM_FIELDS = (
    _ROUTER_ARGUMENTS
    | _REQUEST_FIELDS
    | _SAMPLING_FIELDS
    | frozenset(all_litellm_params)
    | frozenset(OPENAI_CHAT_COMPLETION_PARAMS)
    | frozenset(DEFAULT_CHAT_COMPLETION_PARAM_VALUES)
)
_COMPLETION_FIELDS = (
    frozenset(DEFAULT_CHAT_COMPLETION_PARAM_VALUES)
    - frozenset(all_litellm_params)
    - _REQUEST_FIELDS
    - _SAMPLING_FIELDS
)
"""OpenAI's fields of a single completion, according to LiteLLM's list."""

_MOST = 2**40
"""No call has as many tokens, or costs as many dollars."""

_PRIVATE_PREFIXES = ("_", "litellm_", "mock_")
"""Prefixes of LiteLLM's other private names."""


def is_forwarded(field: str) -> bool:
    """Return whether a field of the client's request is sent with the inner calls.

    These are OpenAI's fields of a single completion, and fields that LiteLLM does not know and
    passes on to the provider. All others would tell the router how and where to make the call.
    """
    return field in _COMPLETION_FIELDS or not (
        field in _LITELLM_FIELDS
        or field.startswith(_PRIVATE_PREFIXES)
        or limits_length(field)
        or counts_choices(field)
    )


class _Check(NamedTuple):
    allows: Callable[[Any], bool]
    wanted: str


_NUMBER = _Check(lambda value: type(value) in (int, float) and isfinite(value), "a number")
_WHOLE = _Check(lambda value: type(value) is int, "a whole number")
_SAMPLING_CHECKS: Mapping[str, _Check] = {
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "seed": _WHOLE,
    "stop": _Check(
        lambda value: (
            isinstance(value, str)
            or (isinstance(value, list | tuple) and all(isinstance(stop, str) for stop in value))
        ),
        "a string or a list of strings",
    ),
}


def read_sampling(params: Mapping[str, Any]) -> Sampling:
    """Return the sampling fields of a request, including those that only its provider knows.

    Raises:
        RequestRejected: a field that we read ourselves has the wrong type.
    """
    check_call_fields({k: v for k, v in params.items() if is_forwarded(k) or counts_choices(k)})
    params = _unnested(params)
    names = [*_TOKEN_LIMITS, *(k for k in params if limits_length(k) and k not in _TOKEN_LIMITS)]
    given = {name: params[name] for name in names if params.get(name) is not None}
    for name, check in {**_SAMPLING_CHECKS, **dict.fromkeys(given, _WHOLE)}.items():
        if params.get(name) is not None and not check.allows(params[name]):
            raise RequestRejected(f"{name} must be {check.wanted}", param=name)
    stop = params.get("stop")
    limit = next(iter(given.values()), None)
    # Local servers take -1 for no limit; others refuse it, as they do in a plain call.
    unlimited = limit is not None and limit <= 0
    return Sampling(
        temperature=params.get("temperature"),
        top_p=params.get("top_p"),
        max_tokens=None if unlimited else limit,
        stop=None if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        seed=params.get("seed"),
        fields={
            **{k: v for k, v in params.items() if is_forwarded(k) and v is not None},
            **(given if unlimited else {}),
        },
    )


def _unnested(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `params` without fields in `extra_body` that would override a call's own.

    Those of sampling apply like the request's, if it has none of that name itself.
    """
    nested = params.get("extra_body")
    if not isinstance(nested, dict):
        return params
    moved = {k: v for k, v in nested.items() if k in _SAMPLING_FIELDS or limits_length(k)}
    taken = {*moved, *_REQUEST_FIELDS, *filter(counts_choices, nested)}
    rest = {k: v for k, v in nested.items() if k not in taken}
    given = {k: v for k, v in params.items() if v is not None}
    return {**moved, **given, "extra_body": rest or None}


def write_sampling(sampling: Sampling) -> dict[str, Any]:
    """Return the request fields of one call.

    The token limit is sent as `max_tokens`: LiteLLM renames it for models that accept only
    `max_completion_tokens`. It replaces the client's "no limit". A field that would tell LiteLLM
    how and where to make the call is left out, whoever has set it.
    """
    given = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop) if sampling.stop else None,
        "seed": sampling.seed,
    }
    fields = {
        k: v
        for k, v in sampling.fields.items()
        if is_forwarded(k) or (limits_length(k) and sampling.max_tokens is None)
    }
    return {**fields, **{k: v for k, v in given.items() if v is not None}}


def read_completions(response: ModelResponse, cost_usd: float) -> list[Completion]:
    """Return the choices of a reply; the first carries the usage of all."""
    usage = read_usage(getattr(response, "usage", None), cost_usd)
    first, *others = [
        _read_choice(cast(Choices, choice), usage if number == 0 else Usage())
        for number, choice in enumerate(response.choices)
    ]
    return [replace(first, facts=_read_facts(response)), *others]


def _read_choice(choice: Choices, usage: Usage) -> Completion:
    message = _of_known_types(choice.message.model_dump(exclude_none=True))
    return Completion(
        message.get("content") or "",
        read_finish_reason(choice.finish_reason),
        message.get("reasoning_content") or message.get("reasoning") or "",  # Groq's is `reasoning`
        _read_tool_calls(message),
        _read_logprobs(getattr(choice, "logprobs", None)),
        _other_fields(message),
        getattr(choice, "provider_specific_fields", None) or {},
        usage=usage,
    )


def _of_known_types(message: dict[str, Any]) -> dict[str, Any]:
    """Return `message`, with `?` for halves of surrogate pairs, which cannot be sent.

    LiteLLM passes on most fields of a reply as they come.

    Raises:
        ProviderFailed: a field that is read here is not of its type.
    """
    texts = {name: message[name] for name in _TEXT_FIELDS if name in message}
    malformed = [name for name, text in texts.items() if not isinstance(text, str)]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        malformed.append("tool_calls")
    if not isinstance(message.get("function_call") or {}, dict):
        malformed.append("function_call")
    if malformed:
        raise ProviderFailed(f"the provider's reply is malformed: {', '.join(malformed)}")
    return message | {name: text.encode(errors="replace").decode() for name, text in texts.items()}


def _read_tool_calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    old = message.get("function_call")
    if old:
        return (ToolCall("", old.get("name") or "", old.get("arguments") or "", "function_call"),)
    return tuple(map(_read_tool_call, message.get("tool_calls") or ()))


def _read_tool_call(call: Mapping[str, Any]) -> ToolCall:
    call_id, others = call.get("id") or "", other_fields(call)
    custom = call.get("custom")
    if custom:
        return ToolCall(call_id, custom["name"], custom.get("input") or "", "custom", others)
    function = call.get("function") or {}
    name, arguments = function.get("name") or "", function.get("arguments") or ""
    return ToolCall(call_id, name, arguments, fields=others)


def _other_fields(message: Mapping[str, Any]) -> Fields:
    """Return the fields of a reply that are not empty and have no attribute in `Answer`."""
    return {
        key: value
        for key, value in message.items()
        if key not in _ANSWER_FIELDS
        and (any(v is not None for v in value.values()) if isinstance(value, dict) else value)
    }


def read_delta(chunk: ModelResponseStream, cost_usd: float) -> Delta:
    """Return a streamed chunk of a single choice as a delta, its usage priced at `cost_usd`."""
    usage = getattr(chunk, "usage", None)
    read = None if usage is None else read_usage(usage, cost_usd)
    facts = _read_facts(chunk)
    if not chunk.choices:
        return Delta(usage=read, facts=facts)
    choice = chunk.choices[0]
    delta = _of_known_types(choice.delta.model_dump(exclude_none=True))
    reason = choice.finish_reason
    return Delta(
        text=delta.get("content") or "",
        reasoning=delta.get("reasoning_content") or "",
        tool_calls=_read_tool_parts(delta),
        logprobs=_read_logprobs(getattr(choice, "logprobs", None)),
        fields=_other_fields(delta),
        finish_reason=None if reason is None else read_finish_reason(reason),
        usage=read,
        facts=facts,
    )


def _read_tool_parts(delta: Mapping[str, Any]) -> tuple[Fields, ...]:
    old = delta.get("function_call")
    if old:
        return ({"index": 0, "type": "function_call", "function": old},)
    return tuple(delta.get("tool_calls") or ())


def _read_facts(response: object) -> Fields:
    """Return a local model's facts about how it decoded a reply."""
    facts = getattr(response, "optillm_decoding", None)
    return facts if isinstance(facts, dict) else {}


def read_finish_reason(reason: str | None) -> FinishReason:
    """Return the finish reason; an unknown one becomes `stop`."""
    return cast(FinishReason, reason) if reason in _FINISH_REASONS else "stop"


def read_usage(usage: Any, cost_usd: float) -> Usage:
    """Return the usage of one call; counts that the provider does not report are 0.

    None of it counts if a number is negative or absurd: then a limit reckons as if none came.
    """
    completion = getattr(usage, "completion_tokens_details", None)
    prompt = getattr(usage, "prompt_tokens_details", None)
    counts = [
        getattr(of, name, None) or 0
        for of, name in (
            (usage, "prompt_tokens"),
            (usage, "completion_tokens"),
            (completion, "reasoning_tokens"),
            (prompt, "cached_tokens"),
        )
    ]
    whole = all(isinstance(count, int) for count in counts)
    if not (whole and all(map(is_amount, (cost_usd, *counts)))):
        return Usage(calls=1)
    read, written, reasoned, cached = counts
    return Usage(
        calls=1,
        prompt_tokens=read,
        completion_tokens=written,
        reasoning_tokens=reasoned,
        cached_tokens=cached,
        cost_usd=float(cost_usd),
    )


def is_amount(value: object) -> bool:
    """Return whether `value` can be the price or the tokens of a call: not negative or absurd."""
    return type(value) in (int, float) and 0 <= cast(float, value) < _MOST


def _read_logprobs(logprobs: Any) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            token.token,
            token.logprob,
            tuple((top.token, top.logprob) for top in token.top_logprobs or ()),
        )
        for token in getattr(logprobs, "content", None) or ()
    )


def write_usage(usage: Usage) -> LiteLLMUsage:
    return LiteLLMUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=PromptTokensDetailsWrapper(cached_tokens=usage.cached_tokens),
        completion_tokens_details=CompletionTokensDetailsWrapper(
            reasoning_tokens=usage.reasoning_tokens
        ),
    )


def write_response(
    response: ModelResponse, answers: Sequence[Answer], usage: Usage, model: str
) -> ModelResponse:
    """Return LiteLLM's `response`, filled with one choice per answer and with `usage`."""
    response.choices = [
        Choices(
            index=index,
            finish_reason=answer.finish_reason,
            message=write_message(answer),
            logprobs=_write_logprobs(answer.logprobs),
            provider_specific_fields=dict(answer.choice_fields) or None,
        )
        for index, answer in enumerate(answers)
    ]
    response.created = int(time.time())
    response.model = model
    response.usage = write_usage(usage)
    return response


def write_message(answer: Answer) -> LiteLLMMessage:
    """Return an answer as a message of OpenAI's."""
    old = [call for call in answer.tool_calls if call.type == "function_call"]
    # Beside other content, an empty text would become an empty block of Anthropic's.
    nothing = None if answer.tool_calls or answer.fields or answer.reasoning else ""
    return LiteLLMMessage(
        role="assistant",
        content=answer.text or nothing,
        tool_calls=[_write_tool_call(call) for call in answer.tool_calls if call not in old]
        or None,
        function_call=_write_function(old[0]) if old else None,
        reasoning_content=answer.reasoning or None,
        **dict(answer.fields),
    )


def _write_tool_call(call: ToolCall) -> dict[str, Any]:
    if call.type == "custom":
        custom = {"name": call.name, "input": call.arguments}
        return {**call.fields, "id": call.id, "type": "custom", "custom": custom}
    return {**call.fields, "id": call.id, "type": "function", "function": _write_function(call)}


def _write_function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


def _write_logprobs(logprobs: Sequence[TokenLogprob]) -> ChoiceLogprobs | None:
    if not logprobs:
        return None
    return ChoiceLogprobs(
        content=[
            ChatCompletionTokenLogprob(
                token=token.token,
                logprob=token.logprob,
                bytes=list(token.token.encode()),
                top_logprobs=[
                    TopLogprob(token=top, logprob=value, bytes=list(top.encode()))
                    for top, value in token.top
                ],
            )
            for token in logprobs
        ]
    )


def write_chunk(
    pieces: Mapping[int, Delta], *, stream_id: str, model: str, role: bool = False
) -> ModelResponseStream:
    """Return one streamed chunk with the delta of each choice in `pieces`."""
    return ModelResponseStream(
        id=stream_id,
        model=model,
        choices=[_write_choice(index, piece, role) for index, piece in sorted(pieces.items())],
    )


def _write_choice(index: int, piece: Delta, role: bool) -> StreamingChoices:
    given: dict[str, Json] = dict(piece.fields)
    old = [part for part in piece.tool_calls if part.get("type") == "function_call"]
    if piece.reasoning:
        given["reasoning_content"] = piece.reasoning
    return StreamingChoices(
        index=index,
        finish_reason=piece.finish_reason,
        delta=LiteLLMDelta(
            content=piece.text or None,
            role="assistant" if role else None,
            tool_calls=[dict(part) for part in piece.tool_calls if part not in old] or None,
            function_call=old[0]["function"] if old else None,
            **given,
        ),
        logprobs=_write_logprobs(piece.logprobs),
    )
