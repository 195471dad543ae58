"""Concurrent model calls: the only place that starts tasks and threads."""

import asyncio
import concurrent.futures
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, compress
from typing import Final, Literal, TypeVar

from optillm_hooks.context import Context, depth_so_far
from optillm_hooks.errors import (
    DeadlineExceeded,
    SampleError,
    SamplesFailed,
    TooManyThreads,
)
from optillm_hooks.llm import LLM
from optillm_hooks.types import Chat, Completion, Sampling

T = TypeVar("T")

_MAX_JOBS: Final = 1000
_log = logging.getLogger(__name__)

_MAX_THREADS = 64
"""Maximum threads at a time. One whose request was cancelled counts until its work returns."""

_threads = threading.BoundedSemaphore(_MAX_THREADS)


async def outcomes(
    calls: Sequence[Callable[[], Awaitable[T]]],
    *,
    until: float | None = None,
    enough: int = 1,
    settled: Callable[[], bool] | None = None,
) -> list[T | SampleError]:
    """Return the result or `SampleError` of each of `calls`, run concurrently, in their order.

    Any other exception, and cancellation, stops all of them. From the instant `until` on, the
    calls still running are cancelled as soon as `enough` have succeeded, and count as
    `DeadlineExceeded`. The same happens as soon as `settled` returns true after a call has ended.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(call)) for call in calls]
        if until is not None or settled is not None:
            await _cut_stragglers(tasks, until or float("inf"), enough, settled)
    ended = [
        (DeadlineExceeded("cancelled: the other calls are enough, or need the remaining time"), 0)
        if task.cancelled()
        else task.result()
        for task in tasks
    ]
    depth_so_far.set(max([depth_so_far.get(), *(depth for _, depth in ended)]))
    return [outcome for outcome, _ in ended]


async def _outcome(call: Callable[[], Awaitable[T]]) -> tuple[T | SampleError, int]:
    try:
        result: T | SampleError = await call()
    except SampleError as exc:
        result = exc
    return result, depth_so_far.get()


async def _cut_stragglers(
    tasks: Sequence[asyncio.Task[tuple[T | SampleError, int]]],
    until: float,
    enough: int,
    settled: Callable[[], bool] | None,
) -> None:
    clock = asyncio.get_running_loop().time
    pending = set(tasks)
    while pending:
        wait_s = until - clock()
        _, pending = await asyncio.wait(
            pending,
            timeout=wait_s if 0 < wait_s < float("inf") else None,
            return_when=asyncio.FIRST_COMPLETED,
        )
        late = clock() >= until and _succeeded(tasks) >= enough
        if late or (settled is not None and settled()):
            for straggler in pending:
                straggler.cancel()
            return


def _succeeded(tasks: Sequence[asyncio.Task[tuple[T | SampleError, int]]]) -> int:
    return sum(
        task.done()
        and not task.cancelled()
        and task.exception() is None
        and not isinstance(task.result()[0], SampleError)
        for task in tasks
    )


async def finished(
    calls: Sequence[Callable[[], Awaitable[T]]], *, until: float | None = None, at_least: int = 1
) -> list[T]:
    """Return the results of those of `calls`, run concurrently, that did not fail, in their order.

    `until` is as in `outcomes`.

    Raises:
        SamplesFailed: fewer than `at_least` succeeded.
    """
    ended = await outcomes(calls, until=until, enough=at_least)
    results = [outcome for outcome in ended if not isinstance(outcome, SampleError)]
    if len(results) < at_least:
        raise SamplesFailed(_errors(ended))
    return results


Decision = Literal["wait", "more", "stop"]
"""What further samples are: not decided yet, needed, or not needed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waves:
    """Two waves of samples, of which the second may not be needed."""

    first: int
    """Samples in the first wave; if it is all of them, there is no second."""

    decide: Callable[[Sequence[Completion]], Awaitable[Decision]]
    """Gets the samples of each call that ends. On "more" the second wave begins; on "stop" all
    calls that are still running are cancelled."""

    patience: float | None = None
    """The instant at which the second wave begins at the latest."""


