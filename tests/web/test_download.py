"""What is downloaded, what is refused, and where it is cut."""

import asyncio
import gzip
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from optillm_hooks.services import ServiceFailed
from optillm_hooks.web.download import Download, DownloadLimits, Hosts, download
from tests.web_world import Site, WebWorld, endless, redirect, site

pytestmark = pytest.mark.anyio

LIMITS = DownloadLimits(seconds=5.0, max_bytes=100_000)
ZEROS = bytes(30_000_000)
EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
"""A block of deflate that decompresses to nothing."""

stopped = threading.Event()


def gzipped(text: bytes) -> Site:
    return Site(gzip.compress(text), "text/plain", headers={"content-encoding": "gzip"})


def raw_deflated(text: bytes) -> bytes:
    made = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return made.compress(text) + made.flush()


def tiny_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n")
    handler.wfile.write(b"transfer-encoding: chunked\r\n\r\n")
    with suppress(OSError):  # the client hangs up
        handler.wfile.write(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")


def interim_responses(handler: BaseHTTPRequestHandler) -> None:
    with suppress(OSError):  # the client hangs up
        while not stopped.is_set():
            handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)


def hinted(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 20)
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n" + b"x" * 300_000)


def slow_headers(handler: BaseHTTPRequestHandler) -> None:
    try:
        while not stopped.wait(0.05):
            handler.wfile.write(b"H")
    except OSError:
        return


def flood_of_headers(handler: BaseHTTPRequestHandler) -> None:
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            handler.wfile.write(b"x-%d: %s\r\n" % (number, b"y" * 100))
    except OSError:
        return


PAGES = {
    "/page": site("Tides", "The moon pulls the sea."),
    "/big": endless(b"x" * 65_536, total=1_000_000_000),
    "/drip": endless(b"x", pause_s=0.02),
    "/slow": Site(slow_headers),
    "/flood": Site(flood_of_headers),
    "/bomb": Site(gzip.compress(ZEROS), "text/plain", headers={"content-encoding": "gzip"}),
    "/deflate": Site(
        zlib.compress(b"deflated"), "text/plain", headers={"content-encoding": "deflate"}
    ),
    "/raw": Site(raw_deflated(b"raw"), "text/plain", headers={"content-encoding": "deflate"}),
    "/brotli": Site(b"\x8b", "text/plain", headers={"content-encoding": "br"}),
    "/twice": Site(b"\x8b", "text/plain", headers={"content-encoding": "gzip, gzip"}),
    "/broken": Site(b"no gzip", "text/plain", headers={"content-encoding": "gzip"}),
    "/gzip": gzipped(b"zipped"),
    "/image": Site(b"\x89PNG", "image/png"),
    "/zip": Site(b"PK\x03\x04\0\0", "application/octet-stream"),
    "/pdf": Site(b"%PDF-1.4", "application/octet-stream"),
    "/json": Site(b"{}", "application/ld+json"),
    "/untold": Site(b"<p>Hello", ""),
    "/loop": redirect("/loop"),
    "/nowhere": Site(b"", status=302),
    "/gopher": redirect("gopher://127.0.0.1:70/x"),
    "/interim": Site(interim_responses),
    "/hinted": Site(hinted),
    "/tiny": Site(tiny_chunks),
    "/nothing": endless(EMPTY_BLOCK * 10_000, headers={"content-encoding": "deflate"}),
    "/cookie": Site(b"", status=302, headers={"location": "/page", "set-cookie": "id=1; path=/"}),
    "/error": Site(b"secret of the host", status=500),
}


@pytest.fixture(scope="module")
def world() -> Iterator[WebWorld]:
    with WebWorld(PAGES) as running:
        yield running
        stopped.set()


async def loopback(host: str, port: int) -> str:
    assert host
    assert port
    return "127.0.0.1"


async def get(url: str, limits: DownloadLimits = LIMITS, hosts: Hosts | None = None) -> Download:
    return await download(url, loopback, lambda: True, limits, hosts or Hosts())


async def test_a_page_comes_with_its_kind_and_charset(world: WebWorld) -> None:
    found = await get(world.address("/page#part"))
    assert (found.kind, found.charset, found.truncated) == ("html", "utf-8", False)
    assert found.url == world.address("/page")
    assert b"The moon" in found.body


async def test_nothing_of_the_caller_is_sent(world: WebWorld) -> None:
    """No cookies, also not those of an earlier redirect; no credentials; a name of our own."""
    before = len(world.visits)
    found = await get(world.address("/cookie").replace("http://", "http://user:secret@"))
    assert found.url == world.address("/page")
    visits = world.visits[before:]
    assert [visit.path for visit in visits] == ["/cookie", "/page"]
    for visit in visits:
        assert {"cookie", "authorization", "referer"}.isdisjoint(visit.headers)
        assert visit.headers["user-agent"].startswith("optillm-hooks")


@pytest.mark.parametrize("path", ["/big", "/bomb"])
async def test_a_body_that_is_too_long_is_cut(world: WebWorld, path: str) -> None:
    found = await get(world.address(path))
    assert len(found.body) == LIMITS.max_bytes
    assert found.truncated


async def test_a_body_that_decompresses_to_nothing_is_cut(world: WebWorld) -> None:
    found = await get(world.address("/nothing"))
    assert (found.body, found.truncated) == (b"", True)


async def test_a_body_in_tiny_pieces_is_cut(world: WebWorld) -> None:
    """Each piece takes time, so a page of a megabyte in bytes would hold the loop for long."""
    found = await get(world.address("/tiny"))
    assert (len(found.body) < 1000, found.truncated) == (True, True)


