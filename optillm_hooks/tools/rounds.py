"""Rounds of tool calls that a client does not see, kept for its next request.

A client gets the calls of its own tools only. When it comes back with their results, the model has
to find the rounds before them, which the client's conversation lacks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.types import Chat, Message, ToolCall

_MAX_CHARACTERS: Final = 200_000
"""Longer rounds are not kept."""


def keep(cache: CallerCache, calls: Sequence[ToolCall], rounds: Sequence[Message]) -> None:
    """Keep `rounds`, which end with the message that has the client's `calls`."""
    texts = tuple(json.dumps(asdict(message)) for message in rounds)
    if sum(map(len, texts)) <= _MAX_CHARACTERS:
        for call in calls:
            cache.put(_key(call.id, call.name), texts)


def restored(cache: CallerCache, chat: Chat) -> Chat:
    """Return `chat` with the rounds that were kept for its calls, where they were."""
    messages: list[Message] = []
    for message in chat:
        messages += _kept(cache, message) or [message]
    return tuple(messages)


def _kept(cache: CallerCache, message: Message) -> list[Message]:
    calls = message.fields.get("tool_calls")
    for call in calls if message.role == "assistant" and isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and isinstance(function, dict):
            texts = cache.get(_key(call.get("id"), function.get("name")))
            if texts is not None:
                return [_message(text) for text in texts]
    return []


def _message(text: str) -> Message:
    given = json.loads(text)
    content = given["content"]
    parts = tuple(content) if isinstance(content, list) else content
    return Message(given["role"], parts, given["fields"])


def _key(call_id: object, name: object) -> str:
    return f"tools:{call_id}:{name}"