async def sample_many(
    llm: LLM | Sequence[LLM],
    chat: Chat,
    sampling: Sampling,
    ctx: Context,
    *,
    n: int,
    min_finished: int = 1,
    until: float | None = None,
    kind: str = "samples",
    waves: Waves | None = None,
) -> list[Completion]:
    """Return the completions of `n` samples of one prompt that finished, in the order of asking.

    Where a model honours `n`, each call asks for as many choices as allowed, so that the prompt
    is billed once; single calls make up for missing choices, unless the provider is overloaded.
    Otherwise every sample is a call of its own. All calls run concurrently. A sample that fails is
    left out; if the model does not take the prompt, the others are cancelled. The trace counts a
    sample that is left out as lost, and a truncated one too if another is complete.

    Args:
        llm: the model, or several, which are sampled in turn. Their samples are returned in the
            order of the models.
        chat: the prompt of all samples.
        sampling: `sample` is the number of the first; the others follow it. Samples of the same
            prompt that are asked for later must come after its `numbers`.
        ctx: its trace counts the samples.
        n: the number of samples.
        min_finished: how many of them the caller needs.
        until: from this instant on, stragglers are cancelled once `min_finished` have finished.
        kind: what the trace calls the samples.
        waves: whether all samples are needed; None asks for all at the same time.

    Raises:
        SamplesFailed: fewer than `min_finished` samples finished.
    """
    sampler = _Sampler(chat, sampling, waves or Waves(first=n, decide=_all_are_needed))
    found: list[Completion] = []
    try:
        seats = _seats(list(llm) if isinstance(llm, Sequence) else [llm], n, sampler.waves.first)
        ended = await sampler.all(seats, until, min_finished)
        if not sampler.settled and len(sampler.samples) < n:
            ended += await sampler.missing(seats, n, ended, until, min_finished)
        found = sampler.samples
    finally:
        of = sampler.begun if sampler.settled else n
        whole = [sample for sample in found if not sample.truncated] or found
        lost = sampler.failed + len(found) - len(whole) if sampler.settled else n - len(whole)
        ctx.trace.count(kind, lost=lost, of=of)
        ctx.trace.save(max(0, n - of))
    if len(found) < min_finished:
        raise SamplesFailed(_errors(ended))
    return found


def numbers(n: int) -> int:
    """Return how many sample numbers `n` samples may use: those that are missing get new ones."""
    return 2 * n


async def _all_are_needed(_: Sequence[Completion]) -> Decision:
    return "wait"


@dataclass(frozen=True, slots=True)
class _Seat:
    """A model of a panel, and its samples: the number of the first, and how many in each wave."""

    llm: LLM
    start: int
    first: int
    second: int
    size: int
    """Maximum samples of a call. What is known of a model may change while it is called."""

    @property
    def count(self) -> int:
        return self.first + self.second

    @property
    def calls(self) -> list[tuple[int, int]]:
        """The calls for its samples: the number of the first sample, and how many."""
        second = self.start + self.first
        waves = ((self.start, second), (second, second + self.second))
        return [
            (at, min(self.size, end - at))
            for begin, end in waves
            for at in range(begin, end, self.size)
        ]


def _seats(panel: Sequence[LLM], n: int, first: int) -> list[_Seat]:
    llms = {llm.model: llm for llm in panel}
    in_turn = [panel[number % len(panel)].model for number in range(n)]
    firsts, counts = Counter(in_turn[:first]), Counter(in_turn)
    starts = accumulate(counts.values(), initial=0)
    return [
        _Seat(llm, start, firsts[model], counts[model] - firsts[model], llm.facts.max_n)
        for (model, llm), start in zip(llms.items(), starts, strict=False)
    ]


Ended = list[int | SampleError]
"""How many samples each call gave, or its error."""


