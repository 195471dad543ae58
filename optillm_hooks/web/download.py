"""Downloads pages from public hosts, within limits of size and time.

The name of a host is resolved once, and the connection goes to the address that was checked, also
with TLS: a name that resolves to another address later gains nothing. Each redirect is checked like
the first address. There are no cookies, no credentials and no proxies of the environment.
"""

import asyncio
import ssl
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Final, Literal

import httpcore
import httpx

from optillm_hooks.services import ServiceFailed
from optillm_hooks.web.connection import Connection

AddressOf = Callable[[str, int], Awaitable[str]]
"""Returns the address of a host and port to connect to, or raises `ServiceFailed`."""

Tls = Callable[[], ssl.SSLContext | bool | str]
"""Returns how certificates are checked, in the form of `httpx`."""

Kind = Literal["html", "text", "pdf"]

Decode = Callable[[bytes, int], bytes]
"""Returns what a piece of a body decompresses to, up to a number of bytes above 0."""

MAX_URL: Final = 2048
"""Maximum length of an address."""

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_LEAST_PORT: Final = 1024
_MAX_PORT: Final = 65_535
"""Below it, only the ports of the web are reached: the others belong to mail, shells and such."""

_LEAST_PIECE: Final = 512
"""Bytes that each piece of a body counts at least: a piece takes time, however short it is."""

