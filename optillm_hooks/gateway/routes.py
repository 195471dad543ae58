"""The routes that serve approaches, and the checks of a request's fields on each.

An approach makes chat completions. LiteLLM converts requests of the other routes to them, and drops
what has no equivalent there. Such a field is refused here by name, unless it is harmless.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from litellm.responses.litellm_completion_transformation.reasoning_items import (
    is_minted_reasoning_item_id,
)
from litellm.utils import validate_chat_completion_user_messages

from optillm_hooks.decoding.field import FIELD
from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.convert import is_forwarded, read_sampling
from optillm_hooks.gateway.failures import as_sample_errors
from optillm_hooks.gateway.field_types import check_types
from optillm_hooks.gateway.model_facts import GroupFacts
from optillm_hooks.gateway.prepared import Route
from optillm_hooks.gateway.sampling_rules import check_client
from optillm_hooks.messages import read_chat

ROUTES: Final[Mapping[str, Route]] = {
    "completion": "chat",
    "acompletion": "chat",
    "text_completion": "completions",
    "atext_completion": "completions",
    "anthropic_messages": "messages",
    "responses": "responses",
    "aresponses": "responses",
}
"""By LiteLLM's call type."""

_CONVERTED_TOOLS: Final = frozenset({"custom", "file_search", "function", "namespace"})
"""Tools of the responses route that LiteLLM converts to functions, besides web search."""


_USER_BLOCKS: Final = frozenset({"image", "text", "tool_result"})

_SAME_NAMES: Final[Mapping[Route, tuple[str, ...]]] = {
    "messages": ("temperature", "top_p", "top_k", "service_tier"),
    "responses": ("temperature", "top_p", "prompt_cache_key", "safety_identifier"),
}
"""Fields that LiteLLM passes on as they are when it converts a route to chat completions."""


def check_request(data: Mapping[str, Any], route: Route) -> None:
    """Refuse fields that an approach cannot serve on this route, or whose type is wrong.

    Raises:
        RequestRejected: the message names the field.
    """
    read_sampling(data)
    check_types(data, route)
    _check_routing(data)
    _CHECKS[route](data)


def check_fields_of_base(data: Mapping[str, Any], route: Route, base: GroupFacts) -> None:
    """Refuse fields that the base model does not take.

    The provider refuses them too, but after LiteLLM has begun a stream of messages or responses.

    Raises:
        RequestRejected: an adapter is asked for, and the model is not a local one.
        ProviderFailed: with the refusal of the model's provider.
    """
    if data.get("active_adapter") is not None and not base.supports(FIELD):
        raise RequestRejected(
            "active_adapter: only a local model (optillm-local/...) has adapters",
            param="active_adapter",
        )
    if data.get("stream") is True and route in _SAME_NAMES:
        fields = {name: data[name] for name in _SAME_NAMES[route] if data.get(name) is not None}
        effort = _effort(data)
        with as_sample_errors():
            check_client(
                base.deployments,
                read_sampling({**fields, "reasoning_effort": effort} if effort else fields),
                drop_params=data.get("drop_params") is True,
            )


def _effort(data: Mapping[str, Any]) -> str | None:
    """Return the reasoning effort that a request of messages or responses asks for."""
    reasoning, thinking = data.get("reasoning"), data.get("thinking")
    if isinstance(reasoning, dict):
        return reasoning.get("effort")
    asked = isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")
    return "medium" if asked else None


def refuse_route(model: str) -> RequestRejected:
    """Return the error about a route that does not serve approaches."""
    return RequestRejected(
        f"the model {model!r} has an approach, which only answers on /v1/chat/completions, "
        "/v1/messages, /v1/responses and /v1/completions: call its base model on this route",
        param="model",
    )


