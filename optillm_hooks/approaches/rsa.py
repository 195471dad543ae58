"""RSA: recursive self-aggregation, in which a population of solutions is merged again and again.

Good for: a judge that knows better.
Worth it when: problems are hard, and the model can tell right solutions from wrong ones; otherwise
vote, or make one call.
Source: Venkatraman et al. 2025, "Recursive Self-Aggregation Unlocks Deep Thinking in Large
Language Models", arXiv:2509.26626, section 3: each of T loops writes a population of N solutions
anew, each from a random subset of K. Deviations: it stops as soon as all solutions of a population
have the same final answer (of the first population, three that agree are enough), or one answer
has more than half of all votes. Solutions of all loops vote, not only those of the last one: a
model that merges hardly better than it guesses then spoils little. One that takes wrong solutions
for right ones more often than not still does. Where the model is known to merge well, `vote: last`
is the better choice.
On reasoning models: they are not asked to reason step by step. The method was made for such models.
Cost: at most `n * (loops + 1)` calls, at most `2 + loops` deep. If fewer than half of the solutions
have a readable answer, as in free text, one more call asks which solution of the last population
agrees most with the others. A solution that is longer than the client's `max_tokens` adds one.
With `decoys`, which add a call each beside the first population, the model also rates decoys and
this population, beside the first loop.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.final_answer import (
    MARK_IF_DEFINITE,
    answer_from,
    needs_mark,
    reasoning_aloud,
    without_mark,
)
from optillm_hooks.judging.decoys import NO_DECOYS, Decoys, decoys_beside, ratings_to_measure
from optillm_hooks.judging.selection import measuring
from optillm_hooks.judging.voting import ballots, count_votes, elected, vote
from optillm_hooks.llm import LLM
from optillm_hooks.merging import merge_requests
from optillm_hooks.prompts import ask
from optillm_hooks.registry import (
    Cost,
    DraftingParams,
    MeasuredParams,
    Result,
    SamplerParams,
    approach,
)
from optillm_hooks.types import Chat, Completion, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled

TIME_FOR_LOOPS: Final = 0.9
"""Share of the remaining time in which the loops no longer wait for stragglers, in equal parts."""


class RsaParams(SamplerParams, MeasuredParams, DraftingParams):
    n: int = Field(default=6, ge=2, le=32, description="N: solutions in each population.")
    subset: int = Field(default=3, ge=2, le=16, description="K: solutions merged into one.")
    loops: int = Field(default=2, ge=1, le=16, description="T: loops of merging.")
    vote: Literal["all", "last"] = Field(
        default="all",
        description="Populations whose solutions vote: all, which a model that merges badly spoils "
        "less, or the last one, which is better if it merges well.",
    )
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )


def _cost(params: RsaParams) -> Cost:
    measured = params.decoys + ratings_to_measure(params.n, params.decoys)
    return Cost(
        calls=params.n * (1 + params.loops) + measured,
        depth=depth_of(params, params.n) + params.loops,
    )


@approach("rsa", RsaParams, cost=_cost)
async def rsa(chat: Chat, llm: LLM, params: RsaParams, ctx: Context) -> Result:
    """Return the solution with the most frequent final answer, the latest that gives it.

    If most solutions of the first population call tools, the most frequent call is returned. A
    merge that fails, calls a tool or is truncated is left out; if a loop has no other, the
    population before it is the last. Without readable answers, the model is asked which solution of
    the last population agrees most with the others. If the solution is longer than the client's
    `max_tokens`, a last call writes the answer from it. If `decoys` show that the model that merges
    (of several the first) judges no better than chance, only the first population votes.

    Raises:
        SamplesFailed: no solution of the first population finished.
    """
    return await _Evolution(chat, llm, panel_of(params.models, llm, ctx), params, ctx).answer()


@dataclass(slots=True)
class _Evolution:
    """The populations of one request."""

    chat: Chat
    llm: LLM
    panel: Sequence[LLM]
    params: RsaParams
    ctx: Context
    populations: list[list[Completion]] = field(default_factory=list[list[Completion]])

    async def answer(self) -> Result:
        """Return the elected solution, or the call that answers from it."""
        async with decoys_beside(
            self.chat,
            self.llm,
            self.ctx,
            self.params.decoys,
            sampling=Sampling(temperature=self.params.temperature),
            form=self._form(),
            until=self.ctx.within(TIME_FOR_LOOPS / (self.params.loops + 1)),
        ) as decoys:
            self.populations.append(await self._first())
            if self.last[0].tool_calls:
                return await elected(self.last, self.chat, self.ctx)
            await self._evolve(decoys)
        sizes = [len(population) for population in self.populations]
        self.ctx.trace.note("rsa", loops=len(sizes) - 1, populations=sizes)
        solution = self._shown(await self._elected())
        return answer_from(self.chat, solution, self.llm, self.ctx)

    async def _evolve(self, decoys: Decoys) -> None:
        """Merge in loops, the first of which measures the judge and stays unused if it is none."""
        loops, n = self.params.loops, self.params.n
        for left in range(loops, 0, -1):
            if len(self.last) == 1:
                return
            ratings = ratings_to_measure(n, decoys.planned)
            if await self._is_settled():
                self.ctx.trace.save(left * n + ratings)
                return
            self.ctx.progress(f"merging solutions, loop {loops - left + 1} of {loops}")
            async with self._measuring(decoys, left) as is_untrusted:
                merged = await self._merged(left)
                if await is_untrusted():
                    self.ctx.trace.save((left - 1) * n)
                    return
            if not merged:
                return
            self.populations.append(merged)
            decoys = NO_DECOYS

    def _measuring(
        self, decoys: Decoys, left: int
    ) -> AbstractAsyncContextManager[Callable[[], Awaitable[bool]]]:
        until = self.ctx.within(TIME_FOR_LOOPS / left)
        judge = self.panel[0]
        return measuring(self.last, self.chat, self.llm, judge, self.ctx, decoys, until=until)

    @property
    def last(self) -> list[Completion]:
        return self.populations[-1]

    @property
    def voters(self) -> list[Completion]:
        """The solutions that vote, those of later populations first."""
        voting = self.populations if self.params.vote == "all" else [self.last]
        return contenders([each for group in reversed(voting) for each in group])

    async def _first(self) -> list[Completion]:
        ctx, params = self.ctx, self.params
        aloud = next((llm for llm in self.panel if not ctx.reasons(llm)), self.panel[0])
        sampled = await sample_until_settled(
            self.panel,
            reasoning_aloud(self.chat, aloud, ctx, marked=self._is_marked()),
            Sampling(temperature=params.temperature, purpose="solution"),
            ctx,
            params,
            n=params.n,
            chat=self.chat,
            judged=True,
            until=ctx.within(TIME_FOR_LOOPS / (params.loops + 1)),
        )
        return contenders(sampled)

    async def _is_settled(self) -> bool:
        """Return whether merging is over: the population agrees, or the vote cannot change.

        The solution that leads the vote is the best so far.
        """
        voters = self.voters
        equal = await ballots(voters, self.chat, self.ctx)
        votes = Counter(at for at in equal if at is not None).most_common(1)
        leader, lead = votes[0] if votes else (0, 0)
        self.ctx.offer(self.ctx.bounded(self._shown(voters[leader]), self.llm.facts))
        if equal[: len(self.last)].count(0) == len(self.last):
            return True
        return self.params.vote == "all" and 2 * lead > self.params.n * (self.params.loops + 1)

    async def _merged(self, left: int) -> list[Completion]:
        """Return the next population: without those that call tools, or are cut if others are not.

        It is empty if all merges failed, or were cut although the population before it was not.
        """
        texts = [without_reasoning(solution.text) for solution in self.last]
        requests = merge_requests(
            self.chat, texts, self.ctx.rng, count=self.params.n, size=self.params.subset
        )
        calls = [self._merging(number, request) for number, request in enumerate(requests)]
        ended = await outcomes(calls, until=self.ctx.within(TIME_FOR_LOOPS / left))
        written = [
            reply for reply in ended if not isinstance(reply, SampleError) and not reply.tool_calls
        ]
        whole = [reply for reply in written if not reply.truncated]
        kept = whole or (written if self.last[0].truncated else [])
        self.ctx.trace.count("merges", lost=len(calls) - len(kept), of=len(calls))
        return kept

    def _merging(self, number: int, request: str) -> Callable[[], Awaitable[Completion]]:
        sampling = Sampling(
            temperature=self.params.temperature,
            purpose="solution",
            sample=len(self.populations) * self.params.n + number,
            fields=self.ctx.no_tool_calls,
        )
        llm = self.panel[number % len(self.panel)]
        return partial(llm.complete, ask(self.chat, f"{request}{self._form()}"), sampling)

    async def _elected(self) -> Completion:
        """Return the winner of the vote, or of that of the last population if nothing can be read.

        Its free texts are the ones among which a model can choose.
        """
        voters = self.voters
        readable = (await count_votes(voters, self.chat, self.ctx)).votes
        return await vote(voters if readable else self.last, self.chat, self.llm, self.ctx)

    def _shown(self, solution: Completion) -> Completion:
        return without_mark(solution) if self._is_marked() else solution

    def _form(self) -> str:
        """Return what is added to requests for solutions."""
        return f"\n\n{MARK_IF_DEFINITE}" if self._is_marked() else ""

    def _is_marked(self) -> bool:
        return needs_mark(self.chat, self.ctx)
