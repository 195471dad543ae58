"""Programs within a request: they run in the time that it has left."""

import asyncio
from collections.abc import Sequence
from typing import Final

from optillm_hooks.code_execution.runner import CodeRunner, SnippetResult
from optillm_hooks.context import Context
from optillm_hooks.errors import DeadlineExceeded, SampleError

_SHARE: Final = 0.7
"""Share of the time left that a program may take; the rest is for the answer."""


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
