"""Cascade: cheap samples answer if they agree; if not, a stronger model or a higher effort does.

Good for: answers that can be compared.
Worth it when: a cheap model gets most questions right, and a strong one costs ten times as much.

Source: Chen et al. 2023, "FrugalGPT: How to Use Large Language Models While Reducing Cost and
Improving Performance", arXiv:2305.05176, section 3 (cascades); Yue et al. 2023, "Large Language
Model Cascades with Mixture of Thoughts Representations for Cost-efficient Reasoning",
arXiv:2310.03094, section 2 (the consistency of a weak model's samples decides); for free text,
Soiffer et al. 2025, "Semantic Agreement Enables Efficient Open-Ended LLM Cascades",
arXiv:2509.21837. Deviations: when samples agree is the criterion of adaptive consistency (Aggarwal
et al. 2023, arXiv:2305.11860); whether free texts agree is a question to the cheap model, not the
distance of embeddings. The strong model gets the request as it is, without the cheap answers.
On reasoning models: the same; `effort` is the effort of the strong call.
Cost: at most `n` cheap calls, as deep as a vote of them, then `strong_n` calls of the strong model,
if they disagree; the last of these is streamed. Where too few answers can be read, as in free text,
one more cheap call asks whether the texts agree.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Final

from pydantic import BaseModel, Field

from optillm_hooks.answers.extraction import AnswerFormat, without_reasoning
from optillm_hooks.answers.voting import Tally, contenders, wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, SamplesFailed
from optillm_hooks.fanout import numbers, sample_many
from optillm_hooks.judging.verdicts import LABEL
from optillm_hooks.judging.voting import agreement, vote
from optillm_hooks.llm import LLM, Effort, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, Result, SamplerParams, approach
from optillm_hooks.structured import fill
from optillm_hooks.types import Chat, Completion, Fields, Sampling
from optillm_hooks.waves import depth_of, is_settled, panel_of, sample_until_settled

SAMPLING_SHARE: Final = 0.4
"""Share of the remaining time after which missing cheap samples are no longer awaited."""


class CascadeParams(SamplerParams):
    n: int = Field(default=3, ge=2, le=64, description="Cheap samples.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Samples must differ to vote, so 0 is not allowed."
    )
    answer_format: AnswerFormat = Field(
        default="auto", description="How the final answer is read from a sample."
    )
    strong: str | None = Field(
        default=None,
        description="Model group that answers where the samples disagree; unset: the base model.",
    )
    effort: Effort | None = Field(
        default=None,
        description="reasoning_effort of the strong model's calls; unset: the client's.",
    )
    strong_n: int = Field(
        default=1, ge=1, le=64, description="Samples of the strong model; several vote."
    )

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "strong")


class Agreement(BaseModel):
    """What the cheap model says of its answers."""

    same: bool = Field(
        description="true if all answers tell the user the same in what matters: the same "
        "conclusions, facts and advice, whatever the words. false if any differs."
    )


def _cost(params: CascadeParams) -> Cost:
    return Cost(calls=params.n + params.strong_n, depth=depth_of(params, params.n) + 1)


@approach("cascade", CascadeParams, cost=_cost)
async def cascade(chat: Chat, llm: LLM, params: CascadeParams, ctx: Context) -> Result:
    """Return the answer on which the cheap samples agree, or else the call of the strong model.

    They agree if the leading answer is the most frequent one with at least the probability
    `confidence`, samples that differ or have no readable answer counting against it; three of three
    do by default. Tool calls and JSON vote as such. If fewer than half of the texts have a readable
    answer, the cheap model is asked whether they say the same; without its verdict they do not.
    Truncated samples do not agree. Where the strong model is the cheap one too, and has no `effort`
    of its own, its samples join the vote. If it fails, the most frequent cheap answer is returned;
    if all cheap samples fail, it answers.

    Raises:
        SamplesFailed: no sample finished, and there is no other model.
    """
    panel, how = panel_of(params.models, llm, ctx), params.answer_format
    strong = llm if params.strong is None else ctx.llm(params.strong)
    cheap = {model.model for model in panel}
    is_other, tries_harder = cheap != {strong.model}, params.effort is not None
    try:
        sampled = await sample_until_settled(
            panel,
            chat,
            Sampling(temperature=params.temperature),
            ctx,
            params,
            n=params.n,
            how=how,
            judged=True,
            escalates=is_other or tries_harder,
            until=ctx.within(SAMPLING_SHARE),
        )
    except SamplesFailed:
        if not is_other:
            raise
        sampled = []
    # A sample of a cheap model must not repeat one that it has given.
    first = numbers(params.n) if strong.model in cheap else 0
    rivals = [] if is_other or tries_harder else sampled
    if not sampled:
        return await _escalated(rivals, first, chat, strong, params, ctx)
    voters = contenders(sampled)
    tally = await agreement(voters, chat, ctx, how)
    best = voters[tally.winner]
    ctx.offer(best)
    agreed = await _agree(voters, tally, len(sampled), chat, panel[0], params, ctx)
    ctx.trace.note("cascade", samples=len(sampled), escalated=not agreed)
    if agreed:
        ctx.trace.save(params.strong_n)
        return best
    return await _escalated(rivals, first, chat, strong, params, ctx)


async def _agree(
    voters: Sequence[Completion],
    tally: Tally,
    count: int,
    chat: Chat,
    cheap: LLM,
    params: CascadeParams,
    ctx: Context,
) -> bool:
    """Return whether the leading answer among `count` samples is settled; see `cascade`."""
    if voters[0].truncated:
        return False
    votes = tally.votes.values()
    texts = [without_reasoning(voter.text).strip() for voter in voters]
    is_text = not (voters[0].tool_calls or wants_json(ctx.client))
    lead = max(votes, default=0)
    if not lead and is_text and len(set(texts)) == 1:
        lead = len(texts)
    if is_settled(lead, count - lead, params.n, params.confidence):
        return True
    if not is_text or 2 * sum(votes) >= len(voters) or len(voters) < params.n:
        return False
    return await _say_the_same(texts, chat, cheap, ctx)


async def _say_the_same(texts: Sequence[str], chat: Chat, cheap: LLM, ctx: Context) -> bool:
    """Return the model's verdict on free texts, False without a readable one."""
    mark = fence(chat, texts)
    request = f"""\
The conversation ends here; do not continue it. Below are {len(texts)} answers that were given to \
its last message. {data_notice(LABEL, mark)}

{enclose(texts, LABEL, mark)}

Do they all say the same?"""
    ctx.progress("comparing the answers")
    ctx.budget.expected_calls += 1
    with suppress(SampleError), ctx.trace.step("agreements"):
        return (await fill(Agreement, ask(chat, request), cheap, ctx)).same
    return False


async def _escalated(
    rivals: Sequence[Completion],
    first: int,
    chat: Chat,
    strong: LLM,
    params: CascadeParams,
    ctx: Context,
) -> Result:
    """Return the answer of the strong model, or its call if it is the last one.

    Its samples, numbered from `first`, vote together with the `rivals`.
    """
    ctx.progress("the samples disagree: asking the strong model")
    effort: Fields = {} if params.effort is None else {"reasoning_effort": params.effort}
    sampling = Sampling(fields=effort, sample=first)
    if not rivals and params.strong_n == 1:
        return FinalCall(chat, sampling, fallback=ctx.best, llm=strong)
    varied = replace(sampling, temperature=params.temperature)
    more = await sample_many(strong, chat, varied, ctx, n=params.strong_n)
    return await vote(contenders([*rivals, *more]), chat, strong, ctx, params.answer_format)
