"""A host on loopback that answers each POST with JSON."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

Answer = Callable[[str, Any], tuple[int, Any]]
"""Returns the status and the value for a path and a body."""

NO_HEADERS: Mapping[str, str] = {}

_SHUTDOWN_S: Final = 0.02
"""How often a host looks whether it is to end; by default each of many tests waits for 0.5 s."""


@contextmanager
def json_host(answer: Answer, headers: Mapping[str, str] = NO_HEADERS) -> Iterator[str]:
    """Yield the address of a host that serves `answer`, each with `headers`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, document = answer(self.path, body)
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(BrokenPipeError):  # the client did not wait
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with serving(Handler) as address:
        yield address


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Yield the address of a host whose requests `handler` answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(_SHUTDOWN_S,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
