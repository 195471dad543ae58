"""Web search: the model's queries are searched for, and what is found is added to the question.

Good for: pages and tools.
Worth it when: the answer is newer than the model, or must name sources.
Source: OptiLLM's plugin of this name, which drives a browser; here, LiteLLM's search tools search.
One call derives the queries from the whole conversation; with `queries: 0`, the question itself is
the query. All are searched for at once. The results are merged by rank, each page once, and come
after the question as numbered sources, which the answer cites. If nothing is found, the model is
told so.
On reasoning models: no difference.
Cost: one call, none with `queries: 0`; the searches cost what their provider charges.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import ClassVar, Final

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, Refused, RequestRejected, SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM
from optillm_hooks.programs import spare_calls
from optillm_hooks.prompts import (
    ask,
    data_notice,
    edit_question,
    enclose,
    fence,
    question,
    up_to_question,
)
from optillm_hooks.registry import Cost, DraftingParams, rewriter
from optillm_hooks.services import SearchResult, Services
from optillm_hooks.structured import fill
from optillm_hooks.types import Chat, Message, Sampling
from optillm_hooks.web.excerpts import excerpts
from optillm_hooks.web.links import page_key

_SHARE: Final = 0.5
"""Share of the time left that the searches may take."""

_MAX_QUERY: Final = 400
"""Maximum characters of a query."""

_DERIVE: Final = """\
Before you answer, the web can be searched. Write up to {number} queries for a search engine that \
find what the answer needs: short, specific, without references to this conversation, in the \
language in which the best pages are written. Write none if the web cannot help the answer."""

_SOURCES: Final = """\
Below are results of a web search that was made for this request. {notice}

{sources}

Answer the request with the help of these sources where they serve it. Cite each source that you \
use by its number, as a link to its address: [1](address of source 1). If the sources do not have \
the answer, say so."""

_NOTHING: Final = (
    "A web search was made for this request, but it found nothing. If the answer depends on what a "
    "search would find, say that none was found."
)


class SearchFields(BaseModel):
    """Fields about OptiLLM's browser."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, defer_build=True)

    headless: bool | None = None
    delay_seconds: float | None = Field(default=None, ge=0)


class WebSearchParams(DraftingParams):
    queries: int = Field(
        default=3,
        ge=0,
        le=10,
        description="Maximum queries that the model derives from the conversation, in one call; 0: "
        "the last user turn is the query, without a call.",
    )
    num_results: int = Field(
        default=10, ge=1, le=20, description="Maximum results of all searches together."
    )
    max_tokens: int = Field(
        default=4000, ge=100, le=1_000_000, description="Maximum tokens of all results together."
    )

    body_fields: ClassVar = {"num_results": "num_results"}
    ignored: ClassVar = SearchFields

    def check_services(self, services: Services) -> None:
        if services.search is None:
            raise RequestRejected(
                "web_search needs a search tool, and this proxy has none: add one to "
                "`search_tools` in LiteLLM's configuration (SearXNG needs no key); "
                "optillm_settings.web.search_tool names it if there are several"
            )


class Queries(BaseModel):
    """Queries for a search engine."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    queries: list[str] = Field(description="The queries, the most important first.")


@rewriter(
    "web_search",
    WebSearchParams,
    cost=lambda p: Cost(calls=min(1, p.queries), depth=min(1, p.queries)),
    needs={"network"},
)
async def web_search(chat: Chat, llm: LLM, params: WebSearchParams, ctx: Context) -> Chat:
    """Return `chat` with what a web search finds for its last user turn.

    A conversation whose last user turn has no text, or that needs nothing from the web, is returned
    unchanged. While the model calls tools, the results stay those that its turn began with.
    """
    if not question(chat).strip():
        return chat
    begun = up_to_question(chat)
    key = hashlib.sha256(repr((begun, params)).encode()).hexdigest()
    known = ctx.caller_cache.get(key) if len(begun) < len(chat) else None
    [data] = known or [await _found(begun, llm, params, ctx)]
    if ctx.client.fields.get("tools"):
        ctx.caller_cache.put(key, (data,))
    return edit_question(chat, lambda text: f"{text}\n\n{data}") if data else chat


async def _found(chat: Chat, llm: LLM, params: WebSearchParams, ctx: Context) -> str:
    """Return what is added to the question; empty if it needs nothing from the web."""
    queries = await _queries(chat, llm, params, ctx)
    if not queries:
        return ""
    ctx.progress("searching the web")
    results = await _search(queries, params.num_results, ctx)
    ctx.trace.note("web_search", queries=len(queries), results=len(results))
    return await _shown(results, chat, llm, params) if results else _NOTHING


async def _queries(chat: Chat, llm: LLM, params: WebSearchParams, ctx: Context) -> list[str]:
    """Return the queries, each once; the question itself if the model's reply is not valid."""
    found = [question(chat)]
    if params.queries and _has_spare_call(ctx):
        request = ask(chat, _DERIVE.format(number=params.queries))
        try:
            with ctx.trace.step("queries"):
                found = (await fill(Queries, request, llm, ctx, attempts=1)).queries
        except BudgetExceeded:
            raise
        except SampleError as exc:
            if exc.rejects_prompt:
                raise
    cleaned = (" ".join(query[: 4 * _MAX_QUERY].split())[:_MAX_QUERY] for query in found)
    return list(dict.fromkeys(filter(None, cleaned)))[: max(1, params.queries)]


def _has_spare_call(ctx: Context) -> bool:
    """Return whether `max_calls` leaves a call besides that for the answer; note if it does not."""
    try:
        spare_calls(ctx)
    except BudgetExceeded:
        ctx.trace.count("queries", lost=1, of=1)
        return False
    return True


async def _search(queries: Sequence[str], num_results: int, ctx: Context) -> list[SearchResult]:
    """Return the best results of all queries, each page once.

    Raises:
        Refused: the caller may not search.
    """
    search = ctx.services.search
    if search is None:
        raise LookupError("check_services was not called")
    calls = [partial(search, query, max_results=num_results, spent=ctx.spend) for query in queries]
    ended = await outcomes(calls, until=ctx.within(_SHARE), enough=0)
    for each in ended:
        if isinstance(each, Refused):
            raise each
    found = [each for each in ended if not isinstance(each, SampleError)]
    ctx.trace.count("searches", lost=len(ended) - len(found), of=len(ended))
    once: dict[str, SearchResult] = {}
    for result in filter(None, chain.from_iterable(zip_longest(*found))):
        once.setdefault(page_key(result.url), result)
    return list(once.values())[:num_results]


async def _shown(
    results: Sequence[SearchResult], chat: Chat, llm: LLM, params: WebSearchParams
) -> str:
    """Return the results as numbered sources, and how to use them."""

    def count(text: str) -> int:
        return llm.facts.count_tokens((Message("user", text),), Sampling())

    parts = await excerpts([r.snippet for r in results], question(chat), count, params.max_tokens)
    shown = [
        "\n".join(filter(None, (f"Title: {r.title}", f"Address: {r.url}", _dated(r), part.text)))
        for r, part in zip(results, parts, strict=True)
    ]
    mark = fence(chat, shown)
    return _SOURCES.format(
        notice=data_notice("source", mark), sources=enclose(shown, "source", mark)
    )


def _dated(result: SearchResult) -> str:
    return f"Date: {result.date}" if result.date else ""
