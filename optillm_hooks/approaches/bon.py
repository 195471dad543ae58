"""Best of n: sample several answers, have each rated, return the one rated highest.

Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168,
section 4.2 (sample, score, take the best); Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench
and Chatbot Arena", arXiv:2306.05685, section 3.1 (single-answer grading by a model). Deviation: the
verifier is a model that is asked for a rating, not one trained to give it.
Cost: `n` calls for the answers, then `ratings` calls for each distinct answer; the calls of a
stage run concurrently.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.voting import contenders, leaders
from optillm_hooks.context import Context
from optillm_hooks.fanout import sample_many
from optillm_hooks.judging import elected, rate_all, vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.types import Answer, Chat, Sampling

SAMPLING_SHARE = 0.6
"""Share of the remaining time after which missing candidates are no longer awaited."""


class BonParams(DraftingParams):
    n: int = Field(default=3, ge=1, le=64, description="Candidates to sample.")
    temperature: float = Field(
        default=1.0, gt=0, le=2, description="Candidates must differ, so 0 is not allowed."
    )
    ratings: int = Field(
        default=1, ge=1, le=16, description="Ratings of each candidate; their mean counts."
    )
    judge: str | None = Field(
        default=None, description="Model group that rates candidates; unset: the base model."
    )

    body_fields: ClassVar[Mapping[str, str]] = {"best_of_n": "n"}
    model_group_fields: ClassVar[tuple[str, ...]] = ("judge",)
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)


def _cost(params: BonParams) -> Cost:
    if params.n == 1:
        return Cost(calls=1, depth=1)
    return Cost(calls=params.n * (1 + params.ratings), depth=2)


@approach("bon", BonParams, cost=_cost)
async def bon(chat: Chat, llm: LLM, params: BonParams, ctx: Context) -> Answer:
    """Return the candidate with the highest rating.

    Candidates with the same rating vote by their final answers; ties go to the earlier call.
    Identical texts are rated once, and a single text is not rated. Truncated candidates compete
    only if all are. If most candidates call tools, the first of them is returned unchanged. A
    rating that cannot be read, even when asked for again, does not count. Without any rating all
    candidates vote; see `judging.vote`.

    Raises:
        SamplesFailed: no candidate finished within the request's deadline and budget.
    """
    sampling = Sampling(temperature=params.temperature)
    sampled = await sample_many(
        llm, chat, sampling, ctx, n=params.n, until=ctx.within(SAMPLING_SHARE)
    )
    candidates = contenders(sampled)
    texts = [candidate.text.strip() for candidate in candidates]
    different = list(dict.fromkeys(texts))
    if candidates[0].tool_calls or len(different) == 1:
        return candidates[0]
    ctx.progress(f"rating {len(different)} candidates")
    judge = llm if params.judge is None else ctx.llm(params.judge)
    ratings = await rate_all(different, chat, judge, ctx, repeats=params.ratings)
    ctx.trace.note("ratings", asked=params.n, finished=len(sampled), ratings=ratings)
    if not any(rating is not None for rating in ratings):
        return await vote(candidates, chat, llm, ctx)
    best = {different[at] for at in leaders(ratings)}
    tied = [candidate for candidate in candidates if candidate.text.strip() in best]
    return await elected(tied, chat, ctx)