_HEADERS: Final = {
    "user-agent": "optillm-hooks (+https://pypi.org/project/optillm-hooks/)",
    "accept": "text/html,application/xhtml+xml,text/*;q=0.9,application/pdf,application/json",
    "accept-encoding": "gzip, deflate",
    "connection": "close",
}
_KINDS: Final[Mapping[str, Kind]] = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "application/json": "text",
    "application/xml": "text",
    "application/yaml": "text",
    "application/x-yaml": "text",
    "application/javascript": "text",
}
_HTTP_ERRORS: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
)
_UNTOLD: Final = frozenset({"", "application/octet-stream", "binary/octet-stream"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadLimits:
    """Limits of one download."""

    seconds: float = 20.0
    """Time for everything, redirects included."""

    max_bytes: int = 4 << 20
    """Maximum size of the body, both as it is sent and decompressed. A longer one is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """The hosts that may be reached, by name: each stands for its subdomains too."""

    allowed: Collection[str] | None = None
    """None: all."""

    denied: Collection[str] = ()

    def check(self, url: httpx.URL) -> None:
        """Raise `ServiceFailed` if the host of `url` may not be reached."""
        allowed = self.allowed is None or _is_among(url, self.allowed)
        if not allowed or _is_among(url, self.denied):
            raise ServiceFailed("the operator does not allow this host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A downloaded body."""

    url: str
    """Its address after all redirects."""

    kind: Kind
    charset: str
    """As the header says; empty if it does not."""

    body: bytes
    truncated: bool


async def download(
    url: str, address_of: AddressOf, tls: Tls, limits: DownloadLimits, hosts: Hosts
) -> Download:
    """Return what is at `url`.

    Raises:
        ServiceFailed: the address is refused, or nothing readable is there. The message never
            quotes what the host has sent.
    """
    try:
        async with asyncio.timeout(limits.seconds):
            target = _parsed(url)
            for _ in range(1 + _MAX_REDIRECTS):
                found = await _one(target, address_of, tls, limits, hosts)
                if isinstance(found, Download):
                    return found
                target = found
            raise ServiceFailed("it redirects too often")
    except TimeoutError:
        raise ServiceFailed(f"it took longer than {limits.seconds:g} seconds") from None
    except (*_HTTP_ERRORS, OSError, zlib.error):
        raise ServiceFailed("the host does not answer properly") from None


async def _one(
    url: httpx.URL, address_of: AddressOf, tls: Tls, limits: DownloadLimits, hosts: Hosts
) -> Download | httpx.URL:
    """Return what is at `url`, or where it redirects to."""
    host = url.raw_host.decode()
    port = _port(url)
    hosts.check(url)
    if port < _LEAST_PORT and port not in (80, 443):
        raise ServiceFailed(f"port {port} is not one of the web")
    request = httpcore.Request(
        "GET",
        httpcore.URL(
            scheme=url.raw_scheme,
            host=await address_of(host, port),
            port=port,
            target=url.raw_path,
        ),
        headers=[("host", url.netloc.decode()), *_HEADERS.items()],
        extensions={
            "sni_hostname": host,  # the certificate must be that of the host
            "timeout": httpx.Timeout(limits.seconds).as_dict(),
        },
    )
    async with Connection(httpx.create_ssl_context(tls(), trust_env=False)) as connection:
        response = await connection.send(request)
        try:
            headers = httpx.Headers(response.headers)
            if response.status in _REDIRECTS:
                return _joined(url, headers.get("location", ""))
            return await _read(url, response, headers, limits)
        finally:
            await response.aclose()


def _parsed(url: str) -> httpx.URL:
    """Return `url` without fragment, user name and password; raise if it is not one of the web."""
    if len(url) > MAX_URL:
        raise ServiceFailed(f"its address is longer than {MAX_URL} characters")
    try:
        parsed = httpx.URL(url).copy_with(fragment=None, username=None, password=None)
        has_host = bool(parsed.host)  # raises for a malformed international name
    except (httpx.InvalidURL, ValueError):
        raise ServiceFailed("it is not a valid address") from None
    if parsed.scheme not in ("http", "https") or not has_host:
        raise ServiceFailed("only addresses with http and https can be read")
    if not 0 < _port(parsed) <= _MAX_PORT:
        raise ServiceFailed("it is not a valid address")
    return parsed


def _port(url: httpx.URL) -> int:
    default = 443 if url.scheme == "https" else 80
    return default if url.port is None else url.port


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    if not location or len(location) > MAX_URL:
        raise ServiceFailed("it redirects nowhere")
    try:
        return _parsed(str(url.join(location)))
    except (httpx.InvalidURL, ValueError):
        raise ServiceFailed("it redirects nowhere") from None


async def _read(
    url: httpx.URL, response: httpcore.Response, headers: httpx.Headers, limits: DownloadLimits
) -> Download:
    if response.status != httpx.codes.OK:
        raise ServiceFailed(f"the host answers with status {response.status}")
    told = Message()
    told["content-type"] = headers.get("content-type", "")
    name = told.get_content_type() if told["content-type"] else ""
    kind = _kind(name)
    decode = _decoder(headers.get("content-encoding", "").strip().lower())
    body, truncated = await _body(response, decode, limits.max_bytes)
    if kind is None:
        kind = _guessed(body, name)
    charset = str(told.get_param("charset") or "")
    return Download(url=str(url), kind=kind, charset=charset, body=body, truncated=truncated)


def _kind(name: str) -> Kind | None:
    """Return the kind of a content type, or None if it says nothing."""
    if name in _UNTOLD:
        return None
    kind = _KINDS.get(name)
    if kind is None and (name.startswith("text/") or name.endswith(("+json", "+xml"))):
        kind = "text"
    if kind is None:
        raise ServiceFailed("its content type is neither text nor PDF")
    return kind


def _guessed(body: bytes, name: str) -> Kind:
    start = body[:1024].lstrip()
    if start.startswith(b"%PDF-"):
        return "pdf"
    if name or b"\0" in start:
        raise ServiceFailed("its content type is neither text nor PDF")
    return "html" if start.startswith(b"<") else "text"


async def _body(response: httpcore.Response, decode: Decode, max_bytes: int) -> tuple[bytes, bool]:
    """Return the decompressed body, and whether it was cut."""
    body, received = bytearray(), 0
    async for chunk in response.aiter_stream():
        received += max(len(chunk), _LEAST_PIECE)
        body += decode(chunk, max_bytes + 1 - len(body))
        if len(body) > max_bytes or received > max_bytes:
            return bytes(body[:max_bytes]), True
    return bytes(body), False


def _decoder(encoding: str) -> Decode:
    if encoding in ("", "identity"):
        return lambda chunk, most: chunk[:most]
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
    if encoding == "deflate":
        return _Deflate()
    raise ServiceFailed("the host compresses it in a way that was not asked for")


class _Deflate:
    """Decompresses `deflate`, which some hosts send without zlib's header."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj()
        self._begun = False

    def __call__(self, chunk: bytes, most: int) -> bytes:
        begun, self._begun = self._begun, True
        try:
            return self._inflate.decompress(chunk, most)
        except zlib.error:
            if begun:
                raise
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._inflate.decompress(chunk, most)


def _is_among(url: httpx.URL, names: Collection[str]) -> bool:
    """Return whether the host of `url`, in Unicode or in ASCII, is one of `names` or below one."""
    hosts = [each.lower().rstrip(".") for each in (url.host, url.raw_host.decode())]
    return any(
        host == name or host.endswith(f".{name}")
        for name in (each.lower().strip(".") for each in names)
        for host in hosts
    )
