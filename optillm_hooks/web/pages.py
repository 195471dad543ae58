"""The reader of web pages: download, text, and a cache for each caller."""

import asyncio
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, ValidationError

from optillm_hooks.sandbox.client import WorkerFailed, WorkerLimits, ask_worker
from optillm_hooks.sandbox.places import Places
from optillm_hooks.services import Page, ServiceFailed
from optillm_hooks.types import Json
from optillm_hooks.web.download import AddressOf, Download, DownloadLimits, Hosts, Tls, download

_WORKER: Final = "optillm_hooks.web.text"
_LIMITS: Final = WorkerLimits(seconds=10.0, memory_mb=1024, reply_bytes=5_000_000)
"""The reply is JSON, in which a character takes up to 12 bytes."""

_MAX_DOWNLOADS: Final = 16
"""Concurrent downloads of a process; further ones wait."""

_MAX_CACHED: Final = 16_000_000
"""Characters of all cached pages together."""

_places: WeakKeyDictionary[asyncio.AbstractEventLoop, Places] = WeakKeyDictionary()


@cache  # each request asks, and a search of the import path takes half a millisecond
def can_read_pages() -> bool:
    """Return whether the packages that read pages were installed when this was first asked."""
    return all(find_spec(name) is not None for name in ("trafilatura", "pypdf"))


class PageCache:
    """An LRU cache of pages that expire. Each caller sees only its own."""

    def __init__(
        self, max_characters: int = _MAX_CACHED, clock: Callable[[], float] = monotonic
    ) -> None:
        self._max_characters = max_characters
        self._clock = clock
        self._characters = 0
        self._entries: OrderedDict[tuple[str, str], tuple[float, Page]] = OrderedDict()

    def get(self, caller: str, url: str, max_age_s: float) -> Page | None:
        """Return the page if it is at most `max_age_s` old, else None."""
        at = (caller, url)
        stored, page = self._entries.get(at, (0.0, None))
        if page is None or self._clock() - stored > max_age_s:
            return None
        self._entries.move_to_end(at)
        return page

    def put(self, caller: str, url: str, page: Page) -> None:
        """Store a page, in place of those that were not used for the longest time."""
        at = (caller, url)
        self._drop(at)
        self._entries[at] = self._clock(), page
        self._characters += len(page.text)
        while self._characters > self._max_characters:
            self._drop(next(iter(self._entries)))

    def _drop(self, at: tuple[str, str]) -> None:
        _, page = self._entries.pop(at, (0.0, None))
        self._characters -= 0 if page is None else len(page.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PageReader:
    """Reads pages for one caller: a `Fetch`."""

    address_of: AddressOf
    tls: Tls
    caller: str = ""
    cache: PageCache = field(default_factory=PageCache)
    cache_s: float = 0.0
    """How long a page may be answered from the cache."""

    limits: DownloadLimits = field(default_factory=DownloadLimits)
    hosts: Hosts = field(default_factory=Hosts)

    async def __call__(self, url: str, /) -> Page:
        known = self.cache.get(self.caller, url, self.cache_s)
        if known is not None:
            return known
        places = _places.setdefault(asyncio.get_running_loop(), Places(_MAX_DOWNLOADS))
        async with places.take():
            found = await download(url, self.address_of, self.tls, self.limits, self.hosts)
        page = await _page(found)
        if self.cache_s:
            self.cache.put(self.caller, url, page)
        return page


class _Text(BaseModel):
    """The worker's reply."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    title: str
    text: str
    truncated: bool


async def _page(found: Download) -> Page:
    """Return a download as a page.

    Raises:
        ServiceFailed: it has no text, or its text cannot be read within the limits.
    """
    request: dict[str, Json] = {
        "body": b64encode(found.body).decode(),
        "kind": found.kind,
        "charset": found.charset,
    }
    try:
        read = _Text.model_validate(await ask_worker(_WORKER, request, _LIMITS))
    except (WorkerFailed, ValidationError):
        raise ServiceFailed("its text cannot be read") from None
    if not read.text:
        raise ServiceFailed("it has no text")
    return Page(
        url=found.url,
        title=read.title,
        text=read.text,
        truncated=found.truncated or read.truncated,
    )
