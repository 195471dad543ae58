"""Z3: the model formalises the problem, a solver solves it, and the result leads to the answer.

Good for: answers that can be checked.
Worth it when: the task is a puzzle, an optimum or exact algebra.
Source: the division of labour of Ye et al. 2023, "SatLM: Satisfiability-Aided Language Models
Using Declarative Prompting", arXiv:2305.09656, and Pan et al. 2023, "Logic-LM", arXiv:2305.12295
(section 3.3, repair from the solver's message). Instead of programs, which would have to be run,
the model writes SMT-LIB 2, which Z3 parses, or a list of algebraic steps, which a fixed
translator turns into SymPy's terms; both run in a process limited in time and memory. The model
decides in the same call whether a solver helps: if not, its reply is the answer. Where the client
wants a form that a formalisation would not fit (JSON, `stop`, log-probabilities), that is a call of
its own, and the plain answer is requested concurrently.
On reasoning models: the same. Such a model may well solve the problem before it formalises it; what
the solver adds is then a check.
Cost: 2 calls, 2 deep: the formalisation, then the answer from the solver's result. 1 call if no
solver helps; each repair adds one call, one deep; a plain answer in a form of its own adds one.
"""

import asyncio
import re
from importlib.util import find_spec

from pydantic import Field

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.errors import RequestRejected, SampleError, UnusableReply
from optillm_hooks.fanout import speculating
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence, follow_up
from optillm_hooks.registry import Cost, DraftingParams, Result, approach
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.solver.algebra import FUNCTIONS, OPERATIONS
from optillm_hooks.solver.client import (
    Formalisation,
    FormalisationBroken,
    Report,
    attempts_formalisation,
    find_formalisation,
    solve,
)
from optillm_hooks.types import Answer, Chat, Completion, Sampling

_HOW = f"""\
For constraints, logic, schedules, counting or a smallest or largest value, write one fenced block \
marked smt2: an SMT-LIB 2 script for Z3. Declare every unknown with its sort (Int, Real, Bool, \
(_ BitVec n), String, datatypes). Write each fact as (assert (! ... :named what_it_says)). Add \
(minimize ...) or (maximize ...) where the best is asked for. To prove a claim, assert its \
negation. End with (check-sat).

For exact algebra or calculus, write one fenced block marked json: a list of steps like \
{{"operation": "solve", "expressions": ["x^2 + y = 7", "x - y = -1"], "variables": ["x", "y"]}}. \
Operations: {", ".join(OPERATIONS)}. Further fields where they apply: expression, variable, lower, \
upper, point, direction, order, digits, assume ({{"x": "positive"}}). Expressions use + - * / ^ % \
! and = < <= > >= !=, with every multiplication written out; pi, E, I, oo; and \
{", ".join(FUNCTIONS)}."""

FORMALISE = f"""\
Do not answer yet. First decide whether a solver can settle this, or the hard part of it. If it \
can, reply with what the solver needs.

{_HOW}

If neither helps, reply with the single word NONE."""

OR_ANSWER = """\
If neither helps, answer now, as if nothing but the request above had been said."""

FORMALISE_OR_ANSWER = f"""\
First decide whether a solver can settle this, or the hard part of it. If it can, do not answer \
yet: reply with what the solver needs, and you will get its result.

{_HOW}

{OR_ANSWER}"""

SAY_NONE = "If no solver helps after all, reply with the single word NONE."

ANSWER_INSTEAD = "If no solver helps after all, answer the original request now instead."

_NONE = re.compile(r"\bNONE\b")

MIN_S = 0.5
"""With fewer seconds left, starting a solver is not worth it."""


class Z3Params(DraftingParams):
    timeout_s: float = Field(
        default=30, gt=0, le=300, description="Maximum seconds of the solver for one formalisation."
    )
    memory_mb: int = Field(
        default=1024, ge=256, le=16384, description="Maximum memory of the solver, in MiB."
    )
    repairs: int = Field(
        default=1, ge=0, le=3, description="Maximum repairs of the formalisation by the model."
    )
    formal_temperature: float = Field(
        default=0.1,
        ge=0,
        le=2,
        description="Temperature of a formalisation that is a call of its own. Otherwise it is the "
        "client's, because the reply may be the answer.",
    )


Solved = tuple[Formalisation, Report]


def repair_request(asked: Chat, reply: str, message: str, otherwise: str) -> Chat:
    mark = fence(asked, [reply, message])
    request = (
        f"The solver could not use this. {data_notice('message', mark)}\n\n"
        f"{enclose([message], 'message', mark)}\n\n"
        f"Reply with the whole corrected formalisation in one fenced block. {otherwise}"
    )
    return follow_up(asked, reply, request)


def answer_request(chat: Chat, work: Formalisation, report: Report) -> Chat:
    parts = [work.text, report.text]
    mark = fence(chat, parts)
    solver = "Z3" if work.kind == "smtlib" else "SymPy"
    request = (
        f"To help you, the question was put formally (part 1) and given to {solver}, which found "
        f"part 2. {data_notice('part', mark)}\n\n"
        f"{enclose(parts, 'part', mark)}\n\n"
        "The result is exact for the formalisation: sat gives one way to meet all assertions, "
        "unsat shows that there is none, unknown shows nothing. Check that the formalisation says "
        "what the question says, rely on the result as far as it does, and now answer the question "
        "in the form that it asks for."
    )
    return ask(chat, request)


