"""Programs within a request: written by its model, run in the time left, repaired if they fail."""

import asyncio
import re
from collections.abc import Sequence
from typing import Final

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.code_execution.runner import CodeRunner, SnippetResult
from optillm_hooks.code_execution.testing import find_program
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    Refused,
    RequestRejected,
    SampleError,
    UnusableReply,
)
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import data_notice, enclose, fence, follow_up
from optillm_hooks.services import Services
from optillm_hooks.types import Chat, Sampling

_SHARE: Final = 0.7
"""Share of the time left that a program may take; the rest is for the answer."""

_UNLIMITED: Final = 1 << 20
_NONE: Final = re.compile(r"\bNONE\b")
_MISSING: Final = (
    "{name} runs programs, which the operator has not allowed: set code_runner to monty, "
    "bubblewrap or litellm"
)


def check_runner(name: str, services: Services) -> None:
    """Refuse the approach `name` where programs may not run.

    Raises:
        RequestRejected: the message says what to set.
    """
    if services.code_runner is None:
        raise RequestRejected(_MISSING.format(name=name))


def runner_of(name: str, ctx: Context) -> CodeRunner:
    """Return the code runner of a request for the approach `name`.

    Raises:
        Refused: there is none.
    """
    if ctx.services.code_runner is None:
        raise Refused(_MISSING.format(name=name))
    return ctx.services.code_runner


def spare_calls(ctx: Context) -> int:
    """Return how many calls the request can make before the one for the answer.

    Raises:
        BudgetExceeded: none, because `max_calls` leaves only that one.
    """
    most = ctx.budget.limits.max_calls
    if most is None:
        return _UNLIMITED
    spare = most - ctx.budget.calls_taken - 1
    if spare < 1:
        ctx.budget.stop("max_calls")
        raise BudgetExceeded("the last call is left for the answer")
    return spare


async def run_snippets(
    runner: CodeRunner, snippets: Sequence[str], ctx: Context
) -> Sequence[SnippetResult]:
    """Return the results of `snippets`, as `CodeRunner.run`. The trace counts a run that fails.

    Raises:
        DeadlineExceeded: the request has too little time left.
        SampleError: the sandbox failed.
    """
    scope = asyncio.timeout_at(ctx.within(_SHARE))
    try:
        async with scope:
            return await runner.run(snippets)
    except TimeoutError as exc:
        ctx.trace.count("program_runs", lost=1, of=1)
        if not scope.expired():
            raise
        raise DeadlineExceeded("there is too little time left for the program") from exc
    except SampleError:
        ctx.trace.count("program_runs", lost=1, of=1)
        raise


async def write_program(asked: Chat, llm: LLM, ctx: Context) -> tuple[str, str | None]:
    """Return the model's reply and the program in it; None if the reply says that none helps.

    The trace counts a call that brings neither.

    Raises:
        UnusableReply: it is neither.
        SampleError: the call failed, or it would be the request's last.
    """
    with ctx.trace.step("programs"):
        spare_calls(ctx)
        reply = await llm.complete(asked, Sampling(purpose="draft", fields=ctx.no_tool_calls))
        program = await find_program(reply.text)
        if program is None and not _NONE.search(without_reasoning(reply.text)):
            raise UnusableReply("the reply has no program")
    return reply.text, program


def repair_request(asked: Chat, reply: str, told: str) -> Chat:
    """Return the conversation that asks for a program in place of one that failed.

    Args:
        asked: the conversation that asked for it.
        reply: the reply with the program.
        told: what came of it.
    """
    mark = fence(asked, [reply, told])
    request = (
        f"The program was run and failed. {data_notice('result', mark)}\n\n"
        f"{enclose([told], 'result', mark)}\n\n"
        "Reply with the whole corrected program in one fenced block marked python, or with NONE."
    )
    return follow_up(asked, reply, request)
