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
    DeadlineExceeded,
    Refused,
    RequestRejected,
    SampleError,
    UnusableReply,
)
from optillm_hooks.prompts import data_notice, enclose, fence, follow_up
from optillm_hooks.services import Services
from optillm_hooks.types import Chat

_SHARE: Final = 0.7
"""Share of the time left that a program may take; the rest is for the answer."""

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


async def written_program(text: str) -> str | None:
    """Return the program in a reply, or None if the reply says that none helps.

    Raises:
        UnusableReply: it is neither.
    """
    program = await find_program(text)
    if program is None and not _NONE.search(without_reasoning(text)):
        raise UnusableReply("the reply has no program")
    return program


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
