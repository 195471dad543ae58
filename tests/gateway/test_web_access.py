"""Which addresses pages are read from: LiteLLM's check, and what it lets through."""

import asyncio
import importlib.util
import socket
import threading
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.caller import Caller
from optillm_hooks.gateway.services import services_for
from optillm_hooks.gateway.web_access import page_reader, problem, public_address, router_search
from optillm_hooks.sandbox.places import tenant
from optillm_hooks.services import Page, ServiceFailed
from optillm_hooks.settings import RunSettings, Settings, WebSettings
from optillm_hooks.testing import params
from optillm_hooks.web.pages import can_read_pages
from tests.web_world import WebWorld, redirect, site

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.215.14"
SPELLINGS = [
    "127.0.0.1",
    "2130706433",  # decimal
    "0177.0.0.1",  # octal
    "0x7f000001",  # hexadecimal
    "0x7f.1",
    "127.1",
    "0",
    "169.254.169.254",
    "2852039166",  # the same in decimal
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "168.63.129.16",  # Azure's fabric
    "224.0.0.1",
    "::1",
    "::",
    "::127.0.0.1",  # IPv4-compatible
    "::ffff:127.0.0.1",  # IPv4-mapped
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",  # NAT64
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1",
    "2002:7f00:1::",  # 6to4
    "2002:a9fe:a9fe::1",
    "2001:0:7f00:1::",  # Teredo
    "::ffff:0:127.0.0.1",  # SIIT
    "::ffff:0:a9fe:a9fe",
    "5f00::1",  # segment routing
    "4000::1",  # not assigned
    "fec0::1",
    "fe80::1",
    "fd00::1",
    "ff02::1",
]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    with pytest.raises(ServiceFailed, match="not public"):
        await public_address(host, 80)


