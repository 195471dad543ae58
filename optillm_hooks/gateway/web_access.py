"""The web by LiteLLM's means: its check of addresses, its TLS settings, its search tools."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import IPv6Address, IPv6Network, ip_address
from ssl import SSLContext
from threading import Lock
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi import HTTPException
from litellm import Router
from litellm.llms.custom_httpx.http_handler import get_ssl_configuration
from litellm.proxy._types import ProxyException

from optillm_hooks.errors import ProviderFailed, Refused
from optillm_hooks.gateway.caller import Caller, span_metadata
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.gateway.failures import as_sample_errors
from optillm_hooks.sandbox.places import tenant
from optillm_hooks.services import SearchResult, ServiceFailed
from optillm_hooks.settings import WebSettings
from optillm_hooks.types import Usage
from optillm_hooks.web.download import MAX_URL, DownloadLimits, Hosts
from optillm_hooks.web.pages import PageCache, PageReader, can_read_pages

try:
    from litellm.litellm_core_utils.url_utils import SSRFError, validate_url
    from litellm.proxy.auth.auth_checks import can_token_call_search_tool
except ImportError:
    SSRFError = ValueError
    validate_url = can_token_call_search_tool = None

_PUBLIC: Final = IPv6Network("2000::/3")
"""The IPv6 network whose addresses are assigned to hosts of the internet. Python, and so LiteLLM,
takes others for public too, which may be translated to private ones: NAT64, SIIT, IPv4-compatible.
"""

_TUNNELS: Final = (IPv6Network("2001::/32"), IPv6Network("2002::/16"))
"""The parts of it that may lead to private addresses: Teredo and 6to4."""

_ADDRESS: Final = re.compile(r"https?://[^\s\ud800-\udfff]+")
_FORBIDDEN: Final = 403
_MAX_QUERY: Final = 400
"""Maximum characters of a query."""

_MAX_TITLE: Final = 300
_MAX_DATE: Final = 40
_MAX_SNIPPET: Final = 20_000
"""Maximum characters that are kept of a result."""


class _Resolvers:
    """Threads that look names up, of which one tenant gets half.

    They are none of LiteLLM's, and twice as many as downloads. A lookup cannot be stopped: it keeps
    its thread when nobody waits for it any more, which counts as its tenant's.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, "optillm-dns")
        self._share = count // 2
        self._held: Counter[object] = Counter()
        self._counting = Lock()

    async def run(self, look_up: Callable[[str, int], str], host: str, port: int) -> str:
        """Return what `look_up` returns.

        Raises:
            ServiceFailed: the tenant has too many lookups that have not ended.
        """
        holder = tenant.get() or object()
        with self._counting:
            if self._held[holder] >= self._share:
                raise ServiceFailed("too many other hosts are still being looked up")
            self._held[holder] += 1
        work = self._threads.submit(look_up, host, port)
        work.add_done_callback(lambda _: self._release(holder))
        return await asyncio.wrap_future(work)

    def _release(self, holder: object) -> None:
        with self._counting:
            self._held -= Counter([holder])


_resolvers: Final = _Resolvers(32)

_cache: Final = PageCache()


def problem() -> str | None:
    """Return why this version of LiteLLM cannot be used to read the web."""
    if validate_url is not None:
        return None
    return (
        f"LiteLLM {version('litellm')} has no validate_url or no can_token_call_search_tool: "
        "pages are not read, and the web is not searched"
    )


def page_reader(settings: WebSettings, caller: str) -> PageReader | None:
    """Return the reader of pages for a caller, or None if pages cannot be read."""
    if not settings.fetch or validate_url is None or not can_read_pages():
        return None
    return PageReader(
        address_of=public_address,
        tls=_tls,
        caller=caller,
        cache=_cache,
        cache_s=settings.cache_s,
        limits=DownloadLimits(seconds=settings.timeout_s, max_bytes=settings.max_bytes),
        hosts=Hosts(allowed=settings.allowed_hosts, denied=settings.denied_hosts),
    )


async def public_address(host: str, port: int) -> str:
    """Return the address of `host` to connect to.

    All its addresses must be public, unless LiteLLM's `user_url_allowed_hosts` names it.

    Raises:
        ServiceFailed: it has none, or one that is not public. The message is the same, so that
            nobody learns which names exist in the network of the proxy.
    """
    try:
        return await _resolvers.run(_validated, host, port)
    except (SSRFError, OSError, ValueError):
        raise ServiceFailed("the host is unknown, or its address is not public") from None


