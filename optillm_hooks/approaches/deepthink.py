"""Deepthink: find out how to think about the task, think several times, trust what most agree on.

First the model plans how to reason (SELF-DISCOVER): it selects ways of thinking, adapts them to the
task and lays them out as steps. Then it answers `samples` times by these steps. If the share of
samples with the most frequent answer reaches `confidence_threshold`, the first of them is the
answer. Otherwise one more call, without randomness, gives it.

Good for: answers that can be compared.
Worth it when: questions of the same kind come again, so that their plan is paid for once.
Source: Zhou et al. 2024, "Self-Discover: Large Language Models Self-Compose Reasoning Structures",
arXiv:2402.03620, section 2; Gemini Team 2023, "Gemini: A Family of Highly Capable Multimodal
Models", arXiv:2312.11805, section 9.2 (uncertainty-routed chain of thought).
Deviations: the steps are found from one question, not from several examples of a task, and kept
for the caller's next questions of the same task: those with the same system message that ask for
the same kind of answer, or without one, the same question with other numbers. Only final answers
count for agreement, never the wording of the reasoning. A question that asks for a text has no
answers to compare, so it is answered once, by the steps.
A model that reasons by itself finds its own steps: it gets none, but samples and agreement remain.
Cost: 3 calls for the steps, one after the other, unless they are kept from before; `samples` calls,
all concurrent; at most one more.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import BaseModel, Field

from optillm_hooks.answers.questions import Asked, asked_for
from optillm_hooks.answers.voting import contenders, wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, UnusableReply
from optillm_hooks.fanout import sample_many
from optillm_hooks.final_answer import needs_mark, reasoning_aloud, without_mark
from optillm_hooks.judging.voting import count_votes
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence, question
from optillm_hooks.registry import Cost, DraftingParams, Result, approach
from optillm_hooks.structured import fill
from optillm_hooks.types import Answer, Chat, Sampling

WAYS: Final = (
    "Name what is asked for, in which form, and what would count as a right answer.",
    "List what is given, what is missing, and what can be assumed.",
    "Split the task into parts that can be solved one after the other.",
    "Solve a smaller or simpler case first, and see what carries over.",
    "Work backwards from the result that is wanted.",
    "Turn the text into symbols, equations or a table, and work on those.",
    "Draw the situation in words: places, directions, an order in time.",
    "Look for an invariant, a symmetry or another pattern.",
    "Recall a similar problem, and how it was solved.",
    "Go through all cases, and check that none is missing.",
    "Suppose the opposite, and look for a contradiction.",
    "Try extreme and special values.",
    "Follow causes to their effects, step by step.",
    "Weigh the evidence: what supports each claim, and what speaks against it.",
    "Take the views of others who are concerned, and see what each would say.",
    "Look for words with two meanings, and for hidden conditions.",
    "Estimate the result roughly before working it out.",
    "Make several different proposals before judging any of them.",
    "Look for what could go wrong, and for a counterexample.",
    "Weigh benefits, costs and risks of each choice.",
    "Write the solution as a procedure, and run it by hand.",
    "Check units, signs, bounds and rounding.",
    "Check the result in another way than it was found.",
    "Answer at once if the answer is simply known.",
)
"""Ways of thinking to select from."""

SELECT: Final = """\
Do not answer yet. Here are ways of thinking, by number:

{ways}

Select those that help most with tasks of the kind of the last message: at most {most}, the most \
useful first."""

ADAPT: Final = """\
Do not answer yet. These ways of thinking were selected for tasks of the kind of the last message:

{ways}

Rewrite each one so that it says what to do for this kind of task. Keep to the kind: name no \
number, person or other detail of this very task, because the same advice will be used for others.\
"""

LAY_OUT: Final = """\
Do not answer yet. Lay out the steps by which tasks of the kind of the last message are to be \
solved, from this advice:

{ways}

Each step has a short title, and says what to find out or to write down in it. The last one \
states the final answer. Name no number, person or other detail of this very task, and leave \
results open."""

FOLLOW: Final = """\
{notice}

{steps}