@dataclass(slots=True)
class _Sampler:
    """The samples of one prompt."""

    chat: Chat
    sampling: Sampling
    waves: Waves
    settled: bool = False
    """Whether no further samples are needed."""

    begun: int = 0
    failed: int = 0
    """Samples of the calls that failed, other than by being cancelled."""

    _found: dict[int, Sequence[Completion]] = field(default_factory=dict[int, Sequence[Completion]])
    """The samples of each call, by the number of its first."""

    _taking: set[str] = field(default_factory=set[str])
    """The models that have not rejected the prompt."""

    _one_at_a_time: set[str] = field(default_factory=set[str])
    """The models of which a call for several samples has failed."""

    _more: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the second wave is needed."""

    _firsts: int = 0
    """Calls of the first wave that have not ended."""

    _curable: bool = False
    """Whether a call has failed that might succeed if it were made again."""

    _depth: int = 0
    """The chain of calls that the second wave has waited for."""

    @property
    def samples(self) -> list[Completion]:
        return [sample for number in sorted(self._found) for sample in self._found[number]]

    async def all(self, seats: Sequence[_Seat], until: float | None, enough: int) -> Ended:
        """Make the calls of all seats, and return how they ended."""
        self._taking = {seat.llm.model for seat in seats}
        calls = [(seat, *call) for seat in seats for call in seat.calls]
        is_first = [number < seat.start + seat.first for seat, number, _ in calls]
        self._firsts = sum(is_first)
        asks = [
            partial(self._in_first if first else self._in_second, *call)
            for call, first in zip(calls, is_first, strict=True)
        ]
        return await outcomes(asks, until=until, enough=enough, settled=self._stopped)

    async def missing(
        self, seats: Sequence[_Seat], n: int, ended: Ended, until: float | None, enough: int
    ) -> Ended:
        """Make calls for the samples that are missing, if calls for several gave too few.

        An overloaded provider does not get single calls in place of one that failed. If it has said
        how long to wait, it gets the same call once more after that time.
        """
        calls: list[Callable[[], Awaitable[int]]] = []
        left = iter(ended)
        for seat in seats:
            of_seat = [next(left) for _ in seat.calls]
            found, errors = sum(e for e in of_seat if isinstance(e, int)), _errors(of_seat)
            if min(seat.size, seat.count) == 1:
                continue
            if any(error.is_overload for error in errors):
                told = [isinstance(e, SampleError) and e.wait_s is not None for e in of_seat]
                # Each waits as it was told, or fails at once.
                again = list(compress(seat.calls, told))
                calls += [partial(self._ask, seat, *call) for call in again]
                self._replace(begun=sum(size for _, size in again), failed=again)
            elif not any(error.is_permanent for error in errors):
                # New numbers: a seed that a call has used would repeat that call's first sample.
                numbers = range(n + seat.start, n + seat.start + seat.count - found)
                calls += [partial(self._ask, seat, number, 1) for number in numbers]
                failed = [isinstance(e, SampleError) for e in of_seat]
                asked = sum(size for (_, size), e in zip(seat.calls, of_seat, strict=True) if e)
                self._replace(begun=asked - found, failed=list(compress(seat.calls, failed)))
        lacking = max(0, enough - len(self.samples))
        return await outcomes(calls, until=until, enough=lacking, settled=self._stopped)

    def _replace(self, *, begun: int, failed: Sequence[tuple[int, int]]) -> None:
        """Do not count samples, nor failed calls, that others make up for."""
        self.begun -= begun
        self.failed -= sum(size for _, size in failed)

    async def _in_first(self, seat: _Seat, number: int, size: int) -> int:
        try:
            return await self._ask(seat, number, size)
        finally:
            self._firsts -= 1
            if not self._firsts and not self.settled:
                self._begin_second()

    async def _in_second(self, seat: _Seat, number: int, size: int) -> int:
        """Make a call of the second wave; not where the first has shown that it would fail too."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.waves.patience):
                await self._more.wait()
        if self.failed and not (self._found or self._curable):
            return 0
        depth_so_far.set(max(self._depth, depth_so_far.get()))
        if size > 1 and seat.llm.model in self._one_at_a_time:
            return 0  # `missing` makes up for it
        return await self._ask(seat, number, size)

    async def _ask(self, seat: _Seat, number: int, size: int) -> int:
        self.begun += size
        try:
            samples = await _ask(seat.llm, self.chat, self.sampling, number, size)
        except SampleError as exc:
            if exc.rejects_prompt:
                self._taking.discard(seat.llm.model)
            if size > 1 and not exc.is_overload:
                self._one_at_a_time.add(seat.llm.model)
            self._curable = self._curable or not (exc.is_overload or exc.is_permanent)
            self.failed += size
            raise
        self._found[number] = samples
        decision = await self.waves.decide(samples)
        self.settled = self.settled or decision == "stop"
        if decision == "more":
            self._begin_second()
        return len(samples)

    def _begin_second(self) -> None:
        if not self._more.is_set():
            self._depth = depth_so_far.get()
            self._more.set()

    def _stopped(self) -> bool:
        return self.settled or not self._taking


