"""Read URLs: the pages that the question names are read, and added to it as data.

Good for: pages and tools.
Worth it when: the question names web pages that the model has to read.
Source: OptiLLM's plugin of this name. Pages are read concurrently, each once, and only from public
hosts; `services.Fetch` says how. Links are found as people write them: in Markdown, in brackets,
before punctuation, in scripts without blanks. The pages come after the question, each in a frame
that marks it as data, and share a number of tokens: of a long page, its beginning is kept and the
passages that are most relevant to the question. A page that cannot be read is named with the
reason, so that the model does not make one up.
On reasoning models: no difference.
Cost: no call of its own; the prompt of the stages that follow contains the pages.
"""

from collections.abc import Sequence
from functools import partial

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected, SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import (
    data_notice,
    edit_question,
    enclose,
    fence,
    question,
    up_to_question,
)
from optillm_hooks.registry import Cost, Params, rewriter
from optillm_hooks.services import Page, ServiceFailed, Services
from optillm_hooks.types import Chat, Message, Sampling
from optillm_hooks.web.excerpts import excerpts
from optillm_hooks.web.links import find_urls

_MAX_FOUND = 100
"""Addresses that are looked for; more than `max_urls` are counted, but not read."""

_SHARE = 0.5
"""Share of the time left that reading may take."""

_PAGES = "Below are the pages at the addresses in the request, as they were read just now."


class ReadUrlsParams(Params):
    max_urls: int = Field(default=5, ge=1, le=20, description="Maximum number of pages to read.")
    max_tokens: int = Field(
        default=8000, ge=100, le=1_000_000, description="Maximum tokens of all pages together."
    )
    history: bool = Field(
        default=False,
        description="Also read the pages that earlier turns of the user name, the latest first.",
    )

    def check_services(self, services: Services) -> None:
        if services.fetch is None:
            raise RequestRejected(
                "readurls reads web pages, which this proxy does not: install the extra `web` "
                '(pip install "optillm-hooks[web]"), and leave optillm_settings.web.fetch on'
            )


@rewriter("readurls", ReadUrlsParams, cost=lambda _: Cost(calls=0, depth=0), needs={"network"})
async def readurls(chat: Chat, llm: LLM, params: ReadUrlsParams, ctx: Context) -> Chat:
    """Return `chat` with the pages that its last user turn names.

    A conversation in which none is named is returned unchanged.
    """
    named = _named(chat, history=params.history)
    urls = named[: params.max_urls]
    if not urls:
        return chat
    ctx.progress(f"reading {len(urls)} pages" if len(urls) > 1 else "reading a page")
    read = await _read(urls, ctx)
    lost = sum(isinstance(each, SampleError) for each in read)
    ctx.trace.count("pages", lost=lost + len(named) - len(urls), of=len(named))
    shown = await _shown(urls, read, chat, llm, params, ctx)
    mark = fence(up_to_question(chat), shown)
    data = f"{_PAGES} {data_notice('page', mark)}\n\n{enclose(shown, 'page', mark)}"
    return edit_question(chat, lambda asked: f"{asked}\n\n{data}")


def _named(chat: Chat, *, history: bool) -> list[str]:
    if not history:
        return find_urls(question(chat), _MAX_FOUND)
    turns = [message.text for message in reversed(chat) if message.role == "user"]
    return find_urls("\n".join(turns), _MAX_FOUND)


async def _read(urls: Sequence[str], ctx: Context) -> list[Page | SampleError]:
    fetch = ctx.services.fetch
    if fetch is None:
        raise LookupError("check_services was not called")
    calls = [partial(fetch, url) for url in urls]
    return await outcomes(calls, until=ctx.within(_SHARE), enough=0)


async def _shown(
    urls: Sequence[str],
    read: Sequence[Page | SampleError],
    chat: Chat,
    llm: LLM,
    params: ReadUrlsParams,
    ctx: Context,
) -> list[str]:
    """Return each page as the model sees it, with its address and title."""

    def count(text: str) -> int:
        return llm.facts.count_tokens((Message("user", text),), Sampling())

    texts = ["" if isinstance(page, SampleError) else page.text for page in read]
    parts = await excerpts(texts, question(chat), count, params.max_tokens)
    shown: list[str] = []
    for url, page, part in zip(urls, read, parts, strict=True):
        if isinstance(page, SampleError):
            reason = page if isinstance(page, ServiceFailed) else "there was no time for it"
            shown.append(f"Address: {url}\nThis page was not read: {reason}")
        else:
            ctx.trace.count("page_texts", lost=int(page.truncated or not part.whole), of=1)
            shown.append(f"Address: {url}\nTitle: {page.title}\n\n{part.text}")
    return shown
