"""AB-MCTS: search that decides at each step whether to refine a solution or write a new one.

Verifiers value the solutions (see `verified`): tests in the request, SymPy, Z3, an endpoint of the
operator's. The search ends as soon as a solution is proven. If none of these applies, the ratings
of `judge` value the solutions, multiplied by the scores of verifiers that check only the form. Such
a search is only as good as the judge, and the sum of ratings over equal answers decides. Without a
judge there is no search: answers are sampled as in `verified`, because a model that judges itself
chooses no better than a vote. The search ends in the same way if `decoys` show that the judge is no
better than chance. If the verifiers fail on all solutions, these vote too.

Good for: answers that can be checked.
Worth it when: a verifier says how good an answer is, and refining improves it; otherwise `verified`
is cheaper.
Source: Inoue et al. 2025, "Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive
Branching Tree Search", arXiv:2503.04412: variant A (node aggregation) with its Gaussian or Beta
belief, and several models (`models`). Deviations: a model is drawn by the scores of all that it has
grown in the tree, not at each node anew, because a request has tens of solutions, not hundreds; a
refinement is told the score of its draft, not the verifier's messages. Variant M, a hierarchical
model of all nodes, is left out: it needs a sampler of posteriors for each draw.
On reasoning models: the same. No prompt tells the model how to think.
Cost: at most `rollouts` calls, at most `rollouts / parallel` deep, twice that with `judge`; one
more call for the verifier `z3`. Each of `decoys` adds a call beside the first solutions and one
beside their ratings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    SampleError,
    SamplesFailed,
)
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.judging.decoys import NO_DECOYS, Decoys, Trust, decoys_beside
from optillm_hooks.judging.selection import by_agreement, rate_measured
from optillm_hooks.judging.verdicts import judge_of
from optillm_hooks.judging.voting import ballots, elected
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, MeasuredParams, SamplerParams, approach
from optillm_hooks.search.branching import AdaptiveBranching, Belief, Growth
from optillm_hooks.types import Answer, Chat, Completion, Sampling
from optillm_hooks.verifiers.panel import Panel, panel_for
from optillm_hooks.verifiers.params import VerifyingParams
from optillm_hooks.verifiers.protocol import UNKNOWN, Verdict
from optillm_hooks.verifiers.sampling import sample_until_verified
from optillm_hooks.waves import first_wave, panel_of

REFINE: Final = """\
Below is a draft of an answer to the request above.{score} Find what is wrong or missing in it, \
and reply with a complete and better answer to the request. Keep what is right. If nothing is \
wrong, repeat the draft. Do not mention the draft."""

SCORE: Final = " Checked by other means than its own words, it reaches {score:.0%}."

_BEST_RATING: Final = 10.0
_MIDDLE: Final = 0.5
_DECOYS_SHARE: Final = 0.4
"""Share of the remaining time after which missing decoys are given up."""

_RATING_SHARE: Final = 0.5
"""Share of the remaining time after which missing ratings of a batch are given up."""

_CONFIDENCE: Final = 0.9
"""Probability of being the most frequent one at which an answer that all give is settled."""


class AbmctsParams(VerifyingParams, MeasuredParams, DraftingParams):
    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)
    samples_field: ClassVar[str] = "rollouts"

    rollouts: int = Field(default=8, ge=1, le=64, description="Maximum number of solutions.")
    parallel: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Concurrent solutions; with fewer, each uses more earlier results.",
    )
    belief: Belief = Field(
        default="gaussian",
        description="What is believed of scores before there are any: gaussian (they may be "
        "anything) or beta (they are shares of successes).",
    )
    models: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Model groups that write solutions; those whose solutions score higher are "
        "drawn more often. Empty: the base model alone.",
    )
    temperature: float = Field(
        default=1.0, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )
    judge: str | None = Field(
        default=None,
        description="Model group that rates solutions if no verifier can prove any; unset: they "
        "vote, as in `verified`.",
    )

    @model_validator(mode="after")
    def _decoys_need_a_judge(self) -> Self:
        if self.decoys and self.judge is None:
            raise ValueError("decoys measure a judge: name the one to measure in `judge`")
        return self


class Solution(NamedTuple):
    completion: Completion
    value: float
    """From 0 to 1."""

    verdict: Verdict = UNKNOWN
    rated: bool = False
    """Whether the value comes from a judge."""

    @property
    def is_checked(self) -> bool:
        """Whether the value is what verifiers say."""
        return not self.rated and self.verdict.score is not None


def _cost(params: AbmctsParams) -> Cost:
    batches, of_each = math.ceil(params.rollouts / params.parallel), 1 + bool(params.judge)
    calls = of_each * (params.rollouts + params.decoys) + ("z3" in params.verifiers)
    return Cost(calls=calls, depth=of_each * max(batches, min(2, params.rollouts)))


@approach("abmcts", AbmctsParams, cost=_cost, needs=["code", "solver", "network"])
async def abmcts(chat: Chat, llm: LLM, params: AbmctsParams, ctx: Context) -> Answer:
    """Return the first solution that is proven, or else the best one found.

    With verifiers that is the one of highest value, and of equals the most frequent answer; with a
    judge, see `by_agreement`; with neither, or with a judge that `decoys` show to be no better than
    chance, see `sample_until_verified`: the solutions that are left are then all begun anew.
    Truncated solutions are left out, unless all are. A solution that fails is left out, and when
    time or budget runs out, the search ends with what it has. If most of the first solutions call
    tools, the first of these is returned unchanged.

    Raises:
        Refused: `pattern` or `json_schema` is not valid.
        SamplesFailed: not even a first solution was written.
    """
    async with panel_for(params.verifiers, params.asked(chat, llm, ctx)) as panel:
        writers = panel_of(params.models, llm, ctx)
        sampling, settled = Sampling(temperature=params.temperature), SamplerParams()
        if panel.proves or params.judge:
            count = 0 if panel.proves else params.decoys
            until = ctx.within(_DECOYS_SHARE)
            async with decoys_beside(
                chat, llm, ctx, count, sampling=sampling, until=until
            ) as decoys:
                return await _Search(chat, llm, params, ctx, panel, decoys).best()
        return await sample_until_verified(writers, panel, sampling, settled, n=params.rollouts)


Grown = tuple[Growth[Solution | None], Completion]


@dataclass(slots=True)
class _Search:
    chat: Chat
    llm: LLM
    params: AbmctsParams
    ctx: Context
    panel: Panel
    decoys: Decoys
    """Those that have not been rated."""

    trust: Trust = "unmeasured"
    tree: AdaptiveBranching[Solution | None] = field(init=False)
    writers: dict[str, LLM] = field(init=False)
    begun: int = 0
    failures: list[SampleError] = field(default_factory=list[SampleError])
    """Those of the last batch."""

    ratings: dict[str, float | None] = field(default_factory=dict[str, float | None])
    """The judge's, by text, from 0 to 1."""

    def __post_init__(self) -> None:
        self.writers = {m.model: m for m in panel_of(self.params.models, self.llm, self.ctx)}
        self.tree = AdaptiveBranching(
            None, [*self.writers], belief=self.params.belief, rng=self.ctx.rng
        )

    @property
    def solutions(self) -> list[Solution]:
        """The solutions so far, in the order of the tree."""
        return [node.state for node in self.tree.root.walk() if node.state is not None]

    async def best(self) -> Completion:
        """Return the solution to answer with, after the search.

        Raises:
            SamplesFailed: not even one was written.
        """
        while self.begun < self.params.rollouts:
            grown = await self._grow()
            if not self.solutions and grown:
                usual = contenders([each for _, each in grown])[0]
                if usual.tool_calls:
                    return usual
            texts = [(growth, each) for growth, each in grown if not each.tool_calls]
            if await self._learn(texts) or self._is_over(grown):
                break
            if self.trust == "chance":
                return await self._sampled()
        if not self.solutions:
            raise SamplesFailed(self.failures)
        return await self._chosen()

    async def _sampled(self) -> Completion:
        """Return the best of the solutions and of as many samples as are left, without a judge."""
        solutions, begun = self.solutions, self.begun
        self.begun = self.params.rollouts  # or the report would take them for saved
        self._report(solutions)
        sampling = Sampling(temperature=self.params.temperature, sample=begun)
        return await sample_until_verified(
            [*self.writers.values()],
            self.panel,
            sampling,
            SamplerParams(),
            n=self.params.rollouts - begun,
            known=[(each.completion, each.verdict) for each in solutions],
        )

    async def _grow(self) -> list[Grown]:
        """Return the next solutions that were written, each with what it was grown from."""
        left = self.params.rollouts - self.begun
        batch = [self.tree.ask() for _ in range(min(self.params.parallel, left))]
        self.ctx.progress(f"solution {self.begun + len(batch)} of {self.params.rollouts}")
        write = [partial(self._write, each, self.begun + at) for at, each in enumerate(batch)]
        until = self.ctx.within(0.6 * len(batch) / left)
        ended = await outcomes(write, until=until, enough=0 if self.solutions else 1)
        self.begun += len(batch)
        self.failures = [each for each in ended if isinstance(each, SampleError)]
        self.ctx.trace.count("solutions", lost=len(self.failures), of=len(batch))
        return [
            (growth, each)
            for growth, each in zip(batch, ended, strict=True)
            if not isinstance(each, SampleError)
        ]

    async def _write(self, growth: Growth[Solution | None], number: int) -> Completion:
        draft = growth.node.state
        asked = self.chat if draft is None else self._refining(draft)
        sampling = Sampling(temperature=self.params.temperature, sample=number)
        return await self.writers[growth.model].complete(asked, sampling)

    def _refining(self, draft: Solution) -> Chat:
        text = without_reasoning(draft.completion.text)
        mark = fence(self.chat, [text])
        score = SCORE.format(score=draft.value) if draft.is_checked else ""
        shown = f"{data_notice('draft', mark)}\n\n{enclose([text], 'draft', mark)}"
        return ask(self.chat, f"{REFINE.format(score=score)}\n{shown}")

    def _is_over(self, grown: Sequence[Grown]) -> bool:
        """Return whether going on is of no use: no budget is left, or nothing was ever written."""
        spent = all(isinstance(e, BudgetExceeded | DeadlineExceeded) for e in self.failures)
        return not grown and (spent or not self.solutions)

    async def _learn(self, grown: Sequence[Grown]) -> bool:
        """Tell the tree the values of new solutions, and return whether the search is settled."""
        if not grown:
            return False
        new = [each for _, each in grown]
        verdicts = await finished([partial(self.panel.verdict, each) for each in new])
        rated, settled = not self.panel.proves, any(verdict.proven for verdict in verdicts)
        if not rated:
            values = [self._or_usual(verdict.score) for verdict in verdicts]
            seen = [*(each.verdict for each in self.solutions), *verdicts]
            nothing_known = all(verdict.score is None for verdict in seen)
            settled = settled or (nothing_known and await self._agree(new))
        elif await self._agree(new):
            values, settled = [1.0] * len(new), True
        else:
            values = await self._judged(new, verdicts)
        for (growth, each), verdict, value in zip(grown, verdicts, values, strict=True):
            self.tree.tell(growth, Solution(each, value, verdict, rated), value)
        self.ctx.offer(max(self.solutions, key=_key).completion)
        return settled

    def _or_usual(self, value: float | None) -> float:
        """Return `value`, or the mean of the tree where it is not known."""
        if value is not None:
            return value
        return self.tree.root.mean if self.tree.root.visits else _MIDDLE

    async def _agree(self, new: Sequence[Completion]) -> bool:
        """Return whether all solutions have the same answer and are enough to settle it."""
        found = [*(each.completion for each in self.solutions), *new]
        if len(found) < first_wave(self.params.rollouts, _CONFIDENCE):
            return False
        equal = await ballots(found, self.chat, self.ctx)
        return len(found) == 1 or (equal[0] is not None and len(set(equal)) == 1)

    async def _judged(self, new: Sequence[Completion], verdicts: Sequence[Verdict]) -> list[float]:
        """Return the judge's ratings, times the scores of verifiers. Equal texts are rated once."""
        texts = [each.text.strip() for each in new]
        fresh = [text for text in dict.fromkeys(texts) if text not in self.ratings]
        judge = judge_of(self.params.judge, self.llm, self.ctx)
        until = self.ctx.within(_RATING_SHARE)
        decoys, self.decoys = self.decoys, NO_DECOYS
        equal = await ballots(new, self.chat, self.ctx) if decoys.planned else []
        found, trust = await rate_measured(
            fresh, equal, self.chat, self.llm, judge, self.ctx, decoys, until=until
        )
        self.trust = trust if decoys.planned else self.trust
        for text, rating in zip(fresh, found, strict=True):
            self.ratings[text] = None if rating is None else rating / _BEST_RATING
        return [
            self._or_usual(self.ratings[text]) * (1.0 if verdict.score is None else verdict.score)
            for text, verdict in zip(texts, verdicts, strict=True)
        ]

    async def _chosen(self) -> Completion:
        solutions = self.solutions
        self._report(solutions)
        whole = [each for each in solutions if not each.completion.truncated] or solutions
        best = max(whole, key=_key)
        if not best.rated:
            equals = [each.completion for each in whole if _key(each) == _key(best)]
            return await elected(equals, self.chat, self.ctx)
        found = [each.completion for each in whole]
        equal = await ballots(found, self.chat, self.ctx)
        return found[by_agreement(equal, [each.value for each in whole])]

    def _report(self, solutions: Sequence[Solution]) -> None:
        verdicts = [each.verdict for each in solutions]
        self.ctx.trace.note(
            "search",
            solutions=len(solutions),
            first_solutions=len(self.tree.root.children),
            valued_by=_valued_by(solutions),
            value=round(max(each.value for each in solutions), 3),
            proven=any(verdict.proven for verdict in verdicts),
        )
        if any(verdict.outcome != "unknown" for verdict in verdicts):
            lost = not any(verdict.passed for verdict in verdicts)
            self.ctx.trace.count("verified_answers", lost=int(lost), of=1)
        planned = (1 + bool(self.params.judge)) * self.params.rollouts + self.decoys.planned
        self.ctx.trace.save(max(0, planned - self.begun - len(self.ratings)))


def _valued_by(solutions: Sequence[Solution]) -> Literal["judge", "verifiers", "nothing"]:
    if solutions[0].rated:
        return "judge"
    return "verifiers" if any(each.is_checked for each in solutions) else "nothing"


def _key(solution: Solution) -> tuple[bool, bool, float]:
    return solution.verdict.proven, not solution.completion.truncated, solution.value
