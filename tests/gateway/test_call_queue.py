"""The queue of inner calls: wide plans and busy keys starve nobody, and no place is lost."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

import pytest

from optillm_hooks.gateway.call_queue import CallQueue, Whose

LIMIT = 8


class World:
    """Calls that end when they are told to, in waves: all that are under way end together."""

    def __init__(self, limit: int | None = LIMIT) -> None:
        self.queue = CallQueue()
        self.limit = limit
        self.under_way: list[tuple[str, asyncio.Event]] = []
        self.ended = Counter[str]()
        self.most = 0

    async def call(self, request: str) -> None:
        """Make a call of a request, named `key` or `key/request`."""
        key, _, number = request.partition("/")
        async with self.queue.place(Whose(key, int(number or 0)), self.limit):
            end = asyncio.Event()
            self.under_way.append((request, end))
            self.most = max(self.most, len(self.under_way))
            try:
                await end.wait()
            finally:
                self.under_way.remove((request, end))
        self.ended[request] += 1

    def begin(self, request: str, calls: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.call(request)) for _ in range(calls)]

    async def wave(self) -> None:
        for _, end in list(self.under_way):
            end.set()
        await settled()


async def settled() -> None:
    """Let each task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.anyio
async def test_small_requests_end_in_few_waves_beside_a_wide_one() -> None:
    world = World()
    tasks = world.begin("key/0", 64)
    await settled()
    small = [f"key/{number}" for number in range(1, 9)]
    for request in small:
        tasks += world.begin(request, 2)
    await world.wave()  # what was under way before they came
    for _ in range(3):
        await world.wave()
    assert [world.ended[request] for request in small] == [2] * 8
    assert world.ended["key/0"] <= 8 + 3 * LIMIT - 16
    while not all(task.done() for task in tasks):
        await world.wave()
    assert world.ended["key/0"] == 64
    assert world.most == LIMIT
    assert (world.queue.running, world.queue.waiting) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [1, 4])
async def test_a_key_with_many_requests_does_not_hold_up_another(limit: int) -> None:
    world = World(limit)
    tasks = [task for number in range(50) for task in world.begin(f"many/{number}", 2)]
    await settled()
    tasks += world.begin("one", 2)
    for _ in range(5):  # the first two may be of the other key
        await world.wave()
    assert world.ended["one"] == 2
    while not all(task.done() for task in tasks):
        await world.wave()
    assert (world.queue.running, world.queue.waiting) == (0, 0)


@pytest.mark.anyio
async def test_equals_take_turns() -> None:
    world = World(limit=1)
    tasks = [*world.begin("a", 3), *world.begin("b", 2), *world.begin("c", 1)]
    await settled()
    order = []
    while world.under_way:
        order.append(world.under_way[0][0])
        await world.wave()
    assert order == ["a", "b", "c", "a", "b", "a"] or order == ["a", "a", "b", "c", "a", "b"]
    await asyncio.gather(*tasks)


@pytest.mark.anyio
async def test_without_a_limit_nothing_waits_and_a_lifted_one_lets_all_go() -> None:
    world = World(limit=1)
    tasks = world.begin("a", 3)
    await settled()
    assert (world.queue.running, world.queue.waiting) == (1, 2)
    world.limit = None
    tasks += world.begin("b", 1)
    await settled()
    assert (world.queue.running, world.queue.waiting) == (4, 0)
    await world.wave()
    await asyncio.gather(*tasks)


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost_whenever_calls_are_cancelled(seed: int) -> None:
    rng, world = random.Random(seed), World(limit=3)
    tasks: Sequence[asyncio.Task[None]] = [
        task for request in ("a/1", "a/2", "b/1", "c") for task in world.begin(request, 6)
    ]
    while pending := [task for task in tasks if not task.done()]:
        if rng.random() < 0.5:
            rng.choice(pending).cancel()
        if world.under_way:
            rng.choice(world.under_way)[1].set()
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
    assert world.most <= 3
    assert (world.queue.running, world.queue.waiting) == (0, 0)
    async with asyncio.timeout(10):
        last = world.begin("last", 3)
        await settled()
        assert world.queue.running == 3
        await world.wave()
        await asyncio.gather(*last)
