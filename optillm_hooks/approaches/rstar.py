"""rStar: tree search over reasoning actions; a discriminator confirms the answer.

Good for: answers that can be compared.
Worth it when: a second model can check the answers of a small one; otherwise a vote is better.
Source: Qi et al. 2024, "Mutual Reasoning Makes Smaller LLMs Stronger Problem-Solvers",
arXiv:2408.06195. A rollout goes down a tree of five actions (one step; the rest of the solution; a
sub-question with its answer; that sub-question again; the question in other words) with the paper's
constraints: re-answering only right after a sub-question, rephrasing only at the root. The value of
a trajectory is the share of all trajectories so far that reach its answer; it is added to every
node of its path. A discriminator completes the first 20 to 80 % of a trajectory; a trajectory is
trusted if both reach the same answer. The answer is the trusted trajectory with the highest value
times share. Deviations: there are 8 rollouts where the paper has 32, and they end as soon as one
answer leads clearly (Aggarwal et al. 2023, arXiv:2305.11860), which is then not checked; the first
rollouts, before which there is no value to search by, run concurrently, later ones `parallel` at a
time, spread by virtual loss; prompts contain no worked examples; the hint is cut between words, not
between steps; by default the discriminator is the same model.
On reasoning models: they would solve the whole problem in each step, so a trajectory is the answer
alone, and there is no tree: it is self-consistency whose answer a discriminator confirms where the
samples disagree. `max_depth`, `candidates`, `c` and `parallel` have no effect.
Cost: at most `(max_depth + 1) * num_rollouts` calls, `max_depth * (1 + (num_rollouts - 3) /
parallel) + 1` deep, 3 rollouts if their answers agree; one more call if the best trajectory's end
is longer than the client's `max_tokens`. On reasoning models at most `2 * num_rollouts`, 3 deep.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from random import Random
from statistics import fmean
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.equivalence import equivalent_pairs
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError, SamplesFailed
from optillm_hooks.fanout import outcomes
from optillm_hooks.final_answer import (
    MARK,
    answer_from,
    final_answers,
    groups,
    needs_mark,
    without_mark,
)
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.reading import read_or
from optillm_hooks.registry import Cost, DraftingParams, Result, approach
from optillm_hooks.search.mcts import MCTS, Trial
from optillm_hooks.search.tree import Node
from optillm_hooks.types import Chat, Completion, Purpose, Sampling
from optillm_hooks.waves import first_wave, sureness


class Action(StrEnum):
    """The paper's A1 to A5."""

    STEP = "one step"
    FINISH = "the rest"
    SUBQUESTION = "sub-question"
    REANSWER = "sub-question again"
    REPHRASE = "other words"


REQUESTS: Mapping[Action, str] = {
    Action.STEP: "Do not answer yet. Write the next single step of reasoning, and only that.",
    Action.FINISH: """\
Answer the request above. Build on what is there so far, if it is right. Reply with the complete \
answer and its reasoning.""",
    Action.SUBQUESTION: """\
Do not answer yet. State the question whose answer would now help most, and answer that question, \
reasoning step by step.""",
    Action.REANSWER: """\
Do not answer yet. Answer the last sub-question of what is there so far once more, from the start \
and step by step, without relying on the answer that was given to it.""",
    Action.REPHRASE: """\
Do not answer yet. State the request above in other words: list every condition that is given, one \
on each line, and then what is asked.""",
}

COMPLETE = """\
Below is the beginning of an answer to the request above; it breaks off. Complete it with all its \
steps."""

SO_FAR = "This is there so far towards an answer to the request above."

HINT = (0.2, 0.8)
"""Smallest and largest share of a trajectory that the discriminator is shown."""


