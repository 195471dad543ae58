"""Places are shared fairly: no tenant takes all, and none waits behind a queue of another's."""

import asyncio
from collections import Counter

import pytest

from optillm_hooks.sandbox.client import MAX_WORKERS, WorkerLimits, ask_worker
from optillm_hooks.sandbox.places import Places, tenant
from optillm_hooks.types import Json
from tests.solver.processes import children

pytestmark = pytest.mark.anyio


class Work:
    """Tasks that hold a place of `places` until they are told to end."""

    def __init__(self, count: int) -> None:
        self.places = Places(count)
        self.holding: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, *names: str) -> None:
        """Start a task for each name, whose first letter is its tenant."""
        for name in names:
            self._ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._run(name))
        await _settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await _settle()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self.tasks[name].cancel()
        await _settle()

    async def _run(self, name: str) -> None:
        tenant.set(name[0])
        async with self.places.take():
            self.holding.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.holding.remove(name)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_tenant_leaves_a_place_to_others() -> None:
    work = Work(3)
    await work.start("a1", "a2", "a3", "a4")
    assert work.holding == ["a1", "a2"]
    await work.start("b1")
    assert work.holding == ["a1", "a2", "b1"]


async def test_a_single_place_is_not_kept_from_its_only_tenant() -> None:
    work = Work(1)
    await work.start("a1", "a2")
    assert work.holding == ["a1"]
    await work.end("a1")
    assert work.holding == ["a2"]


async def test_a_newcomer_does_not_wait_behind_the_queue_of_another() -> None:
    work = Work(2)
    await work.start("a1", "b1", "a2", "a3", "c1", "a4", "c2")
    assert work.holding == ["a1", "b1"]
    await work.end("b1")
    assert work.holding == ["a1", "c1"]
    await work.end("a1")
    assert work.holding == ["c1", "a2"]


async def test_equals_are_served_in_the_order_in_which_they_came() -> None:
    work = Work(2)
    await work.start("a1", "b1", *(f"{letter}1" for letter in "cdef"))
    served = [work.holding[1]]
    for _ in range(4):
        await work.end(work.holding[0])
        served.append(work.holding[-1])
    assert served == ["b1", "c1", "d1", "e1", "f1"]


async def test_places_of_cancelled_tasks_are_free_again() -> None:
    work = Work(2)
    await work.start("a1", "b1", "c1", "d1", "e1")
    work.tasks["c1"].cancel()  # while it waits
    await work.cancel("a1", "d1")  # one holds a place, one has just been given it
    assert work.holding == ["b1", "e1"]
    await work.cancel("b1", "e1")
    await work.start("x1", "y1")
    assert work.holding == ["x1", "y1"]


async def test_programs_of_one_take_no_place_of_a_solver(probe: str) -> None:
    limits = WorkerLimits(seconds=30, memory_mb=1024)

    async def ask(who: int) -> None:
        tenant.set(who)
        await ask_worker(probe, "any(iter(int, 1))", limits)

    endless = [asyncio.create_task(ask(number)) for number in range(3 * MAX_WORKERS)]
    async with asyncio.timeout(30):
        while len(children()) < MAX_WORKERS:  # noqa: ASYNC110 (a process sets no event)
            await asyncio.sleep(0.01)
    script: Json = {"text": "(assert true)(check-sat)", "seconds": 5}
    reply = await ask_worker("optillm_hooks.solver.smtlib", script, limits)
    assert isinstance(reply, dict)
    assert Counter(task.done() for task in endless) == {False: 3 * MAX_WORKERS}
    for task in endless:
        task.cancel()
    await asyncio.wait(endless)
    assert children() == []
