"""A small web on loopback: sites, and a search server that speaks SearXNG's and Tavily's API.

It runs in threads of the test's own process and remembers every request. The search server is
stricter than the real ones: a request that breaks their API is kept in `violations`, and leaving
the `with` block fails on them.

    pages = {"/tides": site("Tides", "The moon pulls the sea."), "/old": redirect("/tides")}
    with WebWorld(pages) as world, Proxy(with_web(config, world), folder) as proxy:
        ...
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from tests.proxy import Config

SEARCH_TOOL: Final = "loopback-search"
PRICED_TOOL: Final = "priced-search"
"""The same server as a provider for whose searches LiteLLM knows a price."""

PRICED_KEY: Final = "tvly-test"


@dataclass(frozen=True, slots=True)
class Site:
    """What the server answers under one path."""

    body: bytes | Callable[[BaseHTTPRequestHandler], None]
    """A function writes the whole response itself."""

    content_type: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    title: str = ""
    """Pages with a title are found by searches."""

    words: str = ""
    """The text in which searches look."""


def site(title: str, *paragraphs: str) -> Site:
    """Return a page of `paragraphs`, which searches find."""
    text = "".join(f"<p>{escape(each)}</p>" for each in paragraphs)
    html = (
        f"<!doctype html><html><head><meta charset='utf-8'><title>{escape(title)}</title></head>"
        f"<body><nav><a href='/'>Home</a></nav><main><h1>{escape(title)}</h1>{text}</main>"
        "<footer>All rights reserved</footer></body></html>"
    )
    return Site(html.encode(), title=title, words=" ".join(paragraphs))


def redirect(location: str, status: int = 302) -> Site:
    """Return an answer that sends the client to `location`."""
    return Site(b"", status=status, headers={"location": location})


def endless(
    piece: bytes,
    *,
    pause_s: float = 0.0,
    total: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Site:
    """Return an answer that repeats `piece`, for ever or up to `total` bytes."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in {"content-type": "text/plain", **(headers or {})}.items():
            handler.send_header(name, value)
        handler.end_headers()
        sent = 0
        try:
            while total is None or sent < total:
                handler.wfile.write(piece)
                sent += len(piece)
                time.sleep(pause_s)
        except OSError:  # the client has hung up
            return

    return Site(write)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page."""

    path: str
    headers: Mapping[str, str]


class WebWorld:
    """The running servers.

    Args:
        pages: what is answered, by path.
        results: what a search for these words answers, in place of the pages that contain them.
    """

    def __init__(
        self,
        pages: Mapping[str, Site] | None = None,
        *,
        results: Mapping[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        self.pages = dict(pages or {})
        self.results = dict(results or {})
        self.visits: list[Visit] = []
        self.searches: list[str] = []
        self.search_status = 200
        """What the search server answers; all but 200 are failures."""

        self.violations: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def host(self) -> str:
        """Host and port, as LiteLLM's `user_url_allowed_hosts` names them."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def address(self, path: str) -> str:
        return f"{self.url}{path}"

    def visited(self, path: str) -> int:
        """Return how often a page was asked for."""
        return sum(visit.path == path for visit in self.visits)

    def search_tools(self) -> list[Config]:
        """Return the entries of LiteLLM's `search_tools` for the search server."""
        return [
            {
                "search_tool_name": SEARCH_TOOL,
                "litellm_params": {"search_provider": "searxng", "api_base": self.url},
            },
            {
                "search_tool_name": PRICED_TOOL,
                "litellm_params": {
                    "search_provider": "tavily",
                    "api_base": self.url,
                    "api_key": PRICED_KEY,
                },
            },
        ]

    def found(self, query: str) -> list[dict[str, Any]]:
        """Return the results for `query`: the pages that share most words with it first."""
        self.searches.append(query)
        if query in self.results:
            return self.results[query]
        wanted = set(_words(query))
        hits = {
            path: len(wanted & set(_words(f"{page.title} {page.words}")))
            for path, page in self.pages.items()
            if page.title
        }
        ranked = sorted((path for path in hits if hits[path]), key=lambda path: -hits[path])
        return [
            {
                "title": self.pages[path].title,
                "url": self.address(path),
                "content": self.pages[path].words[:200],
            }
            for path in ranked
        ]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if error is None:
            assert not self.violations, self.violations

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        world = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                if url.path == "/search":
                    world._searxng(self, parse_qs(url.query, keep_blank_values=True))
                else:
                    world._page(self, self.path)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                world._tavily(self, body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        return Handler

    def _page(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        self.visits.append(Visit(path, {k.lower(): v for k, v in handler.headers.items()}))
        page = self.pages.get(path)
        handler.close_connection = True
        if page is None:
            _send(handler, 404, "text/html", b"<p>Not found</p>")
        elif callable(page.body):
            page.body(handler)
        else:
            _send(handler, page.status, page.content_type, page.body, page.headers)

    def _searxng(self, handler: BaseHTTPRequestHandler, query: Mapping[str, list[str]]) -> None:
        """Answer as a SearXNG that has the format `json` enabled."""
        if set(query) != {"q", "format"} or query["format"] != ["json"] or not query["q"][0]:
            self.violations.append(f"not a search: {dict(query)}")
        results = self.found(query["q"][0])
        body = {"query": query["q"][0], "number_of_results": 0, "results": results}
        _send(handler, self.search_status, "application/json", json.dumps(body).encode())

    def _tavily(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body)
        if handler.headers["authorization"] != f"Bearer {PRICED_KEY}" or not asked.get("query"):
            self.violations.append(f"not a search: {asked}")
        results = self.found(asked["query"])[: asked["max_results"]]
        answer = {"query": asked["query"], "results": results}
        _send(handler, self.search_status, "application/json", json.dumps(answer).encode())


def with_web(config: Config, world: WebWorld, *, search: bool = True, **web: object) -> Config:
    """Return `config` with the world's host allowed, its search tools, and settings of the web."""
    settings = dict(config["litellm_settings"])
    ours = dict(settings.get("optillm_settings") or {})
    settings["optillm_settings"] = {**ours, "web": {**ours.get("web", {}), **web}}
    settings["user_url_allowed_hosts"] = [
        *settings.get("user_url_allowed_hosts", ()),
        world.host,
    ]
    tools = {"search_tools": world.search_tools()} if search else {}
    return config | {"litellm_settings": settings} | tools


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    content_type: str,
    body: bytes,
    headers: Mapping[str, str] | None = None,
) -> None:
    try:
        handler.send_response(status)
        handler.send_header("content-type", content_type)
        handler.send_header("content-length", str(len(body)))
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
    except OSError:  # the client has hung up
        return
