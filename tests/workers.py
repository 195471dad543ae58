"""The worker processes of a proxy with several, and which clients each serves, from /proc."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import httpx

from tests.proxy import Proxy

_START_S: Final = 120.0
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


def workers(proxy: Proxy) -> list[int]:
    """Return the ids of the processes that serve."""
    listed = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
    return [pid for pid in map(int, listed) if b"spawn_main" in _command(pid)]


def owners(proxy: Proxy, ports: Collection[int]) -> Mapping[int, int]:
    """Return the worker that serves each of these ports of clients."""
    return {port: pid for pid in workers(proxy) for port in _served_ports(pid) & set(ports)}


def own_port(answer: httpx.Response) -> int:
    """Return the client's port of the connection of an answer that is still open."""
    stream = answer.extensions["network_stream"]
    port: int = stream.get_extra_info("client_addr")[1]
    return port


@contextmanager
def one_client_of_each_worker(proxy: Proxy) -> Iterator[Mapping[int, httpx.Client]]:
    """Yield two clients by their workers, to which each has an open connection.

    Where a worker has just begun to start, they are there once it serves.
    """
    found: dict[int, httpx.Client] = {}

    def finds_both(proxy: Proxy) -> bool:
        client, worker = _connected(proxy)
        if worker in found:
            client.close()
        else:
            resources.callback(client.close)
            found[worker] = client
        return len(found) == 2

    with ExitStack() as resources:
        proxy.wait_until(finds_both, within_s=_START_S)
        yield found


def _connected(proxy: Proxy) -> tuple[httpx.Client, int]:
    """Return a client with an open connection, and the worker at its other end."""
    headers = {"authorization": f"Bearer {proxy.master_key}"}
    client = httpx.Client(base_url=proxy.url, headers=headers, timeout=120)
    with client.stream("GET", "/health/liveliness") as answer:
        answer.read()
        port = own_port(answer)
    return client, owners(proxy, [port])[port]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def _served_ports(pid: int) -> set[int]:
    """Return the ports at the other ends of the connections of `pid`."""
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
