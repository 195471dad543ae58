"""What OpenAI's and Anthropic's APIs refuse, with the bodies of their errors.

Collected from public reports. Where a provider is lenient in some cases only, the rule is strict.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

Body = Mapping[str, Any]
Error = dict[str, Any]

_REASONING = re.compile(r"^(?:o\d|gpt-5(?!.*chat))")
_WITHOUT_BY_DEFAULT = re.compile(r"^gpt-5\.[124]")
"""Models that take sampling fields as long as no effort is asked for."""

_NOT_FOR_REASONING = (
    "top_p", "presence_penalty", "frequency_penalty", "logprobs", "top_logprobs", "logit_bias",
    "stop",
)  # fmt: skip


def openai_refusal(body: Body) -> Error | None:
    """Return OpenAI's error for a chat request to one of its reasoning models, or None."""
    model = body["model"]
    effort = body.get("reasoning_effort", "none" if _WITHOUT_BY_DEFAULT.match(model) else "medium")
    if not _REASONING.match(model) or effort == "none":
        return None
    return next(_openai_errors(body), None)


def _openai_errors(body: Body) -> Iterator[Error]:
    temperature = body.get("temperature", 1)
    if temperature != 1:
        yield _openai(
            f"Unsupported value: 'temperature' does not support {temperature:g} with this model. "
            "Only the default (1) value is supported.",
            "temperature",
            "unsupported_value",
        )
    for name in _NOT_FOR_REASONING:
        if name in body:
            yield _openai(
                f"Unsupported parameter: '{name}' is not supported with this model.",
                name,
                "unsupported_parameter",
            )
    if "max_tokens" in body:
        yield _openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            "max_tokens",
            "unsupported_parameter",
        )
    for place, message in enumerate(body["messages"]):
        if message.get("content") in (None, []) and not message.get("tool_calls"):
            yield _openai(
                "Invalid value for 'content': expected a string, got null.",
                f"messages.[{place}].content",
                None,
            )


def _openai(message: str, param: str, code: str | None) -> Error:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"error": error}


_FIELDS = frozenset(
    {
        "model", "messages", "max_tokens", "metadata", "stop_sequences", "stream", "system",
        "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p", "output_config",
        "output_format", "service_tier", "container", "context_management", "mcp_servers",
        "cache_control", "inference_geo", "speed",
    }
)  # fmt: skip
_TOOL_NAME = re.compile(r"^[a-zA-Z0-9_-]{1,128}$")
_ADAPTIVE = re.compile(r"(?:opus|sonnet)-4-[6-9]|(?:opus|sonnet|haiku|fable|mythos)-5")
_NO_SAMPLING = re.compile(r"opus-4-[7-9]|(?:sonnet|opus|fable|mythos)-5")
_DOCS = "Please consult our documentation at https://docs.claude.com/en/docs/build-with-claude/"


def anthropic_refusal(body: Body, headers: Mapping[str, str]) -> Error | None:
    """Return Anthropic's error for a request to `/v1/messages`, or None."""
    for message in _anthropic_errors(body, headers):
        error = {"type": "invalid_request_error", "message": message}
        return {"type": "error", "error": error, "request_id": "req_011CTest"}
    return None


def _anthropic_errors(body: Body, headers: Mapping[str, str]) -> Iterator[str]:
    if "x-api-key" not in headers:
        yield "x-api-key header is required"
    if "anthropic-version" not in headers:
        yield "anthropic-version: header is required"
    if type(body.get("max_tokens")) is not int:
        yield "max_tokens: Field required"
    elif body["max_tokens"] < 1:
        yield "max_tokens: Input should be greater than or equal to 1"
    for name in body.keys() - _FIELDS:
        yield f"{name}: Extra inputs are not permitted"
    yield from _sampling_errors(body)
    yield from _thinking_errors(body)
    yield from _tool_errors(body)
    yield from _message_errors(body)


def _sampling_errors(body: Body) -> Iterator[str]:
    temperature, top_p = body.get("temperature"), body.get("top_p")
    if _NO_SAMPLING.search(body["model"]):
        for name in ("temperature", "top_p", "top_k"):
            if body.get(name, 1 if name == "temperature" else None) not in (None, 1):
                yield f"`{name}` is deprecated for this model."
    if temperature is not None and not 0 <= temperature <= 1:
        yield "temperature: Input should be less than or equal to 1"
    if temperature is not None and top_p is not None:
        yield (
            "`temperature` and `top_p` cannot both be specified for this model. Please use only "
            "one."
        )


