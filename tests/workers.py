"""The worker processes of a proxy with several, and which clients each serves, from /proc."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

import httpx

from tests.proxy import Proxy

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