@approach("z3", Z3Params, cost=lambda _: Cost(calls=2, depth=2), needs=["solver"])
async def z3(chat: Chat, llm: LLM, params: Z3Params, ctx: Context) -> Result:
    """Return the answer from the solver's result, or the plain answer if there is no result.

    The plain answer is used if the model sees no use for a solver, if its formalisation is still
    broken after the repairs, or if the solver runs out of time or memory. If the last call fails,
    it is an earlier answer or, without one, what the solver has found.

    Raises:
        RequestRejected: the package z3-solver is not installed.
        SampleError: there is no result, and the plain answer failed.
    """
    if find_spec("z3") is None:
        raise RequestRejected('z3 needs the extra "solver": pip install "optillm-hooks[solver]"')
    if ctx.forms_answers:
        return await _beside_the_plain_answer(chat, llm, params, ctx)
    solved = await _solved(chat, llm, params, ctx, may_answer=True)
    if isinstance(solved, Completion):
        return ctx.bounded(solved, llm.facts)
    if solved is None:
        return FinalCall(chat, fallback=ctx.best)
    result = ctx.bounded(Answer(solved[1].text), llm.facts)
    return FinalCall(answer_request(chat, *solved), fallback=ctx.best or result)


async def _beside_the_plain_answer(
    chat: Chat, llm: LLM, params: Z3Params, ctx: Context
) -> FinalCall | Completion:
    """Return what `z3` does, where a formalisation is a call of its own."""
    async with speculating(lambda: _plain(chat, llm, ctx)) as direct:
        solved = await _solved(chat, llm, params, ctx, may_answer=False)
        if not isinstance(solved, tuple):
            return await direct()
    return FinalCall(answer_request(chat, *solved), fallback=ctx.best)


async def _plain(chat: Chat, llm: LLM, ctx: Context) -> Completion:
    try:
        answer = await llm.complete(chat, Sampling())
    except SampleError:
        ctx.trace.count("plain_answers", lost=1, of=1)
        raise
    ctx.trace.count("plain_answers", lost=0, of=1)
    return answer


async def _solved(
    chat: Chat, llm: LLM, params: Z3Params, ctx: Context, *, may_answer: bool
) -> Solved | Completion | None:
    """Return a formalisation and the solver's report on it, or None if there is no result.

    If the model may answer instead, it can also be the answer.
    """
    try:
        return await _formalised(chat, llm, params, ctx, may_answer)
    except SampleError as exc:
        ctx.trace.note("solver", outcome=exc.code)
        return None


async def _formalised(
    chat: Chat, llm: LLM, params: Z3Params, ctx: Context, may_answer: bool
) -> Solved | Completion | None:
    sampling = Sampling(purpose="draft")
    asked, otherwise = ask(chat, FORMALISE_OR_ANSWER), ANSWER_INSTEAD
    if not may_answer:
        own = params.formal_temperature
        sampling = Sampling(temperature=own, purpose="draft", fields=ctx.no_tool_calls)
        asked, otherwise = ask(chat, FORMALISE), SAY_NONE
    for repair in range(params.repairs + 1):
        ctx.progress("repairing the formalisation" if repair else "formalising the problem")
        with ctx.trace.step("formalisations"):
            reply = await llm.complete(asked, sampling)
            work = None if reply.tool_calls else read_formalisation(reply.text, may_answer)
        if work is None:
            ctx.trace.note("solver", outcome="not applicable", repairs=repair)
            return reply if may_answer else None
        try:
            report = await _report(work, params, ctx, repair)
        except FormalisationBroken as exc:
            ctx.trace.note("solver", outcome="broken", kind=work.kind, repairs=repair)
            ctx.trace.count("solver_runs", lost=1, of=1)
            asked = repair_request(asked, reply.text, str(exc), otherwise)
        else:
            ctx.trace.count("solver_runs", lost=int(report is None), of=1)
            return None if report is None else (work, report)
    return None


def read_formalisation(text: str, may_be_answer: bool = False) -> Formalisation | None:
    """Return the formalisation in a reply, or None if the reply says that no solver helps.

    If the reply may be an answer, it says so by having no formalisation, not even an unreadable
    one, which would be shown to the client as the answer.

    Raises:
        UnusableReply: it is neither.
    """
    said = without_reasoning(text)
    work = find_formalisation(said, may_be_answer=may_be_answer)
    if work is not None:
        return work
    if attempts_formalisation(said) if may_be_answer else not _NONE.search(said):
        raise UnusableReply("the reply has no formalisation")
    return None


async def _report(
    work: Formalisation, params: Z3Params, ctx: Context, repairs: int
) -> Report | None:
    """Return the solver's report, or None if it has too little time or memory.

    Raises:
        FormalisationBroken: the solver cannot read the formalisation.
    """
    left_s = ctx.within(0.5) - asyncio.get_running_loop().time()
    if left_s < MIN_S:
        ctx.trace.note("solver", outcome="no time left", repairs=repairs)
        return None
    ctx.progress("running the solver")
    try:
        report = await solve(
            work, seconds=min(params.timeout_s, left_s), memory_mb=params.memory_mb
        )
    except WorkerFailed as exc:
        ctx.trace.note("solver", outcome=exc.reason, kind=work.kind, repairs=repairs)
        return None
    ctx.trace.note(
        "solver", outcome="solved", kind=work.kind, repairs=repairs, found=report.statuses
    )
    return report
