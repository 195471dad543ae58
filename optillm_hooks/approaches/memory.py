"""Memory: reads a conversation or document that is longer than the model's context window.

Everything but the question is read in parts that fit the window, all concurrently. Of each part the
model notes what helps to answer the question. The stages after this one get the question with the
notes. A conversation that fits is left as it is.

Source: Russak et al. 2024, "Writing in the Margins: Better Inference Pattern for Long Context
Retrieval", arXiv:2408.14906. The paper keeps the text in the context besides its margins; here only
the notes are kept, as the text does not fit. The latest turns, images, results of tools and the
system message are kept as far as there is room.

If the limits allow fewer calls than there are parts, the parts that share most words with the
question are read (BM25), and `degraded` says how many are not. If the notes do not fit, the most
relevant are kept. If nothing was noted, the most relevant passages are shown instead.

Cost: at most `max_parts` calls, one for each part, all concurrent; none if the conversation fits. A
part whose notes cannot be read is asked for again where the limits allow it.
"""

from typing import Final

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM
from optillm_hooks.long_context.conversation import (
    LongConversation,
    take_apart,
    tokens_of,
    with_files_as_text,
)
from optillm_hooks.long_context.notes import Reader, fitting, framed, passages
from optillm_hooks.long_context.window import Window, affordable, settle_calls, window_of
from optillm_hooks.registry import Cost, DraftingParams, rewriter
from optillm_hooks.retrieval.bm25 import ranking
from optillm_hooks.retrieval.chunks import split
from optillm_hooks.types import Chat

_NOTED: Final = """\
What came before the latest messages is too long to show. The notes were taken from it, in its \
order, with the question in mind. Answer from them."""


class MemoryParams(DraftingParams):
    context_window: int | None = Field(
        default=None,
        ge=1024,
        le=100_000_000,
        description="Tokens of the model's context window; unset: as LiteLLM or the deployment's "
        "model_info has it, or else 8192.",
    )
    max_parts: int = Field(
        default=32,
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


@rewriter("memory", MemoryParams, cost=lambda p: Cost(p.max_parts, 1), needs=["memory"])
async def memory(chat: Chat, llm: LLM, params: MemoryParams, ctx: Context) -> Chat:
    """Return the conversation with notes in place of what does not fit into the context window."""
    window = window_of(llm, params.context_window, ctx.client)
    long, readable = None, with_files_as_text(chat)
    if await tokens_of(readable, ctx.client, window) > window.prompt:
        long = take_apart(readable, window)
    if long is None or not long.material:
        settle_calls(ctx, params.max_parts, 0)
        return chat
    if long.lost_parts:
        ctx.trace.count("images", lost=long.lost_parts, of=long.lost_parts + len(long.parts))
    return long.answered_from(await _reminder(long, window, params, ctx))


async def _reminder(
    long: LongConversation, window: Window, params: MemoryParams, ctx: Context
) -> str:
    """Return what is shown in place of the material."""
    reader = Reader(window, long.system, long.asked.question, ctx)
    chunks = await split(long.material, window.count, reader.room, params.overlap)
    parts = [chunk.text for chunk in chunks]
    chosen, attempts = await _chosen(parts, reader, params, ctx)
    read = await reader.read([parts[i] for i in chosen], attempts)
    by_part = dict(zip(chosen, read, strict=True))
    notes = [note for i in sorted(by_part) for note in by_part[i]]
    ctx.trace.note("memory", parts=len(parts), read=len(chosen), notes=len(notes))
    room = window.prompt - await tokens_of(long.answered_from(""), ctx.client, window)
    if notes:
        lines = [f"- {note}" for note in notes]
        kept = await fitting(lines, reader.question, window, room, ctx, params.max_notes)
        return framed("notes", "\n".join(lines[i] for i in kept), _NOTED)
    return await passages(parts, reader.question, window, room, ctx)


async def _chosen(
    parts: list[str], reader: Reader, params: MemoryParams, ctx: Context
) -> tuple[list[int], int]:
    """Return the parts to read, the most relevant first, and how often each may be asked for."""
    window = reader.window
    most = min(len(parts), params.max_parts)
    able = affordable(ctx, window, 2 * most, window.prompt, params.max_parts)
    settle_calls(ctx, params.max_parts, min(most, able))
    if missed := len(parts) - min(most, able):
        ctx.trace.count("parts", lost=missed, of=missed)
    order = await ranking(reader.question, parts)
    return order[: min(most, able)], 2 if able >= 2 * most else 1
