"""LongCePO: answers a question over a long text by sub-questions, each by map and reduce.

1. The text is cut into chunks, and each is summarised once.
2. A plan names sub-questions, and which of them need the answers of which.
3. Map: for each question, each chunk is read together with the summaries of its neighbours and the
   answers so far; what it holds is extracted, with a confidence.
4. Collapse: extracts that do not fit together are merged in pairs, as a tree.
5. Reduce: the answer of a sub-question is written from its extracts. The original question comes
   last; its answer is the final call, which is streamed.

Good for: long texts.
Worth it when: a question is about a text that is longer than the context window.
Source: Cerebras 2025, "LongCePO", on LLMxMapReduce (Zhou et al. 2024, arXiv:2410.09342) with a plan
before it. Deviations: sub-questions that do not need each other are answered concurrently; the plan
sees the summaries; replies are JSON objects in place of labels and markers; the reduction of the
original question is a call with the client's conversation. Text that fits into two chunks is
answered by a plain call.

If there is more text than `max_chunks` chunks hold, chunks grow up to the context window. If there
is still more, or if the limits allow fewer calls, the chunks closest to the question are read, and
then fewer sub-questions are asked. `degraded` says how many chunks were left out.

Cost: at most `max_chunks` summaries, one plan, and for each of `max_questions` + 1 questions
`max_chunks` extracts, fewer merges than that, and one answer.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from pydantic import BaseModel, Field

from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, UnusableReply
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.long_context.conversation import (
    LongConversation,
    take_apart,
    tokens_of,
    with_files_as_text,
)
from optillm_hooks.long_context.notes import framed, passages
from optillm_hooks.long_context.window import (
    ContextWindow,
    Window,
    affordable,
    settle_calls,
    window_of,
)
from optillm_hooks.prompts import data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.retrieval.bm25 import ranking
from optillm_hooks.retrieval.chunks import split
from optillm_hooks.structured import fill
from optillm_hooks.types import Answer, Chat, Message

_SUMMARISE: Final = """\
Summarise the part in two or three sentences: what it is about, and who and what occurs in it. It \
is one part of a longer text; the summary helps readers of the other parts."""

_PLAN: Final = """\
A long text is to be read for the question. The summaries are of its parts, in their order. Name \
the sub-questions whose answers, found in the text, make the question easy to answer, at most \
{most}; none if the question is simple. Each must make sense by itself."""

_EXTRACT: Final = """\
The part is one of a long text; the summaries are of the parts around it. The question is about \
the whole text. Extract what this part says that helps to answer it, exact in names, numbers and \
words, and answer as far as this part allows. It is not relevant if nothing in it helps."""

_MERGE: Final = """\
The extracts were taken from neighbouring parts of a long text, in their order, to answer the \
question. Merge them into one that keeps everything of use, and settle contradictions by what is \
better supported."""

_REDUCE: Final = """\
The extracts were taken from all parts of a long text, in their order, to answer the question. \
Answer it from them. Contradictions go to what is better supported. If they do not tell, say so."""

_EVIDENCE: Final = """\
What came before the latest messages is too long to show. The evidence was extracted from it, in \
its order, with the question in mind. Answer from it."""

_SILENT: Final = "The text does not say."

_OVERHEAD: Final = 600
"""Tokens of a prompt besides its question and materials, the schema included."""

_ASIDE: Final = 8
"""The parts of a prompt, as a divisor, that summaries, and answers so far, may each take."""

_MAX_TEXT: Final = 6000
"""Maximum characters of a text that a model writes into a form."""

_SURE: Final = 3
"""The least confidence at which an extract's answer stands in for the final call."""

F = TypeVar("F", bound=BaseModel)
T = TypeVar("T")


class LongCepoParams(DraftingParams):
    context_window: ContextWindow = None
    chunk_tokens: int = Field(
        default=4096, ge=256, le=1_000_000, description="Tokens of a chunk, if the window allows."
    )
    max_chunks: int = Field(
        default=8, ge=1, le=256, description="Maximum chunks that are read for each question."
    )
    max_questions: int = Field(
        default=2, ge=0, le=16, description="Maximum sub-questions besides the original question."
    )
    neighbours: int = Field(
        default=2, ge=0, le=16, description="Chunks on each side whose summaries a reader sees."
    )


