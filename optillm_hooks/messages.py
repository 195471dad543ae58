"""Reads conversations in OpenAI's form, and writes them."""

from collections.abc import Mapping
from typing import Any, Final, cast, get_args

from optillm_hooks.errors import RequestRejected
from optillm_hooks.types import Chat, Message, Role

_ROLES: Final = frozenset(get_args(Role))


def read_chat(messages: object) -> Chat:
    """Return OpenAI's `messages` as a conversation.

    Raises:
        RequestRejected: it is not a non-empty list of messages with known roles and valid content.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestRejected("messages must be a list with at least one message", param="messages")
    return tuple(_read_message(message, number) for number, message in enumerate(messages))


def _read_message(message: object, number: int) -> Message:
    where = f"messages[{number}]"
    if not isinstance(message, Mapping):
        raise RequestRejected(f"{where} must be an object", param=where)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestRejected(
            f"{where}.role must be one of {', '.join(sorted(_ROLES))}", param=f"{where}.role"
        )
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        content = tuple(content)
    elif content is not None and not isinstance(content, str):
        raise RequestRejected(
            f"{where}.content must be a string or a list of content parts",
            param=f"{where}.content",
        )
    fields = {key: value for key, value in message.items() if key not in ("role", "content")}
    return Message(cast(Role, role), content, fields)


def write_chat(chat: Chat) -> list[dict[str, Any]]:
    """Return a conversation as OpenAI's `messages`."""
    return [
        {
            "role": message.role,
            "content": list(message.content)
            if isinstance(message.content, tuple)
            else message.content,
            **message.fields,
        }
        for message in chat
    ]
