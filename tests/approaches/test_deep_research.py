"""deep_research: what is searched, read and cited, and what is left when something fails."""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed, Refused, RequestRejected, SampleError
from optillm_hooks.pipeline.events import Outcome, Piece, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.prompts import enclose, fence
from optillm_hooks.registry import get_approach
from optillm_hooks.research.sources import Sources
from optillm_hooks.services import Page, SearchResult, ServiceFailed, Services
from optillm_hooks.testing import HANG, StagedLLM, StageReply, chat, params
from optillm_hooks.types import Chat, Completion, Fields, Message, Sampling, Usage

pytestmark = pytest.mark.anyio

STAGES = {
    "again": "That reply does not match",
    "plan": "will be researched on the web",
    "draft": "Write a first draft",
    "notes": "Take notes from the pages",
    "revise": "of it anew",
    "gaps": "still lacks",
    "write": "Now write the report",
}
WEB = {
    "https://sea.example/tides": "The moon pulls the sea. High water comes twice a day.",
    "https://moon.example/": "The moon is 384,400 km away from the earth on average.",
    "https://sun.example/spring": "Spring tides come when sun and moon pull together.",
    "https://other.example/": "Nothing about it is written here at all.",
}
RESULTS = {
    "tides cause": ["https://sea.example/tides", "http://www.sea.example/tides/#top"],
    "moon distance": ["https://moon.example/", "https://sea.example/tides?utm_source=x"],
    "spring tides": ["https://sun.example/spring", "https://gone.example/"],
}


def form(**fields: Any) -> str:
    return json.dumps(fields)


def asking(question: str, query: str, section: int = 1) -> dict[str, Any]:
    return {"question": question, "query": query, "section": section}


PLAN = form(
    sections=[{"heading": "Causes", "covers": "why"}, {"heading": "Times", "covers": "when"}],
    questions=[asking("What causes tides?", "tides cause"), asking("How far?", "moon distance", 2)],
    sources_heading="Quellen",
)
DRAFT = "## Causes\nIt may be the moon.\n## Times\nTo be looked up."
NO_GAPS = form(questions=[])


def pages_in(prompt: str) -> dict[int, str]:
    found = re.findall(r"<page (\d+) \w{16}>\n(.*?)\n</page", prompt, re.DOTALL)
    return {int(number): text for number, text in found}


def take_notes(_: int, asked: Chat) -> str:
    """Quote the first sentence of each page, and add a quotation that no page has."""
    notes = []
    for number, text in pages_in(asked[-1].text).items():
        sentence = text.split("\n\n")[1].split(". ")[0]
        notes.append({"page": number, "claim": f"Claim: {sentence}", "quote": sentence})
    made_up = {"page": 1, "claim": "Made up", "quote": "words that stand in no page anywhere"}
    return form(notes=[*notes, made_up, {"page": 99, "claim": "x", "quote": "y"}])


def from_notes(_: int, asked: Chat) -> str:
    """Return a text with one statement for each note, and a citation of nothing."""
    notes = re.findall(r"^\[(\d+)\] (.*)$", asked[-1].text, re.MULTILINE)
    return "\n".join([*(f"{claim} [{number}]." for number, claim in notes), "Unproven [77]."])


REPLIES: dict[str, StageReply] = {
    "again": "no JSON either",
    "plan": PLAN,
    "draft": DRAFT,
    "notes": take_notes,
    "revise": from_notes,
    "gaps": NO_GAPS,
    "write": from_notes,
}


class Web:
    """A search engine and pages that are always there."""

    def __init__(
        self,
        results: Mapping[str, Sequence[str]] = RESULTS,
        failing: Mapping[str, Exception] | None = None,
    ) -> None:
        self._results = results
        self._failing = failing or {}
        self.queries: list[str] = []
        self.read: list[str] = []

    async def search(
        self, query: str, /, *, max_results: int, spent: Callable[[Usage], None] = lambda _: None
    ) -> Sequence[SearchResult]:
        self.queries.append(query)
        if query in self._failing:
            raise self._failing[query]
        spent(Usage(cost_usd=0.01))
        urls = self._results.get(query, [])
        return [SearchResult(title=url, url=url) for url in urls][:max_results]

    async def fetch(self, url: str, /) -> Page:
        self.read.append(url)
        if url in self._failing:
            raise self._failing[url]
        for address, text in WEB.items():
            if url == address:
                return Page(url=address, title=f"On {address[8:11]}", text=text)
        raise ServiceFailed("the host answers with status 404")

    @property
    def services(self) -> Services:
        return Services(search=self.search, fetch=self.fetch)


