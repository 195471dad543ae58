"""Rounds of tool calls that a client does not see, kept for its next request.

A client gets the calls of its own tools only. When it comes back with their results, the model has
to find the rounds before them, which the client's conversation lacks.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.types import Chat, Message, ToolCall

_MAX_CHARACTERS: Final = 200_000
"""Longer rounds are not kept."""

_SAID: Final = ("user", "tool")
"""Roles of messages that stay the same in all requests of a conversation."""


class Rounds:
    """The hidden rounds of a conversation.

    They are found by a call and by what was said before it. The id of a call alone is not enough:
    some hosts number their calls, so that those of other conversations have the same.

    Args:
        cache: the caller's own.
        chat: the conversation as the client sends it.
    """

    def __init__(self, cache: CallerCache, chat: Chat) -> None:
        self._cache = cache
        self._said = hashlib.sha256()
        messages: list[Message] = []
        for message in chat:
            messages += self._kept(message) or [message]
            if message.role in _SAID:
                text = message.text.encode(errors="replace")
                self._said.update(f"{message.role} {len(text)} ".encode() + text)
        self.restored: Chat = tuple(messages)
        """The conversation with the rounds that were kept for its calls, where they were."""

    def keep(self, calls: Sequence[ToolCall], rounds: Sequence[Message]) -> None:
        """Keep `rounds`, which end with the message that has the client's `calls`."""
        texts = tuple(json.dumps(asdict(message)) for message in rounds)
        if sum(map(len, texts)) <= _MAX_CHARACTERS:
            for call in calls:
                self._cache.put(self._key(call.id, call.name), texts)

    def _kept(self, message: Message) -> list[Message]:
        calls = message.fields.get("tool_calls")
        for call in calls if message.role == "assistant" and isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(call, dict) and isinstance(function, dict):
                texts = self._cache.get(self._key(call.get("id"), function.get("name")))
                if texts is not None:
                    return [_message(text) for text in texts]
        return []

    def _key(self, call_id: object, name: object) -> str:
        return f"tools:{self._said.hexdigest()}:{call_id}:{name}"


def _message(text: str) -> Message:
    given = json.loads(text)
    content = given["content"]
    parts = tuple(content) if isinstance(content, list) else content
    return Message(given["role"], parts, given["fields"])