class Summary(BaseModel):
    """A summary of a part."""

    summary: str


class SubQuestion(BaseModel):
    """A question to answer first."""

    question: str
    needs: list[int] = Field(
        default_factory=list[int],
        description="Numbers, from 1, of the earlier sub-questions whose answers it needs.",
    )


class Plan(BaseModel):
    """The sub-questions."""

    questions: list[SubQuestion]


class Extract(BaseModel):
    """What a part says about a question."""

    relevant: bool = Field(description="Whether anything in it helps to answer the question.")
    information: str = Field(default="", description="What it says that helps.")
    answer: str = Field(default="", description="The answer, as far as this tells it.")
    confidence: float = Field(default=0, description="From 0 (a guess) to 5 (certain).")

    @property
    def text(self) -> str:
        certainty = f"(confidence {min(max(self.confidence, 0), 5):.0f} of 5)"
        said = filter(None, (self.information.strip(), self.answer.strip()))
        return f"{' | '.join(said)[:_MAX_TEXT]} {certainty}"


class SubAnswer(BaseModel):
    """The answer of a sub-question."""

    answer: str


def declared(params: LongCepoParams) -> Cost:
    calls = _calls(params.max_chunks, params.max_questions)
    merges = max(0, params.max_chunks - 1).bit_length()
    return Cost(calls, 3 + (params.max_questions + 1) * (2 + merges))


def _calls(chunks: int, questions: int) -> int:
    """Return the calls over so many chunks for so many sub-questions, the final call included."""
    planned = (chunks if chunks > 1 else 0) + (questions > 0)
    return planned + (questions + 1) * (2 * chunks - 1) + questions + 1


@approach("longcepo", LongCepoParams, cost=declared)
async def longcepo(chat: Chat, llm: LLM, params: LongCepoParams, ctx: Context) -> FinalCall:
    """Return the final call over the evidence, or on `chat` itself if it is short."""
    window = window_of(llm, params.context_window, ctx.client)
    shape = window_of(llm, min(window.tokens, 2 * params.chunk_tokens))
    long, readable = None, with_files_as_text(chat)
    if await tokens_of(readable, ctx.client, window) > shape.prompt:
        long = take_apart(readable, shape)
    if long is None or not long.material:
        settle_calls(ctx, declared(params).calls, 1)
        return FinalCall(chat)
    if long.lost_parts:
        ctx.trace.count("images", lost=long.lost_parts, of=long.lost_parts + len(long.parts))
    return await _LongText(long, window, params, ctx).final_call()


