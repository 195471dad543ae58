"""readurls: the pages that a question names, as data after it."""

import re

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.errors import RequestRejected
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.services import Page, ServiceFailed, Services
from optillm_hooks.testing import HANG, ScriptedLLM, params
from optillm_hooks.types import Chat, Fields, Message
from tests.fakes import FakeFetch

pytestmark = pytest.mark.anyio

IMAGE: Fields = {"type": "image_url", "image_url": {"url": "data:,x"}}
CALLING: Fields = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
A, B, C = (f"https://example.com/{name}" for name in "abc")


def page(url: str, text: str, *, truncated: bool = False) -> Page:
    return Page(url=url, title=f"Title of {url[-1]}", text=text, truncated=truncated)


def web(**more: Page | Exception | object) -> FakeFetch:
    pages = {A: page(A, "The moon has no air."), B: page(B, "It is 384400 km away.")}
    return FakeFetch({**pages, **more})  # type: ignore[dict-item] # a page or a failure


async def ask(
    chat: Chat | str, fetch: FakeFetch, limits: Limits | None = None, **given: object
) -> tuple[Chat, Outcome]:
    """Return the conversation that reaches the model, and the outcome."""
    messages = (Message("user", chat),) if isinstance(chat, str) else chat
    llm = ScriptedLLM(["answer"])
    request = Request(
        plan=resolve(parse("readurls"), given={"readurls": given}),
        base="base",
        chat=messages,
        services=Services(fetch=fetch),
        limits=limits or Limits(),
    )
    ended = await run(request, {"base": llm}.__getitem__)
    [(sent, _)] = llm.calls
    return sent, ended


async def test_pages_come_after_the_question_in_its_order() -> None:
    question = f"Compare <{A}> with [that]({B})."
    sent, ended = await ask(question, web())
    assert sent[0].text.startswith(f"{question}\n\n")
    assert re.search(
        rf"<page 1 (\w+)>\nAddress: {A}\nTitle: Title of a\n\nThe moon has no air\.\n</page 1 \1>"
        rf"\n\n<page 2 \1>\nAddress: {B}\nTitle: Title of b\n\nIt is 384400 km away\.\n</page 2",
        sent[0].text,
    )
    assert ended.report.degraded == ()


async def test_a_question_without_links_is_not_changed() -> None:
    chat = (Message("user", f"Read {A}"), Message("assistant", "Done."), Message("user", "Thanks"))
    sent, _ = await ask(chat, fetch := web())
    assert (sent, fetch.urls) == (chat, [])


async def test_each_page_is_read_once_however_often_it_is_named() -> None:
    """Also if one address begins another, and if a page names its own."""
    fetch = FakeFetch(
        {url: page(url, f"see {A} and {A}b") for url in (A, f"{A}b", "https://example.com/")}
    )
    sent, _ = await ask(f"{A} {A}#x {A}b https://example.com/ {A}", fetch)
    assert fetch.urls == [A, f"{A}b", "https://example.com/"]
    assert sent[0].text.count("\nAddress: ") == 3


async def test_a_failure_is_no_content() -> None:
    fetch = web(**{C: ServiceFailed("the host answers with status 500")})
    sent, ended = await ask(f"{A} {C}", fetch)
    assert (
        f"Address: {C}\nThis page was not read: the host answers with status 500\n" in sent[0].text
    )
    assert ended.report.degraded == ("pages:1/2",)


async def test_pages_beyond_the_maximum_are_not_read_but_counted() -> None:
    sent, ended = await ask(f"{A} {B} {C}", fetch := web(), max_urls=2)
    assert fetch.urls == [A, B]
    assert ended.report.degraded == ("pages:1/3",)
    assert C in sent[0].text


async def test_a_page_that_hangs_leaves_time_for_the_answer() -> None:
    sent, ended = await ask(f"{A} {C}", web(**{C: HANG}), Limits(deadline_s=0.4))
    assert ended.answers[0].text == "answer"
    assert "The moon has no air." in sent[0].text
    assert ended.report.degraded == ("pages:1/2",)
    assert ended.report.stopped_by is None


async def test_the_only_page_that_hangs_leaves_time_too() -> None:
    sent, ended = await ask(C, web(**{C: HANG}), Limits(deadline_s=0.4))
    assert ended.answers[0].text == "answer"
    assert "This page was not read: there was no time for it" in sent[0].text


async def test_long_pages_share_the_tokens_and_keep_what_the_question_is_about() -> None:
    filler = "Nothing of interest is said in this sentence about the weather. " * 400
    long = f"The beginning.\n\n{filler}\n\nThe tungsten lamp was found in 1783.\n\n{filler}"
    fetch = web(**{C: page(C, long)})
    sent, ended = await ask(f"When was the tungsten lamp found? {A} {C}", fetch, max_tokens=1500)
    text = sent[0].text
    assert "The moon has no air." in text, "a short page is whole"
    assert "The beginning." in text
    assert "tungsten lamp was found in 1783" in text
    assert "[...]" in text
    assert len(text) < 1500 * 6
    assert ended.report.degraded == ("page_texts:1/2",)


async def test_a_page_that_was_cut_while_it_was_read_is_reported() -> None:
    _, ended = await ask(C, web(**{C: page(C, "text", truncated=True)}))
    assert ended.report.degraded == ("page_texts:1/1",)


async def test_images_and_other_turns_stay() -> None:
    chat: Chat = (
        Message("system", f"Be terse. {B}"),
        Message("user", ({"type": "text", "text": f"Look at {A}"}, IMAGE)),
    )
    sent, _ = await ask(chat, fetch := web())
    assert fetch.urls == [A], "only what the user names"
    assert sent[0] == chat[0]
    assert isinstance(sent[1].content, tuple)
    assert sent[1].content[1] == IMAGE
    assert "The moon has no air." in sent[1].text


async def test_while_tools_are_called_the_prompt_stays_the_same() -> None:
    """Or no provider could use its cache of the prompt."""
    first: Chat = (Message("user", f"Look at {A}"),)
    later: Chat = (
        *first,
        Message("assistant", None, CALLING),
        Message("tool", f"see {B}", {"tool_call_id": "1"}),
    )
    (begun, _), (goes_on, _) = await ask(first, web()), await ask(later, fetch := web())
    assert goes_on[0] == begun[0]
    assert goes_on[1:] == later[1:]
    assert fetch.urls == [A], "a tool's result names no page"


async def test_earlier_turns_count_if_wanted() -> None:
    chat: Chat = (
        Message("user", f"Look at {A}"),
        Message("assistant", f"It links to {C}"),
        Message("user", f"And {B}?"),
    )
    sent, _ = await ask(chat, fetch := web(), history=True)
    assert fetch.urls == [B, A]
    assert sent[:2] == chat[:2]


@pytest.mark.parametrize(
    "question",
    [f"请比较{A}。谢谢", f"「{A}」を読んで", f"Читай {A}!", f"اقرأ {A}، من فضلك", f"{A}을 읽어"],
)
async def test_other_languages(question: str) -> None:
    sent, _ = await ask(question, fetch := web())
    assert fetch.urls == [A]
    assert sent[0].text.startswith(question)


def test_without_a_reader_of_pages_the_request_is_refused() -> None:
    with pytest.raises(RequestRejected, match=r"optillm-hooks\[web\]"):
        params("readurls").check_services(Services())
