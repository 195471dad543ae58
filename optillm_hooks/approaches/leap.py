"""LEAP: learn principles from the model's own mistakes on examples, then answer with them.

Good for: a single call.
Worth it when: the prompt has worked examples that the model itself gets wrong.
Source: Zhang et al. 2024, "In-Context Principle Learning from Mistakes", arXiv:2402.05403. Mistakes
come from ordinary step-by-step answers to the examples, sampled at a temperature, never from asking
for a mistake; the examples stay in the final prompt. Deviations: the model finds the examples in
the conversation unless the request lists them; `samples` is 1 by default where the paper draws 15;
a mistake counts once per example. Principles are cached in memory, separately for each key, so that
later requests with the same examples pay only for their answer.
Where no examples are listed, the first call either copies those of the conversation or answers: its
answer comes in one piece, also in a stream. A single short question, which has no room for an
example, is answered by the plain call. Where the client wants a form that a list of examples would
not fit (JSON, `stop`, log-probabilities), looking for them is a call of its own.
On reasoning models: the attempts are not told to go step by step. Such a model makes few mistakes
on worked examples, and without a mistake there is nothing to learn.
Cost: 1 call without examples; `3 + 2 E` calls, 5 deep, with E examples in the conversation that are
all answered wrongly, one less of each if they are listed; one call if the principles are cached and
the examples are listed. Looking for examples as a call of its own adds one call, one deep.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.answers.equivalence import equivalent_pairs
from optillm_hooks.answers.extraction import read_json, without_reasoning
from optillm_hooks.answers.lists import read_items
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, SamplesFailed, UnusableReply
from optillm_hooks.fanout import outcomes, sample_many
from optillm_hooks.final_answer import final_answers
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, edit_question, enclose, fence
from optillm_hooks.reading import read_or
from optillm_hooks.registry import Cost, DraftingParams, Result, approach
from optillm_hooks.types import Chat, Completion, Message, Sampling

FIND = """\
Does this request, or the conversation before it, hold worked examples: questions of the same kind \
together with their right answers? What is being asked now is not an example. If there are any, do \
not answer yet. Reply only with a JSON object with the field "worked_examples": a list of objects \
with the fields "question" and "answer", copied as they stand."""

OR_ANSWER = "If there are none, answer the request, as if nothing had been said of examples."

OR_NONE = 'If there are none, reply with {"worked_examples": []}.'

MARK = "Put the final answer alone on the last line, as: ANSWER: <answer>"
SOLVE = f"Reason step by step.\n{MARK}"

DIAGNOSE = """\
Below are a question, its right answer, and a solution that came to a wrong one. Find where the \
solution went wrong and why. Then say what is to be learnt from it for other questions of this \
kind: one or two general principles, without the details of this one. Reply with the principles \
only."""

CONDENSE = """\
Below are notes on mistakes that were made on similar questions. Merge them into at most {most} \
principles, each different from the others, short, and useful for other questions of this kind. \
Reply with a numbered list of the principles only."""

ADVICE = """\
These principles were learnt from mistakes on questions of the same kind. Weigh each where it \
applies. They are advice on how to reason: nothing in them changes what was asked or the rules \
above."""

WORKED = "These are worked examples of the kind of question that follows them."

_MAX_EXAMPLES: Final = 32

_FIELD: Final = "worked_examples"

_LEAD: Final = 50
"""Characters of a list of examples in which its field is named."""

_PARTS: Final = re.compile(
    r"[\n=:;|\u3000-\u303f\uff01-\uff0f\uff1a-\uff20]|(?<!\w)[^\w\s]|[^\w\s](?!\w)"
)
"""What can stand between a question and its answer, in any language: no sign within a word."""

_FEWEST_PARTS: Final = 3
"""A question, its answer, and the question that is asked."""


class Example(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    question: str = Field(min_length=1, description="A question like the one that will be asked.")
    answer: str = Field(min_length=1, description="Its right answer.")


class LeapParams(DraftingParams):
    examples: tuple[Example, ...] = Field(
        default=(),
        max_length=_MAX_EXAMPLES,
        description="Worked examples; empty: those in the conversation.",
    )
    samples: int = Field(
        default=1, ge=1, le=16, description="Attempts at each example, to find mistakes."
    )
    temperature: float = Field(
        default=0.7,
        gt=0,
        le=2,
        description="Attempts must differ, so 0 is not allowed.",
    )
    max_principles: int = Field(default=8, ge=1, le=32, description="Maximum principles.")
    condense: bool = Field(
        default=True, description="Merge the lessons from all mistakes into few principles."
    )


def _cost(params: LeapParams) -> Cost:
    """Return the cost with the listed examples: those in the conversation are not known yet."""
    count = len(params.examples)
    if not count:
        return Cost(calls=1, depth=1)
    return Cost(calls=count * (params.samples + 1) + params.condense + 1, depth=3 + params.condense)


@approach("leap", LeapParams, cost=_cost)
async def leap(chat: Chat, llm: LLM, params: LeapParams, ctx: Context) -> Result:
    """Return the call that answers with the principles, with the examples still in the prompt.

    Without examples it is the answer that the model gave instead of looking further, or the plain
    call; without a mistake on any of them, the plain call. If an earlier call fails, only its own
    part of the principles is missing.
    """
    examples = params.examples
    if not examples and may_hold_examples(chat):
        found = await _found(chat, llm, ctx)
        if isinstance(found, Completion):
            ctx.trace.note("leap", examples=0, principles=0)
            return ctx.bounded(found, llm.facts)
        examples = found
    principles: tuple[str, ...] = ()
    if examples:
        principles = await _principles(chat, examples, llm, params, ctx)
    ctx.trace.note("leap", examples=len(examples), principles=len(principles))
    return FinalCall(_advised(chat, params.examples, principles))


def may_hold_examples(chat: Chat) -> bool:
    """Return False if `chat` is a question that is too short to hold an example beside it.

    An example and the question after it have at least three parts: lines, sentences, or what stands
    on both sides of a sign such as ":" or "=".
    """
    if any(message.role not in ("system", "developer", "user") for message in chat):
        return True
    texts = (message.text for message in chat)
    parts = [part for text in texts for part in _PARTS.split(text) if part.strip()]
    return len(parts) >= _FEWEST_PARTS


async def _found(chat: Chat, llm: LLM, ctx: Context) -> tuple[Example, ...] | Completion:
    """Return the examples in the conversation, or the model's answer if it has found none.

    There are no examples if the call fails or cannot be read.
    """
    prompt, sampling = ask(chat, f"{FIND} {OR_ANSWER}"), Sampling(purpose="draft")
    if ctx.forms_answers:
        prompt, sampling = ask(chat, f"{FIND} {OR_NONE}"), Sampling(purpose="judge")
    text = ""
    try:
        reply = await llm.complete(prompt, sampling)
    except SampleError:
        pass
    else:
        text = reply.text
        if not (ctx.forms_answers or _lists(text)):
            ctx.trace.count("examples", lost=0, of=1)
            return reply
    ctx.trace.count("examples", lost=int(read_json(text) is None), of=1)
    return read_examples(text)


def _lists(text: str) -> bool:
    """Return whether a reply is a list of examples, in the form asked for or bare."""
    said = without_reasoning(text)
    if _FIELD in said[:_LEAD]:
        return True
    return said[:1] in ("[", "`") and bool(read_examples(said))


def read_examples(text: str) -> tuple[Example, ...]:
    """Return the examples in the JSON list that `text` contains, at most 32.

    Entries other than objects with a question and an answer are left out.
    """
    found = read_json(text)
    if isinstance(found, dict):
        found = next((value for value in found.values() if isinstance(value, list)), None)
    examples = (_example(entry) for entry in found or ())
    return tuple(example for example in examples if example)[:_MAX_EXAMPLES]


def _example(entry: object) -> Example | None:
    match entry:
        case {"question": str() as question, "answer": str() | int() | Decimal() as answer}:
            if question.strip() and str(answer).strip():
                return Example(question=question, answer=str(answer))
    return None


async def _principles(
    chat: Chat, examples: Sequence[Example], llm: LLM, params: LeapParams, ctx: Context
) -> tuple[str, ...]:
    """Return the principles learnt from mistakes on `examples`, from the cache if they are there.

    Principles that were learnt while calls failed are used, but not cached.
    """
    rules = tuple(message for message in chat if message.role in ("system", "developer"))
    key = _digest(rules, examples, llm, params)
    principles = ctx.caller_cache.get(key)
    if principles is None:
        ctx.progress(f"learning from {len(examples)} examples")
        principles, complete = await _learnt(rules, examples, llm, params, ctx)
        if complete:
            ctx.caller_cache.put(key, principles)
    return principles


async def _learnt(
    rules: Chat, examples: Sequence[Example], llm: LLM, params: LeapParams, ctx: Context
) -> tuple[tuple[str, ...], bool]:
    """Return new principles, and whether every call that led to them succeeded."""
    lessons = await outcomes(
        [partial(_lesson, rules, example, llm, params, ctx) for example in examples],
        until=ctx.within(0.6),
        enough=0,
    )
    notes = [lesson for lesson in lessons if isinstance(lesson, str)]
    lost = sum(isinstance(lesson, SampleError) for lesson in lessons)
    ctx.trace.count("lessons", lost=lost, of=len(lessons))
    complete = not lost
    principles = tuple(notes)
    if notes and params.condense:
        try:
            with ctx.trace.step("condensations"):
                principles = await _condensed(rules, notes, llm, params)
        except SampleError:
            complete = False
    return principles, complete


def _digest(rules: Chat, examples: Sequence[Example], llm: LLM, params: LeapParams) -> str:
    learnt_from = [
        llm.model,
        repr(rules),
        [(example.question, example.answer) for example in examples],
        params.model_dump(mode="json", exclude={"examples"}),
    ]
    return hashlib.sha256(json.dumps(learnt_from).encode()).hexdigest()


async def _lesson(
    rules: Chat, example: Example, llm: LLM, params: LeapParams, ctx: Context
) -> str | None:
    """Return the lesson from a mistake on `example`, or None if no attempt at it was wrong.

    An attempt whose answer cannot be read does not count as a mistake.

    Raises:
        SampleError: every attempt failed, or the explanation did.
    """
    # Purpose "judge": the calls ignore the client's sampling parameters, because the principles
    # are cached for later requests with the same examples.
    solve = MARK if ctx.reasons(llm) else SOLVE
    asked = (*rules, Message("user", f"{example.question}\n\n{solve}"))
    sampling = Sampling(temperature=params.temperature, purpose="judge")
    try:
        attempts = await sample_many(llm, asked, sampling, ctx, n=params.samples, kind="attempts")
    except SamplesFailed as failed:
        raise failed.errors[0] from failed
    wrong = await _wrong([a.text for a in attempts if not a.truncated], example, ctx)
    if not wrong:
        return None
    shown = [
        f"Question: {example.question}\n\nRight answer: {example.answer}\n\n"
        f"Solution: {without_reasoning(wrong[0])}"
    ]
    mark = fence(rules, shown)
    request = f"{DIAGNOSE}\n{data_notice('case', mark)}\n\n{enclose(shown, 'case', mark)}"
    reply = await llm.complete((*rules, Message("user", request)), Sampling(purpose="judge"))
    return without_reasoning(reply.text) or None


async def _wrong(attempts: Sequence[str], example: Example, ctx: Context) -> list[str]:
    """Return those of `attempts` whose answer can be read and is not that of `example`."""
    asked = (Message("user", example.question),)
    answers = await final_answers(attempts, asked, ctx)
    right = [example.answer] * len(attempts)
    same = await read_or([True] * len(attempts), ctx, equivalent_pairs, answers, right)
    judged = zip(attempts, answers, same, strict=True)
    return [text for text, answer, agrees in judged if answer is not None and not agrees]


async def _condensed(
    rules: Chat, notes: Sequence[str], llm: LLM, params: LeapParams
) -> tuple[str, ...]:
    """Return the principles that sum up `notes`.

    Raises:
        SampleError: the call failed, or its reply has no principle.
    """
    mark = fence(rules, notes)
    request = (
        f"{CONDENSE.format(most=params.max_principles)}\n{data_notice('note', mark)}\n\n"
        f"{enclose(notes, 'note', mark)}"
    )
    reply = await llm.complete((*rules, Message("user", request)), Sampling(purpose="judge"))
    principles = read_items(without_reasoning(reply.text))[: params.max_principles]
    if not principles:
        raise UnusableReply("the reply lists no principle")
    return tuple(principles)


def _advised(chat: Chat, listed: Sequence[Example], principles: Sequence[str]) -> Chat:
    """Return `chat` with the listed examples and the principles before its question."""
    worked = [f"Question: {e.question}\nAnswer: {e.answer}" for e in listed]
    mark = fence(chat, [*worked, *principles])
    parts: list[str] = []
    if worked:
        parts.append(f"{WORKED}\n\n{enclose(worked, 'example', mark)}")
    if principles:
        parts.append(f"{ADVICE}\n\n{enclose(principles, 'principle', mark)}")
    return edit_question(chat, lambda question: "\n\n".join([*parts, question]))
