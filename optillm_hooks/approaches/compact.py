"""Compact: a summary in place of the older messages, once a conversation nears the window's size.

The latest messages stay as they are, and so do system messages; a call of a tool is never parted
from its result. The summary is kept for the caller: later turns of the conversation use it again,
and only what has come since is summarised with it when the window is nearly full once more.

Good for: long texts.
Worth it when: conversations come near the model's context window.
Source: the compaction of coding agents. LiteLLM compacts too, with Claude's own compaction and only
in its complexity router; this stage does it with any model, and in front of any approach.

Older messages that do not fit into one prompt are summarised in parts, concurrently. If no part can
be, the conversation stays as it is if it fits into the window, and otherwise loses its older
messages; `degraded` says so.

Cost: at most `max_parts` calls, mostly one or none.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Final

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, UnusableReply
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM
from optillm_hooks.long_context.conversation import (
    SYSTEM_ROLES,
    as_text,
    tokens_of,
    with_files_as_text,
)
from optillm_hooks.long_context.notes import framed
from optillm_hooks.long_context.window import (
    ContextWindow,
    Window,
    affordable,
    settle_calls,
    window_of,
)
from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.reading import read_or
from optillm_hooks.registry import Cost, DraftingParams, rewriter
from optillm_hooks.retrieval.chunks import split
from optillm_hooks.types import Chat, Message, Sampling

_SUMMARISE: Final = """\
Summarise the messages for whoever continues the conversation without them, in at most {words} \
words and in their language. Keep what the user wants and has decided, rules and preferences that \
were agreed on, names, figures, file names and results of tools as they were written, what is \
done, and what is still open. A summary of still earlier messages, if there is one, is part of it. \
Write the summary only."""

_SUMMARY: Final = "These messages follow on a longer conversation, of which this is the summary."
_NOTHING: Final = "(The earlier messages of this conversation are too long to show.)"

_OVERHEAD: Final = 400
_SHARE: Final = 4
"""The part of the window, as a divisor, that the summary may take."""

_WORDS_PER_TOKEN: Final = 0.6
_TIME: Final = 0.6


class CompactParams(DraftingParams):
    body_fields = {  # noqa: RUF012 (ClassVar of the base)
        "compact_context_window": "context_window",
        "compact_threshold": "threshold",
        "compact_keep_recent": "keep_recent",
    }

    context_window: ContextWindow = None
    threshold: float = Field(
        default=0.75, gt=0, le=1, description="Share of the window above which is summarised."
    )
    keep_recent: int = Field(
        default=4, ge=1, le=10_000, description="Least number of messages that stay as they are."
    )
    max_parts: int = Field(
        default=8, ge=1, le=256, description="Maximum calls that summarise older messages."
    )


@rewriter("compact", CompactParams, cost=lambda p: Cost(p.max_parts, 1))
async def compact(chat: Chat, llm: LLM, params: CompactParams, ctx: Context) -> Chat:
    """Return the conversation with a summary in place of its older messages, if it is long."""
    window = window_of(llm, params.context_window, ctx.client)
    limit = min(int(window.tokens * params.threshold), window.prompt)
    readable = with_files_as_text(chat)
    tokens = await tokens_of(readable, ctx.client, window)
    system = tuple(m for m in readable if m.role in SYSTEM_ROLES)
    body = tuple(m for m in readable if m.role not in SYSTEM_ROLES)
    start = _start_of_recent(body, params.keep_recent, window, limit // 2) if tokens > limit else 0
    if not start:
        settle_calls(ctx, params.max_parts, 0)
        return chat
    compacted = await _Compactor(system, body, window, params, ctx).compacted(start, limit)
    if compacted is not None:
        return compacted
    return chat if tokens <= window.prompt else (*system, *_after(_NOTHING, body[start:]))


class _Compactor:
    """Summarises the messages of one conversation."""

    def __init__(
        self, system: Chat, body: Chat, window: Window, params: CompactParams, ctx: Context
    ) -> None:
        self._system = system
        self._body = body
        self._window = window
        self._params = params
        self._ctx = ctx
        self._keys = _prefix_keys(window.llm.model, body)

    async def compacted(self, start: int, limit: int) -> Chat | None:
        """Return the conversation with its messages before `start` as a summary, if there is one.

        If the summary of fewer messages is known, and the conversation fits with it, it has that.
        """
        known_to, known = self._known(start)
        if known:
            chat = self._with(known, known_to)
            if await tokens_of(chat, self._ctx.client, self._window) <= limit:
                settle_calls(self._ctx, self._params.max_parts, 0)
                return chat
        summary = await self._summary(known, self._body[known_to:start], limit // _SHARE)
        if summary is None:
            return self._with(known, start) if known else None
        self._ctx.caller_cache.put(self._keys[start], (summary,))
        return self._with(summary, start)

    def _known(self, start: int) -> tuple[int, str]:
        """Return how many of the messages before `start` have a summary, and that summary."""
        for at in range(start, 0, -1):
            found = self._ctx.caller_cache.get(self._keys[at])
            if found:
                return at, found[0]
        return 0, ""

    def _with(self, summary: str, start: int) -> Chat:
        text = framed("summary", summary, _SUMMARY)
        return (*self._system, *_after(text, self._body[start:]))

    async def _summary(self, known: str, messages: Chat, room: int) -> str | None:
        """Return the summary of `messages` and what is known before them; None if it failed."""
        ctx, window = self._ctx, self._window
        text = "\n\n".join(filter(None, (known, *map(as_text, messages))))
        parts = [c.text for c in await split(text, window.count, window.prompt - _OVERHEAD)]
        own = self._params.max_parts
        able = min(own, affordable(ctx, window, len(parts), window.prompt, own))
        settle_calls(ctx, own, min(able, len(parts)))
        missed = max(0, len(parts) - able)
        parts = parts[missed:]
        each = max(50, room // max(1, len(parts)))
        calls = [partial(self._summarised, part, each) for part in parts]
        good = list[str]()
        try:
            ended = await outcomes(calls, until=ctx.within(_TIME))
            good = [one for one in ended if not isinstance(one, SampleError)]
        finally:
            of = len(parts) + missed
            ctx.trace.count("summaries", lost=of - len(good), of=of)
        ctx.trace.note("compact", messages=len(messages), parts=len(parts))
        return "\n\n".join(good) if good else None

    async def _summarised(self, part: str, room: int) -> str:
        mark = fence((), [part])
        task = _SUMMARISE.format(words=int(room * _WORDS_PER_TOKEN))
        shown = (data_notice("messages", mark), enclose([part], "messages", mark), task)
        asked = (Message("user", "\n\n".join(shown)),)
        reply = await self._window.llm.complete(asked, Sampling(purpose="judge"))
        summary = (await read_or("", self._ctx, without_reasoning, reply.text)).strip()
        if not summary:
            raise UnusableReply("the summary is empty")
        tokens = self._window.count(summary)
        longest = 2 * room  # the number of words is a wish
        return summary if tokens <= longest else summary[: len(summary) * longest // tokens]


def _start_of_recent(body: Chat, keep: int, window: Window, room: int) -> int:
    """Return where the messages begin that stay: the last `keep`, or fewer if they are too long.

    The last turn of the user stays with what follows it, and no result of a tool begins them.
    """
    users = [at for at, message in enumerate(body) if message.role == "user"]
    if not users:
        return 0
    counts = [window.llm.facts.count_tokens((message,), Sampling()) for message in body]
    tokens_from = [*accumulate(reversed(counts))][::-1]
    start = min(max(0, len(body) - keep), users[-1])
    while start and body[start].role == "tool":
        start -= 1
    while tokens_from[start] > room and start < users[-1]:
        start = next(at for at in range(start + 1, len(body)) if body[at].role != "tool")
    return start


def _after(text: str, recent: Chat) -> Chat:
    """Return `recent` after `text`, which begins its first message if that is the user's."""
    first = recent[0]
    if first.role != "user":
        return (Message("user", text), *recent)
    if isinstance(first.content, tuple):
        content = ({"type": "text", "text": text}, *first.content)
        return (replace(first, content=content), *recent[1:])
    return (replace(first, content=f"{text}\n\n{first.text}"), *recent[1:])


def _prefix_keys(model: str, messages: Sequence[Message]) -> list[str]:
    """Return the cache key of each beginning of a conversation, by its length."""
    digest = hashlib.sha256(f"compact\n{model}".encode())
    keys = [digest.hexdigest()]
    for message in messages:
        digest.update(repr(message).encode(errors="surrogatepass"))
        keys.append(digest.hexdigest())
    return keys
