"""Imported at start by every Python process whose PYTHONPATH has this folder: no network.

A connection beyond loopback fails, and is noted in the file that BLOCKED_LOG names. Connections
that libuv makes by itself do not pass here.
"""

import errno
import os
import sys
from pathlib import Path

_LOOPBACK = ("127.", "::1", "localhost")


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if isinstance(host, str) and not host.startswith(_LOOPBACK):
        with Path(os.environ["BLOCKED_LOG"]).open("a") as log:
            log.write(f"{host}\n")
        raise OSError(errno.ENETUNREACH, f"tests have no network: {host}")


sys.addaudithook(_refuse)