def _validated(host: str, port: int) -> str:
    """Return the address to which LiteLLM rewrites a URL: for `http`, one that it has checked."""
    name = f"[{host}]" if ":" in host else host
    rewritten, _ = validate_url(f"http://{name}:{port}/")
    found = ip_address(urlsplit(rewritten).hostname or "")
    # An address that is not global has passed only because the operator allows its host.
    if isinstance(found, IPv6Address) and found.is_global and not _is_public(found):
        raise SSRFError("an address that may be translated to a private one")
    return str(found)


def _is_public(found: IPv6Address) -> bool:
    if found.ipv4_mapped is not None:
        return True  # LiteLLM has checked the address that it stands for
    return found in _PUBLIC and not any(found in each for each in _TUNNELS)


def _tls() -> SSLContext | bool | str:
    configured: SSLContext | bool | str = get_ssl_configuration()
    return configured


def router_search(
    settings: WebSettings, router: Router | None, caller: Caller
) -> "RouterSearch | None":
    """Return the search with one of LiteLLM's search tools, or None if there is none."""
    tools = [
        str(each.get("search_tool_name")) for each in getattr(router, "search_tools", None) or ()
    ]
    wanted = settings.search_tool or next(iter(tools), None)
    if wanted not in tools or validate_url is None:
        return None
    return RouterSearch(router, wanted, caller, settings.timeout_s)


@dataclass(frozen=True, slots=True)
class RouterSearch:
    """A search tool of LiteLLM's, called on a caller's account: a `WebSearch`."""

    router: Any
    tool: str
    caller: Caller
    seconds: float

    async def __call__(
        self,
        query: str,
        /,
        *,
        max_results: int,
        spent: Callable[[Usage], None] = lambda _: None,
    ) -> Sequence[SearchResult]:
        await self._check_access()
        try:
            async with asyncio.timeout(self.seconds):
                with as_sample_errors():
                    response = await self.router.asearch(
                        search_tool_name=self.tool,
                        query=query[:_MAX_QUERY],
                        max_results=max_results,
                        litellm_metadata={**self.caller.metadata, **span_metadata()},
                        **self.caller.logged,
                    )
        except TimeoutError:
            raise ServiceFailed(f"the search took longer than {self.seconds:g} seconds") from None
        except ProviderFailed as exc:
            raise ServiceFailed(f"the search failed with status {exc.status}") from exc
        hidden = getattr(response, "_hidden_params", None) or {}
        spent(Usage(cost_usd=float(hidden.get("response_cost") or 0.0)))
        return list(_results(response))[:max_results]

    async def _check_access(self) -> None:
        """Raise `Refused` if LiteLLM does not let the caller use the search tool.

        Without a database there are no teams with rights of their own, and LiteLLM's check fails
        for a key that names one.
        """
        proxy, key = proxy_module(), self.caller.key
        if key is None or proxy is None:
            return
        if getattr(proxy, "prisma_client", None) is None:
            key = key.model_copy(update={"team_id": None})
        try:
            await can_token_call_search_tool(search_tool_name=self.tool, valid_token=key)
        except (ProxyException, HTTPException) as exc:
            said = exc.message if isinstance(exc, ProxyException) else "its team is unknown"
            refused = Refused(f"this key may not use the search tool: {said}")
            refused.status = _FORBIDDEN
            raise refused from None


def _results(response: Any) -> Iterator[SearchResult]:
    """Yield the results that have the address of a page."""
    for each in response.results:
        url = str(each.url or "")
        if len(url) <= MAX_URL and _ADDRESS.fullmatch(url):
            yield SearchResult(
                title=" ".join(_sendable(each.title, _MAX_TITLE).split()),
                url=url,
                snippet=_sendable(each.snippet, _MAX_SNIPPET),
                date=_sendable(each.date, _MAX_DATE),
            )


def _sendable(text: object, most: int) -> str:
    """Return the beginning of `text` without what cannot be sent to a model: half characters."""
    return str(text or "")[:most].encode(errors="replace").decode().replace("\0", "")
