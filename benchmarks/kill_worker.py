"""`kill -9` of one of two workers in the middle of plans: what the other worker's clients see.

The workers of a proxy accept connections from one socket, so each client's connection belongs to
one of them, which /proc tells. The requests of the killed worker are lost with it; all others must
be answered, and so must those that clients send again.
"""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.report import parser, publish, table
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Upstream, differing

LATENCY_S: Final = 1.0
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")
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


def _children(pid: int) -> list[int]:
    """Return the processes that `pid` has started and that serve, from /proc."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()]


def _served_ports(pid: int) -> set[int]:
    """Return the clients' ports of the connections that `pid` serves."""
    inodes = set[str]()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found = _SOCKET.fullmatch(str(entry.readlink()))
        except FileNotFoundError:
            continue
        inodes |= {found[1]} if found else set()
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return {int(row[2].partition(":")[2], 16) for row in rows if row[9] in inodes}


def _workers(proxy: Proxy) -> list[int]:
    """Return the processes that listen on the proxy's port, without their parent."""
    return [pid for pid in _children(proxy.pid) if b"spawn_main" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


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
        stream = answer.extensions["network_stream"]
        port: int = stream.get_extra_info("client_addr")[1]
        return port


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
        owners = _owners(_workers(proxy), ports)
        victim = max(set(owners), key=owners.count)
        asked = [asyncio.create_task(_ask(client)) for client in clients]
        # Each plan has made its first call, and waits for the second.
        await asyncio.to_thread(
            upstream.wait_until, lambda u: len(u.calls) > 2 * requests, within_s=60
        )
        os.kill(victim, signal.SIGKILL)
        answered = await asyncio.gather(*asked)
        killed = [client for client, owner in zip(clients, owners, strict=True) if owner == victim]
        again = await asyncio.gather(*(_ask(client) for client in killed))
    pairs = list(zip(owners, answered, strict=True))
    return Lost(
        of_killed=owners.count(victim),
        answered_of_killed=sum(ok for owner, ok in pairs if owner == victim),
        of_other=len(owners) - owners.count(victim),
        answered_of_other=sum(ok for owner, ok in pairs if owner != victim),
        answered_again=sum(again),
        restarted=await _has_two_workers(proxy),
    )


def _owners(workers: Sequence[int], ports: Sequence[int]) -> list[int]:
    """Return the worker that serves each of the clients' ports."""
    served: Mapping[int, set[int]] = {pid: _served_ports(pid) for pid in workers}
    return [next(pid for pid in workers if port in served[pid]) for port in ports]


async def _has_two_workers(proxy: Proxy) -> bool:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        if len(_workers(proxy)) == 2:
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