def _thinking_errors(body: Body) -> Iterator[str]:
    thinking = body.get("thinking") or {"type": "disabled"}
    if thinking["type"] == "disabled":
        return
    docs = f"{_DOCS}extended-thinking#important-considerations-when-using-extended-thinking"
    if body.get("temperature", 1) != 1:
        yield f"`temperature` may only be set to 1 when thinking is enabled. {docs}"
    if body.get("top_p", 1) < 0.95:
        yield (
            "`top_p` must be greater than or equal to 0.95 or unset when thinking is enabled. "
            f"{docs}"
        )
    if "top_k" in body:
        yield f"`top_k` must be unset when thinking is enabled. {docs}"
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
        yield "Thinking may not be enabled when tool_choice forces tool use."
    adaptive = bool(_ADAPTIVE.search(body["model"]))
    if thinking["type"] == "adaptive":
        if not adaptive:
            yield "adaptive thinking is not supported on this model"
        return
    if _NO_SAMPLING.search(body["model"]):
        yield (
            '"thinking.type.enabled" is not supported for this model. Use '
            '"thinking.type.adaptive" and "output_config.effort" to control thinking behavior.'
        )
    if thinking.get("budget_tokens", 0) < 1024:
        yield "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024"
    if thinking.get("budget_tokens", 0) >= body["max_tokens"]:
        yield (
            "`max_tokens` must be greater than `thinking.budget_tokens`. "
            f"{_DOCS}extended-thinking#max-tokens-and-context-window-size"
        )


def _tool_errors(body: Body) -> Iterator[str]:
    for number, tool in enumerate(body.get("tools") or ()):
        if "input_schema" not in tool and "type" not in tool:
            yield f"tools.{number}.custom.input_schema: Field required"
        if not _TOOL_NAME.match(tool.get("name", "")):
            yield (
                f"tools.{number}.custom.name: String should match pattern "
                "'^[a-zA-Z0-9_-]{1,128}$'"
            )


def _message_errors(body: Body) -> Iterator[str]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "messages: at least one message is required"
        return
    system = body.get("system")
    for block in system if isinstance(system, list) else ():
        if not block["text"].strip():
            yield "system: text content blocks must be non-empty"
    if messages[0]["role"] != "user":
        yield 'messages: first message must use the "user" role'
    waiting: set[str] = set()
    for number, message in enumerate(messages):
        blocks = _blocks(message)
        if message["role"] not in ("user", "assistant"):
            yield f'messages: Unexpected role "{message["role"]}".'
        if number and message["role"] == messages[number - 1]["role"]:
            yield (
                'messages: roles must alternate between "user" and "assistant", but found '
                f'multiple "{message["role"]}" roles in a row'
            )
        if not blocks:
            yield f"messages.{number}: all messages must have non-empty content"
        for block in blocks:
            if block.get("type") == "text" and not block["text"].strip():
                yield "messages: text content blocks must contain non-whitespace text"
        results = {b["tool_use_id"] for b in blocks if b.get("type") == "tool_result"}
        if waiting - results:
            yield (
                f"messages.{number - 1}: `tool_use` ids were found without `tool_result` blocks "
                f"immediately after: {', '.join(sorted(waiting - results))}"
            )
        if results - waiting:
            yield (
                f"messages.{number}.content.0: unexpected `tool_use_id` found in `tool_result` "
                f"blocks: {', '.join(sorted(results - waiting))}"
            )
        waiting = {b["id"] for b in blocks if b.get("type") == "tool_use"}
        if (waiting or results) and not body.get("tools"):
            yield "Requests which have `tool_use` blocks in `messages` must define `tools`"
    yield from _last_message_errors(body, messages[-1])


def _last_message_errors(body: Body, last: Body) -> Iterator[str]:
    if last["role"] != "assistant":
        return
    if (body.get("thinking") or {}).get("type", "disabled") != "disabled":
        yield (
            "Your API request included an `assistant` message in the final position, which would "
            "pre-fill the assistant response. When using thinking, pre-filling the assistant "
            "response is not supported."
        )
    if _ADAPTIVE.search(body["model"]):
        yield (
            "This model does not support assistant message prefill. The conversation must end "
            "with a user message."
        )
    texts = [block["text"] for block in _blocks(last) if block.get("type") == "text"]
    if texts and texts[-1] != texts[-1].rstrip():
        yield "messages: final assistant content cannot end with trailing whitespace"


def _blocks(message: Body) -> list[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content or ())
