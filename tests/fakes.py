"""Fakes that only the tests of this repository need; see `optillm_hooks.testing` for the others."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from optillm_hooks.code_execution.runner import SnippetResult
from optillm_hooks.services import (
    Page,
    SearchResult,
    ServiceFailed,
    Services,
    Tool,
    ToolOffer,
    ToolResult,
    ToolWish,
)
from optillm_hooks.testing import Hang, Reply, ScriptedLLM
from optillm_hooks.types import Chat, Delta, Json, Sampling, Usage


class Pieces(ScriptedLLM):
    """Streams `pieces` at the first stream, and answers other calls by the script."""

    def __init__(
        self, pieces: Sequence[Delta | Exception | Hang], replies: Sequence[Reply] = ()
    ) -> None:
        super().__init__(replies)
        self._pieces = pieces
        self.closed = False
        """Whether the stream was opened and closed."""

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        if self.closed:
            async for delta in super().stream(chat, sampling):
                yield delta
            return
        self.calls.append((chat, sampling))
        try:
            for piece in self._pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, Hang):
                    await asyncio.Event().wait()
                else:
                    yield piece
        finally:
            await asyncio.sleep(0)  # as closing a connection does
            self.closed = True


class EmptyToolBox:
    """MCP servers that cannot be reached."""

    def check(self) -> None: ...

    async def offer(self, _: ToolWish, /) -> ToolOffer:
        return ToolOffer(tools=())

    async def call(self, tool: Tool, arguments: dict[str, Json], /) -> ToolResult:
        raise AssertionError(f"{tool} is not offered, but called with {arguments}")


class ScriptedRunner:
    """A sandbox that gives `results` in the order of the sessions; the last one repeats.

    A result is that of the session's last snippet, or an error of the sandbox itself.
    """

    note = "It is small."

    def __init__(self, *results: SnippetResult | Exception) -> None:
        self._results = results
        self.sessions: list[tuple[str, ...]] = []

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        assert not stdin
        self.sessions.append(tuple(snippets))
        await asyncio.sleep(0)
        result = self._results[min(len(self.sessions), len(self._results)) - 1]
        if isinstance(result, Exception):
            raise result
        return [*[SnippetResult(output="", error="")] * (len(snippets) - 1), result]


class FakeSearch:
    """Answers each query with the next of `replies`, or with one page about it."""

    def __init__(
        self, replies: Sequence[Sequence[SearchResult] | Exception | Hang] = (), cost: float = 0.0
    ) -> None:
        self._replies = list(replies)
        self._cost = cost
        self.queries: list[str] = []

    async def __call__(
        self, query: str, /, *, max_results: int, spent: Callable[[Usage], None] = lambda _: None
    ) -> Sequence[SearchResult]:
        self.queries.append(query)
        page = SearchResult(title=query, url="https://example.com/page", snippet=f"On {query}.")
        reply = self._replies.pop(0) if self._replies else [page]
        if isinstance(reply, Hang):
            await asyncio.Event().wait()
        if isinstance(reply, Exception):
            raise reply
        assert not isinstance(reply, Hang)
        spent(Usage(cost_usd=self._cost))
        return reply[:max_results]


class FakeFetch:
    """Reads the pages of `web`, by their addresses; a reply may be a failure, or hang."""

    def __init__(self, web: dict[str, Page | Exception | Hang]) -> None:
        self._web = web
        self.urls: list[str] = []

    async def __call__(self, url: str, /) -> Page:
        self.urls.append(url)
        reply = self._web.get(url, ServiceFailed("the host answers with status 404"))
        if isinstance(reply, Hang):
            await asyncio.Event().wait()
        if isinstance(reply, Exception):
            raise reply
        assert not isinstance(reply, Hang)
        return reply


PHRASE = "some text on the page"
PAGE = Page(url="https://example.com/page", title="A page", text=f"There is {PHRASE}.")
"""What every search finds, with what filled forms quote from it."""


def filled_form(request: str) -> str:
    """Return a valid reply to a request for a form (`structured.fill`); "" if it is none."""
    _, found, schema = request.rpartition("match this JSON Schema:\n")
    if not found:
        return ""
    whole = json.loads(schema.split("\n", 1)[0])
    return json.dumps(_example(whole, whole.get("$defs", {})))


def _example(schema: dict[str, Any], defs: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return _example(defs[schema["$ref"].rpartition("/")[2]], defs)
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return _example(schema[choice][0], defs)
    if "enum" in schema:
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            return {name: _example(field, defs) for name, field in fields.items()}
        case "array":
            return [_example(schema["items"], defs)] * max(1, schema.get("minItems", 1))
        case "integer" | "number":
            return schema.get("minimum", schema.get("maximum", 1))
        case "boolean":
            return True
        case _:
            return PHRASE


class Calculator(ScriptedRunner):
    """A sandbox in which every program prints 42, or reports it if it is stepped."""

    async def run(self, snippets: Sequence[str], *, stdin: str = "") -> Sequence[SnippetResult]:
        stepped = len(snippets) == 3
        report = '{"missing": null, "used": 0, "answer": "42"}' if stepped else "42"
        self._results = (SnippetResult(output=f"{report}\n", error=""),)
        return await super().run(snippets, stdin=stdin)


SERVICES = Services(
    toolbox=EmptyToolBox(),
    search=FakeSearch(),
    fetch=FakeFetch({PAGE.url: PAGE}),
    code_runner=Calculator(),
)
"""Every service that an approach may need. Programs print 42; tools cannot be reached."""
