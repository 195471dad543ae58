"""Chain of Code: a program works the answer out, and a model does the steps that cannot run.

Good for: answers that can be checked.
Worth it when: the answer needs exact computation with some steps that only a model can do.
Source: Li et al. 2023, "Chain of Code: Reasoning with a Language Model-Augmented Code Emulator",
arXiv:2312.04474. The model writes a program that may call functions which it does not define. The
interpreter runs it statement by statement. Where a statement fails, the model is shown the values
of the variables and gives the change, as JSON; then the interpreter goes on, also within loops and
functions. Deviations: calls of undefined functions are taken out of their statement, so that the
model gives a value and Python does the rest; a program is not kept waiting for the model, but run
again with the changes known so far; one that cannot be parsed, or that ends by an error of its own,
is repaired; and the last call puts the result into the form that the user asks for.
On reasoning models: the same. The program keeps count where thoughts would lose it.
Cost: 2 calls, 2 deep: the program and the answer. Each simulated statement and each repair adds one
call, one deep.
"""

import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from optillm_hooks.code_execution.reading import stepped_program
from optillm_hooks.code_execution.runner import CodeRunner
from optillm_hooks.code_execution.showing import Ran, ran_program, shortened, show
from optillm_hooks.code_execution.stepping import (
    ANSWER,
    VALUE,
    Effect,
    Missing,
    NotStepped,
    Report,
    Statement,
    Stepped,
    session,
)
from optillm_hooks.context import Context
from optillm_hooks.errors import SampleError, UnusableReply
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.programs import (
    check_runner,
    repair_request,
    run_snippets,
    runner_of,
    spare_calls,
    write_program,
)
from optillm_hooks.prompts import ask
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.services import Services
from optillm_hooks.structured import fill
from optillm_hooks.types import Answer, Chat, Json

WRITE = """\
Do not answer yet. Write a Python program that works out the answer and puts it into a variable \
named answer. Leave to Python what Python does well: arithmetic, counting, dates, logic, loops. \
Where something needs knowledge, judgement or an understanding of language, call a function that \
you do not define, with a telling name, such as is_sarcastic(sentence), and pass it what it needs: \
its value will be given when the program gets there. There can be at most {simulations} such \
calls, so pass a whole list where that will do. {note} Reply with the program in one fenced block \
marked python. If no program can help, reply with the single word NONE."""

SIMULATE = """\
Do not answer the request above. A program that works out its answer (part 1) has come to \
something that Python cannot run (part 2). Part 3 has the values of the variables."""

OF_STATEMENT = """\
Do what the statement in part 2 means, this once, and give each variable that it changes, with its \
new value. Change nothing else."""

OF_VALUE = f"""\
Work out the value of the expression in part 2, as it is meant, with the values in part 3. Give it \
as the only change, under the name {VALUE}."""

INTRODUCTION = """\
To help you, a Python program (part 1) was run, with the result in part 2. Part 3 says what a \
model has put in where Python could not run the program."""

FINISH = """\
Rely on what Python has computed, as far as the program does what it should, and check what the \
model has put in. If the program failed, answer as well as you can without it. Now answer the \
request in the form that it asks for."""

_MAX_EFFECT: Final = 20_000
"""Maximum characters of the new values of one statement."""


class CocParams(DraftingParams):
    simulations: int = Field(
        default=8, ge=0, le=64, description="Maximum statements that the model simulates."
    )
    repairs: int = Field(
        default=1, ge=0, le=5, description="Maximum repairs of a failing program by the model."
    )

    def check_services(self, services: Services) -> None:
        check_runner("coc", services)


def _as_json(value: Any) -> Any:
    return value if isinstance(value, str) else json.dumps(value)


class Change(BaseModel):
    name: str = Field(description="The name of the variable.")
    value: Annotated[str, BeforeValidator(_as_json)] = Field(
        description='Its new value as JSON, for example 3, true, "text" or [1, 2].'
    )


class Changes(BaseModel):
    changes: list[Change] = Field(description="The variables that change.")


@dataclass(slots=True)
class _Chain:
    """A program, and how far it has come."""

    program: str
    effects: list[Effect] = field(default_factory=list[Effect])
    simulated: list[str] = field(default_factory=list[str])
    """What the model was asked and has given."""

    stopped: bool = False
    """Whether it could not be run to its end: its variables have values that are not final."""

    ran: Ran | None = None
    answer: str | None = None

    @property
    def result(self) -> str:
        """What a program that was run to its end has put into `answer`, or else printed."""
        if self.ran is None or self.stopped:
            return ""
        return self.answer or ("" if self.ran.error else self.ran.output.rstrip("\n"))

    @property
    def parts(self) -> list[str]:
        """The program, its result and what was simulated, as data for a model."""
        ran = self.ran or Ran(self.program, "")
        program, result = ran.parts
        if self.answer is not None:
            result = f"{ANSWER} = {shortened(self.answer)}\n\n{result}"
        return [program, result, shortened("\n".join(self.simulated)) or "Nothing."]


@approach("coc", CocParams, cost=lambda _: Cost(calls=2, depth=2), needs=["code"])
async def coc(chat: Chat, llm: LLM, params: CocParams, ctx: Context) -> FinalCall:
    """Return the call for the answer from the program's result, or without one if there is none.

    There is none if the model sees no use for a program, or if its call or the sandbox fails. If a
    statement cannot be simulated, the last call is told how far the program has come. If that call
    fails, the value of the variable `answer` is the answer, or what the program printed without it.

    Raises:
        Refused: the operator does not allow programs to run.
    """
    runner = runner_of("coc", ctx)
    try:
        chain = await _worked_out(chat, llm, params, ctx, runner)
    except SampleError as exc:
        ctx.trace.note("chain", outcome=exc.code)
        chain = None
    if chain is None or chain.ran is None:
        return FinalCall(chat, fallback=ctx.best)
    ctx.trace.count("program_runs", lost=int(bool(chain.ran.error)), of=1)
    ctx.trace.count("outputs", lost=int(chain.ran.cut), of=1)
    if result := chain.result:
        ctx.offer(ctx.bounded(Answer(result), llm.facts))
    return FinalCall(show(chat, chain.parts, INTRODUCTION, FINISH), fallback=ctx.best)