async def _ask(
    llm: LLM, chat: Chat, sampling: Sampling, number: int, size: int
) -> Sequence[Completion]:
    """Return up to `size` samples from one call; the first has the number `number`."""
    numbered = replace(sampling, sample=sampling.sample + number)
    if size == 1:
        return [await llm.complete(chat, numbered)]
    return (await llm.complete_n(chat, numbered, size))[:size]


def _errors(ended: Sequence[T | SampleError]) -> list[SampleError]:
    return [outcome for outcome in ended if isinstance(outcome, SampleError)]


@asynccontextmanager
async def speculating(
    call: Callable[[], Awaitable[T]],
) -> AsyncIterator[Callable[[], Awaitable[T]]]:
    """Run `call` concurrently with the body of the `with`, which gets a function to await it.

    Leaving the block cancels a call that is still running. An error of the call is raised where it
    is awaited, and lost if it never is.
    """
    task = asyncio.get_running_loop().create_task(_outcome(call))

    async def result() -> T:
        outcome, depth = await task
        depth_so_far.set(max(depth_so_far.get(), depth))
        if isinstance(outcome, SampleError):
            raise outcome
        return outcome

    try:
        yield result
    finally:
        task.cancel()
        await asyncio.wait([task])


class RequestEnded(BaseException):
    """The request that a thread works for has ended. No `except Exception` of its work stops it."""


async def in_thread(work: Callable[["LoopOfThread"], T]) -> T:
    """Return the result of `work`, which may block: it runs in a thread of its own.

    Its calls on the loop run concurrently, and end with this function. If this is cancelled, the
    next such call of `work` raises `RequestEnded`: a thread cannot be stopped from outside.

    Raises:
        TooManyThreads: as many threads as allowed are at work.
        RuntimeError: `work` raised an exception that is none of `Exception`, such as `SystemExit`.
    """
    if not _threads.acquire(blocking=False):
        raise TooManyThreads(_MAX_THREADS)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[T] = loop.create_future()
    calls = LoopOfThread(loop)

    def settle(error: Exception | None, result: T | None = None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(result)  # type: ignore[arg-type] # what the work returned
        else:
            ended.set_exception(error)

    def body() -> None:
        try:
            outcome: tuple[Exception | None, T | None] = None, work(calls)
        except Exception as exc:
            outcome = _as_runtime_error(exc) if isinstance(exc, StopIteration) else exc, None
        except BaseException as exc:
            outcome = _as_runtime_error(exc), None
        finally:
            _threads.release()
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, *outcome)

    name = "optillm-work"
    threading.Thread(target=copy_context().run, args=(body,), daemon=True, name=name).start()
    try:
        return await ended
    finally:
        await calls.end()


def _as_runtime_error(error: BaseException) -> RuntimeError:
    wrapped = RuntimeError(f"the thread ended by {type(error).__name__}")
    wrapped.__cause__ = error
    return wrapped


