"""The face of one loaded model: requests in from any thread or task, events out.

One thread of its own touches torch, tokenizer and model. Everybody else hands it requests and gets
events through a call-back, so no event loop ever waits for a step.
"""

import asyncio
import os
import queue
import random
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider.generation import (
    Event,
    Finished,
    Generation,
    Piece,
    PromptTooLong,
    ScoredToken,
)

if TYPE_CHECKING:
    from optillm_hooks.local_provider.chat_format import ChatFormat
    from optillm_hooks.local_provider.runner import Runner

Loader = Callable[[], tuple["Runner", "ChatFormat"]]


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the engine."""

    generation: Generation
    deliver: Callable[[Event], None]
    cancelled: bool = False
    """Set by anyone; the engine's thread looks at it before each step."""


class Engine:
    """Serves one model. `load` runs once, in the engine's thread, when the first request is there.

    Requests that come while the model loads wait for it. If loading fails they all fail, and the
    next request tries again.
    """

    def __init__(self, name: str, load: Loader) -> None:
        self._load = load
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._model: tuple[Runner, ChatFormat] | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    def submit(self, generation: Generation, deliver: Callable[[Event], None]) -> Job:
        """Queue a request. `deliver` is called in the engine's thread and must not block.

        The last event is a `Finished` or an exception; of a cancelled job no more events come.
        """
        job = Job(generation, deliver)
        self._jobs.put(job)
        return job

    async def stream(self, generation: Generation) -> AsyncGenerator[Piece | Finished, None]:
        """Yield the events of a request; closing the iterator, or cancelling, stops it.

        Raises:
            RequestRejected: the request is at fault.
            ProviderFailed: the engine is.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            # A loop that was closed has nobody left to listen.
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = self.submit(generation, deliver)
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            job.cancelled = True

    def stream_sync(self, generation: Generation) -> Generator[Piece | Finished, None, None]:
        """Yield the events of a request, for callers without an event loop. Errors as `stream`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        job = self.submit(generation, events.put)
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            job.cancelled = True

    def token_bytes(self, token: int) -> bytes:
        """Return the exact bytes of a token that this engine drew."""
        if self._model is None:
            raise RuntimeError("no token was drawn yet")
        return self._model[1].token_bytes(token)

    def close(self) -> None:
        """End the thread after the jobs that are queued, and wait for it."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.cancelled:
                continue
            try:
                self._serve(job)
            except OptiLLMError as exc:
                job.deliver(exc)
            except Exception as exc:  # whatever it is, the client must hear of it
                failure = ProviderFailed(f"the local engine failed: {type(exc).__name__}: {exc}")
                failure.status = 500
                failure.__cause__ = exc
                job.deliver(failure)

    def _serve(self, job: Job) -> None:
        if self._model is None:
            self._model = self._load()
        runner, chat_format = self._model
        request = job.generation
        prompt = chat_format.encode(request.messages, request.tools)
        room = runner.context - len(prompt)
        if room < 1:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens; this model's context of {runner.context} "
                "must hold it and at least one token of the answer",
                param="messages",
            )
        try:
            drawn = _generate(
                job, runner, chat_format, prompt, min(request.max_tokens or room, room)
            )
        finally:
            runner.clear()
        if not job.cancelled:
            job.deliver(Finished(len(prompt), drawn))


def _generate(
    job: Job, runner: "Runner", chat_format: "ChatFormat", prompt: list[int], most: int
) -> int:
    """Deliver the pieces of every choice; returns the number of tokens drawn."""
    from optillm_hooks.local_provider.chat_format import Transcript
    from optillm_hooks.local_provider.sampling import draw, score

    request = job.generation
    seed = request.seed if request.seed is not None else int.from_bytes(os.urandom(8))
    rows = [Transcript(i, chat_format, request.stop) for i in range(request.n)]
    dice = [random.Random(f"{seed}:{i}") for i in range(request.n)]  # noqa: S311 (no secret)
    going = list(range(request.n))
    drawn = 0
    logits = runner.prefill(prompt, request.n)
    while True:
        tokens = draw(logits, [request.law] * len(going), [dice[i].random() for i in going])
        scores: Sequence[ScoredToken | None] = [None] * len(tokens)
        if request.top_logprobs is not None:
            scores = score(logits, tokens, request.top_logprobs)
        drawn += len(tokens)
        for i, token, scored in zip(going, tokens, scores, strict=True):
            piece = rows[i].add(token, scored, last=len(rows[i].ids) + 1 == most)
            if piece is not None:
                job.deliver(piece)
        left = [b for b, i in enumerate(going) if rows[i].finish_reason is None]
        if not left or job.cancelled:
            return drawn
        if len(left) < len(going):
            runner.keep(left)
            going = [going[b] for b in left]
        logits = runner.step([rows[i].ids[-1] for i in going])
