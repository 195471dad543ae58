"""Tools and earlier calls in the messages of a prompt, in the shape that a chat template wants."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message with reasoning."""

_READS = {name: re.compile(rf"\b{name}\b") for name in _THOUGHTS}
"""What is in the templates that read each of them."""

_ANALYSIS = "<|channel|>analysis"
_PROBE = "probed_argument"
_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {_PROBE: {"type": "string"}}},
    },
}


def wants_text(render: Callable[[Sequence[Message], Sequence[Any]], str]) -> bool:
    """Return True if a template wants the arguments of earlier calls as JSON text.

    `render` writes messages and tools with the template. Most templates want an object; some fail
    with one, or write it as Python does.
    """
    try:
        written = render(_probe([_PROBE], text=False), [_TOOL])
        if f"'{_PROBE}'" not in written:
            return False
    except Exception:  # noqa: S110 (a template may raise anything)
        pass
    try:
        return json.dumps(_PROBE) in render(_probe([_PROBE], text=True), [_TOOL])
    except Exception:
        return False


def wants_one(render: Callable[[Sequence[Message], Sequence[Any]], str], *, text: bool) -> bool:
    """Return True if a template writes one call of a message only, or rejects several.

    `text`: whether it wants arguments as text.
    """
    names = [f"{_PROBE}_{number}" for number in (1, 2)]
    try:
        if names[0] not in render(_probe(names[:1], text=text), [_TOOL]):
            return False
    except Exception:
        return False
    try:
        return names[1] not in render(_probe(names, text=text), [_TOOL])
    except Exception:
        return True


def one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Return `messages` with one call in each, followed by its result."""
    after, done = list(messages), list[Message]()
    while after:
        message = after.pop(0)
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            done.append(message)
            continue
        count = next((i for i, m in enumerate(after) if m["role"] != "tool"), len(after))
        results, after = after[:count], after[count:]
        for number, call in enumerate(calls):
            beside = message if number == 0 else {"role": message["role"], "content": ""}
            done.append({**beside, "tool_calls": [call]})
            known = call.get("id") if isinstance(call, Mapping) else None
            found = [m for m in results if known and m.get("tool_call_id") == known]
            found = found or [m for m in results if not m.get("tool_call_id")][:1]
            done += found
            results = [m for m in results if not any(m is one for one in found)]
        done += results
    return done


def with_text(message: Message) -> Message:
    """Return `message` with the arguments of its calls as JSON text."""
    calls = message.get("tool_calls")
    return (
        {**message, "tool_calls": [_call_with_text(call) for call in calls]} if calls else message
    )


def in_system_message(messages: Sequence[Message], tools: Sequence[Any]) -> list[Message]:
    """Return `messages` with the tools in the system message, where Phi-4-mini's template looks."""
    functions = json.dumps([tool["function"] for tool in tools])
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "tools": functions}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": functions}, *messages]


def with_thoughts(message: Message, template: str) -> Message:
    """Return `message` with its reasoning in the field that `template` reads."""
    found = [message[name] for name in _THOUGHTS if isinstance(message.get(name), str)]
    read = [name for name, pattern in _READS.items() if pattern.search(template)]
    if _ANALYSIS in template and found and message.get("tool_calls") and message.get("content"):
        # GPT-OSS's template rejects a call with both; the text of a call is analysis to it.
        rest = {key: value for key, value in message.items() if key not in _THOUGHTS}
        return {**rest, "content": f"{found[0]}\n\n{message['content']}"}
    if not found or not read or any(name in message for name in read):
        return message
    return {**message, read[0]: found[0]}


def described(tools: Sequence[Any] | None) -> Sequence[Any] | None:
    """Return `tools` with the descriptions and parameters that some templates insist on."""
    if tools is None:
        return None
    return [
        {**tool, "function": _described({"parameters": {"type": "object"}, **tool["function"]})}
        for tool in tools
    ]


def _described(schema: Any) -> Any:
    """Return a function or schema with a description of each, which may be empty."""
    if not isinstance(schema, Mapping):
        return schema
    properties = schema.get("properties", {})
    inner = {name: _described(properties[name]) for name in properties}
    filled = {"description": "", **schema}
    if "properties" in schema or schema.get("type") == "object":
        filled["properties"] = inner
    if "parameters" in schema:
        filled["parameters"] = _described(schema["parameters"])
    return filled


def _probe(names: Sequence[str], *, text: bool) -> list[Message]:
    """Return a conversation with one call for each of `names`, each the name of an argument."""
    calls = [
        {
            "id": f"abcdefgh{number}",
            "type": "function",
            "function": {
                "name": "probe",
                "arguments": json.dumps({name: ""}) if text else {name: ""},
            },
        }
        for number, name in enumerate(names)
    ]
    return [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "", "tool_calls": calls},
    ]


def _call_with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function.get("arguments"))}}
