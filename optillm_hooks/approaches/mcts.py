"""MCTS: search over solutions and their refinements by UCT, with a judge's ratings as values.

Source: Kocsis and Szepesvári 2006 (UCT), with full solutions as nodes and refinements as moves as
in Zhang et al. 2024, "Accessing GPT-4 level Mathematical Olympiad Solutions via Monte Carlo Tree
Self-refine", arXiv:2406.07394. (The step-level search of Xie et al. 2024, arXiv:2405.00451, which
trains a model, is another method.) Deviations: the root has `branching` independent solutions;
simulations run `parallel` at a time, spread by virtual loss; a rating is one call of a judge,
without the paper's clipping and repeated ratings.
On reasoning models: the same. No prompt tells the model how to think.
Cost: `2 * branching + 2 * depth * simulations` calls, `2 + (depth + 1) * simulations / parallel`
deep.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Final, NamedTuple

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError
from optillm_hooks.fanout import outcomes, sample_many
from optillm_hooks.judging import rate_all
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.search.mcts import MCTS, Trial
from optillm_hooks.search.tree import Node
from optillm_hooks.types import Answer, Chat, Completion, Sampling

REFINE = """\
Below is a draft of an answer to the request above. Check it for what is wrong, unproven or \
missing. Then reply with a complete and better answer to the request. Where the draft is right, \
keep what it says; if nothing is wrong with it, repeat it. Do not mention the draft."""


_BEST_RATING: Final = 10.0


class MctsParams(DraftingParams):
    body_fields: ClassVar[Mapping[str, str]] = {
        "mcts_simulations": "simulations",
        "mcts_exploration": "exploration",
        "mcts_depth": "depth",
    }
    model_group_fields: ClassVar[tuple[str, ...]] = ("judge",)
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)

    simulations: int = Field(
        default=2, ge=1, le=64, description="Number of simulations after the first solutions."
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


Tree = MCTS[Solution | None, int]
"""The root, the question without a solution, has the state None. A move is an attempt's number."""


def _cost(params: MctsParams) -> Cost:
    waves = math.ceil(params.simulations / min(params.parallel, params.branching**2))
    return Cost(
        calls=2 * (params.branching + params.depth * params.simulations),
        depth=2 + (params.depth + 1) * waves,
    )


@approach("mcts", MctsParams, cost=_cost)
async def mcts(chat: Chat, llm: LLM, params: MctsParams, ctx: Context) -> Answer:
    """Return the solution with the highest rating found.

    Ties go to the solution with more visits, then to the one nearer to the root. A complete
    solution beats a truncated one, and one with a rating beats one without. A simulation that fails
    is left out. When time or budget runs out, the search ends with what it has, so more of either
    never gives a solution of lower rating. If most of the first solutions call tools, the first of
    these is returned unchanged.

    Raises:
        SamplesFailed: not even a first solution was written.
    """
    judge = ctx.llm(params.judge) if params.judge else llm
    tree: Tree = MCTS(None, lambda _: range(params.branching), exploration=params.exploration)
    trials = tree.ask_many(params.branching)
    sampling = Sampling(temperature=params.temperature)
    first = await sample_many(llm, chat, sampling, ctx, n=params.branching, until=ctx.within(0.4))
    if (usual := contenders(first)[0]).tool_calls:
        return usual
    chains = [[] if solution.tool_calls else [solution] for solution in first]
    chains += [[]] * (len(trials) - len(chains))
    await _learn(tree, trials, chains, chat, judge, ctx, ctx.within(0.3))
    left = params.simulations
    while left and (trials := tree.ask_many(min(params.parallel, left))):
        share = len(trials) / left
        left -= len(trials)
        ctx.progress(f"simulation {params.simulations - left} of {params.simulations}")
        grow = [partial(_grow, trial, chat, llm, params) for trial in trials]
        grown = await outcomes(grow, until=ctx.within(0.6 * share), enough=0)
        chains = [[] if isinstance(chain, SampleError) else chain for chain in grown]
        planned = params.depth * len(trials)
        ctx.trace.count("refinements", lost=planned - sum(map(len, chains)), of=planned)
        if all(isinstance(chain, BudgetExceeded | DeadlineExceeded) for chain in grown):
            break
        await _learn(tree, trials, chains, chat, judge, ctx, ctx.within(share))
    best, refinements = _best(tree)
    ctx.trace.note(
        "search",
        solutions=sum(1 for _ in tree.root.walk()) - 1,
        simulations=params.simulations - left,
        rating=best.rating,
        refinements=refinements,
    )
    return best.completion


async def _grow(
    trial: Trial[Solution | None, int], chat: Chat, llm: LLM, params: MctsParams
) -> list[Completion]:
    """Return `depth` solutions, each a refinement of the one before; fewer if a call fails.

    Raises:
        SampleError: not even one was written.
    """
    written: list[Completion] = []
    draft = trial.node.state.completion if trial.node.state else None
    # The first solutions have the sample numbers below `branching`.
    sampling = Sampling(temperature=params.temperature, sample=params.branching + trial.move)
    while len(written) < params.depth:
        prompt = _refining(chat, draft) if draft else chat
        try:
            draft = await llm.complete(prompt, sampling)
        except SampleError:
            if not written:
                raise
            break
        if draft.tool_calls:
            break
        written.append(draft)
    return written


def _refining(chat: Chat, draft: Completion) -> Chat:
    text = without_reasoning(draft.text)
    mark = fence(chat, [text])
    shown = enclose([text], "draft", mark)
    return ask(chat, f"{REFINE}\n{data_notice('draft', mark)}\n\n{shown}")


async def _learn(
    tree: Tree,
    trials: Sequence[Trial[Solution | None, int]],
    chains: Sequence[Sequence[Completion]],
    chat: Chat,
    judge: LLM,
    ctx: Context,
    until: float,
) -> None:
    """Rate the solutions of `chains`, one chain for each trial, and tell the tree.

    The value of a trial is its best rating or, without one, the mean value of the trials so far. A
    trial without a solution is dropped.
    """
    texts = [solution.text for chain in chains for solution in chain]
    ratings = iter(await rate_all(texts, chat, judge, ctx, high=_BEST_RATING, until=until))
    for trial, chain in zip(trials, chains, strict=True):
        if not chain:
            tree.drop(trial)
            continue
        solutions = [Solution(completion, next(ratings)) for completion in chain]
        known = [s.rating / _BEST_RATING for s in solutions if s.rating is not None]
        value = max(known, default=tree.root.mean if tree.root.visits else 0.5)
        tree.tell(trial, solutions[0], value, then=[(0, s) for s in solutions[1:]])
    ctx.offer(_best(tree)[0].completion)


def _best(tree: Tree) -> tuple[Solution, int]:
    """Return the solution to answer with, and the number of refinements that led to it."""

    def key(node: Node[Solution | None, int], solution: Solution) -> tuple[float, ...]:
        rating = -1.0 if solution.rating is None else solution.rating
        return (not solution.completion.truncated, rating, node.visits, -len(node.path()))

    solved = [(node, node.state) for node in tree.root.walk() if node.state]
    node, best = max(solved, key=lambda pair: key(*pair))
    return best, len(node.path()) - 2