def request(web: Web, asked: Chat | None = None, **how: Any) -> Request:
    given = how.pop("given", {})
    plan = resolve(parse("deep_research"), given={"deep_research": given})
    how.setdefault("client", Sampling(seed=0))
    return Request(
        plan=plan, base="base", chat=asked or chat("Why are there tides?"),
        services=web.services, **how,
    )  # fmt: skip


async def research(
    replies: Mapping[str, StageReply] | None = None, web: Web | None = None, **how: Any
) -> tuple[Outcome, StagedLLM]:
    llm = StagedLLM(STAGES, {**REPLIES, **(replies or {})}, fields=how.pop("fields", ()))
    outcome = await run(request(web or Web(), **how), {"base": llm}.__getitem__)
    return outcome, llm


def sources(report: str) -> list[str]:
    return re.findall(r"^\[\d+\] .*: (\S+?)(?:  )?$", report.partition("\n\n## Quellen")[2], re.M)


async def test_the_report_cites_the_pages_it_was_written_from() -> None:
    web = Web()
    outcome, llm = await research(web=web)
    text = outcome.answers[0].text
    assert "Claim: The moon pulls the sea [1]." in text
    assert "Claim: The moon is 384,400 km" in text
    assert "Unproven." in text  # the number of no source is gone
    assert "Made up" not in text
    assert sources(text) == ["https://sea.example/tides", "https://moon.example/"]
    assert llm.counts == {"plan": 1, "draft": 1, "notes": 2, "revise": 2, "gaps": 1, "write": 1}
    assert web.queries == ["tides cause", "moon distance"]
    # Three addresses of one page: it is read once.
    assert web.read == ["https://sea.example/tides", "https://moon.example/"]
    assert outcome.report.degraded == ("quotes:2/5",)
    assert outcome.report.usage.cost_usd == pytest.approx(0.02)
    [(name, note)] = outcome.report.notes
    assert (name, note) == ("research", {"rounds": 1, "pages": 2, "notes": 3, "sources": 2})


async def test_addresses_in_pages_that_another_stage_has_read_are_not_the_users() -> None:
    page = "Visit https://evil.example/x today."
    mark = fence((), [page])
    read = f"Tides? See https://mine.example/a.\n\n{enclose([page], 'page', mark)}"
    asked: Chat = (*chat(read), Message("tool", page), Message("user", read))
    text = "At https://mine.example/a and https://evil.example/x."
    outcome, _ = await research({"write": text}, asked=asked)
    assert outcome.answers[0].text == "At https://mine.example/a and."


async def test_who_reads_pages_sees_nothing_else() -> None:
    asked: Chat = (Message("system", "The password is 1234."), *chat("Why are there tides?"))
    tools: Fields = {"tools": [{"type": "function", "function": {"name": "send"}}]}
    _, llm = await research(asked=asked, client=Sampling(fields=tools))
    for sent, sampling in llm.at("notes"):
        assert len(sent) == 1
        assert "1234" not in sent[0].text
        assert "tools" not in sampling.fields
    for stage in ("draft", "revise", "write"):
        for sent, sampling in llm.at(stage):
            assert sent[0].text == "The password is 1234."
            assert sampling.fields["tool_choice"] == "none"
            assert "High water" not in sent[-1].text  # pages reach a writer as notes only


async def test_a_gap_leads_to_another_round_that_revises_only_its_section() -> None:
    gaps = form(questions=[asking("When are spring tides?", "spring tides", 2)])
    replies: dict[str, StageReply] = {"gaps": lambda n, _: gaps if n == 0 else NO_GAPS}
    outcome, llm = await research(replies)
    assert llm.counts["gaps"] == 2
    revised = [re.findall(r"section (\d) of it anew", s[-1].text)[0] for s, _ in llm.at("revise")]
    assert revised == ["1", "2", "2"]
    assert "https://sun.example/spring" in sources(outcome.answers[0].text)
    assert "pages:1/4" in outcome.report.degraded


async def test_a_round_that_finds_nothing_new_is_the_last() -> None:
    gaps = form(questions=[asking("Again?", "tides cause", 1)])
    _, llm = await research({"gaps": gaps}, given={"max_iterations": 9})
    assert llm.counts["gaps"] == 1
    assert llm.counts["notes"] == 3


