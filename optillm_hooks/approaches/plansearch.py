"""PlanSearch: search over plans in natural language, answer from each plan, return the best.

Good for: answers that can be checked.
Worth it when: the request has tests to run, or a judge is good; otherwise a vote or one call is
better.
Source: Wang et al. 2024, "Planning In Natural Language Improves LLM Search For Code Generation",
arXiv:2409.03733. First-order observations; subsets of them of at most `subset_size`; for each
subset, observations of second order and a plan that uses both; an answer by each plan. Deviations:
`leaves` subsets are drawn instead of all; the second-order observations and the plan of a leaf are
one call, so that the answers can still be judged on the same critical path; the paper's second plan
per leaf (made by calling the first one wrong) and its pseudocode step are left out. As in the
paper, the tests in the request select the answer, if the operator allows programs to run; a judge
selects among answers that pass equally many, and where nothing can be run. The prompts ask for an
answer, not for Python: code is not assumed.
On reasoning models: there are no plans, since the model plans by itself. Each answer is written
from its subset of the observations, which is what makes the answers differ.
Cost: `1 + 3 * leaves` calls, 4 deep; no judge calls if tests decide, or if all answers are the
same. Each of `decoys` adds a call beside the search and one beside the ratings.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from random import Random
from typing import ClassVar

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.lists import read_items
from optillm_hooks.answers.voting import contenders, leaders
from optillm_hooks.code_execution.public_tests import PublicTests
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.code_execution.testing import count_passed, find_program, find_tests
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.judging.decoys import decoys_beside
from optillm_hooks.judging.selection import pick
from optillm_hooks.judging.verdicts import judge_of
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence, question
from optillm_hooks.registry import Cost, DraftingParams, JudgedParams, approach
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.types import Answer, Chat, Completion, Sampling

OBSERVE = """\
Do not answer yet. List {count} observations about the request above that would help to answer it \
well: correct, not obvious, and different from one another, such as a property of the problem, a \
case that is easily missed, or a technique that fits. Reply with the numbered list only."""

PLAN = """\
Do not answer yet. Start from the observations below. First derive {derived} new observations that \
follow from them taken together. Then write a plan, step by step and in words, of how to answer \
the request above; name at each step the observations that it rests on. Drop an observation that \
turns out to be wrong. Reply with the new observations and the plan."""

PLAN_FREELY = """\
Do not answer yet. Write a plan, step by step and in words, of how to answer the request above. \
Reply with the plan."""

CONSIDER = """\
Below are observations about the request above. Use those that are right and help. Reply with the \
complete answer to the request only, and do not mention the observations."""

ANSWER = """\
Below is a plan for answering the request above. Follow it where it is right, correct it where it \
is not. Reply with the complete answer to the request only, and do not mention the plan."""


SEARCHING_SHARE = 0.7
"""Share of the remaining time after which missing answers are no longer awaited."""


class PlansearchParams(JudgedParams, DraftingParams):
    model_group_fields: ClassVar[tuple[str, ...]] = ("judge",)
    judge_fields: ClassVar[tuple[str, ...]] = ("judge",)
    scorer_fields: ClassVar[tuple[str, ...]] = ("judge",)
    samples_field: ClassVar[str] = "leaves"

    leaves: int = Field(default=3, ge=1, le=32, description="Plans to make and answers to write.")
    observations: int = Field(default=3, ge=1, le=10, description="First-order observations.")
    derived: int = Field(
        default=2, ge=1, le=6, description="Second-order observations for each plan."
    )
    subset_size: int = Field(
        default=2, ge=1, le=4, description="Maximum first-order observations for one plan."
    )
    temperature: float = Field(
        default=1.0, ge=0, le=2, description="Temperature of observations, plans and answers."
    )
    judge: str | None = Field(
        default=None, description="Model group that rates answers; unset: the base model."
    )


def _cost(params: PlansearchParams) -> Cost:
    if params.leaves == 1:
        return Cost(calls=3, depth=3)
    return Cost(calls=1 + 3 * params.leaves + 2 * params.decoys, depth=4)


@approach("plansearch", PlansearchParams, cost=_cost, needs=["code"])
async def plansearch(chat: Chat, llm: LLM, params: PlansearchParams, ctx: Context) -> Answer:
    """Return the answer that passes most tests; among equals, the one that the ratings select.

    There is one answer for each plan. `choose_by` says how ratings select; answers that are all the
    same are not rated, and without any rating they vote. An observation, plan or answer that fails
    is left out, and so is a truncated answer if there is a complete one. If most answers call
    tools, the first of these is returned unchanged.

    Raises:
        SamplesFailed: no answer was written.
    """
    sampling = Sampling(temperature=params.temperature)
    until = ctx.within(SEARCHING_SHARE)
    number = params.decoys if params.leaves > 1 else 0
    async with decoys_beside(chat, llm, ctx, number, sampling=sampling, until=until) as decoys:
        best = await _found(chat, llm, params, ctx, until)
        if best[0].tool_calls or len(best) == 1:
            return best[0]
        ctx.offer(best[0])
        return await pick(
            best,
            chat,
            llm,
            judge_of(params.judge, llm, ctx),
            ctx,
            choose_by=params.choose_by,
            decoys=decoys,
        )


async def _found(
    chat: Chat, llm: LLM, params: PlansearchParams, ctx: Context, until: float
) -> list[Completion]:
    """Return the answers that pass most tests, or those that call tools."""
    observations = await _observed(chat, llm, params, ctx)
    drawn = draw_subsets(observations, params.leaves, params.subset_size, ctx.rng)
    ctx.progress(f"{len(drawn)} plans from {len(observations)} observations")
    leaves = [
        partial(_leaf, chat, llm, params, ctx, subset, number)
        for number, subset in enumerate(drawn)
    ]
    written = await finished(leaves, until=until)
    whole = [answer for answer in written if not answer.truncated] or written
    ctx.trace.count("answers", lost=len(leaves) - len(whole), of=len(leaves))
    answers = contenders(written)
    if answers[0].tool_calls or len(answers) == 1:
        return answers
    passed = await _passed(answers, chat, ctx)
    ctx.trace.note("plans", observations=len(observations), answers=len(answers), passed=passed)
    best = [answers[at] for at in leaders(passed)]
    needed = len(best) if len(best) > 1 else 0
    ctx.trace.save(len(answers) - needed)
    return best


async def _passed(answers: Sequence[Completion], chat: Chat, ctx: Context) -> list[int | None]:
    """Return for each answer how many of the request's tests its program passes.

    All are None if programs may not be run, or if no tests are found.
    """
    if ctx.services.code_runner is None:
        return [None] * len(answers)
    try:
        tests = await find_tests(question(chat))
    except WorkerFailed:
        ctx.trace.count("readings", lost=1, of=1)
        return [None] * len(answers)
    if not tests:
        return [None] * len(answers)
    ctx.progress(f"running {len(tests)} tests")
    runs = [partial(_passed_by, answer.text, tests, ctx.services.code_runner) for answer in answers]
    ended = await outcomes(runs, until=ctx.deadline)
    lost = sum(isinstance(outcome, SampleError) for outcome in ended)
    ctx.trace.count("test_runs", lost=lost, of=len(ended))
    return [0 if isinstance(outcome, SampleError) else outcome for outcome in ended]


async def _passed_by(text: str, tests: PublicTests, runner: CodeRunner) -> int:
    program = await find_program(text)
    return await count_passed(program, tests, runner) if program else 0


async def _observed(chat: Chat, llm: LLM, params: PlansearchParams, ctx: Context) -> list[str]:
    """Return the first-order observations; none if the call fails or cannot be read."""
    request = OBSERVE.format(count=params.observations)
    sampling = Sampling(temperature=params.temperature, purpose="draft", fields=ctx.no_tool_calls)
    try:
        reply = await llm.complete(ask(chat, request), sampling)
        observations = read_items(without_reasoning(reply.text))[: params.observations]
    except SampleError:
        observations = []
    ctx.trace.count("observations", lost=int(not observations), of=1)
    return observations


def draw_subsets(
    observations: Sequence[str], count: int, max_size: int, rng: Random
) -> list[tuple[str, ...]]:
    """Return `count` subsets of 1 to `max_size` observations, all different if there are enough.

    Without observations, all are empty.
    """
    sizes = range(1, max_size + 1)
    subsets = [subset for size in sizes for subset in combinations(observations, size)] or [()]
    rng.shuffle(subsets)
    return [subsets[number % len(subsets)] for number in range(count)]


async def _leaf(
    chat: Chat,
    llm: LLM,
    params: PlansearchParams,
    ctx: Context,
    subset: Sequence[str],
    number: int,
) -> Completion:
    """Return the answer of leaf `number`, whose plan starts from the observations of `subset`."""
    sampling = Sampling(temperature=params.temperature, sample=number)
    if ctx.reasons(llm):
        return await llm.complete(_considering(chat, subset), sampling)
    planning = ask(chat, PLAN_FREELY)
    if subset:
        mark = fence(chat, subset)
        shown = enclose(subset, "observation", mark)
        request = PLAN.format(derived=params.derived)
        planning = ask(chat, f"{request}\n{data_notice('observation', mark)}\n\n{shown}")
    with ctx.trace.step("plans"):
        plan = await llm.complete(
            planning, replace(sampling, purpose="draft", fields=ctx.no_tool_calls)
        )
    text = without_reasoning(plan.text)
    mark = fence(chat, [text])
    shown = enclose([text], "plan", mark)
    return await llm.complete(
        ask(chat, f"{ANSWER}\n{data_notice('plan', mark)}\n\n{shown}"), sampling
    )


def _considering(chat: Chat, subset: Sequence[str]) -> Chat:
    if not subset:
        return chat
    mark = fence(chat, subset)
    shown = enclose(subset, "observation", mark)
    return ask(chat, f"{CONSIDER}\n{data_notice('observation', mark)}\n\n{shown}")