async def test_interim_responses_are_skipped_and_bodies_longer_than_a_head_read(
    world: WebWorld,
) -> None:
    found = await get(world.address("/hinted"), DownloadLimits(max_bytes=300_000))
    assert (len(found.body), found.truncated) == (300_000, False)


async def test_a_bomb_is_not_decompressed_beyond_what_is_read(world: WebWorld) -> None:
    tracemalloc.start()
    try:
        await get(world.address("/bomb"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * LIMITS.max_bytes < len(ZEROS)


@pytest.mark.parametrize("path", ["/drip", "/slow"])
async def test_a_host_that_drips_is_left(world: WebWorld, path: str) -> None:
    started = asyncio.get_running_loop().time()
    with pytest.raises(ServiceFailed, match=r"longer than 0\.3 seconds"):
        await get(world.address(path), DownloadLimits(seconds=0.3))
    assert asyncio.get_running_loop().time() - started < 20


@pytest.mark.parametrize(
    ("path", "body"), [("/gzip", b"zipped"), ("/deflate", b"deflated"), ("/raw", b"raw")]
)
async def test_what_was_asked_to_be_compressed_is_read(
    world: WebWorld, path: str, body: bytes
) -> None:
    assert (await get(world.address(path))).body == body


@pytest.mark.parametrize(
    ("path", "kind"), [("/pdf", "pdf"), ("/json", "text"), ("/untold", "html")]
)
async def test_kinds(world: WebWorld, path: str, kind: str) -> None:
    assert (await get(world.address(path))).kind == kind


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/brotli", "not asked for"),
        ("/twice", "not asked for"),
        ("/broken", "does not answer properly"),
        ("/flood", "does not answer properly"),
        ("/interim", "does not answer properly"),
        ("/image", "neither text nor PDF"),
        ("/zip", "neither text nor PDF"),
        ("/loop", "too often"),
        ("/nowhere", "redirects nowhere"),
        ("/gopher", "only addresses with http"),
        ("/missing", "status 404"),
        ("/error", "^the host answers with status 500$"),
    ],
)
async def test_what_cannot_be_read_is_refused(world: WebWorld, path: str, said: str) -> None:
    with pytest.raises(ServiceFailed, match=said):
        await get(world.address(path))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("file:///etc/passwd", "only addresses with http"),
        ("gopher://127.0.0.1/x", "only addresses with http"),
        ("data:text/plain,hello", "only addresses with http"),
        ("ftp://127.0.0.1/x", "only addresses with http"),
        ("http://", "only addresses with http"),
        ("http://[::1", "not a valid address"),
        ("http://xn--/", "not a valid address"),
        ("http://\ud800.example/", "not a valid address"),
        ("http://127.0.0.1:99999/", "not a valid address"),
        ("http://127.0.0.1:22/", "port 22"),
        ("http://127.0.0.1:25/", "port 25"),
        (f"http://127.0.0.1:1234/{'x' * 2048}", "longer than 2048"),
        ("http://127.0.0.1:1/", "port 1 "),
        ("http://127.0.0.1/\x00", "not a valid address"),
        ("relative/path", "only addresses with http"),
    ],
)
async def test_an_address_that_is_not_of_the_web_is_refused(url: str, said: str) -> None:
    with pytest.raises(ServiceFailed, match=said):
        await get(url)


async def test_a_host_that_is_down_is_a_failure_of_the_service() -> None:
    with pytest.raises(ServiceFailed, match="does not answer properly"):
        await get("http://127.0.0.1:65534/")


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("example.com", True),
        ("www.example.com", True),
        ("WWW.EXAMPLE.COM.", True),
        ("badexample.com", False),
        ("example.com.evil.net", False),
        ("private.example.com", False),
        ("a.private.example.com", False),
        ("bücher.example.com", False),
        ("xn--bcher-kva.example.com", False),
    ],
)
def test_lists_of_hosts_stand_for_subdomains(host: str, *, allowed: bool) -> None:
    hosts = Hosts(allowed=["Example.com"], denied=[".private.example.com", "bücher.example.com"])
    url = httpx.URL(f"https://{host}/x")
    if allowed:
        hosts.check(url)
    else:
        with pytest.raises(ServiceFailed):
            hosts.check(url)


async def test_a_download_can_be_cancelled(world: WebWorld) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await get(world.address("/drip"))


# ---------------------------------------------------------------------------------- with TLS

NAME = "pages.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the key and the certificate of `NAME`, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(pem, *plain) + made.public_bytes(pem))
    return file


@pytest.fixture(scope="module")
def secure_port(certificate: Path) -> Iterator[int]:
    """The port of a host with that certificate, which says for which name it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/plain")
            self.end_headers()
            self.wfile.write(self.headers["host"].encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a refused handshake
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "valid"), [(NAME, True), ("other.example", False), ("127.0.0.1", False)]
)
async def test_with_tls_the_checked_address_must_have_the_certificate_of_the_name(
    certificate: Path, secure_port: int, name: str, *, valid: bool
) -> None:
    """The connection goes to the address that was checked, not to what the name resolves to."""
    tls = ssl.create_default_context(cafile=certificate)
    url = f"https://{name}:{secure_port}/"
    reading = download(url, loopback, lambda: tls, LIMITS, Hosts())
    if valid:
        assert (await reading).body == f"{NAME}:{secure_port}".encode()
    else:
        with pytest.raises(ServiceFailed, match="does not answer properly"):
            await reading
