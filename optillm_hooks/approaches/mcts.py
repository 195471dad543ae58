"""MCTS: search over solutions and their refinements by UCT, with a judge's ratings as values.

Good for: a judge that knows better.
Worth it when: a judge is right in 70 % or more; otherwise a vote is better, sometimes even one
call.
Source: Kocsis and Szepesvári 2006 (UCT), with full solutions as nodes and refinements as moves as
in Zhang et al. 2024, "Accessing GPT-4 level Mathematical Olympiad Solutions via Monte Carlo Tree
Self-refine", arXiv:2406.07394. (The step-level search of Xie et al. 2024, arXiv:2405.00451, which
trains a model, is another method.) The answer is the one with the highest sum of ratings over equal
answers (Li et al. 2023, arXiv:2206.02336). Deviations: the root has `branching` independent
solutions, and the search ends there if they agree; later it ends when the leading answer cannot be
overtaken; the model may say that a solution needs no change, which then counts twice;
simulations run `parallel` at a time, spread by virtual loss; a value is the mean of `ratings`
ratings, without the paper's minimum and clipping.
On reasoning models: the same. No prompt tells the model how to think.
Cost: at most `(1 + ratings) * (branching + depth * simulations)` calls, `2 + (depth + 1) *
simulations / parallel` deep; `branching` calls, 1 deep, if the first solutions agree. Each of
`decoys` adds a call beside the first solutions and one beside their ratings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Final, NamedTuple

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders, wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError
from optillm_hooks.fanout import numbers, outcomes
from optillm_hooks.judging.decoys import UNTRUSTED, Decoys, Trust, compare, decoys_beside, trust_in
from optillm_hooks.judging.rating import rate_all
from optillm_hooks.judging.selection import agree, alike, lead, rated_best
from optillm_hooks.judging.verdicts import Judge, judge_of, says
from optillm_hooks.judging.voting import ballots, elected, vote
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, JudgedParams, SamplerParams, approach
from optillm_hooks.search.mcts import MCTS, Trial
from optillm_hooks.search.tree import Node
from optillm_hooks.types import Answer, Chat, Completion, Sampling
from optillm_hooks.waves import depth_of, panel_of, sample_until_settled, sureness

REFINE = """\
Below is a draft of an answer to the request above. Check it for what is wrong, unproven or \
missing. If something is, reply with a complete and corrected answer to the request. Where the \
draft is right, keep what it says, and do not mention it."""

UNCHANGED = "UNCHANGED"

OR_UNCHANGED = f"If nothing is, reply with the single word {UNCHANGED}."

OR_REPEAT = "If nothing is, repeat the draft."

_BEST_RATING: Final = 10.0


class MctsParams(SamplerParams, JudgedParams, DraftingParams):
    body_fields: ClassVar[Mapping[str, str]] = {
        "mcts_simulations": "simulations",
        "mcts_exploration": "exploration",
        "mcts_depth": "depth",
    }
    model_group_fields: ClassVar[tuple[str, ...]] = ("models", "judge")
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)
    samples_field: ClassVar[str] = "branching"
    width_fields: ClassVar[tuple[str, ...]] = ("simulations",)

    simulations: int = Field(
        default=4, ge=1, le=64, description="Maximum simulations after the first solutions."
    )
    exploration: float = Field(
        default=0.2, ge=0, le=10, description="Weight of exploration (UCT) against ratings."
    )
    depth: int = Field(
        default=1, ge=1, le=8, description="Successive refinements in each simulation."
    )
    branching: int = Field(
        default=3,
        ge=1,
        le=16,
        description="Number of first solutions, and of refinements of each solution.",
    )
    parallel: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Concurrent simulations; with fewer, each uses more earlier results.",
    )
    ratings: int = Field(
        default=1, ge=1, le=16, description="Ratings of each solution; their mean counts."
    )
    temperature: float = Field(
        default=1.0, gt=0, le=2, description="Solutions must differ, so 0 is not allowed."
    )
    judge: str | None = Field(
        default=None, description="Model group that rates solutions; unset: the base model."
    )


class Solution(NamedTuple):
    completion: Completion
    rating: float | None
    """The judge's, from 0 to `_BEST_RATING`; None if it cannot be read."""

    kept: bool = False
    """Whether it is the solution that was to be refined, and needed no change."""


Tree = MCTS[Solution | None, int]
"""The root, the question without a solution, has the state None. A move is an attempt's number."""

_Trial = Trial[Solution | None, int]
_Node = Node[Solution | None, int]


class Chain(NamedTuple):
    """The successive refinements of a simulation."""

    written: list[Completion]
    kept: bool = False
    """Whether it ended because the last one needed no change."""

    @property
    def calls(self) -> int:
        return len(self.written) + self.kept


@dataclass(slots=True)
class _Search:
    """A search in progress: its tree, and what the judge has said."""

    tree: Tree
    chat: Chat
    llm: LLM
    judge: Judge
    params: MctsParams
    ctx: Context
    trust: Trust = "unmeasured"
    best: Completion | None = None
    lead: float = 0.0
    """By how much the sum of the ratings of the best answer exceeds that of any other."""

    rated: dict[str, float | None] = field(default_factory=dict[str, float | None])
    """The rating of each different text."""


