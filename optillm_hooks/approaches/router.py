"""Router: chooses an approach for the question, by its kind and by whether two samples agree.

A wrapper, which works without any model of its own. It reads what kind of task the last message is
(`optillm_hooks.answers.tasks`), in any of the languages that the readers of answers know:

* A text is asked for: the plain call.
* Code is asked for: `plansearch`, else `bon`.
* A proof is asked for: `bon`.
* One definite answer is asked for: `samples` answers are drawn. If all agree, the first is the
  answer. If they differ, `z3` (for a puzzle with several conditions) or `self_consistency` decides.

Messages that define tools, or end with a tool's result, get the plain call: an agent's steps are
its own. An approach that is not in `approaches`, or whose extra is not installed, is passed over.
The report's note `router` says what was chosen, and why.

Good for: answers that can be compared.
Worth it when: easy and hard questions come mixed: an easy one costs two calls.
Source: OptiLLM's plugin has the idea (a classifier that chooses the approach). The agreement of
samples as a measure of difficulty: Wang et al. 2022, arXiv:2203.11171, section 3.3; Aggarwal et al.
2023, "Let's Sample Step by Step: Adaptive-Consistency for Efficient Reasoning and Coding with
LLMs", arXiv:2305.11860. Deviations: rules and samples instead of a classifier, which has to be
downloaded and cannot tell whether this model finds a question hard.
Models that reason: the same; they are not asked to reason step by step.
Cost: at most `samples` calls, all concurrent, and then those of the dearest approach in
`approaches`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import ClassVar, Final, Literal, Self

from pydantic import Field

from optillm_hooks.answers.tasks import Task, task_of
from optillm_hooks.answers.voting import contenders
from optillm_hooks.context import Context
from optillm_hooks.fanout import sample_many
from optillm_hooks.final_answer import needs_mark, reasoning_aloud, without_mark
from optillm_hooks.judging.voting import count_votes
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import question
from optillm_hooks.reading import read_or
from optillm_hooks.registry import Cost, Params, Rest, Result, get_approach, wrapper
from optillm_hooks.types import Answer, Chat, Sampling

Choice = Literal["bon", "plansearch", "self_consistency", "z3"]

PREFERRED: Final[dict[Task, Sequence[Choice]]] = {
    Task.TEXT: (),
    Task.CODE: ("plansearch", "bon"),
    Task.PROOF: ("bon",),
    Task.PUZZLE: ("z3", "self_consistency", "bon"),
    Task.DEFINITE: ("self_consistency", "bon"),
}
"""The approaches for a kind of task, the best first."""

_COMPARED: Final = (Task.PUZZLE, Task.DEFINITE)
_MODULES: Final = {"z3": "z3"}
"""Modules of extras that approaches need."""

PLAIN: Final = "none"


class RouterParams(Params):
    approaches: tuple[Choice, ...] = Field(
        default=("plansearch", "z3", "self_consistency", "bon"),
        max_length=4,
        description="Approaches to choose from, besides the plain call.",
    )
    samples: int = Field(
        default=2, ge=2, le=8, description="Answers that have to agree for no more to be done."
    )
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Samples must differ, so 0 is not allowed."
    )
    width: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Most samples of the chosen approach; unset: as many as its default.",
    )
    samples_field: ClassVar[str] = "samples"

    def narrowed(self, width: int) -> Self:
        fewer = super().narrowed(width)
        least = width if self.width is None else min(self.width, width)
        made = fewer.model_copy(update={"width": least})
        narrower = any(made.params_of(name) != self.params_of(name) for name in self.approaches)
        return made if narrower else fewer

    def params_of(self, name: str) -> Params:
        """Return the parameters with which the approach `name` runs."""
        params = get_approach(name).params()
        return params if self.width is None else params.narrowed(self.width)


def _cost(params: RouterParams) -> Cost:
    """Return the cost of the dearest way; the plain call at its end is counted elsewhere."""
    costs = [get_approach(name).cost(params.params_of(name)) for name in params.approaches]
    costs = costs or [Cost(0, 0)]
    return Cost(
        calls=params.samples + max(0, max(cost.calls for cost in costs) - 1),
        depth=max(1, *(cost.depth for cost in costs)),
    )


@wrapper("router", RouterParams, cost=_cost, needs=("code", "solver"))
async def router(chat: Chat, rest: Rest, llm: LLM, params: RouterParams, ctx: Context) -> Result:
    """Return the result of the approach that suits the question, or the sample that all agree on.

    Stages after this one run behind the chosen approach. If it fails, the first sample is the
    answer, as far as samples were drawn.

    Raises:
        SamplesFailed: samples were needed, and none finished.
    """
    task = await _task(chat, ctx)
    if task not in _COMPARED:
        name = _choose(task, params)
        _note(ctx, task, name, "kind")
        return await _led_by(name, rest, params, ctx)(chat)
    marked = needs_mark(chat, ctx)
    asked = reasoning_aloud(chat, llm, ctx, marked=marked)
    sampling = Sampling(temperature=params.temperature)
    candidates = contenders(await sample_many(llm, asked, sampling, ctx, n=params.samples))
    tally = await count_votes(candidates, chat, ctx)
    votes = list(tally.votes.values())
    first: Answer = candidates[tally.winner]
    if marked:
        first = without_mark(first)
    if first.tool_calls or max(votes, default=0) == params.samples:
        _note(ctx, task, PLAIN, "samples_agree")
        return first
    if not votes:
        _note(ctx, task, PLAIN, "nothing_to_compare")
        return first
    name = _choose(task, params)
    _note(ctx, task, name, "samples_differ")
    if name == PLAIN:
        return first
    ctx.offer(first)
    return await _led_by(name, rest, params, ctx)(chat)


async def _task(chat: Chat, ctx: Context) -> Task:
    if ctx.client.fields.get("tools") or not chat or chat[-1].role != "user":
        return Task.TEXT
    return await read_or(Task.TEXT, ctx, task_of, question(chat))


def _choose(task: Task, params: RouterParams) -> str:
    """Return the best approach for a task among those that may and can be used."""
    usable = (
        name
        for name in PREFERRED[task]
        if name in params.approaches and find_spec(_MODULES.get(name, __name__)) is not None
    )
    return next(usable, PLAIN)


def _led_by(name: str, rest: Rest, params: RouterParams, ctx: Context) -> Rest:
    if name == PLAIN:
        return rest
    ctx.progress(f"answering by {name}")
    return rest.behind(name, **params.params_of(name).model_dump(exclude_unset=True))


def _note(ctx: Context, task: Task, chosen: str, reason: str) -> None:
    ctx.trace.note("router", kind=task.value, chosen=chosen, reason=reason)
