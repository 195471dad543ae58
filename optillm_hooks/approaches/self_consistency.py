"""Self-consistency: sample independent reasoning paths, return the most frequent answer.

Good for: answers that can be compared.
Worth it when: answers can be compared, and there is no good judge.
Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language
Models", arXiv:2203.11171, section 2 (unweighted majority over final answers); for free text, Chen
et al. 2023, "Universal Self-Consistency for Large Language Model Generation", arXiv:2311.17311,
section 3. Deviations: answers are equal if they are equivalent, not only if the strings are equal;
tool calls and JSON are voted on as such; the model that chooses among free texts (`judge`) sees
the paths in random order.
Sampling stops as soon as the vote is settled: Aggarwal et al. 2023, arXiv:2305.11860.
On reasoning models: they are not asked to reason step by step.
Cost: at most `n` calls, at most 2 deep: 3 if their answers agree, or else all. If fewer than half
of the paths have a readable answer, as in free text, one more call asks which path agrees most with
the others.
"""

from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.extraction import AnswerFormat
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.final_answer import needs_mark, reasoning_aloud, without_mark
from optillm_hooks.judging.verdicts import judge_of
from optillm_hooks.judging.voting import vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, DraftingParams, SamplerParams, approach
from optillm_hooks.types import Answer, Chat, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled


class SelfConsistencyParams(SamplerParams, DraftingParams):
    n: int = Field(default=5, ge=1, le=64, description="Reasoning paths to sample.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Paths must differ to vote, so 0 is not allowed."
    )
    answer_format: AnswerFormat = Field(
        default="auto", description="How the final answer is read from a path."
    )
    judge: str | None = Field(
        default=None,
        description="Model group that chooses where too few answers can be compared; unset: the "
        "base model.",
    )

    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)


def _cost(params: SelfConsistencyParams) -> Cost:
    return Cost(calls=params.n, depth=depth_of(params, params.n))


@approach("self_consistency", SelfConsistencyParams, cost=_cost)
async def self_consistency(
    chat: Chat, llm: LLM, params: SelfConsistencyParams, ctx: Context
) -> Answer:
    """Return the first path that reaches the most frequent final answer.

    A path that failed, was truncated while others were not, or has no readable answer does not
    vote. Ties go to the answer that comes first in the order of the calls, so the result does not
    depend on which reply arrives first. If fewer than half of the paths have a readable answer, the
    model is asked which path agrees most with the others; if its choice cannot be read, the first
    path is returned. The line that marks the answer for the vote is not part of the result.

    Raises:
        SamplesFailed: no path finished within the request's deadline and budget.
    """
    marked = params.answer_format in ("auto", "marked") and needs_mark(chat, ctx)
    asked = reasoning_aloud(chat, llm, ctx, marked=marked)
    sampling = Sampling(temperature=params.temperature)
    panel, how = panel_of(params.models, llm, ctx), params.answer_format
    sampled = await sample_until_settled(
        panel, asked, sampling, ctx, params, n=params.n, chat=chat, how=how
    )
    ctx.trace.note("samples", asked=params.n, finished=len(sampled))
    judge = judge_of(params.judge, llm, ctx)
    winner = await vote(contenders(sampled), chat, judge, ctx, how)
    return without_mark(winner) if marked else winner