async def _worked_out(
    chat: Chat, llm: LLM, params: CocParams, ctx: Context, runner: CodeRunner
) -> _Chain | None:
    """Return the last program that was written and what came of it, or None if there is none."""
    chain: _Chain | None = None
    asked = ask(chat, WRITE.format(simulations=params.simulations, note=runner.note))
    for repair in range(params.repairs + 1):
        ctx.progress("repairing the program" if repair else "writing a program")
        try:
            reply, program = await write_program(asked, llm, ctx)
            if program is None:
                ctx.trace.note("chain", outcome="not applicable", repairs=repair)
                return chain
            written = _Chain(program)
            await _run(written, chat, llm, params, ctx, runner)
        except SampleError:
            if chain is None:
                raise
            return chain
        chain = written
        ctx.trace.note("chain", simulated=len(chain.effects), repairs=repair)
        if not (chain.ran and chain.ran.error):
            return chain
        asked = repair_request(asked, reply, chain.parts[1])
    return chain


async def _run(
    chain: _Chain, chat: Chat, llm: LLM, params: CocParams, ctx: Context, runner: CodeRunner
) -> None:
    """Run the program of `chain` to its end, or as far as it can come."""
    try:
        stepped = await stepped_program(chain.program)
    except NotStepped as exc:
        chain.ran = Ran(chain.program, "", error=str(exc))
        return
    while True:
        ctx.progress(f"running the program, {len(chain.effects)} steps done by the model")
        try:
            missing = await _run_once(chain, stepped, ctx, runner)
        except SampleError:
            if chain.ran is None:
                raise
            chain.stopped = True
            return
        if missing is None:
            return
        statement = stepped.statements[missing.statement]
        try:
            if len(chain.effects) == params.simulations:
                raise UnusableReply("the program needs more simulated statements than allowed")
            values = await _simulated(chain.program, statement, missing, chat, llm, ctx)
        except SampleError as exc:
            ctx.trace.count("simulations", lost=1, of=1)
            ctx.trace.note("simulation", outcome=exc.code)
            _stop(chain, statement, missing)
            return
        ctx.trace.count("simulations", lost=0, of=1)
        chain.effects.append(Effect(missing.statement, values))
        chain.simulated.append(f"{statement.text}\n-> {json.dumps(values, ensure_ascii=False)}")


async def _run_once(
    chain: _Chain, stepped: Stepped, ctx: Context, runner: CodeRunner
) -> Missing | None:
    """Run the program with the effects known so far; return the statement that it lacks next."""
    results = await run_snippets(runner, session(stepped, chain.effects), ctx)
    report = _report(results[2].output, stepped) if len(results) > 2 else None
    if report is None:
        chain.ran = ran_program([chain.program], results[1:2])
        return None
    chain.answer = report.answer
    ran = ran_program([chain.program], results[1:2])
    if report.missing is None or report.used != len(chain.effects):
        again = "" if report.missing is None else "it does not do the same each time it is run"
        chain.ran = Ran(ran.program, ran.output, ran.stderr, again or ran.error)
        return None
    chain.ran = Ran(ran.program, ran.output, ran.stderr)
    return report.missing


def _report(output: str, stepped: Stepped) -> Report | None:
    try:
        report = Report.model_validate_json(output)
    except ValidationError:
        return None
    known = report.missing is None or report.missing.statement < len(stepped.statements)
    return report if known else None


def _stop(chain: _Chain, statement: Statement, missing: Missing) -> None:
    """Note that the program ends before its end, at a statement that was not simulated."""
    chain.stopped = True
    values = "\n".join(f"{name} = {value}" for name, value in missing.state.items())
    chain.simulated.append(
        f"Nothing could be put in for {statement.text}, where the program stopped with\n{values}"
    )


async def _simulated(
    program: str, statement: Statement, missing: Missing, chat: Chat, llm: LLM, ctx: Context
) -> dict[str, Json]:
    """Return the new values of variables that a statement changes.

    Raises:
        UnusableReply: the reply has none, or they are too long.
        SampleError: the call failed.
    """
    state = "\n".join(f"{name} = {value}" for name, value in missing.state.items())
    where = f"{statement.text}\n\nPython says: {missing.error}"
    task = OF_VALUE if statement.is_value else OF_STATEMENT
    asked = show(chat, [program, where, state or "None."], SIMULATE, task)
    filled = await fill(Changes, asked, llm, ctx, attempts=min(2, spare_calls(ctx)))
    values = {change.name: _value(change.value) for change in filled.changes}
    if statement.is_value:
        values = {VALUE: _only(values)}
    try:
        size = len(json.dumps(values, allow_nan=False))
    except ValueError as exc:
        raise UnusableReply("a value is not JSON") from exc
    if size > _MAX_EFFECT:
        raise UnusableReply("the values are too long")
    return values


def _value(text: str) -> Json:
    """Return the value that `text` is as JSON, or the text itself if it is none."""
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _only(values: dict[str, Json]) -> Json:
    if VALUE in values:
        return values[VALUE]
    if len(values) == 1:
        return next(iter(values.values()))
    raise UnusableReply("the reply does not say what the value is")