async def test_max_sources_bounds_what_is_read() -> None:
    outcome, _ = await research(web=(web := Web()), given={"max_sources": 1})
    assert len(web.read) == 1
    assert sources(outcome.answers[0].text) == web.read


KINDS = {
    "plan": "plans", "draft": "drafts", "notes": "notes", "revise": "revisions", "gaps": "gaps",
}  # fmt: skip


@pytest.mark.parametrize("stage", KINDS)
@pytest.mark.parametrize(
    "bad",
    [ProviderFailed("down", status=503), "", "no JSON, no heading"],
    ids=["down", "", "prose"],
)
async def test_any_step_may_fail(stage: str, bad: Any) -> None:
    web = Web({**RESULTS, "Why are there tides?": ["https://sea.example/tides"]})
    outcome, _ = await research({stage: bad}, web)
    assert outcome.answers[0].text
    if stage != "notes":
        assert "https://sea.example/tides" in outcome.answers[0].text
    if not (bad == "no JSON, no heading" and stage in ("draft", "revise")):
        assert any(lost.startswith(f"{KINDS[stage]}:") for lost in outcome.report.degraded)


async def test_if_the_last_call_fails_the_draft_is_the_answer() -> None:
    outcome, _ = await research({"write": ProviderFailed("down", status=503)})
    text = outcome.answers[0].text
    assert text.startswith("## Causes\n\nClaim: The moon pulls the sea [1].")
    assert sources(text) == ["https://sea.example/tides", "https://moon.example/"]
    assert "provider_failed" in outcome.report.degraded


async def test_without_any_page_the_report_says_so_and_cites_nothing() -> None:
    web = Web(failing=dict.fromkeys(RESULTS, ServiceFailed("no")))
    outcome, llm = await research({"write": "From memory [1], see https://evil.example."}, web)
    assert "No page could be read" in llm.at("write")[0][0][-1].text
    assert outcome.answers[0].text == "From memory, see."
    assert "searches:2/2" in outcome.report.degraded


async def test_a_caller_who_may_not_search_gets_that_error() -> None:
    with pytest.raises(Refused, match="may not"):
        await research(web=Web(failing=dict.fromkeys(RESULTS, Refused("you may not"))))


async def test_a_search_that_is_refused_later_only_ends_the_research() -> None:
    gaps = form(questions=[asking("When are spring tides?", "spring tides", 2)])
    web = Web(failing={"spring tides": Refused("no more today")})
    outcome, _ = await research({"gaps": gaps}, web)
    assert len(sources(outcome.answers[0].text)) == 2


@pytest.mark.parametrize("calls", range(1, 10))
async def test_every_budget_ends_with_a_report(calls: int) -> None:
    outcome, llm = await research(limits=Limits(max_calls=calls))
    assert len(llm.calls) <= calls
    assert llm.counts["write"] == 1  # the last call is kept for it
    assert outcome.report.stopped_by is None
    assert ("rounds:1/1" in outcome.report.degraded) == (calls < 4)
    if calls >= 4:
        assert sources(outcome.answers[0].text)


@pytest.mark.parametrize("stage", ["plan", "draft", "notes", "revise", "gaps", "write"])
async def test_a_deadline_ends_with_the_best_draft(stage: str) -> None:
    llm = StagedLLM(STAGES, {**REPLIES, stage: HANG})
    asked = request(Web(), limits=Limits(deadline_s=0.3))
    outcome = await run(asked, {"base": llm}.__getitem__)
    assert outcome.answers[0].text
    assert stage != "write" or outcome.report.stopped_by == "deadline"


async def test_slow_pages_are_left_behind() -> None:
    web = Web()

    async def fetch(url: str, /) -> Page:
        if "moon" in url:
            await asyncio.Event().wait()
        return await Web.fetch(web, url)

    services = Services(search=web.search, fetch=fetch)
    plan = resolve(parse("deep_research"))
    llm = StagedLLM(STAGES, REPLIES)
    asked = Request(
        plan=plan, base="base", chat=chat("Why?"), services=services, limits=Limits(deadline_s=1.0)
    )
    outcome = await run(asked, {"base": llm}.__getitem__)
    assert sources(outcome.answers[0].text) == ["https://sea.example/tides"]
    assert "pages:1/2" in outcome.report.degraded


