"""`kill -9` of one of two workers in the middle of plans: what the other worker's clients see.

The workers of a proxy accept connections from one socket, so each client's connection belongs to
one of them, which /proc tells. The requests of the killed worker are lost with it; all others must
be answered, and so must those that clients send again.
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.report import parser, publish, table
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Upstream, differing
from tests.workers import own_port, owners, workers

LATENCY_S: Final = 1.0
_START_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Lost:
    """What became of the requests that were under way."""

    of_killed: int
    answered_of_killed: int
    of_other: int
    answered_of_other: int
    answered_again: int
    """Requests of the killed worker that were answered when they were sent again."""

    restarted: bool
    """Whether the proxy has replaced the worker."""


async def _ask(client: httpx.AsyncClient) -> bool:
    """Return whether a request is answered."""
    body = {"model": "fused", "messages": [{"role": "user", "content": "What is 6 times 7?"}]}
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


async def _connected(client: httpx.AsyncClient) -> int:
    """Open the client's connection, and return its port on this side."""
    async with client.stream("GET", "/health/liveliness") as answer:
        await answer.aread()
        return own_port(answer)


async def kill_one(proxy: Proxy, upstream: Upstream, requests: int) -> Lost:
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=proxy.url,
                    headers={"authorization": f"Bearer {proxy.master_key}"},
                    limits=httpx.Limits(max_connections=1),
                    timeout=120,
                )
            )
            for _ in range(requests)
        ]
        ports = [await _connected(client) for client in clients]
        owner_of = owners(proxy, ports)
        owned = [owner_of[port] for port in ports]
        victim = max(set(owned), key=owned.count)
        asked = [asyncio.create_task(_ask(client)) for client in clients]
        # Each plan has made its first call, and waits for the second.
        await asyncio.to_thread(
            upstream.wait_until, lambda u: len(u.calls) > 2 * requests, within_s=60
        )
        os.kill(victim, signal.SIGKILL)
        answered = await asyncio.gather(*asked)
        killed = [client for client, owner in zip(clients, owned, strict=True) if owner == victim]
        again = await asyncio.gather(*(_ask(client) for client in killed))
    pairs = list(zip(owned, answered, strict=True))
    return Lost(
        of_killed=owned.count(victim),
        answered_of_killed=sum(ok for owner, ok in pairs if owner == victim),
        of_other=len(owned) - owned.count(victim),
        answered_of_other=sum(ok for owner, ok in pairs if owner != victim),
        answered_again=sum(again),
        restarted=await _has_two_workers(proxy),
    )


async def _has_two_workers(proxy: Proxy) -> bool:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if len(workers(proxy)) == 2:
            return True
        await asyncio.sleep(0.2)
    return False


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=24, help="under way at the kill")
    given = options.parse_args()
    script = Script(reply=differing, latency_s=LATENCY_S)
    with tempfile.TemporaryDirectory() as folder, Upstream(script) as upstream:
        config = hooked_config([model_group("base", upstream.url), alias("fused", "moa")])
        samples = Path(folder) / "samples"
        samples.mkdir()
        env = {"NUM_WORKERS": "2", "PROMETHEUS_MULTIPROC_DIR": str(samples)}
        with Proxy(config, Path(folder), ledger=False, env=env, command=True) as proxy:
            lost = asyncio.run(kill_one(proxy, upstream, given.requests))
    rows = [
        ("killed worker", str(lost.of_killed), str(lost.answered_of_killed)),
        ("other worker", str(lost.of_other), str(lost.answered_of_other)),
        ("killed worker's, sent again", str(lost.of_killed), str(lost.answered_again)),
    ]
    note = (
        f"{given.requests} requests for `moa` over two workers, of which one is killed in the"
        f" middle of its plans. The proxy has {'' if lost.restarted else 'not '}replaced it."
    )
    shown = table(("requests of the", "under way", "answered"), rows)
    publish("A killed worker", "benchmarks.kill_worker", f"{note}\n\n{shown}", write=given.write)
    if (lost.answered_of_other, lost.answered_again) != (lost.of_other, lost.of_killed):
        sys.exit("requests of the other worker are lost")


if __name__ == "__main__":
    main()
