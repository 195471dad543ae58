"""A connection to a host that may send anything: little is read at a time, and a head is bounded.

The HTTP library works through all it has received before others get a turn, and it skips interim
responses without end.
"""

import ssl
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

import httpcore
from httpcore import SOCKET_OPTION

_MAX_READ: Final = 16_384
"""Bytes that are received at once."""

_MAX_HEAD: Final = 131_072
"""Bytes of everything before the body: interim responses, status and headers."""


class Connection:
    """A connection for one request, in a `with` block."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._backend = _Backend()
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls,
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=self._backend,
        )

    async def send(self, request: httpcore.Request) -> httpcore.Response:
        """Return the response, whose body is to be read in the block."""
        response = await self._pool.handle_async_request(request)
        self._backend.head_left = None
        return response

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._pool.aclose()


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()
        self.head_left: int | None = _MAX_HEAD

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's protocol)
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, backend: _Backend) -> None:
        self._stream = stream
        self._backend = backend

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        received = await self._stream.read(min(max_bytes, _MAX_READ), timeout)
        if self._backend.head_left is not None:
            self._backend.head_left -= len(received)
            if self._backend.head_left < 0:
                raise httpcore.RemoteProtocolError("the head of the response is too long")
        return received

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(
            await self._stream.start_tls(ssl_context, server_hostname, timeout), self._backend
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
