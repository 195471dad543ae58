"""Long texts are read in a worker process, within limits; short ones at once."""

import asyncio
import random
from dataclasses import replace
from typing import NoReturn

import pytest

from optillm_hooks import reading
from optillm_hooks.answers import worker
from optillm_hooks.answers.extraction import extract_answer
from optillm_hooks.answers.verdicts import read_rating
from optillm_hooks.answers.voting import Tally, majority
from optillm_hooks.context import Context
from optillm_hooks.reading import MAX_CHARACTERS, NotRead, read, read_or
from optillm_hooks.sandbox.client import WorkerFailed, ask_worker
from optillm_hooks.types import Json

pytestmark = pytest.mark.anyio
LONG = "Nothing is decided here. " * (MAX_CHARACTERS // 20)


async def _no_worker(*_: object) -> NoReturn:
    raise AssertionError("no worker is needed")


async def test_a_short_text_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ask_worker", _no_worker)
    assert await read(read_rating, "RATING: 7", 0, 10) == 7
    with pytest.raises(AssertionError):
        await read(read_rating, LONG + "RATING: 7", 0, 10)


async def test_many_short_texts_count_as_a_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ask_worker", _no_worker)
    assert (await read(majority, ["42"] * 10)).winner == 0
    with pytest.raises(AssertionError):
        await read(majority, ["42"] * MAX_CHARACTERS)


async def test_a_worker_reads_what_the_function_reads() -> None:
    assert await read(read_rating, f"{LONG}\nRATING: 7", 0, 10) == 7
    assert await read(extract_answer, f"{LONG}\nThe answer is 42.", question="How many?") == "42"
    assert await read(extract_answer, LONG) == extract_answer(LONG)
    votes = ["1/2", "0.5", None, "3", *[None] * MAX_CHARACTERS]
    assert await read(majority, votes) == majority(votes) == Tally(0, {"1/2": 2, "3": 1})


async def test_the_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LIMITS", replace(reading.LIMITS, seconds=0.01))
    with pytest.raises(NotRead):
        await read(majority, [f"x^2+{n}" for n in range(800)])  # takes about a second


async def test_a_text_that_is_not_read_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = Context(rng=random.Random(1))
    text = f"{LONG}\nRATING: 7"
    assert await read_or(None, ctx, read_rating, text, 0, 10) == 7
    assert not ctx.trace.lost

    async def fail(*_: object) -> Json:
        raise WorkerFailed("memory")

    monkeypatch.setattr(reading, "ask_worker", fail)
    assert await read_or(None, ctx, read_rating, text, 0, 10) is None
    assert ctx.trace.lost == ("readings:1/2",)


async def test_the_loop_runs_on_while_a_worker_reads() -> None:
    reads = asyncio.ensure_future(read(majority, [f"x^2+{n}" for n in range(800)]))
    passes = 0
    while not reads.done():
        passes += 1
        await asyncio.sleep(0)
    assert (await reads).winner == 0
    assert passes > 10


async def test_a_worker_calls_readers_only() -> None:
    request: Json = {"module": "os", "function": "getcwd", "args": [], "kwargs": {}}
    with pytest.raises(WorkerFailed):
        await ask_worker(worker.__name__, request, reading.LIMITS)
