"""Rounds of tool calls that a client does not see, kept for its next request.

A client gets the calls of its own tools only. When it comes back with their results, the model has
to find the rounds before them, which the client's conversation lacks.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

from optillm_hooks.context import Context
from optillm_hooks.types import Chat, Message, ToolCall

_MAX_CHARACTERS: Final = 200_000
"""Longer rounds are not kept."""

_SAID: Final = ("user", "tool")
"""Roles of messages that stay the same in all requests of a conversation."""


class Rounds:
    """The hidden rounds of a conversation.

    They are found by a call and by what the client said before it. The id of a call alone is not
    enough: some hosts number their calls, so that those of other conversations have the same. What
    stages make of the conversation changes from request to request, and is not looked at.

    Args:
        chat: the conversation as the stage has it.
    """

    def __init__(self, chat: Chat, ctx: Context) -> None:
        self._cache = ctx.caller_cache
        said, self._before = hashlib.sha256(), defaultdict[tuple[object, object], list[str]](list)
        for message in ctx.asked:
            for call in _calls(message):
                self._before[call].append(said.hexdigest())
            if message.role in _SAID:
                text = message.text.encode(errors="replace")
                said.update(f"{message.role} {len(text)} ".encode() + text)
        self._said = said.hexdigest()
        restored = [self._kept(message) or [message] for message in reversed(chat)]
        self.restored: Chat = tuple(each for messages in reversed(restored) for each in messages)
        """The conversation with the rounds that were kept for its calls, where they were."""

    def keep(self, calls: Sequence[ToolCall], rounds: Sequence[Message]) -> None:
        """Keep `rounds`, which end with the message that has the client's `calls`."""
        texts = tuple(json.dumps(asdict(message)) for message in rounds)
        if sum(map(len, texts)) <= _MAX_CHARACTERS:
            for call in calls:
                self._cache.put(_key(self._said, call.id, call.name), texts)

    def _kept(self, message: Message) -> list[Message]:
        """Return the rounds of a message; the later ones of equal calls are asked for first."""
        kept: list[Message] = []
        for call in _calls(message):
            before = self._before[call]
            texts = self._cache.get(_key(before.pop(), *call)) if before else None
            kept = kept or [_message(text) for text in texts or ()]
        return kept


def _calls(message: Message) -> Iterator[tuple[object, object]]:
    """Yield the id and the name of each call in a message of the assistant."""
    calls = message.fields.get("tool_calls")
    for call in calls if message.role == "assistant" and isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and isinstance(function, dict):
            yield call.get("id"), function.get("name")


def _key(said: str, call_id: object, name: object) -> str:
    return f"tools:{said}:{call_id}:{name}"


def _message(text: str) -> Message:
    given = json.loads(text)
    content = given["content"]
    parts = tuple(content) if isinstance(content, list) else content
    return Message(given["role"], parts, given["fields"])