class LoopOfThread:
    """The event loop as a thread's work sees it, which may have threads of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context = copy_context()
        self._depth = depth_so_far.get()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False
        self._at_end: list[Callable[[], object]] = []

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `call`, which runs on the loop.

        Raises:
            RequestEnded: the request has ended.
        """
        return self.result(self.start(call))

    def start(self, call: Callable[[], Awaitable[T]]) -> "concurrent.futures.Future[T]":
        """Start `call` on the loop, and return its future. Cancelling that cancels the call."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            self._loop.call_soon_threadsafe(self._begin, call, future)
        except RuntimeError:  # the loop is closed
            raise RequestEnded from None
        return future

    def result(self, future: "concurrent.futures.Future[T]") -> T:
        """Wait for the result of a future of `start`. Raises as `run`."""
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RequestEnded from None

    def run_coroutine(self, work: Coroutine[None, None, T]) -> T:
        """Return the result of `work` on a private loop of this thread, cancelled at the end."""

        async def cancellable() -> T:
            task, private = asyncio.current_task(), asyncio.get_running_loop()

            def cancel() -> None:
                with suppress(RuntimeError):  # it is closed
                    private.call_soon_threadsafe(lambda: task and task.cancel())

            self._at_end.append(cancel)
            if self._ended:
                cancel()
            return await work

        return asyncio.run(cancellable())

    async def end(self) -> None:
        """Cancel the calls that are still running, and refuse further ones."""
        self._ended = True
        for callback in self._at_end:
            callback()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        depth_so_far.set(max(self._depth, depth_so_far.get()))

    def _begin(
        self, call: Callable[[], Awaitable[T]], future: "concurrent.futures.Future[T]"
    ) -> None:
        if self._ended or future.cancelled():
            future.cancel()
            return
        settled = self._settled(call, future)
        task = self._loop.create_task(settled, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        future.add_done_callback(partial(self._stop_cancelled, task))

    def _stop_cancelled(
        self, task: asyncio.Task[None], future: "concurrent.futures.Future[T]"
    ) -> None:
        if future.cancelled():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(task.cancel)

    async def _settled(
        self, call: Callable[[], Awaitable[T]], future: "concurrent.futures.Future[T]"
    ) -> None:
        depth_so_far.set(self._depth)
        with suppress(concurrent.futures.InvalidStateError):  # it is cancelled
            try:
                future.set_result(await call())
            except Exception as exc:
                future.set_exception(exc)
            except BaseException:
                future.cancel()
                raise
            finally:
                self._depth = max(self._depth, depth_so_far.get())


@asynccontextmanager
async def opened(
    open_it: Callable[[], Awaitable[T]], close_it: Callable[[T], Awaitable[None]]
) -> AsyncIterator[T]:
    """Yield what `open_it` returns, and close it when the block is left.

    What costs money while it is open is closed even if the caller is cancelled while it is opened,
    or again while it is closed. A `SampleError` of closing it is lost.
    """
    start = asyncio.get_running_loop().create_task
    opening = start(_outcome(open_it))

    async def close() -> None:
        outcome, _ = await opening
        if not isinstance(outcome, SampleError):
            with suppress(SampleError):
                await close_it(outcome)

    try:
        outcome, _ = await asyncio.shield(opening)
        if isinstance(outcome, SampleError):
            raise outcome
        yield outcome
    finally:
        await asyncio.shield(start(close()))


class Background:
    """Work after the answers, of which a caller may have some waiting, and none waits for any.

    Args:
        running: maximum of jobs that run at once.
        waiting: maximum of jobs of one caller that have not ended.
        seconds: after which a job is cancelled.
        describe: returns what the log says of a bug in a job. A message may quote a prompt.
    """

    def __init__(
        self,
        *,
        running: int = 4,
        waiting: int = 16,
        seconds: float = 300.0,
        describe: Callable[[Exception], str] = lambda error: type(error).__name__,
    ) -> None:
        self._describe = describe
        self._slots = asyncio.Semaphore(running)
        self._waiting = waiting
        self._seconds = seconds
        self._tasks: dict[asyncio.Task[None], str] = {}

    def accept(self, caller: str, job: Callable[[], Awaitable[None]]) -> bool:
        """Run `job` later; return whether there is room for another job of `caller`."""
        of_caller = sum(each == caller for each in self._tasks.values())
        if of_caller >= self._waiting or len(self._tasks) >= _MAX_JOBS:
            return False
        task = asyncio.get_running_loop().create_task(self._run(job))
        self._tasks[task] = caller
        task.add_done_callback(self._tasks.pop)
        return True

    async def _run(self, job: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._slots, asyncio.timeout(self._seconds):
                await job()
        except (SampleError, TimeoutError) as exc:
            _log.info("work after an answer ended early: %s", exc or type(exc).__name__)
        except Exception as exc:
            _log.error("work after an answer failed: %s", self._describe(exc))

    async def ended(self) -> None:
        """Wait until nothing is left."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    def cancel(self) -> None:
        """Cancel what has not ended."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Cancel what has not ended, and wait until it has."""
        self.cancel()
        await self.ended()