def without_nulls(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request without the fields of a completion that are null.

    LiteLLM takes a null for a value in some of them.
    """
    return {k: v for k, v in data.items() if v is not None or not is_forwarded(k)}


def _check_routing(data: Mapping[str, Any]) -> None:
    """Check the fields for LiteLLM itself that apply to the whole request."""
    timeout = data.get("timeout")
    if isinstance(timeout, int | float) and timeout <= 0:
        raise RequestRejected("timeout must be above 0 seconds", param="timeout")
    if data.get("custom_llm_provider") is not None:
        raise RequestRejected(
            "custom_llm_provider would send the request past its approach: remove it",
            param="custom_llm_provider",
        )


def _check_chat(data: Mapping[str, Any]) -> None:
    messages = data.get("messages")
    read_chat(messages)
    try:
        validate_chat_completion_user_messages(messages or [])
    except Exception as exc:  # LiteLLM raises no narrower class
        raise RequestRejected(
            f"messages: a content part has a missing or unknown type ({exc})", param="messages"
        ) from None


def _check_messages(data: Mapping[str, Any]) -> None:
    messages = data.get("messages")
    if not isinstance(messages, list) or not any(
        isinstance(message, dict) and message.get("content") for message in messages
    ):
        raise RequestRejected(
            "messages must be a list with at least one message that has content", param="messages"
        )
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and message.get("role") == "user":
            for place, block in enumerate(content):
                _check_block(block, f"messages[{number}].content[{place}]")


def _check_block(block: object, where: str) -> None:
    """Refuse a block of a user's message that LiteLLM would leave out in silence."""
    kind = block.get("type") if isinstance(block, dict) else None
    source = block.get("source") if isinstance(block, dict) else None
    form = source.get("type") if isinstance(source, dict) else None
    if kind in _USER_BLOCKS or (kind == "document" and form in ("base64", "url")):
        return
    named = f"{kind} of type {form}" if kind == "document" else str(kind)[:80]
    raise RequestRejected(
        f"{where}: a model with an approach takes text, images, PDF files and tool results here, "
        f"and no {named!r}",
        param=where,
    )


def _check_responses(data: Mapping[str, Any]) -> None:
    for field, reason in _NOT_ON_RESPONSES.items():
        if data.get(field) not in (None, False):
            raise RequestRejected(f"{field}: {reason}", param=field)
    _check_input(data.get("input"))
    tools = data.get("tools") or []
    if not isinstance(tools, list):
        raise RequestRejected("tools must be a list", param="tools")
    for number, tool in enumerate(tools):
        _check_tool(tool, f"tools[{number}].type")
        parameters = tool.get("parameters") if isinstance(tool, dict) else None
        if not isinstance(parameters, dict | None):
            raise RequestRejected(
                f"tools[{number}].parameters must be an object", param=f"tools[{number}].parameters"
            )


_NOT_ON_RESPONSES: Final = {
    "previous_response_id": "responses of a model with an approach are not stored; send the whole "
    "conversation in input",
    "conversation": "conversations are not stored for a model with an approach; send the messages "
    "in input",
    "background": "a model with an approach answers while the request is open; remove it",
    "prompt": "stored prompts belong to OpenAI's own API; send the text in instructions and input",
}


def _check_input(given: object) -> None:
    if isinstance(given, list):
        items = [item for item in given if isinstance(item, dict)]
        references = [item for item in items if item.get("type") == "item_reference"]
        if not all(is_minted_reasoning_item_id(item.get("id")) for item in references):
            raise RequestRejected(
                "input: an item_reference points to a stored response, and responses of a model "
                "with an approach are not stored; send the item itself, as clients do with "
                "store: false",
                param="input",
            )
        for number, item in enumerate(given):
            _check_texts(item, f"input[{number}]")
        # Vercel's AI SDK refers to reasoning, which LiteLLM leaves out, as it does for any model.
        given = [item for item in items if item not in references]
    if not given and not isinstance(given, str):
        raise RequestRejected("input must be a string or a list of items", param="input")


_ITEM_TEXTS: Final = ("call_id", "id", "name", "role", "type")


def _check_texts(item: object, where: str) -> None:
    """Refuse an item whose name or kind is not a string, which LiteLLM takes without a check."""
    fields = item if isinstance(item, dict) else {}
    for field in _ITEM_TEXTS:
        if not isinstance(fields.get(field), str | None):
            raise RequestRejected(f"{where}.{field} must be a string", param=f"{where}.{field}")


def _check_tool(tool: object, where: str) -> None:
    kind = tool.get("type") if isinstance(tool, dict) else None
    server = tool.get("server_url") if isinstance(tool, dict) else None
    if (
        kind in _CONVERTED_TOOLS
        or str(kind).startswith("web_search")
        or (kind == "mcp" and str(server).startswith("litellm_proxy"))  # LiteLLM's own gateway
    ):
        return
    raise RequestRejected(
        f"{where}: a tool {str(kind)[:80]!r} runs in OpenAI's own API, which a model with an "
        "approach does not call; use a tool of type 'function'",
        param=where,
    )


def _check_completions(data: Mapping[str, Any]) -> None:
    prompt = data.get("prompt")
    if isinstance(prompt, list) and len(prompt) > 1 and all(isinstance(p, str) for p in prompt):
        raise RequestRejected(
            f"prompt: a model with an approach answers one prompt per request, got {len(prompt)}",
            param="prompt",
        )
    if not isinstance(prompt, str) and not (
        isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str)
    ):
        raise RequestRejected(
            "prompt must be a string: a model with an approach takes no tokens", param="prompt"
        )
    for field, reason in _NOT_ON_COMPLETIONS.items():
        value = data.get(field)
        if value is not None and value is not False and value != "":
            raise RequestRejected(f"{field}: {reason}", param=field)


_NOT_ON_COMPLETIONS: Final = {
    "echo": "an approach answers in a chat, whose prompt is not part of the answer",
    "logprobs": "use /v1/chat/completions, with logprobs: true",
    "messages": "send a prompt, or use /v1/chat/completions",
    "suffix": "an approach answers in a chat, and cannot insert text",
}


_CHECKS: Final[Mapping[Route, Callable[[Mapping[str, Any]], None]]] = {
    "chat": _check_chat,
    "completions": _check_completions,
    "messages": _check_messages,
    "responses": _check_responses,
}