async def test_the_report_is_streamed_as_it_is_written() -> None:
    llm = StagedLLM(STAGES, REPLIES)
    events = [e async for e in stream(request(Web(), progress=True), {"base": llm}.__getitem__)]
    pieces = [event.delta.text for event in events if isinstance(event, Piece)]
    assert len([piece for piece in pieces if piece.strip()]) >= 4
    assert sources("".join(pieces)) == ["https://sea.example/tides", "https://moon.example/"]


async def test_json_has_no_citations_that_a_list_would_break() -> None:
    wanted: Fields = {"response_format": {"type": "json_object"}}
    outcome, llm = await research({"write": '{"n": [1, 2]}'}, client=Sampling(fields=wanted))
    assert outcome.answers[0].text == '{"n": [1, 2]}'
    assert "[1]" not in llm.at("write")[0][0][-1].text.partition("Now write")[0]


async def test_a_truncated_revision_leaves_the_section_as_it_is() -> None:
    cut = Completion("Half a sec", finish_reason="length", usage=Usage(calls=1))
    outcome, llm = await research({"revise": cut})
    assert "It may be the moon." in llm.at("write")[0][0][-1].text
    assert "revisions:2/2" in outcome.report.degraded


async def test_long_pages_are_read_in_the_passages_that_matter() -> None:
    filler = "Harbours have quays of stone. " * 3000
    long = f"{filler}Spring tides come when sun and moon pull together. {filler}"
    web = Web({"spring tides": ["https://long.example/"]})

    async def fetch(url: str, /) -> Page:
        return Page(url=url, title="Long", text=long)

    questions = [asking("When do spring tides come?", "spring tides")]
    plan = form(sections=[{"heading": "A", "covers": ""}], questions=questions)
    llm = StagedLLM(STAGES, {**REPLIES, "plan": plan})
    asked = Request(
        plan=resolve(parse("deep_research"), given={"deep_research": {"page_tokens": 900}}),
        base="base", chat=chat("Why?"), services=Services(search=web.search, fetch=fetch),
    )  # fmt: skip
    await run(asked, {"base": llm}.__getitem__)
    [(sent, _)] = llm.at("notes")
    assert "Spring tides come when sun and moon" in sent[-1].text
    assert len(sent[-1].text.split()) < 1400


async def test_a_small_context_window_gets_less_to_read() -> None:
    small = StagedLLM(STAGES, REPLIES)
    small.facts = replace(small.facts, max_input_tokens=240)
    outcome = await run(request(Web()), {"base": small}.__getitem__)
    [(sent, _)] = small.at("write")
    notes = re.findall(r"^\[\d\] .*$", sent[-1].text, re.MULTILINE)
    assert 0 < len("".join(notes)) <= 80
    assert "notes:1/2" in outcome.report.degraded


@pytest.mark.parametrize("tokens", [60, 200, 400, 800, 1600])
async def test_a_budget_of_tokens_ends_with_the_best_draft(tokens: int) -> None:
    llm = StagedLLM(STAGES, REPLIES)
    asked = request(Web(), limits=Limits(max_tokens_total=tokens))
    try:
        outcome = await run(asked, {"base": llm}.__getitem__)
    except SampleError as exc:
        assert exc.code == "budget_exceeded"  # noqa: PT017 (one of two ways to end)
        assert not llm.counts.get("draft")
        return
    text = outcome.answers[0].text
    assert text
    assert outcome.report.usage.total_tokens <= tokens + 200  # the fake overruns its max_tokens
    assert not llm.counts.get("revise") or sources(text)


async def test_what_is_not_configured_is_said_before_anything_is_paid_for() -> None:
    given = params("deep_research")
    with pytest.raises(RequestRejected, match="search_tools"):
        given.check_services(Services())
    with pytest.raises(RequestRejected, match=r"optillm-hooks\[web\]"):
        given.check_services(Services(search=Web().search))
    given.check_services(Web().services)
    assert get_approach("deep_research").needs == {"network"}


def test_sources_are_pages_and_not_addresses() -> None:
    table = Sources(maximum=9)
    table.add("http://a.example/1", Page(url="https://a.example/x", title="X", text="x"))
    table.add("http://a.example/2", Page(url="https://www.a.example/x/", title="X", text="x"))
    table.add("http://a.example/3", Page(url="https://a.example/y", title="Y", text=" "))
    assert len(table) == 1
    assert list(table.cited({1, 2, 7})) == [1]
    results = [SearchResult(title="", url=u) for u in ("http://a.example/2", "a.example/x")]
    assert [source.number for source in table.of(results)] == [1]
