"""Takes a long conversation apart: what has to stay as it is, and what is read in its place."""

import asyncio
import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from optillm_hooks.long_context.question import Asked, find_question, is_short
from optillm_hooks.long_context.window import Window
from optillm_hooks.types import Chat, Fields, Json, Message, Sampling

SYSTEM_ROLES: Final = ("system", "developer")
_TEXT_FILE: Final = "data:text/"
_QUESTION: Final = 8
_LAST_TURN: Final = 3
_RECENT: Final = 4
_IMAGES: Final = 4
"""Parts of a prompt, as divisors, that may be taken by the question, by the whole turn that asks
it, by the latest turns before that, and by earlier images."""

_MAX_PARTS: Final = 16
"""Maximum images and files of earlier turns that are kept."""

_MAX_FILE: Final = 1 << 26
"""Maximum characters of a file in a message. Others are not read."""

_SHORTENED: Final = "(Too long to show here. The notes in the user's message are about this too.)"


@dataclass(frozen=True, slots=True)
class LongConversation:
    """A conversation in parts. `answered_from` puts them together with other material."""

    system: Chat
    material: str
    """What is too long to show: earlier messages, documents, results of tools."""

    recent: Chat
    """The latest whole turns before the question, as they are."""

    asked: Asked
    """The question, for who reads the material."""

    shown: Asked
    """What stays of the turn that asks it: all of its text if there is room."""

    turn: Message
    """The turn of the user that asks the question."""

    parts: tuple[Fields, ...]
    """Its images and files, and those of the earlier turns."""

    after: Chat
    """What follows the question: calls of tools and their results."""

    lost_parts: int = 0
    """Images and files for which there is no room."""

    def answered_from(self, shown: str) -> Chat:
        """Return the conversation with `shown` in place of its material."""
        texts = (self.shown.opening, shown, self.shown.ending)
        text = "\n\n".join(filter(None, texts))
        content = (*self.parts, {"type": "text", "text": text}) if self.parts else text
        return (*self.system, *self.recent, replace(self.turn, content=content), *self.after)


def with_files_as_text(chat: Chat) -> Chat:
    """Return `chat` with its text files as text. Messages without any are the same objects."""
    return tuple(
        replace(message, content=tuple(map(_as_part, message.content)))
        if isinstance(message.content, tuple) and any(map(_is_file, message.content))
        else message
        for message in chat
    )


async def tokens_of(chat: Chat, sampling: Sampling, window: Window) -> int:
    """Return the prompt tokens of a conversation, counted message by message.

    A long conversation does not hold the event loop: each message is counted once.
    """
    for number, message in enumerate(chat):
        window.llm.facts.count_tokens((message,), Sampling())
        if number % 8 == 7:
            await asyncio.sleep(0)
    return window.llm.facts.count_tokens(chat, sampling)


def take_apart(chat: Chat, window: Window) -> LongConversation | None:
    """Return `chat` in parts for a window, or None if it has no turn of the user."""
    system = tuple(m for m in chat if m.role in SYSTEM_ROLES)
    body = tuple(m for m in chat if m.role not in SYSTEM_ROLES)
    at = next((i for i in range(len(body) - 1, -1, -1) if body[i].role == "user"), None)
    if at is None:
        return None
    room, turn = window.prompt, body[at]
    text, parts = _read(turn)
    asked = stays = find_question(text, window.count, room // _QUESTION)
    if asked.document and body[:at] and is_short(text, window.count, room // _LAST_TURN):
        stays = Asked("", "", text)
    before, recent = _split_recent(body[:at], window, room // _RECENT)
    after, results = _shorten_results(body[at + 1 :], window, room // 2)
    earlier = [part for message in before for part in _read(message)[1]]
    carried = _latest(earlier, window, room // _IMAGES)
    material = [*map(as_text, before), stays.document, *results]
    return LongConversation(
        system=system,
        material="\n\n".join(filter(None, material)),
        recent=recent,
        asked=asked,
        shown=stays,
        turn=turn,
        parts=(*carried, *parts),
        after=after,
        lost_parts=len(earlier) - len(carried),
    )


def _tokens(messages: Chat, window: Window) -> int:
    return window.llm.facts.count_tokens(messages, Sampling())


def _split_recent(before: Chat, window: Window, room: int) -> tuple[Chat, Chat]:
    """Return the messages before the latest whole turns that fit into `room`, and those turns."""
    start, tokens = len(before), 0
    for at in range(len(before) - 1, -1, -1):
        tokens += _tokens(before[at : at + 1], window)
        if tokens > room:
            break
        if before[at].role == "user":
            start = at
    return before[:start], before[start:]


def _shorten_results(after: Chat, window: Window, room: int) -> tuple[Chat, list[str]]:
    """Return `after` without the oldest texts that do not fit into `room`, and those texts."""
    kept, taken = list(after), list[str]()
    tokens = _tokens(after, window)
    for at, message in enumerate(after):
        if tokens <= room:
            break
        text, parts = _read(message)
        if len(text) <= len(_SHORTENED):
            continue
        taken.append(as_text(message))
        content = (*parts, {"type": "text", "text": _SHORTENED}) if parts else _SHORTENED
        kept[at] = replace(message, content=content)
        tokens += _tokens((kept[at],), window) - _tokens((message,), window)
    return tuple(kept), taken


def _latest(parts: Sequence[Fields], window: Window, room: int) -> tuple[Fields, ...]:
    """Return the last of `parts` that fit into `room` together."""
    for first in range(max(0, len(parts) - _MAX_PARTS), len(parts)):
        kept = tuple(parts[first:])
        if _tokens((Message("user", kept),), window) <= room:
            return kept
    return ()


def _read(message: Message) -> tuple[str, tuple[Fields, ...]]:
    """Return the text of a message and its other parts."""
    content = message.content if isinstance(message.content, tuple) else ()
    return message.text, tuple(part for part in content if part.get("type") != "text")


def _is_file(part: Fields) -> bool:
    return part.get("type") == "file"


def _as_part(part: Fields) -> Fields:
    """Return a content part, a file with text as its text."""
    file = part.get("file")
    data = file.get("file_data") if _is_file(part) and isinstance(file, dict) else None
    if not isinstance(data, str) or len(data) > _MAX_FILE:
        return part
    head, comma, encoded = data.partition(",")
    if not (comma and head.startswith(_TEXT_FILE) and head.endswith(";base64")):
        return part
    try:
        text = base64.b64decode(encoded, validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return part
    return {"type": "text", "text": text}


def as_text(message: Message) -> str:
    """Return a message as a reader of the conversation sees it."""
    text, parts = _read(message)
    others = [f"[{part.get('type')}]" for part in parts]
    calls = _calls(message.fields.get("tool_calls"))
    return "\n".join(filter(None, (f"[{message.role}]", text, *others, *calls)))


def _calls(calls: Json) -> Iterator[str]:
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield f"[calls {function.get('name')}] {_plain(function.get('arguments'))}"


def _plain(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
