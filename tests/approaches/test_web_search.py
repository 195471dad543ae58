"""web_search: what is searched for, and how the sources reach the model."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.errors import OptiLLMError, ProviderFailed, Refused, RequestRejected
from optillm_hooks.llm import Price
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.services import SearchResult, ServiceFailed, Services
from optillm_hooks.testing import HANG, Reply, ScriptedLLM, params
from optillm_hooks.types import Chat, Fields, Json, Message, Sampling
from tests.fakes import FakeSearch

pytestmark = pytest.mark.anyio

CALLING: Fields = {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}
QUESTION = "Who won, and where?"
Ended = tuple[list[Chat], Outcome]


def result(name: str, snippet: str = "") -> SearchResult:
    return SearchResult(title=f"On {name}", url=f"https://example.com/{name}", snippet=snippet)


def queries(*texts: str) -> str:
    return json.dumps({"queries": texts})


async def ask(
    replies: list[Reply], search: FakeSearch, chat: Chat | str = QUESTION, **how: Any
) -> Ended:
    """Return the conversations that reach the model, and the outcome."""
    llm = ScriptedLLM(replies)
    llm.facts = replace(llm.facts, price=Price(prompt=1e-6, completion=1e-6))
    names: list[str] = ["queries", "num_results", "max_tokens"]
    given = {name: how.pop(name) for name in names if name in how}
    request = Request(
        plan=resolve(parse("web_search"), given={"web_search": given}),
        base="base",
        chat=(Message("user", chat),) if isinstance(chat, str) else chat,
        services=Services(search=search),
        **how,
    )
    ended = await run(request, {"base": llm}.__getitem__)
    return [sent for sent, _ in llm.calls], ended


async def test_results_of_all_queries_are_merged_by_rank_each_page_once() -> None:
    search = FakeSearch(
        [
            [result("a"), result("b"), result("c")],
            [result("x"), SearchResult(title="Again", url="http://www.example.com/a/#top")],
        ]
    )
    (_, sent), ended = await ask([queries("who won", "where"), "A [1]."], search)
    assert search.queries == ["who won", "where"]
    assert re.findall(r"Address: \S+/(\w+)\n", sent[0].text) == ["a", "x", "b", "c"]
    assert sent[0].text.startswith(f"{QUESTION}\n\n")
    assert "[1](address of source 1)" in sent[0].text
    assert ended.answers[0].text == "A [1]."
    assert ended.report.notes == (("web_search", {"queries": 2, "results": 4}),)


async def test_no_more_results_than_wanted() -> None:
    search = FakeSearch([[result(name) for name in "abcd"], [result(name) for name in "wxyz"]])
    (_, sent), _ = await ask([queries("1", "2"), "A."], search, num_results=3)
    assert re.findall(r"Address: \S+/(\w+)\n", sent[0].text) == ["a", "w", "b"]


async def test_no_more_queries_than_allowed_and_each_once() -> None:
    search = FakeSearch()
    await ask([queries(" a \n b", "a b", "", "c", "d", "x" * 9000), "A."], search, queries=2)
    assert search.queries == ["a b", "c"]


async def test_a_long_query_is_cut() -> None:
    await ask(["A."], search := FakeSearch(), "why " * 50_000, queries=0)
    assert [len(query) for query in search.queries] == [400]


async def test_nothing_is_searched_for_if_the_model_wants_nothing() -> None:
    (_, sent), ended = await ask([queries(), "Hello."], search := FakeSearch(), "Hello!")
    assert search.queries == []
    assert sent == (Message("user", "Hello!"),)
    assert ended.report.degraded == ()


async def test_the_queries_are_those_of_the_conversation() -> None:
    chat: Chat = (
        Message("system", "Be terse."),
        Message("user", "Tell me of the 1998 final."),
        Message("assistant", "France won."),
        Message("user", QUESTION),
    )
    (asked, sent), _ = await ask([queries("1998 final"), "A."], FakeSearch(), chat)
    assert asked[:3] == sent[:3] == chat[:3]


async def test_if_nothing_is_found_the_model_is_told() -> None:
    (_, sent), ended = await ask([queries("a"), "A."], FakeSearch([[]]))
    assert "it found nothing" in sent[0].text
    assert "<source" not in sent[0].text
    assert ended.report.degraded == ()


async def test_one_search_that_fails_leaves_the_others() -> None:
    search = FakeSearch([ServiceFailed("secret"), [result("a")]])
    (_, sent), ended = await ask([queries("1", "2"), "A."], search)
    assert "example.com/a" in sent[0].text
    assert "secret" not in sent[0].text
    assert ended.report.degraded == ("searches:1/2",)


async def test_who_may_not_search_is_refused() -> None:
    with pytest.raises(OptiLLMError, match="may not") as caught:
        await ask([queries("1")], FakeSearch([Refused("this key may not")]))
    assert caught.value.status == 400


async def test_a_search_that_hangs_leaves_time_for_the_answer() -> None:
    search = FakeSearch([HANG, [result("a")]])
    (_, sent), ended = await ask([queries("1", "2"), "A."], search, limits=Limits(deadline_s=0.5))
    assert "example.com/a" in sent[0].text
    assert ended.report.degraded == ("searches:1/2",)
    assert ended.report.stopped_by is None


async def test_searches_count_as_cost_and_towards_its_limit() -> None:
    _, ended = await ask([queries("1", "2"), "A."], FakeSearch(cost=0.25))
    assert ended.report.usage.cost_usd == pytest.approx(0.5)
    assert ended.report.calls == 2
    with pytest.raises(OptiLLMError) as caught:
        await ask([queries("1"), "A."], FakeSearch(cost=0.25), limits=Limits(max_cost_usd=0.2))
    assert caught.value.code == "budget_exceeded"


async def test_long_results_share_the_tokens() -> None:
    search = FakeSearch([[result("a", "long text about whales. " * 2000), result("b", "short")]])
    (_, sent), _ = await ask([queries("1"), "A."], search, max_tokens=400)
    assert "short" in sent[0].text
    assert len(sent[0].text) < 400 * 6 + 1000


async def test_while_tools_are_called_the_sources_stay_the_same() -> None:
    """A new search would change the numbers that the model has cited, and cost again."""
    tool: Json = {"type": "function", "function": {"name": "f", "parameters": {}}}
    how: dict[str, Any] = {
        "caller_cache": CallerCache(),
        "client": Sampling(fields={"tools": [tool]}),
    }
    search = FakeSearch([[result("a")], [result("b")]])
    (_, begun), _ = await ask([queries("1"), "call"], search, **how)
    later: Chat = (
        Message("user", QUESTION),
        Message("assistant", None, CALLING),
        Message("tool", "a result", {"tool_call_id": "1"}),
    )
    (goes_on,), _ = await ask(["A."], search, later, **how)
    assert goes_on == (begun[0], *later[1:])
    assert search.queries == ["1"]
    (_, again), _ = await ask([queries("2"), "A."], search, **how)
    assert "example.com/b" in again[0].text, "the same question later is searched for again"


async def test_a_model_that_rejects_the_prompt_is_not_asked_again() -> None:
    rejected = ProviderFailed("too long", status=400, code="context_length_exceeded")
    with pytest.raises(ProviderFailed):
        await ask([rejected], search := FakeSearch())
    assert search.queries == []


@pytest.mark.parametrize(
    "question", ["谁赢了比赛？", "誰が勝ちましたか。", "Кто победил?", "من فاز؟", "누가 이겼나요?"]
)
async def test_other_languages(question: str) -> None:
    (sent,), _ = await ask(["A."], search := FakeSearch(), question, queries=0)
    assert search.queries == [question]
    assert sent[0].text.startswith(question)


async def test_a_model_that_reasons() -> None:
    reply = f"<think>What is asked? Perhaps {{}}.</think>\n```json\n{queries('who won')}\n```"
    await ask([reply, "A."], search := FakeSearch())
    assert search.queries == ["who won"]


def test_without_a_search_tool_the_request_is_refused() -> None:
    with pytest.raises(RequestRejected, match="`search_tools` in LiteLLM's configuration"):
        params("web_search").check_services(Services())


async def test_the_only_call_is_left_for_the_answer() -> None:
    search = FakeSearch()
    (sent,), ended = await ask(["A."], search, limits=Limits(max_calls=1))
    assert search.queries == [QUESTION]
    assert "Title:" in sent[0].text
    assert ended.answers[0].text == "A."
    assert (ended.report.stopped_by, ended.report.degraded) == ("max_calls", ("queries:1/1",))