@dataclass(slots=True)
class _LongText:
    """A long text, and what is known of it so far."""

    long: LongConversation
    window: Window
    params: LongCepoParams
    ctx: Context
    chunks: Sequence[str] = ()
    summaries: Sequence[str] = ()
    """One of each chunk; empty if it failed."""

    attempts: int = 1
    """How often each form is asked for."""

    async def final_call(self) -> FinalCall:
        most = await self._cut()
        if not self.chunks:
            return await self._without_evidence(await self._pieces())
        self.summaries = await self._summarised() if len(self.chunks) > 1 else [""]
        plan = await self._planned(most) if most else []
        known = [*(await self._answered(plan)).values()]
        try:
            extracts = await self._extracts(self.long.asked.question, known, 0.75)
        except UnusableReply:
            extracts = []
        self.ctx.trace.note(
            "longcepo", chunks=len(self.chunks), questions=len(plan), extracts=len(extracts)
        )
        told = [answer for answer in known if not answer.endswith(_SILENT)]
        if not (extracts or told):
            return await self._without_evidence(self.chunks)
        room = await self._room()
        extracts = await self._collapsed(self.long.asked.question, extracts, room // 2)
        shown = self._fitting([*told, *(each.text for each in extracts)], room - _OVERHEAD)
        chat = self.long.answered_from(framed("evidence", "\n\n".join(shown), _EVIDENCE))
        return FinalCall(chat, fallback=_surest(extracts))

    async def _without_evidence(self, parts: Sequence[str]) -> FinalCall:
        """Return the final call over the passages closest to the question."""
        room, asked = await self._room(), self.long.asked.question
        shown = await passages(parts, asked, self.window, room, self.ctx)
        return FinalCall(self.long.answered_from(shown))

    async def _room(self) -> int:
        """Return the tokens that the final call has for evidence."""
        chat = self.long.answered_from("")
        return self.window.prompt - await tokens_of(chat, self.ctx.client, self.window)

    # ------------------------------------------------------------------------------ chunks

    async def _cut(self) -> int:
        """Cut the text into as many chunks as can be read; return how many sub-questions can be."""
        pieces = await self._pieces()
        own = declared(self.params).calls
        able = affordable(self.ctx, self.window, 2 * own, self.window.prompt, own)
        chunks, questions = min(len(pieces), self.params.max_chunks), self.params.max_questions
        while questions and _calls(chunks, questions) > able:
            questions -= 1
        while chunks and _calls(chunks, 0) > able:
            chunks -= 1
        calls = _calls(chunks, questions) if chunks else 1
        self.attempts = 2 if able >= 2 * calls else 1
        settle_calls(self.ctx, own, calls)
        if left := len(pieces) - chunks:
            self.ctx.trace.count("chunks", lost=left, of=left)
        order = await ranking(self.long.asked.question, pieces)
        self.chunks = [pieces[i] for i in sorted(order[:chunks])]
        return questions

    async def _pieces(self) -> list[str]:
        taken = _OVERHEAD + self.window.count(self.long.asked.question)
        longest = self.window.prompt * (_ASIDE - 2) // _ASIDE - taken
        material = self.long.material
        tokens = self.window.count(material)
        even = tokens * 5 // (4 * self.params.max_chunks)  # chunks are not quite filled
        size = max(64, min(longest, max(self.params.chunk_tokens, even)))
        return [chunk.text for chunk in await split(material, self.window.count, size)]

    async def _summarised(self) -> list[str]:
        def of(chunk: str) -> Callable[[], Awaitable[Summary]]:
            return partial(self._fill, Summary, _SUMMARISE, {"part": [chunk]})

        found = await self._outcomes("summaries", [of(chunk) for chunk in self.chunks], 0.3)
        room = self.window.prompt // _ASIDE // (2 * self.params.neighbours + 1)
        return ["" if each is None else self._shortened(each.summary, room) for each in found]

    def _neighbours(self, at: int) -> list[str]:
        """Return the summaries of the chunks around chunk `at`, in their order."""
        first, last = at - self.params.neighbours, at + self.params.neighbours
        around = range(max(0, first), min(len(self.chunks), last + 1))
        return [self.summaries[i] for i in around if i != at and self.summaries[i]]

    # --------------------------------------------------------------------------- questions

    async def _planned(self, most: int) -> list[SubQuestion]:
        """Return the sub-questions; each needs only earlier ones, by their indices."""
        shown = self._fitting([s for s in self.summaries if s], self.window.prompt // 2)
        material = {"question": [self.long.asked.question], "summary": shown}
        try:
            with self.ctx.trace.step("plans"):
                plan = await self._fill(Plan, _PLAN.format(most=most), material)
        except SampleError:
            return []
        asked = [each for each in plan.questions if each.question.strip()][:most]
        return [
            SubQuestion(
                question=self._shortened(each.question, self.window.prompt // _ASIDE),
                needs=[n - 1 for n in each.needs if 1 <= n <= at],
            )
            for at, each in enumerate(asked)
        ]

    async def _answered(self, plan: Sequence[SubQuestion]) -> dict[int, str]:
        """Return the sub-questions with their answers, by index; those that failed are missing.

        Questions that need no answer which is still missing are asked concurrently.
        """
        known: dict[int, str] = {}
        done = set[int]()
        while len(done) < len(plan):
            ready = [i for i, q in enumerate(plan) if i not in done and done.issuperset(q.needs)]
            calls = [
                partial(
                    self._answer, plan[i].question, [known[n] for n in plan[i].needs if n in known]
                )
                for i in ready
            ]
            found = await self._outcomes("questions", calls, 0.5)
            known |= {i: said for i, said in zip(ready, found, strict=True) if said is not None}
            done.update(ready)
        return {i: known[i] for i in sorted(known)}

    async def _answer(self, question: str, known: Sequence[str]) -> str:
        """Return a sub-question with its answer."""
        extracts = await self._extracts(question, known, 0.6)
        if not extracts:
            return f"{question}\n{_SILENT}"
        room = self.window.prompt - _OVERHEAD - self.window.count(question)
        extracts = await self._collapsed(question, extracts, room)
        shown = self._fitting([each.text for each in extracts], room)
        found = await self._fill(SubAnswer, _REDUCE, {"question": [question], "extract": shown})
        return f"{question}\n{found.answer[:_MAX_TEXT]}"

    # ---------------------------------------------------------------------- map and collapse

    async def _extracts(self, question: str, known: Sequence[str], share: float) -> list[Extract]:
        """Return what the chunks say about a question, in their order.

        Raises:
            UnusableReply: no chunk could be read.
        """
        so_far = self._fitting(known, self.window.prompt // _ASIDE)

        def of(at: int) -> Callable[[], Awaitable[Extract]]:
            material = {
                "question": [question],
                "answer": so_far,
                "summary": self._neighbours(at),
                "part": [self.chunks[at]],
            }
            return partial(self._fill, Extract, _EXTRACT, material)

        found = await self._outcomes("extracts", [of(at) for at in range(len(self.chunks))], share)
        read = [each for each in found if each is not None]
        if not read:
            raise UnusableReply("no chunk could be read")
        return [each for each in read if each.relevant]

    async def _collapsed(self, question: str, extracts: list[Extract], room: int) -> list[Extract]:
        """Return the extracts merged in pairs, all at once, until they fit into `room`.

        Of a pair whose merge fails, the one with more confidence is kept.
        """
        while len(extracts) > 1 and sum(self.window.count(e.text) for e in extracts) > room:
            pairs = [extracts[i : i + 2] for i in range(0, len(extracts) - 1, 2)]
            calls = [
                partial(
                    self._fill,
                    Extract,
                    _MERGE,
                    {"question": [question], "extract": [each.text for each in pair]},
                )
                for pair in pairs
            ]
            found = await self._outcomes("collapses", calls, 0.5)
            merged = [
                max(pair, key=lambda each: each.confidence) if one is None else one
                for one, pair in zip(found, pairs, strict=True)
            ]
            extracts = [*merged, *extracts[2 * len(pairs) :]]
        return extracts

    # -------------------------------------------------------------------------------- calls

    async def _fill(self, form: type[F], task: str, material: Mapping[str, Sequence[str]]) -> F:
        """Return what the model fills in, given the task and texts by their label, as data."""
        given = {label: texts for label, texts in material.items() if texts}
        mark = fence((), [text for texts in given.values() for text in texts])
        shown = [
            *(data_notice(label, mark) for label in given),
            *(enclose(texts, label, mark) for label, texts in given.items()),
            task,
        ]
        asked = (*self._system(), Message("user", "\n\n".join(shown)))
        return await fill(form, asked, self.window.llm, self.ctx, attempts=self.attempts)

    def _system(self) -> Chat:
        """Return the system messages, unless they take too much of each prompt."""
        tokens = sum(self.window.count(message.text) for message in self.long.system)
        return self.long.system if tokens <= _OVERHEAD // 2 else ()

    async def _outcomes(
        self, kind: str, calls: Sequence[Callable[[], Awaitable[T]]], share: float
    ) -> list[T | None]:
        """Return the results of concurrent calls; None of those that failed, which are counted."""
        good = 0
        try:
            ended = await outcomes(calls, until=self.ctx.within(share))
            good = sum(not isinstance(each, SampleError) for each in ended)
        finally:
            self.ctx.trace.count(kind, lost=len(calls) - good, of=len(calls))
        return [None if isinstance(each, SampleError) else each for each in ended]

    def _fitting(self, texts: Sequence[str], room: int) -> list[str]:
        """Return the first of `texts` that fit into `room` together."""
        kept = list[str]()
        for text in texts:
            room -= self.window.count(text) + 40  # with its frame
            if room < 0:
                break
            kept.append(text)
        return kept

    def _shortened(self, text: str, room: int) -> str:
        """Return the beginning of `text`, of about `room` tokens."""
        text = text.strip()[:_MAX_TEXT]
        tokens = self.window.count(text)
        return text if tokens <= room else text[: len(text) * room // tokens]


def _surest(extracts: Sequence[Extract]) -> Answer | None:
    """Return the answer of the extract with the most confidence, if that is high."""
    best = max(extracts, key=lambda each: each.confidence, default=None)
    if best is None or best.confidence < _SURE or not best.answer.strip():
        return None
    return Answer(best.answer.strip())
