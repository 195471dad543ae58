"""The types of a request's fields on each route, for fields that LiteLLM reads without a check.

A field of another type would fail in LiteLLM's own code: as an error of the server, after a stream
has begun, or after calls are paid for.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, NamedTuple

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.prepared import Route


class _Type(NamedTuple):
    allows: Callable[[Any], bool]
    name: str


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _is_time(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


_BOOLEAN: Final = _Type(lambda value: isinstance(value, bool), "true or false")
_STRING: Final = _Type(lambda value: isinstance(value, str), "a string")
_OBJECT: Final = _Type(lambda value: isinstance(value, dict), "an object")
_OBJECTS: Final = _Type(_list_of(dict), "a list of objects")
_STRINGS: Final = _Type(_list_of(str), "a list of strings")
_NAME_OR_OBJECT: Final = _Type(lambda value: isinstance(value, str | dict), "a string or an object")
_TEXT: Final = _Type(
    lambda value: isinstance(value, str) or _OBJECTS.allows(value), "a string or a list of objects"
)
_INPUT: Final = _Type(_TEXT.allows, "a string or a list of items")
_WHOLE: Final = _Type(lambda value: type(value) is int, "a whole number")
_SECONDS: Final = _Type(_is_time, "a number of seconds")

_CHOICE: Final = _Type(
    lambda value: isinstance(value, dict) and value.get("type") in ("auto", "any", "tool", "none"),
    'an object with the type "auto", "any", "tool" or "none"',
)

_EVERYWHERE: Final = {
    "allowed_openai_params": _STRINGS,
    "api_version": _STRING,
    "extra_body": _OBJECT,
    "extra_headers": _OBJECT,
    "litellm_call_id": _STRING,
    "litellm_session_id": _STRING,
    "litellm_trace_id": _STRING,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "tags": _STRINGS,
    "timeout": _SECONDS,
}
_OF_ROUTE: Final[Mapping[Route, Mapping[str, _Type]]] = {
    "chat": {
        "response_format": _OBJECT,
        "thinking": _OBJECT,
        "tools": _OBJECTS,
        "tool_choice": _NAME_OR_OBJECT,
        "web_search_options": _OBJECT,
    },
    "completions": {},
    "messages": {
        "mcp_servers": _OBJECTS,
        "output_config": _OBJECT,
        "output_format": _OBJECT,
        "stop_sequences": _STRINGS,
        "system": _TEXT,
        "thinking": _OBJECT,
        "tools": _OBJECTS,
        "tool_choice": _CHOICE,
    },
    "responses": {
        "include": _STRINGS,
        "input": _INPUT,
        "instructions": _STRING,
        "max_output_tokens": _WHOLE,
        "parallel_tool_calls": _BOOLEAN,
        "reasoning": _OBJECT,
        "store": _BOOLEAN,
        "text": _OBJECT,
        "tools": _OBJECTS,
        "tool_choice": _NAME_OR_OBJECT,
        "top_logprobs": _WHOLE,
        "truncation": _STRING,
        "user": _STRING,
    },
}


def check_types(data: Mapping[str, Any], route: Route) -> None:
    """Refuse a field whose type is wrong; null stands for a field that is left out.

    Raises:
        RequestRejected: the message names the field.
    """
    for name, kind in {**_EVERYWHERE, **_OF_ROUTE[route]}.items():
        if data.get(name) is not None and not kind.allows(data[name]):
            raise RequestRejected(f"{name} must be {kind.name}", param=name)
