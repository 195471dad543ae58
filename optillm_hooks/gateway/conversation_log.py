"""The log of conversations, if the operator turns it on: a file of JSON lines for each day (UTC).

A request that runs a plan has one line, however it ends. Private values in it have pseudonyms, as
the approach `privacy` makes them. Nobody waits for it: texts are searched after the answer, and
lines are written by a thread.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

from litellm.constants import REDACTED_BY_LITELLM

from optillm_hooks.answers.deltas import DeltaAccumulator
from optillm_hooks.errors import RequestRejected, SampleError
from optillm_hooks.fanout import Background
from optillm_hooks.gateway.convert import write_message
from optillm_hooks.gateway.day_files import DayFiles
from optillm_hooks.gateway.observers import Ended, Started, Watch
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.reports import log_fields
from optillm_hooks.messages import read_chat, write_chat
from optillm_hooks.pipeline.logs import format_traceback
from optillm_hooks.privacy.conversation import PLAIN_PARTS
from optillm_hooks.privacy.found import KEY
from optillm_hooks.privacy.private_llm import PrivateConversation
from optillm_hooks.services import Privacy, ServiceFailed
from optillm_hooks.settings import ConversationLogSettings, Redaction
from optillm_hooks.types import Answer, Chat, Delta, Fields, Json, Message, Sampling

_log = logging.getLogger(__name__)

_OMITTED: Final = frozenset({"audio", "images", "provider_specific_fields", "thinking_blocks"})
"""Fields of messages in which nothing can be replaced, or that repeat the reasoning."""

SEARCHES: Final = Background(running=64, waiting=1000, describe=format_traceback)
"""The searches of this process for private values."""


class ConversationLog:
    """Writes a line for each request. It does nothing unless `conversation_log.directory` is set.

    A request that is kept out of LiteLLM's logs (`no-log`) has no line.
    """

    def begin(self, started: Started, /) -> Watch | None:
        settings = read_settings().conversation_log
        if settings.directory is None or started.caller.extra.get("no-log"):
            return None
        return _Conversation(started, settings, settings.directory)


class _Conversation(Watch):
    def __init__(self, started: Started, settings: ConversationLogSettings, directory: str) -> None:
        self._started = started
        hidden = started.hides_texts or started.prepared.plan.is_confidential
        self._redact: Redaction = "texts" if hidden else settings.redact
        self._files = files_in(directory, settings.max_bytes_per_day, settings.keep_days)
        self._shown: dict[int, DeltaAccumulator] = {}

    def piece(self, choice: int, delta: Delta, /) -> None:
        self._shown.setdefault(choice, DeltaAccumulator()).add(delta)

    def ended(self, end: Ended, /) -> None:
        entry = self._entry(end)
        if self._redact == "texts" or not SEARCHES.accept("", lambda: self._searched(entry)):
            self._add(entry)

    def _add(self, entry: "_Entry") -> None:
        self._files.add(entry.time.date(), entry.line)

    def _entry(self, end: Ended) -> "_Entry":
        started = self._started
        prepared, owner = started.prepared, started.request.services.owner
        told = log_fields(prepared, seconds=end.seconds, error=end.error)
        answers, whole = self._answers()
        ids = _CallIds()
        facts: dict[str, Json] = {
            "call_id": told.pop("call_id"),
            "otel_trace_id": prepared.trace.trace_id or None,
            "route": prepared.route,
            "stream": started.stream,
            "requested": prepared.requested,
            "key": owner.key or None,
            "key_alias": started.caller.metadata.get("user_api_key_alias"),
            "team": owner.team or None,
            **told,
        }
        return _Entry(
            datetime.now(UTC),
            facts,
            tuple(_plain_message(message, ids) for message in started.request.chat),
            tuple(_plain_message(_as_message(answer), ids) for answer in answers),
            [answer.finish_reason if whole else None for answer in answers],
        )

    def _answers(self) -> tuple[Sequence[Answer], bool]:
        """Return the answers, and whether they are whole; else what a client has seen of them."""
        if (outcome := self._started.prepared.outcome) is not None:
            return outcome.answers, True
        return [shown.answer("length") for _, shown in sorted(self._shown.items())], False

    async def _searched(self, entry: "_Entry") -> None:
        """Add the entry with pseudonyms; without its texts, if they could not be searched."""
        services = self._started.request.services
        privacy = services.privacy
        if self._redact == "credentials":
            privacy = Privacy(secret=privacy.secret, entities=(KEY,))
        elif privacy.entities is not None:
            privacy = replace(privacy, entities=(*privacy.entities, KEY))
        try:
            if privacy.missing:
                raise ServiceFailed(privacy.missing)
            conversation = PrivateConversation.begin(entry.chat, privacy, services.owner)
            seen, _ = await conversation.replaced((*entry.chat, *entry.answers), Sampling())
            at = len(entry.chat)
            entry = replace(entry, chat=seen[:at], answers=seen[at:], redacted=self._redact)
        except (SampleError, RequestRejected) as exc:
            _log.warning("optillm: conversation_log: texts are left out: %s", exc)
        finally:  # when the proxy shuts down, too
            self._add(entry)


def _as_message(answer: Answer) -> Message:
    [message] = read_chat([write_message(answer).model_dump()])
    return message


class _CallIds(dict[Json, str]):
    """Numbers in place of the ids of tool calls, which a client can choose freely."""

    def __missing__(self, given: Json) -> str:
        made = self[given] = f"call_{len(self) + 1}"
        return made


def _plain_message(message: Message, ids: _CallIds) -> Message:
    """Return a message without images, sound and files, of which only the type is kept."""
    content = message.content
    if isinstance(content, tuple):
        content = tuple(_plain_part(part) for part in content)
    fields = {k: v for k, v in message.fields.items() if k not in _OMITTED and v is not None}
    if isinstance(answered := fields.get("tool_call_id"), str):
        fields["tool_call_id"] = ids[answered]
    if isinstance(calls := fields.get("tool_calls"), list):
        fields["tool_calls"] = [_numbered(call, ids) for call in calls]
    return replace(message, content=content, fields=fields)


def _numbered(call: Json, ids: _CallIds) -> Json:
    """Return a tool call with a number in place of its id."""
    if isinstance(call, dict) and isinstance(given := call.get("id"), str):
        return {**call, "id": ids[given]}
    return call


def _plain_part(part: Fields) -> Fields:
    return part if part.get("type") in PLAIN_PARTS else {"type": part.get("type"), "omitted": True}


@dataclass(frozen=True, slots=True)
class _Entry:
    """One request. Unless it has been searched, its line has no texts."""

    time: datetime
    facts: Mapping[str, Json]
    chat: Chat
    answers: Chat
    finish_reasons: Sequence[str | None]
    redacted: Redaction = "texts"

    def line(self) -> bytes:
        ends = zip(self._written(self.answers), self.finish_reasons, strict=True)
        values = {
            "time": self.time.isoformat(timespec="milliseconds"),
            **self.facts,
            "redacted": self.redacted,
            "messages": self._written(self.chat),
            "choices": [{"message": message, "finish_reason": end} for message, end in ends],
        }
        return json.dumps(values, separators=(",", ":")).encode() + b"\n"

    def _written(self, chat: Chat) -> list[dict[str, Any]]:
        if self.redacted != "texts":
            return write_chat(chat)
        return [{"role": each.role, "content": REDACTED_BY_LITELLM} for each in chat]


@cache
def files_in(directory: str, max_bytes: int, keep_days: int | None) -> DayFiles:
    """Return the files of a folder. This process has one object for each."""
    return DayFiles(Path(directory), "conversations", max_bytes, keep_days)
