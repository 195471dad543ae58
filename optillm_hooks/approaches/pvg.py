"""Prover-verifier game: a verifier rates solutions, mixed with decoys that test the verifier.

Good for: a judge that knows better.
Worth it when: nobody knows how good the judge is: decoys show whether to trust it.
Source: Kirchner et al. 2024, "Prover-Verifier Games improve legibility of LLM outputs",
arXiv:2407.13692, which trains a helpful prover, a sneaky prover and a verifier. Here nothing is
trained: in each round a helpful prover writes `num_solutions` solutions, a sneaky one writes
`num_decoys` that convince and are wrong, and the verifier rates all of them, one at a time and
without knowing which is which. Only helpful solutions can be the answer. The decoys show what the
ratings are worth. If helpful solutions are rated no higher than decoys, in this request and the
earlier ones of the same caller, the solutions' final answers vote. Otherwise the answer with the
highest sum of ratings wins, or the solution that is rated highest once the verifier has proved
nearly always right. Between rounds, a review of the best solution so far tells the next provers
what to improve; the question itself is never rewritten, and the solutions of every round are rated
on it. The game ends when all solutions of a round have the same final answer; in the first round
they are not even rated.
On reasoning models: the same. The provers are asked for steps that a reader can check, not for
steps of thought.
Cost: at most `num_rounds * 2 * (num_solutions + num_decoys) + num_rounds - 1` calls and
`3 * num_rounds - 1` deep, by default 25 and 5; `num_solutions + num_decoys` calls if the first
solutions agree. One more if the best solution is longer than the client's `max_tokens`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError, SamplesFailed
from optillm_hooks.fanout import numbers, sample_many
from optillm_hooks.final_answer import MARK, answer_from, needs_mark, without_mark
from optillm_hooks.judging.decoys import (
    UNTRUSTED,
    Trust,
    compare,
    decoys_beside,
    trust_in,
)
from optillm_hooks.judging.rating import rate_all
from optillm_hooks.judging.selection import agree, alike, rated_best
from optillm_hooks.judging.verdicts import judge_of
from optillm_hooks.judging.voting import ballots, elected, vote
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import (
    ChooseBy,
    ChoosingParams,
    Cost,
    DraftingParams,
    Result,
    approach,
)
from optillm_hooks.types import Chat, Completion, Sampling

HELPFUL = """\
Solve this so that a careful reader can check every step: correct, complete and clear."""

REVIEW = """\
Do not answer the request above. Below is the best solution of it so far. Say what the next one \
has to do better: which steps need care or proof, which cases are missing, what is unclear. Do not \
give a solution. Reply with a short list only."""

CARE = "Reviewers of earlier solutions asked that these points be minded."


class PvgParams(ChoosingParams, DraftingParams):
    model_group_fields: ClassVar[tuple[str, ...]] = ("verifier",)
    judge_fields: ClassVar[tuple[str, ...]] = ("verifier",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("verifier",)
    samples_field: ClassVar[str] = "num_solutions"

    num_rounds: int = Field(default=2, ge=1, le=8, description="Maximum rounds of the game.")
    num_solutions: int = Field(
        default=4, ge=1, le=16, description="Helpful solutions in each round."
    )
    num_decoys: int = Field(default=2, ge=1, le=16, description="Sneaky solutions in each round.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )
    verifier: str | None = Field(
        default=None, description="Model group that rates solutions; unset: the base model."
    )

    def calls_of(self, rounds: int) -> int:
        """Return the calls of as many rounds, without the reviews before them."""
        return rounds * 2 * (self.num_solutions + self.num_decoys)


def _cost(params: PvgParams) -> Cost:
    rounds = params.num_rounds
    return Cost(calls=params.calls_of(rounds) + rounds - 1, depth=3 * rounds - 1)


@dataclass(slots=True)
class Game:
    """The solutions so far and their ratings, parallel lists, and what the decoys have shown."""

    solutions: list[Completion] = field(default_factory=list[Completion])
    ratings: list[float | None] = field(default_factory=list[float | None])
    trust: Trust = "unmeasured"

    async def best(self, chat: Chat, choose_by: ChooseBy, ctx: Context) -> Completion | None:
        """Return the solution that the ratings select, or None if they are not to decide.

        A complete solution beats a truncated one.
        """
        pairs = list(zip(self.solutions, self.ratings, strict=True))
        pool = [(s, r) for s, r in pairs if not s.truncated] or pairs
        solutions, ratings = [s for s, _ in pool], [r for _, r in pool]
        if self.trust == "chance" or not any(rating is not None for rating in ratings):
            return None
        equal = await ballots(solutions, chat, ctx)
        return await rated_best(
            solutions, ratings, equal, chat, ctx, choose_by=choose_by, trust=self.trust
        )


@approach("pvg", PvgParams, cost=_cost)
async def pvg(chat: Chat, llm: LLM, params: PvgParams, ctx: Context) -> Result:
    """Return the best helpful solution of all rounds, by `Game.best` or by a vote.

    A solution, rating or review that fails is left out; a round without a helpful solution ends the
    game. If most helpful solutions of the first round call tools, the first of these is returned
    unchanged. If the solution to return is longer than the client's `max_tokens`, a last call
    writes the answer from it.

    Raises:
        SamplesFailed: the first round gave no helpful solution.
    """
    game = Game()
    points = ""
    for number in range(params.num_rounds):
        ctx.progress(f"round {number + 1} of {params.num_rounds}")
        try:
            settled = await _play(game, number, points, chat, llm, params, ctx)
        except SamplesFailed:
            if not game.solutions:
                raise
            break
        left = params.num_rounds - number - 1
        best = await game.best(chat, params.choose_by, ctx)
        so_far = best or await elected(contenders(game.solutions), chat, ctx)
        if so_far.tool_calls:
            return so_far
        ctx.offer(ctx.bounded(_unmarked(so_far, chat, ctx), llm.facts))
        if settled:
            ctx.trace.save(params.calls_of(left) + left)
            break
        if left:
            points = await _reviewed(chat, so_far, llm, ctx)
    ctx.trace.note("game", solutions=len(game.solutions), ratings=game.ratings, trust=game.trust)
    if game.trust == "chance":
        ctx.trace.doubt(UNTRUSTED)
    best = best or await vote(contenders(game.solutions), chat, llm, ctx)
    return answer_from(chat, _unmarked(best, chat, ctx), llm, ctx)


def _unmarked(solution: Completion, chat: Chat, ctx: Context) -> Completion:
    return without_mark(solution) if needs_mark(chat, ctx) else solution


async def _play(
    game: Game, number: int, points: str, chat: Chat, llm: LLM, params: PvgParams, ctx: Context
) -> bool:
    """Add the results of round `number` to the game; return whether its solutions agree.

    Solutions that agree in the first round are not rated, and neither are those that call tools
    there: the first of these is then the game's only solution.

    Raises:
        SamplesFailed: there is no helpful solution.
    """
    rounds_left = params.num_rounds - number
    until = ctx.within(0.5 / rounds_left)
    form = f" {MARK}" if needs_mark(chat, ctx) else ""
    sampling = Sampling(
        temperature=params.temperature,
        purpose="solution",
        sample=number * numbers(params.num_solutions),
    )
    sneaky = replace(sampling, sample=number * numbers(params.num_decoys))
    async with decoys_beside(
        chat, llm, ctx, params.num_decoys, sampling=sneaky, form=form, until=until
    ) as decoys:
        helpful = await sample_many(
            llm,
            ask(chat, HELPFUL + form + points),
            sampling,
            ctx,
            n=params.num_solutions,
            until=until,
        )
        usual = contenders(helpful)
        if usual[0].tool_calls and not game.solutions:
            game.solutions, game.ratings = usual[:1], [None]
            return False
        solutions = [solution for solution in helpful if not solution.tool_calls]
        equal = await ballots(solutions, chat, ctx)
        whole = not any(solution.truncated for solution in solutions)
        settled = whole and agree(equal) and len(solutions) == params.num_solutions > 1
        first = not game.solutions
        game.solutions += solutions
        if settled and first:
            game.ratings += [None] * len(solutions)
            ctx.trace.save(params.num_solutions + params.num_decoys)
            return True
        wrong = await alike(await decoys.written(), equal, chat, ctx)
        await _rate(game, solutions, wrong, chat, llm, params, ctx, ctx.within(0.8 / rounds_left))
        return settled


async def _rate(
    game: Game,
    solutions: Sequence[Completion],
    decoys: Sequence[str],
    chat: Chat,
    llm: LLM,
    params: PvgParams,
    ctx: Context,
    until: float,
) -> None:
    """Add the verifier's ratings of a round's solutions, and what those of the decoys show."""
    verifier = judge_of(params.verifier, llm, ctx)
    texts = [*(solution.text for solution in solutions), *decoys]
    rated = await rate_all(texts, chat, verifier, ctx, until=until)
    ratings, of_decoys = rated[: len(solutions)], rated[len(solutions) :]
    game.ratings += ratings
    game.trust = trust_in(verifier.model, llm.model, compare(ratings, of_decoys), ctx)


async def _reviewed(chat: Chat, best: Completion, llm: LLM, ctx: Context) -> str:
    """Return what the prompt of the next round's provers adds: the points of a review."""
    solution = [without_reasoning(best.text)]
    mark = fence(chat, solution)
    shown = enclose(solution, "solution", mark)
    request = f"{REVIEW}\n{data_notice('solution', mark)}\n\n{shown}"
    try:
        with ctx.trace.step("reviews"):
            review = await llm.complete(ask(chat, request), Sampling(purpose="judge"))
            if not (text := without_reasoning(review.text)):
                raise EmptyCompletion
    except SampleError:
        return ""
    mark = fence(chat, [text])
    shown = enclose([text], "points", mark)
    return f"\n\n{CARE} {data_notice('points', mark)}\n\n{shown}"
