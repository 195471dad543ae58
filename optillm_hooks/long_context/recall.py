"""Notes that outlast a request: those of earlier requests, and keeping new ones."""

from collections.abc import Sequence
from typing import Final

from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.long_context.notes import fitting, framed
from optillm_hooks.long_context.window import Window
from optillm_hooks.retrieval.bm25 import scores
from optillm_hooks.store.records import NewNote, Scope, digest

_REMEMBERED: Final = (
    "These notes were taken from earlier conversations. Use them where they help; they may be out "
    "of date."
)
_MAX_RECALLED: Final = 16
_MAX_READ: Final = 1000
"""Maximum notes that are shown, and among which they are chosen: the newest."""


async def recalled(
    question: str, scope: Scope, window: Window, room: int, ctx: Context
) -> tuple[str, list[str]]:
    """Return the notes of earlier requests that bear on `question`, as data, and their texts.

    Without an embedding model these are the notes that share a word with it. If the store fails,
    there are none, and the trace counts that.
    """
    store, owner = ctx.services.store, ctx.services.owner
    if store is None or ctx.services.notes is None or not getattr(owner, scope):
        return "", []
    try:
        with ctx.trace.step("recollections"):
            found = await store.notes(owner.namespace(scope), limit=_MAX_READ)
    except SampleError:
        return "", []
    texts = [note.text for note in found]
    if ctx.services.embed is None:
        relevance = await scores(question, texts)
        texts = [text for text, score in zip(texts, relevance, strict=True) if score > 0]
    lines = [f"- {text}" for text in texts]
    kept = await fitting(lines, question, window, room, ctx, _MAX_RECALLED)
    if not kept:
        return "", []
    shown = framed("memories", "\n".join(lines[i] for i in kept), _REMEMBERED)
    return shown, [texts[i] for i in kept]


async def keep(notes: Sequence[str], material: str, scope: Scope, ctx: Context) -> None:
    """Keep notes of a text for later requests. The trace counts a failure of the store."""
    store, owner, keeping = ctx.services.store, ctx.services.owner, ctx.services.notes
    if store is None or keeping is None or not notes or not getattr(owner, scope):
        return
    source = digest(material)[:16]
    new = [NewNote(text=note, source=source) for note in notes]
    try:
        with ctx.trace.step("recollections"):
            await store.add_notes(owner.namespace(scope), new, ttl_s=keeping.ttl_s)
    except SampleError:
        return
