"""GenSelect: sample several solutions, have a model compare them side by side, return the winner.

Source: Moshkov et al. 2025, "AIMO-2 Winning Solution", arXiv:2504.16891 (a model selects among
solutions); Toshniwal et al. 2025, "GenSelect: A Generative Approach to Best-of-N", arXiv:2507.17797
(knock-out rounds). Deviations: the selector is an ordinary model, not one trained to select; it
sees whole solutions, not summaries; each comparison is made in one order and in its reverse,
because models favour positions.
On reasoning models: the same. The solutions are plain requests.
Cost: `n` calls for the solutions, then rounds of `orders` calls for each group; the calls of a
round run concurrently. Up to `group_size` solutions need one round.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.fanout import finished, sample_many
from optillm_hooks.judging import JUDGING, Chosen, choose, vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.types import Answer, Chat, Sampling

SAMPLING_SHARE = 0.6
"""Share of the remaining time after which missing solutions are no longer awaited."""


class ComparisonFields(BaseModel):
    """OptiLLM's fields of the comparison: both modes are one there, and reasons are not added."""

    comparison_mode: Literal["batch", "tournament"] = "batch"
    include_reasoning: Literal[False] = False


class GenselectParams(DraftingParams):
    n: int = Field(default=4, ge=2, le=64, description="Solutions to sample.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )
    group_size: int = Field(
        default=8, ge=2, le=16, description="Maximum solutions compared in one call."
    )
    orders: int = Field(
        default=2, ge=1, le=8, description="Orders in which a group is shown, one call each."
    )
    judge: str | None = Field(
        default=None, description="Model group that compares solutions; unset: the base model."
    )

    comparison_temperature: float = Field(
        default=0.1, ge=0, le=2, description="Temperature of the comparisons."
    )

    body_fields: ClassVar[Mapping[str, str]] = {
        "num_candidates": "n",
        "comparison_temperature": "comparison_temperature",
    }
    ignored: ClassVar[type[BaseModel]] = ComparisonFields
    model_group_fields: ClassVar[tuple[str, ...]] = ("judge",)
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)


def _cost(params: GenselectParams) -> Cost:
    calls, depth, left = params.n, 1, params.n
    while left > 1:
        groups = _groups(range(left), params.group_size)
        calls += params.orders * sum(len(group) > 1 for group in groups)
        depth, left = depth + 1, len(groups)
    return Cost(calls=calls, depth=depth)


@approach("genselect", GenselectParams, cost=_cost)
async def genselect(chat: Chat, llm: LLM, params: GenselectParams, ctx: Context) -> Answer:
    """Return the solution that wins the last round.

    The solution that is chosen most often wins its group; ties, and groups without a readable
    verdict, go to the earlier call. Identical texts compete once. Truncated solutions compete only
    if all are. If most solutions call tools, the first of them is returned unchanged. If no verdict
    can be read, the solutions vote by their final answers.

    Raises:
        SamplesFailed: no solution finished within the request's deadline and budget.
    """
    sampling = Sampling(temperature=params.temperature)
    sampled = await sample_many(
        llm, chat, sampling, ctx, n=params.n, until=ctx.within(SAMPLING_SHARE)
    )
    solutions = contenders(sampled)
    if solutions[0].tool_calls:
        return solutions[0]
    judge = llm if params.judge is None else ctx.llm(params.judge)
    texts = [solution.text.strip() for solution in solutions]
    left = [at for at, text in enumerate(texts) if text not in texts[:at]]
    verdicts = 0
    while len(left) > 1:
        ctx.progress(f"comparing {len(left)} solutions")
        left, readable = await _round(left, texts, chat, judge, params, ctx)
        verdicts += readable
        ctx.offer(solutions[left[0]])
    if verdicts or len(set(texts)) == 1:
        return solutions[left[0]]
    return await vote(solutions, chat, llm, ctx)


async def _round(
    left: Sequence[int],
    texts: Sequence[str],
    chat: Chat,
    judge: LLM,
    params: GenselectParams,
    ctx: Context,
) -> tuple[list[int], int]:
    """Return the solutions that win a round, and the number of groups with a readable verdict."""
    groups = _groups(ctx.rng.sample(left, len(left)), params.group_size)
    sampling = replace(JUDGING, temperature=params.comparison_temperature)
    compared = [group for group in groups if len(group) > 1]

    def comparing(group: Sequence[int]) -> Callable[[], Awaitable[Chosen]]:
        shown = [texts[at] for at in group]
        return lambda: choose(shown, chat, judge, ctx, orders=params.orders, sampling=sampling)

    chosen = await finished([comparing(group) for group in compared], at_least=len(compared))
    ctx.trace.note("comparisons", votes=[choice.votes for choice in chosen])
    winners = [group[choice.winner or 0] for group, choice in zip(compared, chosen, strict=True)]
    byes = [group[0] for group in groups if len(group) == 1]
    readable = sum(choice.winner is not None for choice in chosen)
    return sorted([*winners, *byes]), readable


def _groups(members: Sequence[int], size: int) -> list[list[int]]:
    """Return `members` split into groups of nearly equal sizes, none larger than `size`."""
    count = math.ceil(len(members) / size)
    return [sorted(members[start::count]) for start in range(count)]
