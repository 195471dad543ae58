"""Best of n: sample several answers, have each rated, return the one rated highest.

Good for: a judge that knows better.
Worth it when: a judge is right clearly more often than not, such as a checker; otherwise vote.
Source: Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168,
section 4.2 (sample, score, take the best); Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench
and Chatbot Arena", arXiv:2306.05685, section 3.1 (single-answer grading by a model). Deviation: the
verifier is a model that is asked for a rating, not one trained to give it.
Cost: 3 calls if the first answers agree. Otherwise `n`, and `ratings` calls for each distinct text;
the calls of a stage run concurrently. Each of `decoys` adds a call beside the answers and one
beside the ratings.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.judging.decoys import decoys_beside
from optillm_hooks.judging.selection import pick
from optillm_hooks.judging.verdicts import judge_of
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, DraftingParams, JudgedParams, SamplerParams, approach
from optillm_hooks.types import Answer, Chat, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled

SAMPLING_SHARE = 0.6
"""Share of the remaining time after which missing candidates are no longer awaited."""


class BonParams(SamplerParams, JudgedParams, DraftingParams):
    n: int = Field(default=5, ge=1, le=64, description="Candidates to sample.")
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
    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)


def _cost(params: BonParams) -> Cost:
    if params.n == 1:
        return Cost(calls=1, depth=1)
    texts = params.n + params.decoys
    return Cost(calls=texts * (1 + params.ratings), depth=depth_of(params, params.n) + 1)


@approach("bon", BonParams, cost=_cost)
async def bon(chat: Chat, llm: LLM, params: BonParams, ctx: Context) -> Answer:
    """Return the candidate that the judge's ratings select, as `choose_by` says.

    If all candidates have the same final answer, the first is returned without a rating. Identical
    texts are rated once; ties go to the earlier call. Truncated candidates compete only if all
    are. If most candidates call tools, the first of them is returned unchanged. A
    rating that cannot be read, even when asked for again, does not count. Without any rating all
    candidates vote; see `judging.voting.vote`.

    Raises:
        SamplesFailed: no candidate finished within the request's deadline and budget.
    """
    sampling = Sampling(temperature=params.temperature)
    panel = panel_of(params.models, llm, ctx)
    until = ctx.within(SAMPLING_SHARE)
    number = params.decoys if params.n > 1 else 0
    async with decoys_beside(chat, llm, ctx, number, sampling=sampling, until=until) as decoys:
        sampled = await sample_until_settled(
            panel, chat, sampling, ctx, params, n=params.n, judged=True, until=until
        )
        candidates = contenders(sampled)
        if candidates[0].tool_calls:
            return candidates[0]
        judge = judge_of(params.judge, llm, ctx)
        return await pick(
            candidates,
            chat,
            llm,
            judge,
            ctx,
            choose_by=params.choose_by,
            repeats=params.ratings,
            decoys=decoys,
        )
