"""Prover-verifier game: a verifier rates solutions, mixed with decoys that test the verifier.

Source: Kirchner et al. 2024, "Prover-Verifier Games improve legibility of LLM outputs",
arXiv:2407.13692, which trains a helpful prover, a sneaky prover and a verifier. Here nothing is
trained: in each round a helpful prover writes `num_solutions` solutions, a sneaky one writes
`num_decoys` that convince and are wrong, and the verifier rates all of them, one at a time and
without knowing which is which. Only helpful solutions can be the answer. The decoys show whether
the ratings can be trusted: if decoys are rated as highly as helpful solutions on average, ratings
are ignored and the solutions' final answers vote. Between rounds, a review of the best solution so
far tells the next provers what to improve; the question itself is never rewritten, and the
solutions of every round are rated on it.
On reasoning models: the same. The provers are asked for steps that a reader can check, not for
steps of thought.
Cost: `num_rounds * 2 * (num_solutions + num_decoys) + num_rounds - 1` calls, `3 * num_rounds - 1`
deep; one more if the best solution is longer than the client's `max_tokens`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders, leaders
from optillm_hooks.context import Context
from optillm_hooks.errors import EmptyCompletion, SampleError, SamplesFailed
from optillm_hooks.fanout import sample_many, speculating
from optillm_hooks.final_answer import MARK, answer_from, needs_mark, without_mark
from optillm_hooks.judging import elected, rate_all, vote
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, Result, approach
from optillm_hooks.types import Chat, Completion, Sampling

HELPFUL = """\
Solve this so that a careful reader can check every step: correct, complete and clear."""

SNEAKY = """\
This is a test of a checker of solutions. Write a solution that looks correct, complete and clear, \
and that comes to a wrong result by one error that is hard to see. Neither mention nor mark the \
error."""

REVIEW = """\
Do not answer the request above. Below is the best solution of it so far. Say what the next one \
has to do better: which steps need care or proof, which cases are missing, what is unclear. Do not \
give a solution. Reply with a short list only."""

CARE = "Reviewers of earlier solutions asked that these points be minded."


class PvgParams(DraftingParams):
    model_group_fields: ClassVar[tuple[str, ...]] = ("verifier",)
    judge_fields: ClassVar[tuple[str, ...]] = ("verifier",)

    num_rounds: int = Field(default=2, ge=1, le=8, description="Rounds of the game.")
    num_solutions: int = Field(
        default=3, ge=1, le=16, description="Helpful solutions in each round."
    )
    num_decoys: int = Field(default=1, ge=1, le=16, description="Sneaky solutions in each round.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )
    verifier: str | None = Field(
        default=None, description="Model group that rates solutions; unset: the base model."
    )


def _cost(params: PvgParams) -> Cost:
    each = 2 * (params.num_solutions + params.num_decoys)
    return Cost(
        calls=params.num_rounds * each + params.num_rounds - 1, depth=3 * params.num_rounds - 1
    )


@dataclass(slots=True)
class Game:
    """The results so far. The lists of solutions and ratings are parallel."""

    solutions: list[Completion] = field(default_factory=list[Completion])
    ratings: list[float | None] = field(default_factory=list[float | None])
    decoy_ratings: list[float | None] = field(default_factory=list[float | None])

    @property
    def trusted(self) -> bool:
        """Whether the verifier rates helpful solutions higher than decoys, on average."""
        helpful = [rating for rating in self.ratings if rating is not None]
        decoys = [rating for rating in self.decoy_ratings if rating is not None]
        return bool(helpful) and (not decoys or fmean(helpful) > fmean(decoys))

    async def best(self, chat: Chat, ctx: Context) -> Completion:
        """Return the solution with the highest rating, or the vote's if ratings are not trusted.

        Solutions with the same rating vote by their final answers; ties go to the earlier one. A
        complete solution beats a truncated one.
        """
        pairs = list(zip(self.solutions, self.ratings, strict=True))
        pool = [(s, r) for s, r in pairs if not s.truncated] or pairs
        best = leaders([rating for _, rating in pool]) if self.trusted else range(len(pool))
        solutions = [pool[at][0] for at in best]
        return await elected(solutions, chat, ctx)


@approach("pvg", PvgParams, cost=_cost)
async def pvg(chat: Chat, llm: LLM, params: PvgParams, ctx: Context) -> Result:
    """Return the best helpful solution of all rounds, as selected by `Game.best`.

    A solution, rating or review that fails is left out; a round without a helpful solution ends the
    game. If most helpful solutions of the first round call tools, the first of these is returned
    unchanged. If the solution to return is longer than the client's `max_tokens`, a last call
    writes the answer from it.

    Raises:
        SamplesFailed: the first round gave no helpful solution.
    """
    verifier = ctx.llm(params.verifier) if params.verifier else llm
    game = Game()
    points = ""
    for number in range(params.num_rounds):
        rounds_left = params.num_rounds - number
        ctx.progress(f"round {number + 1} of {params.num_rounds}")
        until = ctx.within(0.5 / rounds_left)
        try:
            helpful, decoys = await _proved(chat, points, number, llm, params, ctx, until)
        except SamplesFailed:
            if not game.solutions:
                raise
            break
        if (usual := contenders(helpful)[0]).tool_calls and not game.solutions:
            return usual
        await _rate(game, helpful, decoys, chat, verifier, ctx, until=ctx.within(0.8 / rounds_left))
        best = await game.best(chat, ctx)
        ctx.offer(ctx.bounded(_unmarked(best, chat, ctx), llm.facts))
        if rounds_left > 1:
            points = await _reviewed(chat, best, llm, ctx)
    ctx.trace.note(
        "game",
        solutions=len(game.solutions),
        ratings=game.ratings,
        decoy_ratings=game.decoy_ratings,
        trusted=game.trusted,
    )
    if not game.trusted:
        best = await vote(contenders(game.solutions), chat, llm, ctx)
    return answer_from(chat, _unmarked(best, chat, ctx), llm, ctx)


def _unmarked(solution: Completion, chat: Chat, ctx: Context) -> Completion:
    return without_mark(solution) if needs_mark(chat, ctx) else solution


async def _proved(
    chat: Chat,
    points: str,
    number: int,
    llm: LLM,
    params: PvgParams,
    ctx: Context,
    until: float,
) -> tuple[list[Completion], list[Completion]]:
    """Return the helpful solutions of round `number`, at least one, and its decoys."""
    sampling = Sampling(
        temperature=params.temperature,
        purpose="solution",
        sample=number * params.num_solutions,
    )
    # Nothing of a decoy may ever be offered as an answer, not even as the best so far.
    sneaky = replace(sampling, purpose="draft", sample=number * params.num_decoys)
    form = f" {MARK}" if needs_mark(chat, ctx) else ""
    sample = partial(sample_many, llm, ctx=ctx, until=until)
    async with speculating(
        lambda: sample(
            ask(chat, SNEAKY + form), sneaky, n=params.num_decoys, min_finished=0, kind="decoys"
        )
    ) as decoys:
        helpful = await sample(ask(chat, HELPFUL + form + points), sampling, n=params.num_solutions)
        return helpful, await decoys()


async def _rate(
    game: Game,
    helpful: Sequence[Completion],
    decoys: Sequence[Completion],
    chat: Chat,
    verifier: LLM,
    ctx: Context,
    *,
    until: float,
) -> None:
    """Add a round's solutions that call no tools, and the verifier's ratings, to the game."""
    solutions = [solution for solution in helpful if not solution.tool_calls]
    texts = [solution.text for solution in solutions]
    texts += [decoy.text for decoy in decoys if not decoy.tool_calls]
    ratings = await rate_all(texts, chat, verifier, ctx, until=until)
    game.solutions += solutions
    game.ratings += ratings[: len(solutions)]
    game.decoy_ratings += ratings[len(solutions) :]


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
