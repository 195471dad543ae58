"""The inference engine of one model: takes requests from any thread or task, streams events.

Only the engine's own thread touches torch and the model. Callers hand it requests and get events
through a callback, so no event loop ever blocks on a step. Prompts are written and tokenized in
other threads, so a long one delays no step either.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Finished,
    Piece,
    Submission,
)
from optillm_hooks.local_provider.eviction import release_memory

if TYPE_CHECKING:
    from optillm_hooks.local_provider.active_request import ActiveRequest
    from optillm_hooks.local_provider.batch import Batch

Load = Callable[[], "Batch"]
MAX_REQUESTS = 512
"""Maximum number of requests in one engine, running and waiting."""


PREPARERS = 2
"""Threads that prepare the prompts of one engine: one that takes long holds up no other."""


class _Prepared(NamedTuple):
    """A message that a request is prepared for `batch`; None: it failed or was cancelled."""

    batch: "Batch"
    active: "ActiveRequest | None"


class _Unload:
    """A message that tells the engine's thread to unload the model if it is idle."""

    def __init__(self) -> None:
        self.done = threading.Event()


_Message = Submission | _Prepared | _Unload | None
"""None: close the engine."""


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
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        """What the preparers have to do, in order of arrival."""

        self._preparing = 0
        """Number of requests that the preparers have or will get; only for the engine's thread."""

        self._in_flight = 0
        self._lock = threading.Lock()
        self._batch: Batch | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()
        # Daemons: a chat template that never ends must not keep the process from exiting.
        for number in range(PREPARERS):
            threading.Thread(
                target=self._do_jobs, name=f"prepare-{number}-{name}", daemon=True
            ).start()

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
        """Finish the requests in flight, then stop the engine's threads. Blocks."""
        self._inbox.put(None)
        self._thread.join()
        for _ in range(PREPARERS):
            self._jobs.put(None)

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
                match message:
                    case None:
                        closing = True
                    case Submission():
                        self._begin(message)
                    case _Prepared():
                        self._join(message)
                    case _Unload():
                        self._unload_if_idle(message)
                del message  # it may hold the model
            if not self._has_nothing_to_step:
                self._step()

    @property
    def _idle(self) -> bool:
        return not self._preparing and self._has_nothing_to_step

    @property
    def _has_nothing_to_step(self) -> bool:
        return self._batch is None or self._batch.idle

    def _unload_if_idle(self, message: "_Unload | None" = None) -> None:
        """Unload the model unless it has requests."""
        if self._idle:
            self._batch = None
            release_memory()
        if message is not None:
            message.done.set()

    def _messages(self) -> Iterator[_Message]:
        """Yield the messages in the inbox; block until there is one if there is nothing to step."""
        if self._has_nothing_to_step:
            may_unload = self.loaded and not self._preparing
            try:
                yield self._inbox.get(timeout=self._unload_after_s if may_unload else None)
            except queue.Empty:
                self._unload_if_idle()
                return
        yield from self._queued()

    def _queued(self) -> Iterator[_Message]:
        """Yield the messages in the inbox, without waiting."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _begin(self, submission: Submission) -> None:
        """Load the model if necessary, and have the request prepared."""
        if submission.cancelled:
            return
        try:
            if self._batch is None:
                self._batch = self._load()
        except BaseException as exc:  # a panic of an extension module is no Exception
            self._load_failed(submission, self._failure(exc))
        else:
            self._preparing += 1
            self._jobs.put(partial(self._prepare, self._batch, submission))

    def _do_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds the model

    def _prepare(self, batch: "Batch", submission: Submission) -> None:
        """Prepare a request, in a preparer's thread."""
        active = None
        try:
            if not submission.cancelled:
                active = batch.prepare(submission)
        finally:
            self._inbox.put(_Prepared(batch, active))

    def _join(self, prepared: _Prepared) -> None:
        self._preparing -= 1
        batch, active = prepared
        if active is not None and batch is not self._batch:
            active.deliver(ProviderFailed(f"{self.name}: the model was unloaded", status=503))
        elif active is not None:
            batch.join(active)

    def _step(self) -> None:
        """Run a step of the batch. If that fails, its requests end; the model stays loaded."""
        batch = self._batch
        if batch is None:
            return
        try:
            batch.step()
        except BaseException as exc:  # the batch itself is at fault: it ends rows that fail
            try:
                batch.fail(self._failure(exc))
            except BaseException:  # all have been told, but rows may be left
                self._batch = None

    def _failure(self, error: BaseException) -> OptiLLMError:
        if isinstance(error, OptiLLMError):
            return error
        failure = ProviderFailed(f"{self.name}: {type(error).__name__}: {error}", status=500)
        failure.__cause__ = error
        return failure

    def _load_failed(self, submission: Submission, failure: OptiLLMError) -> None:
        """Fail the request, and every queued one, with the same error."""
        submission.deliver(failure)
        for other in list(self._queued()):
            if not isinstance(other, Submission):
                self._inbox.put(other)
            elif not other.cancelled:
                other.deliver(failure)