class RstarParams(DraftingParams):
    body_fields: ClassVar[Mapping[str, str]] = {
        "rstar_max_depth": "max_depth",
        "rstar_num_rollouts": "num_rollouts",
        "rstar_c": "c",
    }
    model_group_fields: ClassVar[tuple[str, ...]] = ("discriminator",)
    samples_field: ClassVar[str] = "num_rollouts"

    max_depth: int = Field(
        default=3,
        ge=2,
        le=8,
        description="Maximum actions of a trajectory; the last one finishes it.",
    )
    num_rollouts: int = Field(default=8, ge=1, le=64, description="Maximum number of trajectories.")
    confidence: float = Field(
        default=0.9,
        ge=0.5,
        le=1,
        description="The search ends when the leading answer is the most frequent one with at "
        "least this probability; 1: only after all rollouts.",
    )
    c: float = Field(
        default=1.4, ge=0, le=10, description="Weight of exploration (UCT) against values."
    )
    parallel: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Concurrent rollouts after the first ones; with fewer, each uses more earlier "
        "results.",
    )
    candidates: int = Field(
        default=1, ge=1, le=8, description="Maximum tries of one action from one state."
    )
    temperature: float = Field(default=0.8, ge=0, le=2, description="Temperature of the actions.")
    discriminator: str | None = Field(
        default=None,
        description="Model group that completes trajectories; unset: the base model.",
    )


@dataclass(frozen=True, slots=True)
class Step:
    """An action and the reply to it."""

    action: Action
    completion: Completion


State = Node[Step | None, Action]
"""A node of the tree. The state of the root, before any action, is None."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A path from the root to a complete answer."""

    end: State
    completion: Completion
    answer: str | None
    """The final answer; None if it cannot be read."""

    @property
    def text(self) -> str:
        return "\n\n".join(without_reasoning(step.completion.text) for step in _steps(self.end))

    @property
    def value(self) -> float:
        """The mean value of the nodes on the path."""
        return fmean(node.mean for node in self.end.path()[1:])


def allowed(last: Action | None, actions_left: int, *, reasons: bool = False) -> tuple[Action, ...]:
    """Return the actions that may follow `last` (None at the root), if the model reasons or not."""
    if last is Action.FINISH:
        return ()
    if actions_left == 1 or reasons:
        return (Action.FINISH,)
    always = (Action.STEP, Action.FINISH, Action.SUBQUESTION)
    match last:
        case None:
            return (*always, Action.REPHRASE)
        case Action.SUBQUESTION:
            return (*always, Action.REANSWER)
        case _:
            return always


def planned(
    first: Action, actions_left: int, rng: Random, *, reasons: bool = False
) -> list[Action]:
    """Return the random actions of a rollout that begins with `first`, up to its end."""
    actions = [first]
    while following := allowed(actions[-1], actions_left - len(actions), reasons=reasons):
        actions.append(rng.choice(following))
    return actions


def _cost(params: RstarParams) -> Cost:
    first, later = _concurrent(params, reasons=False)
    waves = 1 + math.ceil((params.num_rollouts - first) / later)
    return Cost(
        calls=(params.max_depth + 1) * params.num_rollouts, depth=params.max_depth * waves + 1
    )


def _fewest(params: RstarParams) -> int:
    """Return the fewest rollouts that can end the search."""
    return first_wave(params.num_rollouts, params.confidence)


def _concurrent(params: RstarParams, *, reasons: bool) -> tuple[int, int]:
    """Return how many rollouts run concurrently, at first and later.

    At first each takes another action from the root, for which no value is needed. If the model
    reasons, there is no tree that values could guide.
    """
    if reasons:
        return _fewest(params), params.num_rollouts
    at_root = len(allowed(None, params.max_depth)) * params.candidates
    return min(_fewest(params), at_root), min(params.parallel, at_root)


