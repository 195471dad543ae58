"""A host of sandboxes on loopback that speaks the wire formats of OpenSandbox and E2B.

It is stricter than they are: a missing key, a sandbox that may reach the internet and a request for
one that was deleted are refused. Programs run in this process: give it harmless ones.
"""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

KEY: Final = "sandbox-key"
HANG: Final = "hang()"
"""A program that does not end before its sandbox is deleted."""


@dataclass
class Sandbox:
    """One sandbox: its request, and its session."""

    asked: dict[str, Any]
    session: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    deleted: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that is cancelled hangs up."""


class SandboxHost:
    """The server. `create_fails` is the status of the next creations; 0 is none."""

    def __init__(self) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        self.create_fails = 0
        self.creating = threading.Event()
        self.may_create = threading.Event()
        self.may_create.set()
        self.running = threading.Event()
        self.lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for sandbox in self.sandboxes.values():
            sandbox.deleted.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def open(self) -> list[str]:
        """The sandboxes that were not deleted."""
        return [name for name, sandbox in self.sandboxes.items() if not sandbox.deleted.is_set()]

    def until_all_are_closed(self, number: int = 1, within_s: float = 20.0) -> None:
        """Wait until `number` sandboxes were made, and all are deleted."""
        for name in list(self.sandboxes):
            assert self.sandboxes[name].deleted.wait(within_s), f"{name} is still open"
        assert len(self.sandboxes) == number

    def run(self, sandbox: Sandbox, code: str) -> tuple[str, str, dict[str, Any] | None]:
        sandbox.ran.append(code)
        if code.strip() == HANG:
            self.running.set()
            sandbox.deleted.wait(60)
            return "", "", {"name": "Deleted", "value": "", "traceback": []}
        error = None
        with self.lock, _captured() as (out, err):
            try:
                exec(code, sandbox.session)  # noqa: S102 (the tests' own programs)
            except BaseException as exc:
                error = {"name": type(exc).__name__, "value": str(exc), "traceback": []}
        return out.getvalue(), err.getvalue(), error


@contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def _handler(host: SandboxHost) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, body: object, kind: str = "application/json") -> None:
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _refused(self) -> bool:
            keys = (self.headers.get("OPEN-SANDBOX-API-KEY"), self.headers.get("X-API-Key"))
            if KEY in keys:
                return False
            self._send(401, {"message": "unauthorized"})
            return True

        def _sandbox(self, name: str) -> Sandbox | None:
            sandbox = host.sandboxes.get(name)
            if sandbox is None or sandbox.deleted.is_set():
                self._send(404, {"code": "NOT_FOUND", "message": "no such sandbox"})
                return None
            return sandbox

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if self.path == "/sandboxes":
                self._create(asked)
            elif self.path.endswith("/code"):
                self._opensandbox_code(asked)
            elif self.path.endswith("/execute"):
                self._e2b_execute(asked)
            else:
                self._send(404, {})

        def _create(self, asked: dict[str, Any]) -> None:
            if self._refused():
                return
            if host.create_fails:
                self._send(host.create_fails, {"message": f"no room for {KEY}"})
                return
            offline = asked.get("allow_internet_access") is False or asked.get("networkPolicy") == {
                "defaultAction": "deny",
                "egress": [],
            }
            if not offline:
                self._send(400, {"message": "the sandbox would reach the internet"})
                return
            host.creating.set()
            host.may_create.wait(60)
            name = f"box{len(host.sandboxes)}"
            host.sandboxes[name] = Sandbox(asked)
            made = {"id": name, "status": {"state": "Running"}, "sandboxID": name}
            self._send(201, made | {"domain": "e2b.test", "envdAccessToken": f"token-{name}"})

        def do_GET(self) -> None:
            name = self.path.split("/")[2]
            if self._refused() or self._sandbox(name) is None:
                return
            self._send(200, {"endpoint": f"{host.url}/run/{name}", "headers": {"X-Run": name}})

        def do_DELETE(self) -> None:
            if self._refused() or (sandbox := self._sandbox(self.path.split("/")[2])) is None:
                return
            sandbox.deleted.set()
            self._send(204, "")

        def _opensandbox_code(self, asked: dict[str, Any]) -> None:
            name = self.path.split("/")[2]
            if self.headers.get("X-Run") != name or (sandbox := self._sandbox(name)) is None:
                return
            out, err, error = host.run(sandbox, asked["code"])
            events: list[dict[str, Any]] = [{"type": "init", "text": "1", "timestamp": 1}]
            events += [{"type": "stdout", "text": out}] if out else []
            events += [{"type": "stderr", "text": err}] if err else []
            if error:
                shown = {"ename": error["name"], "evalue": error["value"], "traceback": []}
                events.append({"type": "error", "error": shown})
            events.append({"type": "execution_complete", "execution_time": 3})
            text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
            self._send(200, text, "text/event-stream")

        def _e2b_execute(self, asked: dict[str, Any]) -> None:
            name = self.headers["Host"].removeprefix("49999-").partition(".")[0]
            if self.headers.get("X-Access-Token") != f"token-{name}":
                self._send(401, {})
                return
            if (sandbox := self._sandbox(name)) is None:
                return
            out, err, error = host.run(sandbox, asked["code"])
            lines: list[dict[str, Any]] = [{"type": "number_of_executions", "execution_count": 1}]
            lines += [{"type": "stdout", "text": out}] if out else []
            lines += [{"type": "stderr", "text": err}] if err else []
            lines += [{"type": "error", **error}] if error else []
            self._send(200, "".join(json.dumps(line) + "\n" for line in lines))

    return Handler