def _cost(params: MctsParams) -> Cost:
    waves = math.ceil(params.simulations / min(params.parallel, params.branching**2))
    solutions = params.branching + params.decoys + params.depth * params.simulations
    return Cost(
        calls=(1 + params.ratings) * solutions,
        depth=depth_of(params, params.branching) + 1 + (params.depth + 1) * waves,
    )


@approach("mcts", MctsParams, cost=_cost)
async def mcts(chat: Chat, llm: LLM, params: MctsParams, ctx: Context) -> Answer:
    """Return the solution that the judge's ratings select, as `choose_by` says.

    Ties go to the solution with more visits, then to the one nearer to the root. A complete
    solution beats a truncated one. A simulation that fails is left out. When time or budget runs
    out, the search ends with what it has. Without any rating, and if `decoys` show that the judge
    is no better than chance, the solutions vote. If most of the first solutions call tools, the
    first of these is returned unchanged.

    Raises:
        SamplesFailed: not even a first solution was written.
    """
    sampling = Sampling(temperature=params.temperature)
    panel, until = panel_of(params.models, llm, ctx), ctx.within(0.4)
    tree: Tree = MCTS(None, partial(_moves, params.branching), exploration=params.exploration)
    search = _Search(tree, chat, llm, judge_of(params.judge, llm, ctx), params, ctx)
    count = params.decoys
    async with decoys_beside(chat, llm, ctx, count, sampling=sampling, until=until) as decoys:
        trials = tree.ask_many(params.branching)
        first = await sample_until_settled(
            panel, chat, sampling, ctx, params, n=params.branching, judged=True, until=until
        )
        candidates = contenders(first)
        if candidates[0].tool_calls:
            return candidates[0]
        if await _settled(candidates, search):
            return candidates[0]
        chains = [Chain([] if solution.tool_calls else [solution]) for solution in first]
        chains += [Chain([])] * (len(trials) - len(chains))
        await _learn(search, trials, chains, ctx.within(0.3), decoys)
    left = await _simulate(search)
    if search.trust == "chance":
        ctx.trace.doubt(UNTRUSTED)
        return await vote(_candidates(search), chat, llm, ctx)
    solved = [(node, node.state) for node in _solved(search) if node.state]
    node, best = next(each for each in solved if each[1].completion is search.best)
    ctx.trace.note(
        "search",
        solutions=len(solved),
        simulations=params.simulations - left,
        rating=best.rating,
        refinements=len(node.path()) - 2,
    )
    return best.completion


def _moves(branching: int, node: _Node) -> Sequence[int]:
    """Return the numbers of the attempts from `node`: a kept solution has been refined already."""
    return () if node.state and node.state.kept else range(branching)


async def _settled(candidates: Sequence[Completion], search: _Search) -> bool:
    """Return whether the first solutions agree, and are enough for the confidence asked for."""
    params, ctx = search.params, search.ctx
    if len(candidates) == 1 or sureness(len(candidates), 0) < params.confidence:
        return False
    if not agree(await ballots(candidates, search.chat, ctx)):
        return False
    refinements = params.depth * params.simulations
    rated = params.branching + params.decoys + refinements
    ctx.trace.save(params.ratings * rated + refinements)
    return True


async def _simulate(search: _Search) -> int:
    """Run the simulations, and return how many were not needed or not possible."""
    params, ctx = search.params, search.ctx
    left = params.simulations
    while left and not _is_decided(search, left):
        trials = search.tree.ask_many(min(params.parallel, left))
        if not trials:
            break
        share = len(trials) / left
        left -= len(trials)
        ctx.progress(f"simulation {params.simulations - left} of {params.simulations}")
        begun = params.simulations - left - len(trials)
        grow = [partial(_grow, search, trial, begun + at) for at, trial in enumerate(trials)]
        grown = await outcomes(grow, until=ctx.within(0.6 * share), enough=0)
        chains = [Chain([]) if isinstance(chain, SampleError) else chain for chain in grown]
        _count(chains, params, ctx)
        if all(isinstance(chain, BudgetExceeded | DeadlineExceeded) for chain in grown):
            return left
        await _learn(search, trials, chains, ctx.within(share))
    ctx.trace.save((1 + params.ratings) * params.depth * left)
    return left


def _count(chains: Sequence[Chain], params: MctsParams, ctx: Context) -> None:
    """Count the refinements that were lost, and the calls that were saved."""
    needed = [chain.calls if chain.kept else params.depth for chain in chains]
    lost = sum(needed) - sum(chain.calls for chain in chains)
    ctx.trace.count("refinements", lost=lost, of=sum(needed))
    kept = sum(chain.kept for chain in chains)
    skipped = params.depth * len(chains) - sum(needed)
    ctx.trace.save(params.ratings * kept + (1 + params.ratings) * skipped)


