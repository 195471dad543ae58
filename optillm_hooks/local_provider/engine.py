"""The face of one loaded model: requests in from any thread or task, events out.

One thread of its own touches torch, tokenizer and model. Everybody else hands it requests and gets
events through a call-back, so no event loop ever waits for a step.
"""

import asyncio
import contextlib
import gc
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Finished,
    Piece,
    Submission,
)

if TYPE_CHECKING:
    from optillm_hooks.local_provider.batch import Batch

Load = Callable[[], "Batch"]
MAX_REQUESTS = 512
"""Requests that may be in one engine at once, running and waiting."""


class _Leave:
    """A wish that the model leave memory."""

    def __init__(self) -> None:
        self.answered = threading.Event()


class Engine:
    """Serves one model. `load` runs in the engine's thread, when the first request is there.

    Requests that come while the model loads wait for it. If loading fails, all that have come by
    then fail with that one error, and the next request tries again. A model that nobody asked for
    a while is dropped, and loaded again when somebody does.
    """

    def __init__(
        self,
        name: str,
        load: Load,
        *,
        max_requests: int = MAX_REQUESTS,
        unload_after_s: float = 1800.0,
    ) -> None:
        self.name = name
        self.last_used = time.monotonic()
        self._load = load
        self._max_requests = max_requests
        self._unload_after_s = unload_after_s
        self._inbox: queue.SimpleQueue[Submission | _Leave | None] = queue.SimpleQueue()
        self._inside = 0
        self._lock = threading.Lock()
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def loaded(self) -> bool:
        return self._batch is not None

    @property
    def bytes(self) -> int:
        """Memory of the model with its keys and values; 0 while it is not loaded."""
        batch = self._batch
        return 0 if batch is None else batch.weight_bytes + batch.bytes

    def unload(self) -> bool:
        """Let the model leave memory unless it has requests; return whether it is gone.

        It is loaded again for the next request. Blocks for a step at most.
        """
        leave = _Leave()
        self._inbox.put(leave)
        while self.loaded and not leave.answered.wait(0.01):
            pass
        return not self.loaded

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Yield the events of a request; closing the iterator, or cancelling, stops it.

        Raises:
            RequestRejected: the request is at fault.
            ProviderFailed: the engine is, or it is full (503).
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            # A loop that was closed has nobody left to listen.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        with self._submitted(request, deliver):
            while not isinstance(event := await events.get(), Finished):
                if isinstance(event, Exception):
                    raise event
                yield event
            yield event

    def stream_sync(self, request: EngineRequest) -> Generator[Piece | Finished, None, None]:
        """Yield the events of a request, for callers without an event loop. Errors as `stream`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self._submitted(request, events.put):
            while not isinstance(event := events.get(), Finished):
                if isinstance(event, Exception):
                    raise event
                yield event
            yield event

    def close(self) -> None:
        """End the thread once the requests inside are answered, and wait for it."""
        self._inbox.put(None)
        self._thread.join()

    @contextmanager
    def _submitted(
        self, request: EngineRequest, deliver: Callable[[Event], None]
    ) -> Iterator[None]:
        with self._lock:
            if self._inside >= self._max_requests:
                raise ProviderFailed(f"the engine of {self.name} is full; try later", status=503)
            self._inside += 1
            self.last_used = time.monotonic()
        submission = Submission(request, deliver)
        try:
            self._inbox.put(submission)
            yield
        finally:
            submission.cancelled = True
            with self._lock:
                self._inside -= 1
                self.last_used = time.monotonic()

    def _run(self) -> None:
        closing = False
        while not (closing and self._idle):
            for arrived in self._arrivals():
                if arrived is None:
                    closing = True
                elif isinstance(arrived, _Leave):
                    self._leave(arrived)
                elif not arrived.cancelled:
                    self._guarded(arrived)
            if not self._idle:
                self._guarded(None)

    @property
    def _idle(self) -> bool:
        return self._batch is None or self._batch.idle

    def _leave(self, asked: "_Leave | None" = None) -> None:
        """Let go of the model, unless a request has come."""
        if self._idle:
            self._batch = None
            # A model refers to itself: without this its memory stays for a while.
            gc.collect()
        if asked is not None:
            asked.answered.set()

    def _arrivals(self) -> "Iterator[Submission | _Leave | None]":
        """Yield what is in the inbox; with nothing else to do, wait for it."""
        if self._idle:
            try:
                yield self._inbox.get(timeout=self._unload_after_s if self.loaded else None)
            except queue.Empty:
                self._leave()
                return
        yield from self._arrived()

    def _arrived(self) -> "Iterator[Submission | _Leave | None]":
        """Yield what is in the inbox by now."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _guarded(self, arrived: Submission | None) -> None:
        """Let `arrived` join the batch, or take a step. Whatever fails, every client hears of it.

        After a failure nobody knows what state the rows are in, so the batch starts anew.
        """
        try:
            if self._batch is None:
                self._batch = self._load()
            if arrived is not None:
                self._batch.add(arrived)
            else:
                self._batch.step()
        except OptiLLMError as exc:
            self._failed(arrived, exc)
        except Exception as exc:
            failure = ProviderFailed(f"{self.name}: {type(exc).__name__}: {exc}", status=500)
            failure.__cause__ = exc
            self._failed(arrived, failure)

    def _failed(self, arrived: Submission | None, failure: OptiLLMError) -> None:
        if arrived is not None:
            arrived.deliver(failure)
        if self._batch is not None:
            self._batch.fail(failure)
            self._batch = None
            return
        # It could not be loaded: for all who waited, by this one try.
        for other in list(self._arrived()):
            if not isinstance(other, Submission):
                self._inbox.put(other)
            elif not other.cancelled:
                other.deliver(failure)