Answer the message above by these steps, in this order. Leave out a step that does not fit."""

_MAX_STEPS: Final = 12
_NUMBERS: Final = re.compile(r"\d+")


class DeepthinkParams(DraftingParams):
    samples_field: ClassVar[str] = "samples"

    samples: int = Field(default=3, ge=1, le=10, description="Answers to sample.")
    confidence_threshold: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Share of the samples that have to agree; below it, one more call decides.",
    )
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Samples must differ, so 0 is not allowed."
    )
    self_discover: bool = Field(
        default=True, description="Plan the steps of reasoning first; they are kept for the task."
    )
    modules: int = Field(
        default=7, ge=1, le=15, description="Maximum ways of thinking to plan the steps from."
    )

    body_fields: ClassVar[Mapping[str, str]] = {
        "deepthink_samples": "samples",
        "confidence_threshold": "confidence_threshold",
        "enable_self_discover": "self_discover",
        "reasoning_modules_limit": "modules",
    }


class _Selected(BaseModel):
    """The numbers of the ways of thinking."""

    numbers: list[int] = Field(min_length=1, max_length=len(WAYS))


class _Adapted(BaseModel):
    """The ways of thinking as they suit the task."""

    advice: list[str] = Field(min_length=1, max_length=len(WAYS))


class _Step(BaseModel):
    title: str = Field(max_length=200)
    to_do: str = Field(max_length=1000, description="What to find out or to write down.")


class _LaidOut(BaseModel):
    """The steps, in order."""

    steps: list[_Step] = Field(min_length=1, max_length=_MAX_STEPS)


def _cost(params: DeepthinkParams) -> Cost:
    planning = 3 * params.self_discover
    more = params.samples > 1
    return Cost(calls=planning + params.samples + more, depth=planning + 1 + more)


@approach("deepthink", DeepthinkParams, cost=_cost)
async def deepthink(chat: Chat, llm: LLM, params: DeepthinkParams, ctx: Context) -> Result:
    """Return the first sample with the answer that enough samples agree on, or the call to decide.

    Tool calls and JSON are compared as such. A sample that was truncated, or has no readable
    answer, agrees with none. If the last call fails, the most frequent answer counts all the same.

    Raises:
        SamplesFailed: no sample finished within the request's deadline and budget.
    """
    steps: tuple[str, ...] = ()
    if params.self_discover and not ctx.reasons(llm):
        steps = await _steps(chat, llm, params, ctx)
    planned = _following(chat, steps)
    asked_once = params.samples == 1 or (
        asked_for(question(chat)) is Asked.TEXT and not wants_json(ctx.client)
    )
    if asked_once:
        ctx.trace.note("deepthink", steps=len(steps), samples=0)
        return FinalCall(planned, Sampling(temperature=params.temperature))
    ctx.progress(f"sampling {params.samples} answers")
    marked = needs_mark(chat, ctx)
    sampled = await sample_many(
        llm,
        reasoning_aloud(planned, llm, ctx, marked=marked),
        Sampling(temperature=params.temperature),
        ctx,
        n=params.samples,
    )
    candidates = contenders(sampled)
    vote = await count_votes(candidates, chat, ctx)
    share = max(vote.votes.values(), default=0) / len(candidates)
    winner: Answer = candidates[vote.winner]
    if marked:
        winner = without_mark(winner)
    agreed = share >= params.confidence_threshold or bool(winner.tool_calls)
    ctx.trace.note(
        "deepthink", steps=len(steps), samples=len(sampled), share=round(share, 3), agreed=agreed
    )
    if agreed:
        return winner
    ctx.progress("the answers differ: answering once more")
    return FinalCall(planned, Sampling(temperature=0.0), fallback=winner)


async def _steps(chat: Chat, llm: LLM, params: DeepthinkParams, ctx: Context) -> tuple[str, ...]:
    """Return the steps for the task, from the cache if they are there; none if a call fails."""
    key = _task(chat, llm, params)
    kept = ctx.caller_cache.get(key)
    if kept is not None:
        return kept
    ctx.progress("planning how to think")
    try:
        with ctx.trace.step("plans"):
            steps = await _discovered(chat, llm, params, ctx)
    except SampleError:
        return ()
    ctx.caller_cache.put(key, steps)
    return steps


async def _discovered(
    chat: Chat, llm: LLM, params: DeepthinkParams, ctx: Context
) -> tuple[str, ...]:
    """Return new steps.

    Raises:
        SampleError: a call failed, or its reply cannot be used.
    """
    ways = _listed(WAYS)
    selected = await fill(
        _Selected, ask(chat, SELECT.format(ways=ways, most=params.modules)), llm, ctx
    )
    numbers = [n for n in dict.fromkeys(selected.numbers) if 1 <= n <= len(WAYS)][: params.modules]
    if not numbers:
        raise UnusableReply("no way of thinking was selected")
    chosen = _listed([WAYS[number - 1] for number in numbers])
    adapted = await fill(_Adapted, ask(chat, ADAPT.format(ways=chosen)), llm, ctx)
    advice = _listed(adapted.advice[: params.modules])
    laid_out = await fill(_LaidOut, ask(chat, LAY_OUT.format(ways=advice)), llm, ctx)
    return tuple(f"{step.title}: {step.to_do}" for step in laid_out.steps)


def _listed(items: tuple[str, ...] | list[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def _task(chat: Chat, llm: LLM, params: DeepthinkParams) -> str:
    """Return the fingerprint of the task that the conversation is an instance of."""
    rules = [m.text for m in chat if m.role in ("system", "developer")]
    asked = question(chat)
    kind = asked_for(asked)
    has_kind = bool(rules) and kind not in (Asked.ANYTHING, Asked.TEXT)
    instance = "" if has_kind else _NUMBERS.sub("0", asked)
    parts = ["deepthink", llm.model, rules, kind.name, instance, params.modules]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _following(chat: Chat, steps: tuple[str, ...]) -> Chat:
    if not steps:
        return chat
    mark = fence(chat, steps)
    shown = enclose(steps, "step", mark)
    return ask(chat, FOLLOW.format(notice=data_notice("step", mark), steps=shown))
