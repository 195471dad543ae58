"""A proxy of one's own, which serves the small local model while something is measured."""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Final

from optillm_hooks.config_files import SHIPPED

_READY: Final = "optillm_hooks is ready."


@contextmanager
def own_proxy(config: Path = SHIPPED) -> Iterator[tuple[str, str]]:
    """Serve `config`, by default the shipped one, on a free port; yield its URL and a key.

    Raises:
        SystemExit: it does not start; it has said why.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = f"sk-{secrets.token_urlsafe(32)}"
    with subprocess.Popen(  # noqa: S603 (our own interpreter, our own arguments)
        [sys.executable, "-m", "optillm_hooks", "serve", str(config)],
        env={**os.environ, "HOST": "127.0.0.1", "PORT": str(port), "LITELLM_MASTER_KEY": key},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        lines = process.stdout or ()
        rest = Thread(target=deque, args=(lines, 0), daemon=True)
        try:
            if not any(line.startswith(_READY) for line in lines):
                raise SystemExit(process.wait())
            rest.start()  # a full pipe would stop it
            yield f"http://127.0.0.1:{port}/v1", key
        finally:
            process.send_signal(signal.SIGTERM)
            if rest.is_alive():
                rest.join()  # until the proxy has ended: a file that is read must not be closed
