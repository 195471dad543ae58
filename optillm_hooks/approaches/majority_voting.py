"""Majority voting: sample the request several times, return the most frequent answer.

Source: Wang et al. 2022, arXiv:2203.11171, section 2, without its chain-of-thought prompt: the
request goes to the model unchanged, and the vote is that of `self_consistency`.
Cost: `n` calls, all concurrent; the latency is that of the slowest. If fewer than half of the
candidates have a readable answer, as in free text, one more call asks which agrees most with the
others.
"""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.extraction import AnswerFormat
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.fanout import sample_many
from optillm_hooks.judging import vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, Params, approach
from optillm_hooks.types import Answer, Chat, Sampling


class MajorityVotingParams(Params):
    n: int = Field(default=8, ge=1, le=64, description="Candidates to sample.")
    temperature: float = Field(
        default=0.6, gt=0, le=2, description="Candidates must differ to vote, so 0 is not allowed."
    )
    answer_format: AnswerFormat = Field(
        default="auto", description="How the final answer is read from a candidate."
    )

    body_fields: ClassVar[Mapping[str, str]] = {"k": "n"}


@approach(
    "majority_voting", MajorityVotingParams, cost=lambda params: Cost(calls=params.n, depth=1)
)
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
    sampled = await sample_many(
        llm, chat, Sampling(temperature=params.temperature), ctx, n=params.n
    )
    ctx.trace.note("samples", asked=params.n, finished=len(sampled))
    return await vote(contenders(sampled), chat, llm, ctx, params.answer_format)
