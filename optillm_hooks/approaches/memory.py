"""Memory: reads a conversation or document that is longer than the model's context window.

Everything but the question is read in parts that fit the window, all concurrently. Of each part the
model notes what helps to answer the question. The stages after this one get the question with the
notes. A conversation that fits is left as it is.

Good for: long texts.
Worth it when: a conversation or document is longer than the context window.
Source: Russak et al. 2024, "Writing in the Margins: Better Inference Pattern for Long Context
Retrieval", arXiv:2408.14906. The paper keeps the text in the context besides its margins; here only
the notes are kept, as the text does not fit. The latest turns, images, results of tools and the
system message are kept as far as there is room.

Where the operator has notes kept (`optillm_settings.memory.store`), they are used again in later
requests of the same key, team or user, and shown with questions that they bear on.

If the limits allow fewer calls than there are parts, the parts that share most words with the
question are read (BM25), and `degraded` says how many are not. If the notes do not fit, the most
relevant are kept. If nothing was noted, the most relevant passages are shown instead.

Cost: at most `max_parts` calls, one for each part, all concurrent; none if the conversation fits. A
part whose notes cannot be read is asked for again where the limits allow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected
from optillm_hooks.llm import LLM
from optillm_hooks.long_context.conversation import (
    LongConversation,
    take_apart,
    tokens_of,
    with_files_as_text,
)
from optillm_hooks.long_context.notes import Reader, fitting, framed, passages
from optillm_hooks.long_context.recall import keep, recalled
from optillm_hooks.long_context.window import (
    ContextWindow,
    Window,
    affordable,
    settle_calls,
    window_of,
)
from optillm_hooks.prompts import edit_question, question
from optillm_hooks.registry import Cost, DraftingParams, rewriter
from optillm_hooks.retrieval.bm25 import ranking
from optillm_hooks.retrieval.chunks import split
from optillm_hooks.services import Services
from optillm_hooks.store.records import Scope
from optillm_hooks.types import Chat

_MEMORIES: Final = 4
"""The part of a prompt, as a divisor, that notes of earlier requests may take."""

_NOTED: Final = """\
What came before the latest messages is too long to show. The notes were taken from it, in its \
order, with the question in mind. Answer from them."""


class MemoryParams(DraftingParams):
    context_window: ContextWindow = None
    max_parts: int = Field(
        default=20,
        ge=1,
        le=1024,
        description="Maximum parts of the text that are read: those closest to the question.",
    )
    overlap: int = Field(
        default=64, ge=0, le=4096, description="Tokens that a part repeats of the one before it."
    )
    max_notes: int = Field(
        default=64, ge=1, le=1024, description="Maximum notes that are shown with the question."
    )
    scope: Scope = Field(
        default="key",
        description="Whose notes are kept and used again, where the operator has notes kept: those "
        "of the key, its team or its user.",
    )

    def check_services(self, services: Services) -> None:
        """Refuse a scope that is asked for where no notes are kept, or that the caller lacks."""
        if "scope" not in self.model_fields_set:
            return
        if services.notes is None:
            raise RequestRejected(
                "memory: no notes are kept on this proxy: remove scope, or have the operator set "
                "optillm_settings.memory.store",
                param="scope",
            )
        services.owner.namespace(self.scope)


@rewriter("memory", MemoryParams, cost=lambda p: Cost(p.max_parts, 1), needs=["memory"])
async def memory(chat: Chat, llm: LLM, params: MemoryParams, ctx: Context) -> Chat:
    """Return the conversation with notes in place of what does not fit into the context window."""
    window = window_of(llm, params.context_window, ctx.client)
    long, readable = None, with_files_as_text(chat)
    if await tokens_of(readable, ctx.client, window) > window.prompt:
        long = take_apart(readable, window)
    asked = question(chat) if long is None else long.asked.question
    memories, known = await recalled(asked, params.scope, window, window.prompt // _MEMORIES, ctx)
    if long is None or not long.material:
        settle_calls(ctx, params.max_parts, 0)
        return edit_question(chat, lambda text: f"{memories}\n\n{text}") if memories else chat
    if long.lost_parts:
        ctx.trace.count("images", lost=long.lost_parts, of=long.lost_parts + len(long.parts))
    return await _Material(long, window, params, ctx).answered(memories, known)


@dataclass(frozen=True, slots=True)
class _Material:
    """What does not fit into the window."""

    long: LongConversation
    window: Window
    params: MemoryParams
    ctx: Context

    async def answered(self, memories: str, known: Sequence[str]) -> Chat:
        """Return the conversation with notes in place of the material."""
        asked = self.long.asked.question
        reader = Reader(self.window, self.long.system, asked, self.ctx)
        chunks = await split(
            self.long.material, self.window.count, reader.room, self.params.overlap
        )
        parts = [chunk.text for chunk in chunks]
        notes = await self._notes(parts, reader)
        await keep(notes, self.long.material, self.params.scope, self.ctx)
        lines = [f"- {note}" for note in notes if note not in known]
        around = self.long.answered_from(memories)
        room = self.window.prompt - await tokens_of(around, self.ctx.client, self.window)
        if lines:
            most = self.params.max_notes
            kept = await fitting(lines, asked, self.window, room, self.ctx, most)
            shown = framed("notes", "\n".join(lines[i] for i in kept), _NOTED)
        else:
            shown = await passages(parts, asked, self.window, room, self.ctx)
        return self.long.answered_from("\n\n".join(filter(None, (memories, shown))))

    async def _notes(self, parts: Sequence[str], reader: Reader) -> list[str]:
        """Return the notes of the parts that are read, in the order of the text."""
        chosen, attempts = await self._chosen(parts, reader.question)
        read = await reader.read([parts[i] for i in chosen], attempts)
        by_part = dict(zip(chosen, read, strict=True))
        notes = [note for i in sorted(by_part) for note in by_part[i]]
        self.ctx.trace.note("memory", parts=len(parts), read=len(chosen), notes=len(notes))
        return list(dict.fromkeys(notes))

    async def _chosen(self, parts: Sequence[str], asked: str) -> tuple[list[int], int]:
        """Return the parts to read, the most relevant first, and the attempts at each."""
        own, ctx = self.params.max_parts, self.ctx
        wanted = min(len(parts), own)
        able = affordable(ctx, self.window, 2 * wanted, self.window.prompt, own)
        most = min(wanted, able)
        settle_calls(ctx, own, most)
        if most < len(parts):
            ctx.trace.count("parts", lost=len(parts) - most, of=len(parts) - most)
        return (await ranking(asked, parts))[:most], 2 if able >= 2 * wanted else 1