@approach("rstar", RstarParams, cost=_cost)
async def rstar(chat: Chat, llm: LLM, params: RstarParams, ctx: Context) -> Result:
    """Return the end of the best trajectory, which is a complete answer to the request.

    A rollout or a check that fails is left out; a trajectory whose answer cannot be read has the
    value 0 and is not checked. Without a trusted trajectory, all are candidates. Ties go to the
    trajectory that was requested first. If one answer leads clearly, nothing is checked. If most
    trajectories end in tool calls, the first of these is returned unchanged. If the end of the best
    trajectory is longer than the client's `max_tokens`, a last call writes the answer from it.

    Raises:
        SamplesFailed: no trajectory was completed.
    """
    reasons, form = ctx.reasons(llm), _form(chat, ctx)
    tree = MCTS[Step | None, Action](
        None, lambda node: _moves(node, params, ctx.rng, reasons), exploration=params.c
    )
    sampling = Sampling(temperature=params.temperature)
    found: list[Trajectory] = []
    left, settled = params.num_rollouts, False
    first, later = _concurrent(params, reasons=reasons)
    while left and not settled:
        trials = tree.ask_many(min(left, later if found else first))
        if not trials:
            break
        done = params.num_rollouts - left
        ctx.progress(f"{done} of {params.num_rollouts} trajectories")
        plans = [_plan(trial, params, ctx.rng, reasons) for trial in trials]
        rollouts = [
            partial(_rollout, trial.node, plan, chat, llm, replace(sampling, sample=number), form)
            for number, (trial, plan) in enumerate(zip(trials, plans, strict=True), start=done)
        ]
        rolled = await outcomes(rollouts, until=ctx.within(0.7 * len(trials) / left))
        left -= len(trials)
        lost = sum(isinstance(steps, SampleError) for steps in rolled)
        ctx.trace.count("rollouts", lost=lost, of=len(rolled))
        found += await _tell(tree, trials, rolled, found, chat, ctx)
        if not found:
            raise SamplesFailed([steps for steps in rolled if isinstance(steps, SampleError)])
        if all(isinstance(steps, BudgetExceeded | DeadlineExceeded) for steps in rolled):
            break
        settled = await _is_settled(found, params, ctx)
    if settled:
        ctx.trace.save(2 * left + len(found))  # the ends and checks of rollouts, and these checks
    if (usual := contenders([trajectory.completion for trajectory in found])[0]).tool_calls:
        return usual
    discriminator = ctx.llm(params.discriminator) if params.discriminator else llm
    best = await _best(found, chat, llm, None if settled else discriminator, ctx)
    return answer_from(chat, _unmarked(best, form), llm, ctx)


async def _is_settled(found: Sequence[Trajectory], params: RstarParams, ctx: Context) -> bool:
    """Return whether one answer leads clearly enough, or all trajectories call tools."""
    if len(found) < _fewest(params):
        return False
    if all(trajectory.completion.tool_calls for trajectory in found):
        return True
    same = await groups([trajectory.answer for trajectory in found], ctx)
    votes = Counter(group for group in same if group is not None).most_common(2)
    lead, second, *_ = [*(count for _, count in votes), 0, 0]
    return params.confidence < 1 and sureness(lead, second) >= params.confidence


def _form(chat: Chat, ctx: Context) -> str:
    """Return the request to mark the final answer, if a line can mark it."""
    return f" {MARK}" if needs_mark(chat, ctx) else ""


def _unmarked(trajectory: Trajectory, form: str) -> Completion:
    return without_mark(trajectory.completion) if form else trajectory.completion


async def _best(
    found: Sequence[Trajectory], chat: Chat, llm: LLM, discriminator: LLM | None, ctx: Context
) -> Trajectory:
    """Return the trusted trajectory with the highest value times share, or the best of all.

    Without a discriminator it is the first one with the most frequent answer.
    """
    answers = [trajectory.answer for trajectory in found]
    ctx.trace.count("votes", lost=answers.count(None), of=len(answers))
    support = await _shares(answers, ctx)
    best, form = support.index(max(support)), _form(chat, ctx)
    trusted: list[int] = []
    if discriminator is not None:
        ctx.offer(ctx.bounded(_unmarked(found[best], form), llm.facts))
        trusted = await _trusted(found, chat, discriminator, ctx)
        candidates = trusted or range(len(found))
        best = max(candidates, key=lambda i: found[i].value * support[i])
    ctx.trace.note("rstar", trajectories=len(found), trusted=len(trusted), support=support[best])
    return found[best]


def _moves(node: State, params: RstarParams, rng: Random, reasons: bool) -> list[Action]:
    """Return the moves from `node`: each allowed action once in random order, then each again.

    If the model reasons, only one action is allowed, and tried in every rollout.
    """
    done = [step.action for step in _steps(node)]
    last = done[-1] if done else None
    actions = allowed(last, params.max_depth - len(done), reasons=reasons)
    tries = params.num_rollouts if reasons else params.candidates
    return [action for _ in range(tries) for action in rng.sample(actions, len(actions))]


def _plan(
    trial: Trial[Step | None, Action], params: RstarParams, rng: Random, reasons: bool
) -> list[Action]:
    actions_left = params.max_depth - len(_steps(trial.node))
    return planned(trial.move, actions_left, rng, reasons=reasons)


async def _shares(answers: Sequence[str | None], ctx: Context) -> list[float]:
    """Return for each answer the share of all answers that are equivalent to it; 0 for None."""
    same = await groups(answers, ctx)
    return [0.0 if group is None else same.count(group) / len(same) for group in same]


