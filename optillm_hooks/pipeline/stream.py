"""Streams a plan: the final call of each chain piece by piece, every other answer whole."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from optillm_hooks.answers.deltas import DeltaAccumulator, as_delta
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError
from optillm_hooks.fanout import speculating
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.pipeline.choices import Choices
from optillm_hooks.pipeline.events import Event, Models, Outcome, Progress, Request
from optillm_hooks.pipeline.filters import Filters
from optillm_hooks.pipeline.logs import logged_stage
from optillm_hooks.pipeline.plan import Chain
from optillm_hooks.pipeline.run import PlanRun
from optillm_hooks.trace import CallRecord, Trace, Watcher
from optillm_hooks.types import Answer, Delta, FinishReason


async def stream(
    request: Request, models: Models, trace: Trace | None = None
) -> AsyncGenerator[Event, None]:
    """Yield the answers of a plan piece by piece, and the outcome last. Raises as `run`.

    The final call of a chain is streamed as it arrives; earlier calls show as progress. Closing the
    iterator cancels every call.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    running = _StreamedRun(request, models, trace or Trace(), events)

    async def to_the_end() -> Outcome:
        try:
            return await running.outcome()
        finally:
            events.put_nowait(None)

    async with speculating(to_the_end) as ended:
        while (event := await events.get()) is not None:
            yield event
            await asyncio.sleep(0)  # others get a turn even if the next event is here
        yield await ended()


class _FirstCall(Watcher):
    """Tells of each call that has ended, so that the stream can begin."""

    def __init__(self, tell: Callable[[CallRecord], None]) -> None:
        self._tell = tell

    def call_ended(self, call: CallRecord, /) -> None:
        self._tell(call)


class _StreamedRun(PlanRun):
    """The run of one request's plan, which streams each piece as it arrives."""

    def __init__(
        self, request: Request, models: Models, trace: Trace, events: asyncio.Queue[Event | None]
    ) -> None:
        super().__init__(request, models, trace)
        self._events = events
        self._choices = Choices(events.put_nowait)
        self._started = False
        trace.watchers.append(_FirstCall(self._call_ended))

    def _context(self) -> Context:
        root = super()._context()
        if self._request.progress:
            root.progress = self._show_progress
        return root

    def _show_progress(self, text: str = "") -> None:
        """Show progress until the first piece of an answer: clients take what follows as a part
        of it."""
        if not self._choices.any_shown:
            self._started = True
            self._events.put_nowait(Progress(text))

    def _call_ended(self, call: CallRecord) -> None:
        if call.outcome == "ok" and not self._started:
            self._show_progress()

    async def _choice(self, chain: Chain, ctx: Context, number: int) -> Answer:
        try:
            answer = await super()._choice(chain, ctx, number)
        except SampleError:
            self._choices.drop(number)
            raise
        if not self._choices.is_complete(number):
            self._choices.replace(number, as_delta(answer))
        return answer

    def _shows_content(self, number: int) -> bool:
        return self._choices.shows_content(number)

    async def _plain_instead(self, root: Context, error: SampleError, number: int) -> Answer:
        """Return a plain answer, unless the client has seen text that it would contradict."""
        if self._choices.any_content_shown:
            raise error
        return await super()._plain_instead(root, error, number)

    async def _call_final(self, final: FinalCall, llm: LLM, ctx: Context, number: int) -> Answer:
        with logged_stage("final_call", ctx):
            return await self._stream_final(final, llm, ctx, number)

    async def _stream_final(self, final: FinalCall, llm: LLM, ctx: Context, number: int) -> Answer:
        """Return the answer of the final call, with each piece streamed as it arrives.

        If a limit ends the call after its first piece, the answer counts as truncated, because the
        client has seen a part of it. A call that breaks off for another reason is a failure.
        Replies without content are as in `call_final`.
        """
        shown, filters = DeltaAccumulator(), Filters(final)
        rest: list[Delta] = []
        unfiltered_is_empty = received = False
        finish_reason: FinishReason = "stop"
        try:
            async with aclosing((final.llm or llm).stream(final.chat, final.sampling)) as pieces:
                async for delta in pieces:
                    finish_reason = delta.finish_reason or finish_reason
                    content = replace(delta, finish_reason=None, usage=None)
                    received = received or content != Delta()
                    piece = filters.feed(content)
                    if piece != Delta():
                        shown.add(piece)
                        self._choices.add(number, piece)
        except EmptyCompletion as exc:
            if exc.empty_reply is None:
                raise
            unfiltered_is_empty, finish_reason = True, exc.empty_reply.finish_reason
            if not received:  # a filter may hold what came
                rest = [filters.feed(replace(as_delta(exc.empty_reply), finish_reason=None))]
        except SampleError:
            if shown.answer("length").empty or self._budget.stopped_by is None:
                raise
            finish_reason = "length"
        rest += filters.close()
        for piece in rest:
            shown.add(piece)
        answer = shown.answer(finish_reason)
        if answer.empty and (final.fallback or ctx.best) is not None:
            raise EmptyCompletion(answer)
        if answer.empty and not (unfiltered_is_empty or answer.truncated):
            raise EmptyCompletion
        for piece in rest:
            self._choices.add(number, piece)
        self._choices.add(number, Delta(finish_reason=finish_reason))
        return answer
