"""The inference engine of one model: takes requests from any thread or task, streams events.

Only the engine's own thread touches torch, the tokenizer and the model. Callers hand it requests
and get events through a callback, so no event loop ever blocks on a step.
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
"""Maximum number of requests in one engine, running and waiting."""


class _Unload:
    """A message that tells the engine's thread to unload the model if it is idle."""

    def __init__(self) -> None:
        self.done = threading.Event()


class Engine:
    """Serves one model with continuous batching; `load` runs in the engine's thread when needed.

    The first request loads the model. Requests that arrive meanwhile wait for it. If loading fails,
    all of them fail with that one error, and the next request tries again. A model without requests
    for a while is unloaded, and loaded again for the next one.
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
        self._inbox: queue.SimpleQueue[Submission | _Unload | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @property
    def loaded(self) -> bool:
        return self._batch is not None

    @property
    def bytes(self) -> int:
        """Memory of the model and its KV cache; 0 while it is not loaded."""
        batch = self._batch
        return 0 if batch is None else batch.weight_bytes + batch.bytes

    def unload(self) -> bool:
        """Unload the model unless it has requests; return True if it is unloaded.

        The next request loads it again. Blocks for at most one step.
        """
        message = _Unload()
        self._inbox.put(message)
        while self.loaded and not message.done.wait(0.01):
            pass
        return not self.loaded

    async def stream(self, request: EngineRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Yield the events of a request; closing the iterator, or cancelling, stops it.

        Raises:
            RequestRejected: the request is invalid.
            ProviderFailed: the engine failed, or is full (503).
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            # Once the caller's event loop is closed, nobody reads the events.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(events.put_nowait, event)

        with self._submitted(request, deliver):
            while not isinstance(event := await events.get(), Finished):
                if isinstance(event, Exception):
                    raise event
                yield event
            yield event

    def stream_sync(self, request: EngineRequest) -> Generator[Piece | Finished, None, None]:
        """Yield the events of a request, without an event loop; raises the same as `stream`."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self._submitted(request, events.put):
            while not isinstance(event := events.get(), Finished):
                if isinstance(event, Exception):
                    raise event
                yield event
            yield event

    def close(self) -> None:
        """Finish the requests in flight, then stop the engine's thread. Blocks."""
        self._inbox.put(None)
        self._thread.join()

    @contextmanager
    def _submitted(
        self, request: EngineRequest, deliver: Callable[[Event], None]
    ) -> Iterator[None]:
        with self._lock:
            if self._in_flight >= self._max_requests:
                raise ProviderFailed(f"the engine of {self.name} is full; try later", status=503)
            self._in_flight += 1
            self.last_used = time.monotonic()
        submission = Submission(request, deliver)
        try:
            self._inbox.put(submission)
            yield
        finally:
            submission.cancelled = True
            with self._lock:
                self._in_flight -= 1
                self.last_used = time.monotonic()

    def _run(self) -> None:
        closing = False
        while not (closing and self._idle):
            for message in self._messages():
                if message is None:
                    closing = True
                elif isinstance(message, _Unload):
                    self._unload_if_idle(message)
                elif not message.cancelled:
                    self._add_or_step(message)
            if not self._idle:
                self._add_or_step(None)

    @property
    def _idle(self) -> bool:
        return self._batch is None or self._batch.idle

    def _unload_if_idle(self, message: "_Unload | None" = None) -> None:
        """Unload the model unless it has requests."""
        if self._idle:
            self._batch = None
            # Models contain reference cycles: without this, memory stays allocated for a while.
            gc.collect()
        if message is not None:
            message.done.set()

    def _messages(self) -> "Iterator[Submission | _Unload | None]":
        """Yield the messages in the inbox; block until there is one if the engine is idle."""
        if self._idle:
            try:
                yield self._inbox.get(timeout=self._unload_after_s if self.loaded else None)
            except queue.Empty:
                self._unload_if_idle()
                return
        yield from self._queued()

    def _queued(self) -> "Iterator[Submission | _Unload | None]":
        """Yield the messages in the inbox, without waiting."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _add_or_step(self, message: Submission | None) -> None:
        """Add `message` to the batch, or step if it is None; deliver failures to all requests.

        After a failure the state of the KV cache is unknown, so the batch is dropped.
        """
        try:
            if self._batch is None:
                self._batch = self._load()
            if message is not None:
                self._batch.add(message)
            else:
                self._batch.step()
        except OptiLLMError as exc:
            self._failed(message, exc)
        except Exception as exc:
            failure = ProviderFailed(f"{self.name}: {type(exc).__name__}: {exc}", status=500)
            failure.__cause__ = exc
            self._failed(message, failure)

    def _failed(self, message: Submission | None, failure: OptiLLMError) -> None:
        if message is not None:
            message.deliver(failure)
        if self._batch is not None:
            self._batch.fail(failure)
            self._batch = None
            return
        # Loading failed: fail every queued request with the same error.
        for other in list(self._queued()):
            if not isinstance(other, Submission):
                self._inbox.put(other)
            elif not other.cancelled:
                other.deliver(failure)
