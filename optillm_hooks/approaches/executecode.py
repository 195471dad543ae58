"""Executecode: run a program, of the request or of the model, and answer from its result.

Good for: answers that can be checked.
Worth it when: a short program computes the answer exactly.
Source: OptiLLM's plugin of this name; the method is that of Chen et al. 2022, "Program of Thoughts
Prompting", arXiv:2211.12588, with repairs from the error message as in Chen et al. 2023, "Teaching
Large Language Models to Self-Debug", arXiv:2304.05128. If the last message has Python blocks and
asks in words for them to be run, they are run in one session, as they are. Otherwise the model
writes a program, or says that none helps. The result, also that of a program that failed, is data
for the last call, which gives the answer. Programs run where the operator's `code_runner` says.
On reasoning models: the same. The result is a check of what such a model has computed by itself.
Cost: 2 calls, 2 deep: the program and the answer. 1 call if the request has the program; each
repair adds one call, one deep.
"""

from pydantic import Field

from optillm_hooks.code_execution.reading import programs_to_run
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.code_execution.showing import Ran, ran_program, show
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.programs import (
    check_runner,
    repair_request,
    run_snippets,
    runner_of,
    write_program,
)
from optillm_hooks.prompts import ask, question
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.sandbox.client import WorkerFailed
from optillm_hooks.services import Services
from optillm_hooks.types import Answer, Chat

WRITE = """\
Do not answer yet. First decide whether running a Python program would help: for a calculation, a \
simulation, a check, or because the request asks for code to be run. If so, reply with the one \
complete program to run, in a fenced block marked python. It gets no input, and has to print \
everything that the answer needs. {note} If no program helps, reply with the single word NONE."""

INTRODUCTION = "To help you, a Python program (part 1) was run, with the result in part 2."

ANSWER = """\
Rely on the result as far as the program does what it should; if it failed, say so where it \
matters, and answer as well as you can without it. Now answer the request in the form that it \
asks for."""


class ExecutecodeParams(DraftingParams):
    repairs: int = Field(
        default=1, ge=0, le=5, description="Maximum repairs of a failing program by the model."
    )

    def check_services(self, services: Services) -> None:
        check_runner("executecode", services)


@approach("executecode", ExecutecodeParams, cost=lambda _: Cost(calls=2, depth=2), needs=["code"])
async def executecode(chat: Chat, llm: LLM, params: ExecutecodeParams, ctx: Context) -> FinalCall:
    """Return the call for the answer from a program's result, or without one if there is none.

    There is none if the model sees no use for a program, or if its call or the sandbox fails. Of a
    program that still fails after the repairs, the last call is told the error. If that call fails,
    what the program printed is the answer.

    Raises:
        Refused: the operator does not allow programs to run.
    """
    runner = runner_of("executecode", ctx)
    try:
        ran = await _ran(chat, llm, params, ctx, runner)
    except SampleError as exc:
        ctx.trace.note("program", outcome=exc.code)
        ran = None
    if ran is None:
        return FinalCall(chat, fallback=ctx.best)
    ctx.trace.count("outputs", lost=int(ran.cut), of=1)
    if ran.output:
        ctx.offer(ctx.bounded(Answer(ran.output.rstrip("\n")), llm.facts))
    return FinalCall(show(chat, ran.parts, INTRODUCTION, ANSWER), fallback=ctx.best)


async def _ran(
    chat: Chat, llm: LLM, params: ExecutecodeParams, ctx: Context, runner: CodeRunner
) -> Ran | None:
    """Return what came of the program, or None if there is none."""
    if snippets := await _given(chat, ctx):
        ctx.progress("running the program of the request")
        given = ran_program(snippets, await run_snippets(runner, snippets, ctx))
        ctx.trace.note("program", outcome=_outcome(given), of="request", snippets=len(snippets))
        return given
    ran = await _own(chat, llm, params, ctx, runner)
    if ran is not None:
        ctx.trace.count("program_runs", lost=int(bool(ran.error)), of=1)
    return ran


async def _own(
    chat: Chat, llm: LLM, params: ExecutecodeParams, ctx: Context, runner: CodeRunner
) -> Ran | None:
    """Return what came of the last program that the model wrote, or None if it wrote none.

    Raises:
        SampleError: there is none because a call or the sandbox failed.
    """
    ran: Ran | None = None
    asked = ask(chat, WRITE.format(note=runner.note))
    for repair in range(params.repairs + 1):
        ctx.progress("repairing the program" if repair else "writing a program")
        try:
            reply, program = await write_program(asked, llm, ctx)
            if program is None:
                ctx.trace.note("program", outcome="not applicable", repairs=repair)
                return ran
            ctx.progress("running the program")
            ran = ran_program([program], await run_snippets(runner, [program], ctx))
        except SampleError:
            if ran is None:
                raise
            return ran
        ctx.trace.note("program", outcome=_outcome(ran), of="model", repairs=repair)
        if not ran.error:
            return ran
        asked = repair_request(asked, reply, ran.parts[1])
    return ran


def _outcome(ran: Ran) -> str:
    return "failed" if ran.error else "ran"


async def _given(chat: Chat, ctx: Context) -> list[str]:
    """Return the programs in the last message, if its user asks for them to be run."""
    if not chat or chat[-1].role != "user":
        return []
    try:
        return await programs_to_run(question(chat))
    except WorkerFailed:
        ctx.trace.count("readings", lost=1, of=1)
        return []
