"""Deep research: a report on what web pages say, with citations that are checked.

Good for: pages and tools.
Worth it when: the answer has to be gathered from many web pages and cited.
Source: Han et al. 2025, "Deep Researcher with Test-Time Diffusion", arXiv:2507.16075, section 2.1
(a plan; a draft that retrieval corrects round by round; answers synthesised for each question) and
section 2.3. Deviations: sections are revised, not the whole draft, so that it does not shrink; an
answer to a question is a list of notes, each with a quotation that must be in its page; the model
that reads pages sees nothing but pages and question; research ends when the model asks for nothing
more, or when a round has found nothing new. Component-wise self-evolution is left out.
On reasoning models: the same. No prompt tells the model how to think.
Cost: at most `3 + max_iterations * (2 * questions + 1) - 1` calls and as many searches as
questions. By default 29 calls, 10 deep, of which the last streams.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Final

from pydantic import Field

from optillm_hooks.answers.citations import addresses, checked
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.sections import split_by_headings
from optillm_hooks.answers.voting import wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    EmptyCompletion,
    Refused,
    RequestRejected,
    SampleError,
)
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.long_context.question import around_frames
from optillm_hooks.prompts import ask, data_notice, enclose, fence, question
from optillm_hooks.reading import read_or
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.research.forms import (
    Gaps,
    Plan,
    Question,
    Section,
    line,
    questions_of,
    sections_of,
)
from optillm_hooks.research.gathering import TIME_FOR_A_STEP, Reach, gather
from optillm_hooks.research.report import ReportDraft
from optillm_hooks.research.sources import Sources
from optillm_hooks.services import Services
from optillm_hooks.structured import fill
from optillm_hooks.types import Answer, Chat, Message, Sampling

PLAN: Final = """\
Do not answer yet. A report that answers this conversation will be researched on the web. Choose \
its sections, and the {count} questions to look up first, at most. Use the language of the user's\
 last message."""

DRAFT: Final = """\
Write a first draft of a report that answers this conversation, from what you know, in the \
language of the user's last message. Use exactly these sections, each with its heading in a line \
that begins with "## ":
{outline}
Keep it short. Where you do not know or are not sure, say what has to be looked up. Cite nothing."""

REVISE: Final = """\
A report answers this conversation. Write the section {number} of it anew, from its draft and \
from the notes, which were taken from web pages. Correct what the notes show to be wrong, add \
what they add, and keep what is right. After each statement that a note supports, put the number \
of the note's page in brackets, such as [3] or [1, 4]. Where notes disagree, say so. Reply with \
the text of the section alone: no heading, no list of sources, no links. Use the language of the \
user's last message."""

GAPS: Final = """\
A report will answer this conversation; its draft is above. Name what it still lacks to answer \
the conversation well: at most {count} questions that web pages may answer. Do not ask again what\
 the notes answer. If nothing important is missing, name none."""

WRITE: Final = """\
Now write the report that answers this conversation, from its draft and from the notes, which \
were taken from web pages. Keep what is in the draft, in a form that reads well as a whole and \
that the conversation asks for. Every statement that comes from a page keeps the number of the \
page in brackets, such as [3] or [1, 4]: use only numbers that the notes have. Write no list of \
sources, which is added by itself, and no links. Do not mention the draft or the notes. Use the \
language of the user's last message."""

NO_SOURCES: Final = """\
No page could be read. Say at the beginning of the report that it is from your own knowledge, \
without sources."""

MAX_NOTES: Final = 60_000
"""Characters of notes that the whole report is written from; fewer for a small context window."""

_UNLIMITED: Final = 2**31
_LEAST_ROUND: Final = 3
"""Calls of the shortest round: a plan or a list of gaps, notes, a revision."""

TIME_FOR_RESEARCH: Final = 0.6
"""Share of the time after which no further round begins."""

TIME_FOR_A_ROUND: Final = 0.8
"""Share of the time left after which a round leaves a straggler behind."""


class DeepResearchParams(DraftingParams):
    body_fields: ClassVar[Mapping[str, str]] = {
        "max_iterations": "max_iterations",
        "max_sources": "max_sources",
    }

    max_iterations: int = Field(
        default=3, ge=1, le=10, description="Maximum rounds of searching, reading and revising."
    )
    max_sources: int = Field(default=30, ge=1, le=100, description="Maximum pages that are read.")
    questions: int = Field(
        default=4, ge=1, le=8, description="Maximum questions of a round; each is one search."
    )
    results: int = Field(
        default=5, ge=1, le=20, description="Search results that are read for a question."
    )
    page_tokens: int = Field(
        default=8000,
        ge=500,
        le=200_000,
        description="Maximum tokens of pages that the model reads for a question; the passages "
        "that match it best are chosen.",
    )

    def check_services(self, services: Services) -> None:
        if services.search is None:
            raise RequestRejected(
                "deep_research needs a web search: have the operator configure one in LiteLLM's "
                "search_tools"
            )
        if services.fetch is None:
            raise RequestRejected(
                "deep_research needs to read web pages: have the operator install the extra 'web' "
                "(pip install 'optillm-hooks[web]') and leave optillm_settings.web.fetch on"
            )


