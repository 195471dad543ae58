"""Majority voting: sample the request several times, return the most frequent answer.

Good for: answers that can be compared.
Worth it when: answers can be compared and there is no good judge; no extra prompt is wanted.
Source: Wang et al. 2022, arXiv:2203.11171, section 2, without its chain-of-thought prompt: the
request goes to the model unchanged, and the vote is that of `self_consistency`.
Sampling stops as soon as the vote is settled: Aggarwal et al. 2023, arXiv:2305.11860.
On reasoning models: the same.
Cost: at most `n` calls, at most 2 deep: 3 if their answers agree, or else all. If fewer than half
of the candidates have a readable answer, as in free text, one more call asks which agrees most with
the others.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.extraction import AnswerFormat
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.judging.verdicts import judge_of
from optillm_hooks.judging.voting import vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, SamplerParams, approach
from optillm_hooks.types import Answer, Chat, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled


class MajorityVotingParams(SamplerParams):
    n: int = Field(default=8, ge=1, le=64, description="Candidates to sample.")
    temperature: float = Field(
        default=0.6, gt=0, le=2, description="Candidates must differ to vote, so 0 is not allowed."
    )
    answer_format: AnswerFormat = Field(
        default="auto", description="How the final answer is read from a candidate."
    )
    judge: str | None = Field(
        default=None,
        description="Model group that chooses where too few answers can be compared; unset: the "
        "base model.",
    )

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)

    body_fields: ClassVar[Mapping[str, str]] = {"k": "n"}


def _cost(params: MajorityVotingParams) -> Cost:
    return Cost(calls=params.n, depth=depth_of(params, params.n))


@approach("majority_voting", MajorityVotingParams, cost=_cost)
async def majority_voting(
    chat: Chat, llm: LLM, params: MajorityVotingParams, ctx: Context
) -> Answer:
    """Return the first candidate that gives the most frequent answer; ties go to the earlier call.

    A candidate that failed, was truncated while others were not, or has no readable answer does not
    vote. If fewer than half have a readable answer, the model is asked which candidate agrees most
    with the others; if its choice cannot be read, the first one is returned.

    Raises:
        SamplesFailed: no candidate finished within the request's deadline and budget.
    """
    panel, how = panel_of(params.models, llm, ctx), params.answer_format
    sampling = Sampling(temperature=params.temperature)
    sampled = await sample_until_settled(panel, chat, sampling, ctx, params, n=params.n, how=how)
    ctx.trace.note("samples", asked=params.n, finished=len(sampled))
    return await vote(contenders(sampled), chat, judge_of(params.judge, llm, ctx), ctx, how)
