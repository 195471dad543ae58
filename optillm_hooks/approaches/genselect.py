"""GenSelect: sample several solutions, have a model compare their answers, return the winner.

Good for: a judge that knows better.
Worth it when: a judge compares answers better than chance; a weak one does little harm.
Source: Moshkov et al. 2025, "AIMO-2 Winning Solution", arXiv:2504.16891 (a model selects among
solutions); Toshniwal et al. 2025, "GenSelect: A Generative Approach to Best-of-N", arXiv:2507.17797
(knock-out rounds); Singh et al. 2026, "V1: Unifying Generation and Self-Verification for Parallel
Reasoners", arXiv:2603.04304 (comparisons in pairs). Deviations: the selector is an ordinary model,
not one trained to select; it sees whole solutions, not summaries, one for each different answer,
and not how many samples gave that answer; each comparison is made in one order and in its reverse,
because models favour positions. Each sample counts as much as one comparison (`support`), so that
a selector that guesses does little harm: the winner has the most samples and comparisons together.
In pairs, all of which are compared at the same time, it is the strongest in the model of Bradley
and Terry.
Sampling stops if the first samples agree: Aggarwal et al. 2023, arXiv:2305.11860.
On reasoning models: the same. The solutions are plain requests.
Cost: `n` calls for the solutions, at most 2 deep, then rounds of `orders` calls for each group; the
calls of a round run concurrently. Up to `group_size` answers need one round. If all answers are the
same, nothing is compared. `mode=knockout` compares two at a time, in as many rounds as it takes;
`mode=pairwise` all `n * (n - 1) / 2` pairs in one round. With `decoys`, which add a call each
beside the solutions, the judge also rates decoys and solutions, beside the first comparisons.
"""

import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.fanout import finished
from optillm_hooks.judging.bradley_terry import strengths
from optillm_hooks.judging.choosing import Chosen, choose
from optillm_hooks.judging.decoys import decoys_beside, ratings_to_measure
from optillm_hooks.judging.selection import measuring
from optillm_hooks.judging.verdicts import JUDGING, Judge, judge_of
from optillm_hooks.judging.voting import ballots, vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import Cost, DraftingParams, MeasuredParams, SamplerParams, approach
from optillm_hooks.types import Answer, Chat, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled

SAMPLING_SHARE = 0.6
"""Share of the remaining time after which missing solutions are no longer awaited."""

LEAST_SUPPORT = 0.01
"""What a sample counts at least: between answers that are equally strong, samples decide."""


class ComparisonFields(BaseModel):
    """OptiLLM's fields of the comparison: both modes are one there, and reasons are not added."""

    comparison_mode: Literal["batch", "tournament"] = "batch"
    include_reasoning: Literal[False] = False