def _steps(node: State) -> list[Step]:
    return [passed.state for passed in node.path() if passed.state]


async def _rollout(
    start: State,
    plan: Sequence[Action],
    chat: Chat,
    llm: LLM,
    sampling: Sampling,
    form: str,
) -> list[Step]:
    """Return the steps of a rollout that takes the actions of `plan` from `start`."""
    before = _steps(start)
    steps: list[Step] = []
    for action in plan:
        request = REQUESTS[action] + (form if action is Action.FINISH else "")
        prompt = _acting(chat, request, [*before, *steps])
        purpose: Purpose = "solution" if action is Action.FINISH else "draft"
        completion = await llm.complete(prompt, replace(sampling, purpose=purpose))
        steps.append(Step(action, completion))
    return steps


def _acting(chat: Chat, request: str, steps: Sequence[Step]) -> Chat:
    if not steps:
        return ask(chat, request)
    texts = [without_reasoning(step.completion.text) for step in steps]
    mark = fence(chat, texts)
    notice, shown = data_notice("step", mark), enclose(texts, "step", mark)
    return ask(chat, f"{SO_FAR} {notice}\n\n{shown}\n\n{request}")


async def _tell(
    tree: MCTS[Step | None, Action],
    trials: Sequence[Trial[Step | None, Action]],
    rolled: Sequence[list[Step] | SampleError],
    before: Sequence[Trajectory],
    chat: Chat,
    ctx: Context,
) -> list[Trajectory]:
    """Report the results of the trials to the tree, and return their trajectories.

    The value of a trajectory is the share of all so far, these included, that reach its answer.
    """
    reached = [
        (trial, steps)
        for trial, steps in zip(trials, rolled, strict=True)
        if not isinstance(steps, SampleError)
    ]
    answers = await final_answers([steps[-1].completion.text for _, steps in reached], chat, ctx)
    known = [trajectory.answer for trajectory in before]
    support = (await _shares([*known, *answers], ctx))[len(before) :]
    trajectories: list[Trajectory] = []
    for trial, steps in zip(trials, rolled, strict=True):
        if isinstance(steps, SampleError):
            tree.drop(trial)
    for (trial, steps), answer, value in zip(reached, answers, support, strict=True):
        first, *then = steps
        end = tree.tell(trial, first, value, then=[(step.action, step) for step in then])
        trajectories.append(Trajectory(end, steps[-1].completion, answer))
    return trajectories


async def _trusted(
    found: Sequence[Trajectory], chat: Chat, discriminator: LLM, ctx: Context
) -> list[int]:
    """Return the indices of the trajectories whose answer the discriminator also reaches.

    If all have the same answer, there is nothing to decide, and the discriminator is not asked.
    """
    readable = [i for i, trajectory in enumerate(found) if trajectory.answer is not None]
    answers = [found[i].answer for i in readable]
    unread = [False] * len(answers)
    if all(await read_or(unread, ctx, equivalent_pairs, answers, answers[:1] * len(answers))):
        return readable
    ctx.progress(f"checking {len(readable)} trajectories")
    form = _form(chat, ctx)
    hints = [beginning(found[i].text, ctx.rng.uniform(*HINT)) for i in readable]
    asked = [
        partial(
            discriminator.complete,
            _completing(chat, hint, COMPLETE + form),
            Sampling(purpose="judge"),
        )
        for hint in hints
    ]
    endings = await outcomes(asked, enough=0)
    texts = ["" if isinstance(ending, SampleError) else ending.text for ending in endings]
    reached = await final_answers(texts, chat, ctx)
    same = await read_or(unread, ctx, equivalent_pairs, answers, reached)
    ctx.trace.count("checks", lost=reached.count(None), of=len(reached))
    return [i for i, agrees in zip(readable, same, strict=True) if agrees]


def _completing(chat: Chat, hint: str, request: str) -> Chat:
    mark = fence(chat, [hint])
    shown = enclose([hint], "beginning", mark)
    return ask(chat, f"{request}\n{data_notice('beginning', mark)}\n\n{shown}")


def beginning(text: str, share: float) -> str:
    """Return about the first `share` of `text`, cut after a word."""
    cut = int(share * len(text))
    while cut and not text[cut - 1].isspace():
        cut -= 1
    return text[:cut].rstrip() or text[: int(share * len(text))]
