"""Notes of a long text: a model reads it part by part, and the notes that matter are shown."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import BaseModel, Field, field_validator

from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.long_context.relevance import most_relevant
from optillm_hooks.long_context.window import Window
from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.retrieval.bm25 import ranking
from optillm_hooks.retrieval.chunks import split
from optillm_hooks.structured import fill
from optillm_hooks.types import Chat, Message

_READ: Final = """\
{notice}

{notice_of_question}

{question}

{part}

The part is one of many of a long text or conversation. The question is about all of it. Note what \
this part says that helps to answer the question: facts, figures, names, wishes and decisions. \
Write each note in the language of the part, and so that it is understood without it. If nothing \
in the part helps, note nothing. Do not answer the question."""

_OVERHEAD: Final = 400
"""Tokens of a reading prompt besides its question and its part, the schema included."""

_QUOTED: Final = """\
What came before the latest messages is too long to show. The passages are those of it that are \
closest to the question; the rest is not shown."""

_FRAME: Final = 200
"""Tokens of a frame and a remark around texts."""

_BEST_PARTS: Final = 4
"""Parts in which passages are looked for."""

_LEAST_PART: Final = 64
_SYSTEM: Final = 8
"""A system message longer than this part of a prompt is not shown to readers."""

_MAX_NOTES: Final = 32
_MAX_NOTE: Final = 4000
"""Maximum notes of a part that are kept, and characters of one."""

_TIME: Final = 0.7
"""Share of the time left after which the parts still being read are given up."""


class Reading(BaseModel):
    """What a reader of a part notes."""

    notes: list[str] = Field(description="One fact each. Empty if nothing in the part helps.")

    @field_validator("notes", mode="before")
    @classmethod
    def _as_list(cls, given: Any) -> Any:
        if given is None:
            return []
        return [given] if isinstance(given, str) else given

    def kept(self) -> list[str]:
        """Return the notes that say anything."""
        return [note[:_MAX_NOTE] for note in map(str.strip, self.notes) if note][:_MAX_NOTES]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads parts of a text for a question."""

    window: Window
    system: Chat
    question: str
    ctx: Context

    @property
    def room(self) -> int:
        """The maximum tokens of a part."""
        taken = _OVERHEAD + self.window.count(self.question)
        taken += sum(self.window.count(message.text) for message in self._system())
        return max(_LEAST_PART, self.window.prompt - taken)

    def _system(self) -> Chat:
        """Return the system messages, unless they would take too much of each prompt."""
        tokens = sum(self.window.count(message.text) for message in self.system)
        return self.system if tokens <= self.window.prompt // _SYSTEM else ()

    async def read(self, parts: Sequence[str], attempts: int) -> list[list[str]]:
        """Return the notes of each part, empty for one that could not be read.

        The trace counts those. The first parts are read first.
        """
        ctx = self.ctx
        calls = [partial(self._read, part, attempts) for part in parts]
        read = 0
        try:
            ended = await outcomes(calls, until=ctx.within(_TIME))
            read = sum(not isinstance(each, SampleError) for each in ended)
        finally:
            ctx.trace.count("parts", lost=len(parts) - read, of=len(parts))
        return [[] if isinstance(each, SampleError) else each.kept() for each in ended]

    async def _read(self, part: str, attempts: int) -> Reading:
        chat = self._system()
        mark = fence(chat, [self.question, part])
        prompt = _READ.format(
            notice=data_notice("part", mark),
            notice_of_question=data_notice("question", mark),
            question=enclose([self.question], "question", mark),
            part=enclose([part], "part", mark),
        )
        asked = (*chat, Message("user", prompt))
        return await fill(Reading, asked, self.window.llm, self.ctx, attempts=attempts)


def framed(label: str, text: str, remark: str) -> str:
    """Return `text` as data, followed by a remark about it."""
    mark = fence((), [text])
    return "\n\n".join((data_notice(label, mark), enclose([text], label, mark), remark))


async def passages(
    parts: Sequence[str], question: str, window: Window, room: int, ctx: Context
) -> str:
    """Return the passages of `parts` closest to the question, as data, as far as they fit."""
    best = (await ranking(question, parts))[:_BEST_PARTS]
    size = max(1, room // (2 * _BEST_PARTS))
    pieces = [
        piece.text for i in sorted(best) for piece in await split(parts[i], window.count, size)
    ]
    kept = await fitting(pieces, question, window, room, ctx, len(pieces))
    return framed("passages", "\n\n[...]\n\n".join(pieces[i] for i in kept), _QUOTED)


async def fitting(
    texts: Sequence[str], question: str, window: Window, room: int, ctx: Context, most: int
) -> list[int]:
    """Return the indices of those of `texts` that matter most to `question` and fit into `room`.

    They are in the order of `texts`, at most `most` of them. `framed` takes some of the room.
    """
    room -= _FRAME
    order = list(range(len(texts)))
    tokens = await _counted(texts, window) if len(texts) <= most else []
    if not tokens or sum(tokens) > room:
        order = (await most_relevant(question, texts, ctx))[:most]
        tokens = await _counted([texts[i] for i in order], window)
    kept = list[int]()
    for i, size in zip(order, tokens, strict=True):
        if size <= room:
            kept.append(i)
            room -= size
    return sorted(kept)


async def _counted(texts: Sequence[str], window: Window) -> list[int]:
    """Return the tokens of each text. Many do not hold the event loop."""
    tokens = list[int]()
    for text in texts:
        tokens.append(window.count(text))
        if len(tokens) % 16 == 0:
            await asyncio.sleep(0)
    return tokens