class GenselectParams(SamplerParams, MeasuredParams, DraftingParams):
    n: int = Field(default=4, ge=2, le=64, description="Solutions to sample.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )
    mode: Literal["select", "pairwise", "knockout"] = Field(
        default="select",
        description="select: answers are compared in groups; knockout: two at a time, and the "
        "winners again; pairwise: each with every other one.",
    )
    group_size: int = Field(
        default=8, ge=2, le=16, description="Maximum answers compared in one call of mode select."
    )
    orders: int = Field(
        default=2, ge=1, le=8, description="Orders in which a group is shown, one call each."
    )
    support: float = Field(
        default=1.0,
        ge=0,
        le=16,
        description="Comparisons that each sample of an answer counts for; 0: only the judge "
        "decides, and samples break ties.",
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
    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)

    @property
    def size(self) -> int:
        """The maximum number of answers in a group."""
        return self.group_size if self.mode == "select" else 2


def _cost(params: GenselectParams) -> Cost:
    calls, rounds = _comparisons(params, params.n)
    measured = params.decoys + ratings_to_measure(params.n, params.decoys)
    return Cost(calls=params.n + calls + measured, depth=depth_of(params, params.n) + rounds)


def _comparisons(params: GenselectParams, answers: int) -> tuple[int, int]:
    """Return how many calls compare so many different answers, and in how many rounds."""
    if params.mode == "pairwise":
        return params.orders * math.comb(answers, 2), int(answers > 1)
    calls, rounds = 0, 0
    while answers > 1:
        groups = _groups(range(answers), params.size)
        calls += params.orders * sum(len(group) > 1 for group in groups)
        rounds, answers = rounds + 1, len(groups)
    return calls, rounds


@approach("genselect", GenselectParams, cost=_cost)
async def genselect(chat: Chat, llm: LLM, params: GenselectParams, ctx: Context) -> Answer:
    """Return the first solution of the answer that wins.

    The winner of a group is the answer with the most comparisons won and samples, as `support` says
    (see `GenselectParams`). Ties go to the one with more samples, then to the earlier call. A text
    without a readable answer is an answer of its own. Truncated solutions compete only if all are.
    If most solutions call tools, the first of them is returned unchanged. If no verdict can be
    read, or if `decoys` show that the judge is no better than chance, the solutions vote by their
    final answers.

    Raises:
        SamplesFailed: no solution finished within the request's deadline and budget.
    """
    sampling = Sampling(temperature=params.temperature)
    panel, count = panel_of(params.models, llm, ctx), params.decoys
    until = ctx.within(SAMPLING_SHARE)
    async with decoys_beside(chat, llm, ctx, count, sampling=sampling, until=until) as decoys:
        solutions = contenders(
            await sample_until_settled(
                panel, chat, sampling, ctx, params, n=params.n, judged=True, until=until
            )
        )
        planned, _ = _comparisons(params, params.n)
        ratings = ratings_to_measure(params.n, params.decoys)
        if solutions[0].tool_calls:
            ctx.trace.save(planned + ratings)
            return solutions[0]
        equal = await ballots(solutions, chat, ctx)
        counts = Counter(at if first is None else first for at, first in enumerate(equal))
        needed, _ = _comparisons(params, len(counts))
        ctx.trace.save(planned - needed)
        if len(counts) == 1:
            ctx.trace.save(ratings)
            return solutions[0]
        ctx.offer(solutions[max(counts, key=lambda at: (counts[at], -at))])
        texts = {at: solutions[at].text.strip() for at in counts}
        judge = judge_of(params.judge, llm, ctx)
        async with measuring(solutions, chat, llm, judge, ctx, decoys) as is_untrusted:
            match = _Match(texts, counts, chat, judge, params, ctx)
            winner = await (match.pairs() if params.mode == "pairwise" else match.rounds())
            if await is_untrusted() or not match.readable:
                return await vote(solutions, chat, llm, ctx)
            return solutions[winner]


@dataclass(slots=True)
class _Match:
    """The comparisons of the different answers, which have the numbers of their solutions."""

    texts: Mapping[int, str]
    samples: Mapping[int, int]
    """How many samples gave each answer."""

    chat: Chat
    judge: Judge
    params: GenselectParams
    ctx: Context
    readable: int = 0
    """Groups with a readable verdict."""

    async def rounds(self) -> int:
        """Return the winner of the last round; the winners of one meet in the next."""
        left = list(self.texts)
        while len(left) > 1:
            seeded = self.ctx.rng.sample(left, len(left))
            seeded.sort(key=self.samples.__getitem__, reverse=True)
            groups = _groups(seeded, self.params.size)
            compared = [group for group in groups if len(group) > 1]
            chosen = await self._compared(compared)
            byes = [group[0] for group in groups if len(group) == 1]
            left = sorted([*map(self._winner, compared, chosen), *byes])
        return left[0]

    def _winner(self, group: Sequence[int], chosen: Chosen) -> int:
        won = dict(zip(group, chosen.votes, strict=True))
        return self._best({at: self._weight(at) + won[at] for at in group})

    async def pairs(self) -> int:
        """Return the strongest answer, after each has been compared with every other one."""
        answers = list(self.texts)
        pairs = list(combinations(range(len(answers)), 2))
        chosen = await self._compared([[answers[at] for at in pair] for pair in pairs])
        wins = [[0.0] * len(answers) for _ in answers]
        for (one, other), choice in zip(pairs, chosen, strict=True):
            wins[one][other], wins[other][one] = choice.votes
        found = strengths(wins, [self._weight(at) for at in answers])
        return self._best({at: round(s, 6) for at, s in zip(answers, found, strict=True)})

    def _weight(self, answer: int) -> float:
        return max(self.params.support, LEAST_SUPPORT) * self.samples[answer]

    def _best(self, scores: Mapping[int, float]) -> int:
        return max(scores, key=lambda at: (scores[at], self.samples[at], -at))

    async def _compared(self, groups: Sequence[Sequence[int]]) -> list[Chosen]:
        """Return how often each answer of each group is chosen; all are compared at once."""
        sampling = replace(JUDGING, temperature=self.params.comparison_temperature)

        def comparing(group: Sequence[int]) -> Callable[[], Awaitable[Chosen]]:
            shown, orders = [self.texts[at] for at in group], self.params.orders
            return lambda: choose(
                shown, self.chat, self.judge, self.ctx, orders=orders, sampling=sampling
            )

        self.ctx.progress(f"comparing {len(set(chain(*groups)))} answers")
        chosen = await finished([comparing(group) for group in groups], at_least=len(groups))
        self.ctx.trace.note("comparisons", votes=[choice.votes for choice in chosen])
        self.readable += sum(choice.winner is not None for choice in chosen)
        return chosen


def _groups(members: Sequence[int], size: int) -> list[list[int]]:
    """Return `members` split into groups of nearly equal sizes, none larger than `size`."""
    count = math.ceil(len(members) / size)
    return [sorted(members[start::count]) for start in range(count)]