@pytest.mark.parametrize("host", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
async def test_a_public_address_is_not(host: str) -> None:
    assert await public_address(host, 443) == host


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names resolve to `answers`, one after the other; return the names asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [
            (
                socket.AF_INET6 if ":" in each else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (each, port),
            )
            for each in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "addresses",
    [["10.0.0.1"], [PUBLIC, "10.0.0.1"], ["64:ff9b::a00:1"]],
    ids=["private", "one of two", "NAT64"],
)
async def test_a_name_of_an_address_that_is_not_public_is_refused(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolving(monkeypatch, addresses)
    with pytest.raises(ServiceFailed, match="not public"):
        await public_address("inside.example", 443)


async def test_nobody_learns_which_names_exist_within(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ["10.0.0.1"])
    with pytest.raises(ServiceFailed) as known:
        await public_address("db.internal", 80)
    monkeypatch.setattr(socket, "getaddrinfo", _unknown)
    with pytest.raises(ServiceFailed) as unknown:
        await public_address("no-such.internal", 80)
    assert str(known.value) == str(unknown.value)


def _unknown(*_: Any, **__: Any) -> list[Any]:
    raise socket.gaierror(socket.EAI_NONAME, "unknown")


async def test_names_that_never_resolve_do_not_take_the_threads_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their requests end, or their clients hang up, but a lookup cannot be stopped."""
    ended = threading.Event()

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host.startswith("slow"):
            ended.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (PUBLIC, port))]

    async def one(key: str, host: str) -> str:
        tenant.set(key)
        async with asyncio.timeout(5 if key == "other" else 0.01):
            return await public_address(host, 80)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        for _ in range(3):
            slow = [one("hostile", f"slow{n}.example") for n in range(15)]
            await asyncio.gather(*slow, return_exceptions=True)
        with pytest.raises(ServiceFailed, match="too many"):
            await one("hostile", "slow.example")
        assert await one("other", "quick.example") == PUBLIC
    finally:
        ended.set()


@pytest.fixture
def world() -> Any:
    pages = {
        "/tides": site("Tides", "The moon pulls the sea, and so there are tides."),
        "/inside": redirect("http://127.0.0.2:8080/secret"),
        "/metadata": redirect("http://169.254.169.254/latest/meta-data/"),
        "/file": redirect("file:///etc/passwd"),
        "/moved": redirect("/tides"),
    }
    with WebWorld(pages) as running:
        yield running


def reader(monkeypatch: pytest.MonkeyPatch, world: WebWorld, **settings: Any) -> Any:
    monkeypatch.setattr(litellm, "user_url_allowed_hosts", [world.host])
    made = page_reader(WebSettings(**{"cache_s": 0, **settings}), "")
    assert made is not None
    return made


async def read(made: Any, url: str) -> Page:
    page: Page = await made(url)
    return page


async def test_a_host_that_litellm_allows_is_read(
    monkeypatch: pytest.MonkeyPatch, world: WebWorld
) -> None:
    page = await read(reader(monkeypatch, world), world.address("/moved"))
    assert page.title == "Tides"
    assert "The moon pulls the sea" in page.text
    assert page.url == world.address("/tides")


@pytest.mark.parametrize("path", ["/inside", "/metadata", "/file"])
async def test_a_redirect_is_checked_like_an_address(
    monkeypatch: pytest.MonkeyPatch, world: WebWorld, path: str
) -> None:
    with pytest.raises(ServiceFailed, match=r"not public|only addresses with http"):
        await read(reader(monkeypatch, world), world.address(path))


async def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch, world: WebWorld
) -> None:
    """DNS rebinding: the name is resolved once, so what it resolves to later is never used."""
    port = int(world.host.rpartition(":")[2])
    monkeypatch.setattr(litellm, "user_url_allowed_hosts", [f"rebinding.example:{port}"])
    asked = resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    made = page_reader(WebSettings(cache_s=0), "")
    page = await read(made, f"http://rebinding.example:{port}/tides")
    assert page.title == "Tides"
    assert asked.count("rebinding.example") == 1
    assert world.visits[0].headers["host"] == f"rebinding.example:{port}"


async def test_hosts_of_the_operators_lists(
    monkeypatch: pytest.MonkeyPatch, world: WebWorld
) -> None:
    for settings in ({"denied_hosts": ["127.0.0.1"]}, {"allowed_hosts": ["example.com"]}):
        with pytest.raises(ServiceFailed, match="does not allow"):
            await read(reader(monkeypatch, world, **settings), world.address("/tides"))
    assert world.visits == []


async def test_pages_are_off_if_the_operator_says_so() -> None:
    assert page_reader(WebSettings(fetch=False), "") is None


@pytest.fixture
def packages_not_looked_up() -> Iterator[None]:
    """Have the packages looked up anew, as in a new process."""
    can_read_pages.cache_clear()
    yield
    can_read_pages.cache_clear()


@pytest.mark.parametrize("missing", ["trafilatura", "pypdf"])
@pytest.mark.usefixtures("packages_not_looked_up")
def test_without_the_extra_pages_are_not_read(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "optillm_hooks.web.pages.find_spec", lambda name: None if name == missing else found(name)
    )
    services = services_for(RunSettings(), Settings(), None, Caller())
    assert services.fetch is None
    with pytest.raises(RequestRejected, match=r"pip install \"optillm-hooks\[web\]\""):
        params("readurls").check_services(services)


TOOL = {"search_tool_name": "web", "litellm_params": {"search_provider": "searxng"}}


@pytest.mark.parametrize(
    ("tools", "named", "found"),
    [
        ([], None, None),
        ([], "web", None),
        ([TOOL], None, "web"),
        ([TOOL], "web", "web"),
        ([TOOL], "other", None),
        ([{**TOOL, "search_tool_name": "first"}, TOOL], None, "first"),
    ],
)
def test_the_search_tool(tools: list[Any], named: str | None, found: str | None) -> None:
    router = litellm.Router(model_list=[], search_tools=tools)
    search = router_search(WebSettings(search_tool=named), router, Caller())
    assert (search and search.tool) == found


def test_without_a_search_tool_a_search_is_refused() -> None:
    services = services_for(RunSettings(), Settings(), litellm.Router(model_list=[]), Caller())
    with pytest.raises(RequestRejected, match="SearXNG needs no key"):
        params("web_search").check_services(services)


def test_this_litellm_has_what_is_needed() -> None:
    assert problem() is None