def _cost(params: DeepResearchParams) -> Cost:
    rounds = params.max_iterations
    calls = 3 + rounds * 2 * params.questions + rounds - 1
    return Cost(calls=calls, depth=3 * rounds + 1)


@approach("deep_research", DeepResearchParams, cost=_cost, needs=("network",))
async def deep_research(
    chat: Chat, llm: LLM, params: DeepResearchParams, ctx: Context
) -> FinalCall:
    """Return the call that writes the report from the last draft.

    Whatever fails on the way is left out: without a plan, the question itself is searched for, in a
    report of one section; a section that cannot be revised stays as it is. Nothing begins for which
    time or calls do not suffice. If the last call fails, the draft is the answer. The numbers in
    the report are those of pages that were read, and from which a note was taken whose quotation is
    there; other numbers and addresses are removed.

    Raises:
        Refused: the caller may not search the web.
    """
    research = _Research(chat, llm, params, ctx)
    await research.run()
    return research.final_call()


def _own_words(message: Message) -> str:
    """Return what a message says, without pages and other material that stages or tools added."""
    if message.role in ("tool", "function"):
        return ""
    framed = around_frames(message.text)
    return (message.text if framed is None else framed.question)[:100_000]


class _Research:
    def __init__(self, chat: Chat, llm: LLM, params: DeepResearchParams, ctx: Context) -> None:
        self._chat = chat
        self._llm = llm
        self._params = params
        self._ctx = ctx
        self._until = ctx.within(TIME_FOR_RESEARCH)
        window = llm.facts.max_input_tokens or _UNLIMITED
        self._reach = Reach(results=params.results, tokens=min(params.page_tokens, window // 2))
        self._note_characters = min(MAX_NOTES, window // 3)
        self._report = self._draft_of([Section(heading="Report")], "Sources")
        self._rounds = 0

    async def run(self) -> None:
        """Research round by round, until nothing is missing or something has run out."""
        begins = self._room >= _LEAST_ROUND
        self._ctx.trace.count("rounds", lost=int(not begins), of=1)
        questions = await self._plan() if begins else []
        while questions and self._room >= _LEAST_ROUND - 1:
            # Each question takes a call for notes, and one that revises a section.
            found = await self._round(questions[: self._room // 2])
            self._rounds += 1
            is_last = self._rounds == self._params.max_iterations or not found
            questions = [] if is_last or self._room < _LEAST_ROUND else await self._gaps()
        self._note()

    def final_call(self) -> FinalCall:
        """Return the call that writes the report."""
        self._ctx.progress("writing the report")
        draft, report = self._draft_answer(), self._report
        every, shown = report.all_notes(), report.all_notes(self._note_characters)
        self._ctx.trace.count("notes", lost=len(every) - len(shown), of=0)
        chat = self._shown([WRITE] if report.notes else [NO_SOURCES, WRITE])
        sampling = Sampling(fields=self._ctx.no_tool_calls)
        if wants_json(self._ctx.client):  # brackets are JSON's, and a list would break it
            return FinalCall(chat, sampling)
        return FinalCall(chat, sampling, text_filter=report.filter, fallback=draft)

    def _draft_of(self, sections: Sequence[Section], heading: str) -> ReportDraft:
        told = "\n".join(map(_own_words, self._chat[-20:]))
        return ReportDraft(sections, Sources(self._params.max_sources), heading, addresses(told))

    async def _plan(self) -> list[Question]:
        """Return the first questions; without a plan, that of the user."""
        self._ctx.progress("planning the research")
        asked = ask(self._chat, PLAN.format(count=self._params.questions))
        try:
            with self._ctx.trace.step("plans"):
                plan = await fill(Plan, asked, self._llm, self._ctx)
        except SampleError:
            own = line(question(self._chat))
            return [Question(question=own, query=own)] if own else []
        if sections := sections_of(plan):
            self._report = self._draft_of(sections, plan.sources_heading)
        return self._bounded(plan.questions)

    def _bounded(self, questions: Sequence[Question]) -> list[Question]:
        return questions_of(questions, self._params.questions, len(self._report.sections))

    async def _round(self, questions: Sequence[Question]) -> bool:
        """Look `questions` up and revise the draft; return whether anything new was found."""
        report, first = self._report, self._rounds == 0

        async def look_up() -> list[int]:
            reach, chat = self._reach, self._chat
            return report.add(
                await gather(questions, report.sources, reach, chat, self._llm, self._ctx)
            )

        drafts = first and self._room > 2 * len(questions)
        work = [look_up, *([self._write_first] if drafts else [])]
        looked_up, *_ = await outcomes(work, until=self._ctx.within(TIME_FOR_A_ROUND))
        if isinstance(looked_up, SampleError):
            if isinstance(looked_up, Refused) and first:
                self._ctx.best = None  # the draft has no source
                raise looked_up
            return False
        sections = looked_up or []
        if sections:
            await self._revise(sections)
        return bool(sections)

    async def _write_first(self) -> None:
        """Write the first draft from what the model knows."""
        outline = "\n".join(
            f"## {s.heading}" + (f" ({s.covers})" if s.covers else "")
            for s in self._report.sections
        )
        sampling = Sampling(purpose="draft", fields=self._ctx.no_tool_calls)
        with self._ctx.trace.step("drafts"):
            reply = await self._llm.complete(
                ask(self._chat, DRAFT.format(outline=outline)), sampling
            )
            text = without_reasoning(reply.text)
            if not text.strip():
                raise EmptyCompletion
        headings = [section.heading for section in self._report.sections]
        self._report.texts = await read_or(
            self._report.texts, self._ctx, split_by_headings, text, headings
        )
        self._offer()

    async def _revise(self, sections: Sequence[int]) -> None:
        """Write these sections anew, from their notes, as far as the calls left allow."""
        sections = sections[: max(0, self._room)]
        self._ctx.progress(f"revising {len(sections)} sections")
        ended = await outcomes(
            [partial(self._revised, number) for number in sections],
            until=self._ctx.within(TIME_FOR_A_STEP),
        )
        for number, text in zip(sections, ended, strict=True):
            if isinstance(text, str):
                self._report.texts[number - 1] = text
        lost = sum(isinstance(text, SampleError) for text in ended)
        self._ctx.trace.count("revisions", lost=lost, of=len(ended))
        self._offer()

    async def _revised(self, number: int) -> str:
        sampling = Sampling(purpose="draft", fields=self._ctx.no_tool_calls)
        notes = self._report.notes_of(number)
        reply = await self._llm.complete(
            self._shown([REVISE.format(number=number)], notes), sampling
        )
        text = without_reasoning(reply.text)
        if not text.strip() or reply.truncated:
            raise EmptyCompletion
        return text

    async def _gaps(self) -> list[Question]:
        """Return what the draft still lacks."""
        self._ctx.progress("looking for gaps in the draft")
        asked = self._shown([GAPS.format(count=self._params.questions)])
        try:
            with self._ctx.trace.step("gaps"):
                gaps = await fill(Gaps, asked, self._llm, self._ctx)
        except SampleError:
            return []
        return self._bounded(gaps.questions)

    def _shown(self, requests: Sequence[str], notes: Sequence[str] | None = None) -> Chat:
        """Return the conversation with the draft and notes as data, and what is asked for.

        By default these are all notes.
        """
        drafts = self._report.drafts()
        taken = self._report.all_notes(self._note_characters) if notes is None else list(notes)
        if wants_json(self._ctx.client):
            drafts, taken = ([checked(each, {}, "") for each in texts] for texts in (drafts, taken))
        mark = fence(self._chat, [*drafts, *taken])
        parts = [data_notice("section", mark), enclose(drafts, "section", mark)]
        if taken:
            parts += [data_notice("notes", mark), enclose(["\n".join(taken)], "notes", mark)]
        return ask(self._chat, "\n\n".join([*parts, *requests]))

    @property
    def _room(self) -> int:
        """How many calls may be made before the last one; none when it is late."""
        budget = self._ctx.budget
        if asyncio.get_running_loop().time() >= self._until:
            return 0
        most = budget.limits.max_calls
        return _UNLIMITED if most is None else most - budget.calls_taken - 1

    def _draft_answer(self) -> Answer | None:
        text = self._report.shown()
        return self._ctx.bounded(Answer(text), self._llm.facts) if text.strip() else None

    def _offer(self) -> None:
        draft = self._draft_answer()
        if draft is not None and not wants_json(self._ctx.client):
            self._ctx.offer(draft)

    def _note(self) -> None:
        report = self._report
        self._ctx.trace.note(
            "research",
            rounds=self._rounds,
            pages=len(report.sources),
            notes=len(report.notes),
            sources=len(report.citable),
        )
