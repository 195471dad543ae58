"""Turns of inner calls: what a client's fan-out leaves of the event loop to everybody else."""

import asyncio
import statistics
import threading
from collections.abc import Iterator

import httpx
import pytest

from optillm_hooks.gateway.turns import Turns, wait_for_turn
from tests.proxy import Proxy, hooked_config, model_group
from tests.upstream import Script, Upstream


async def begun_in_order(turns: Turns, keys: str) -> str:
    """Return the keys of calls in the order in which they begin, if they come as in `keys`."""
    begun = []

    async def call(key: str) -> None:
        await turns.wait(key)
        begun.append(key)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(call(key))
    return "".join(begun)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("keys", "order"),
    [("a", "a"), ("aaa", "aaa"), ("aaaabb", "aababa"), ("aaabbc", "aabcab")],
)
async def test_keys_take_turns(keys: str, order: str) -> None:
    turns = Turns(asyncio.get_running_loop())
    assert await begun_in_order(turns, keys) == order


@pytest.mark.anyio
async def test_a_call_that_comes_alone_does_not_wait() -> None:
    turns = Turns(asyncio.get_running_loop())
    waiting = turns.wait("a")
    with pytest.raises(StopIteration):
        waiting.send(None)


@pytest.mark.anyio
async def test_others_get_several_steps_between_two_calls() -> None:
    """A plain request takes a dozen steps: it does not wait for the calls of a whole fan-out."""
    turns = Turns(asyncio.get_running_loop())
    fanout = asyncio.ensure_future(begun_in_order(turns, "a" * 64))
    steps = 0
    while not fanout.done():
        steps += 1
        await asyncio.sleep(0)
    assert steps >= 64 * 4


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_its_turn_to_the_next() -> None:
    turns = Turns(asyncio.get_running_loop())
    calls = [asyncio.ensure_future(turns.wait(key)) for key in "aaabb"]
    await asyncio.sleep(0)
    for number in (1, 3):
        calls[number].cancel()
    async with asyncio.timeout(10):
        await asyncio.wait(calls)
    assert [call.cancelled() for call in calls] == [False, True, False, True, False]
    async with asyncio.timeout(10):
        await turns.wait("c")  # nothing is left behind


def test_each_loop_has_its_own_turns() -> None:
    """A loop that ends while calls wait leaves nothing to wait for in the next one."""

    async def many() -> None:
        async with asyncio.timeout(10):
            await asyncio.gather(*(wait_for_turn("a") for _ in range(3)))

    for _ in range(2):
        asyncio.run(many())
        asyncio.run(wait_for_turn("a"))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        model_group("single", upstream.url, model="cerebras/single"),  # known not to take n
    ]
    keys: dict[str, dict[str, object]] = {"sk-first": {"models": []}, "sk-second": {"models": []}}
    folder = tmp_path_factory.mktemp("proxy")
    with Proxy(hooked_config(models), folder, keys=keys, ledger=False) as running:
        yield running


def ask(proxy: Proxy, model: str, key: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "What is 6 times 7?"}]}
    answer = proxy.post("/v1/chat/completions", body, key=key)
    assert answer.status_code == 200, answer.text
    return answer


def cpu_of_a_plain_request(proxy: Proxy) -> float:
    """Return the CPU seconds that the proxy spends, on anything, until it has answered."""
    before = proxy.footprint.cpu_s
    ask(proxy, "base", "sk-second")
    return proxy.footprint.cpu_s - before


def test_a_plain_request_gets_its_turn_beside_big_fanouts(proxy: Proxy, upstream: Upstream) -> None:
    """Measured in CPU time of the proxy, so that other programs on the machine do not count.

    Beside 256 inner calls it takes 2 to 3 times what it takes alone; without turns it was 40 to 50
    times. The noise is below a factor of two.
    """
    upstream.play(Script())
    for _ in range(3):
        ask(proxy, "base", "sk-second")
    alone = statistics.mean(cpu_of_a_plain_request(proxy) for _ in range(20))
    fanouts = [
        threading.Thread(target=ask, args=(proxy, "self_consistency(n=64)-single", "sk-first"))
        for _ in range(4)
    ]
    for fanout in fanouts:
        fanout.start()
    beside = []
    while any(fanout.is_alive() for fanout in fanouts):
        beside.append(cpu_of_a_plain_request(proxy))
    for fanout in fanouts:
        fanout.join()
    assert statistics.median(beside) < 8 * alone