def _is_decided(search: _Search, left: int) -> bool:
    """Return whether further simulations cannot change the answer, or need not be made."""
    params = search.params
    if search.trust == "chance":
        return True
    by_rating = params.choose_by == "rating" or search.trust == "reliable"
    return not by_rating and search.lead > left * params.depth * _BEST_RATING


async def _grow(search: _Search, trial: _Trial, number: int) -> Chain:
    """Return `depth` solutions, each a refinement of the one before; fewer if a call fails.

    Each has a sample number of its own in the search, from the `number` of the simulation: equal
    drafts must not get equal refinements.

    Raises:
        SampleError: not even one was written.
    """
    params, ctx = search.params, search.ctx
    written: list[Completion] = []
    draft = trial.node.state.completion if trial.node.state else None
    first = numbers(params.branching) + number * params.depth
    while len(written) < params.depth:
        prompt = _refining(search.chat, draft, ctx) if draft else search.chat
        try:
            sampling = Sampling(temperature=params.temperature, sample=first + len(written))
            reply = await search.llm.complete(prompt, sampling)
        except SampleError:
            if not written:
                raise
            break
        if reply.tool_calls:
            break
        if draft and says(UNCHANGED, reply.text):
            return Chain(written, kept=True)
        written.append(draft := reply)
    return Chain(written)


def _refining(chat: Chat, draft: Completion, ctx: Context) -> Chat:
    text = without_reasoning(draft.text)
    mark = fence(chat, [text])
    shown = enclose([text], "draft", mark)
    # A single word is no JSON; and what was cut off must not be taken for an answer.
    otherwise = OR_REPEAT if draft.truncated or wants_json(ctx.client) else OR_UNCHANGED
    return ask(chat, f"{REFINE} {otherwise}\n{data_notice('draft', mark)}\n\n{shown}")


async def _learn(
    search: _Search,
    trials: Sequence[_Trial],
    chains: Sequence[Chain],
    until: float,
    decoys: Decoys | None = None,
) -> None:
    """Rate the solutions of `chains`, one chain for each trial, and tell the tree.

    The value of a trial is its best rating or, without one, the mean value of the trials so far. A
    trial without a solution is dropped.
    """
    tree, ctx = search.tree, search.ctx
    await _rate(search, [text.text for chain in chains for text in chain.written], until, decoys)
    for trial, chain in zip(trials, chains, strict=True):
        solutions = [Solution(c, search.rated[c.text.strip()]) for c in chain.written]
        if chain.kept:
            last = solutions[-1] if solutions else trial.node.state
            solutions += [last._replace(kept=True)] if last else []
        if not solutions:
            tree.drop(trial)
            continue
        known = [s.rating / _BEST_RATING for s in solutions if s.rating is not None]
        value = max(known, default=tree.root.mean if tree.root.visits else 0.5)
        tree.tell(trial, solutions[0], value, then=[(0, s) for s in solutions[1:]])
    await _compare(search)
    if search.best:
        ctx.offer(search.best)


async def _rate(
    search: _Search, written: Sequence[str], until: float, decoys: Decoys | None
) -> None:
    """Rate the texts that have not been rated, and measure the judge by the decoys."""
    params, chat, ctx = search.params, search.chat, search.ctx
    texts = [text.strip() for text in written]
    new = [text for text in dict.fromkeys(texts) if text not in search.rated]
    ctx.trace.save(params.ratings * (len(texts) - len(new)))
    sneaky: list[str] = []
    if decoys is not None and decoys.planned:
        equal = await ballots([Completion(text) for text in new], chat, ctx)
        sneaky = await alike(await decoys.written(), equal, chat, ctx)
    rated = await rate_all(
        [*new, *sneaky], chat, search.judge, ctx, repeats=params.ratings, until=until
    )
    search.rated.update(zip(new, rated, strict=False))
    if decoys is not None:
        record = compare(rated[: len(new)], rated[len(new) :])
        search.trust = trust_in(search.judge.model, search.llm.model, record, ctx)


async def _compare(search: _Search) -> None:
    """Set the best solution so far, and the lead of its answer, which is 0 if it is not known."""
    candidates, chat, ctx = _candidates(search), search.chat, search.ctx
    ratings = [search.rated[candidate.text.strip()] for candidate in candidates]
    search.lead = 0.0
    if not any(rating is not None for rating in ratings):
        search.best = await elected(candidates, chat, ctx)
        return
    equal = await ballots(candidates, chat, ctx)
    how, trust = search.params.choose_by, search.trust
    search.best = await rated_best(
        candidates, ratings, equal, chat, ctx, choose_by=how, trust=trust
    )
    if None not in ratings:
        search.lead = lead(equal, ratings)


def _candidates(search: _Search) -> list[Completion]:
    """Return the solutions that are complete, or else all; those with most visits first."""
    solutions = [node.state.completion for node in _solved(search) if node.state]
    return [solution for solution in solutions if not solution.truncated] or solutions


def _solved(search: _Search) -> list[_Node]:
    nodes = [node for node in search.tree.root.walk() if node.state]
    return sorted(nodes, key=lambda node: (-node.visits, len(node.path())))
