"""The user's answer from a solution, which has all its working and may be too long to be one."""

from collections.abc import Sequence
from random import Random

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.context import Context
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.types import Chat, Completion

FINAL = """\
Above is a worked solution. Answer the original request from it, in the form the request asks \
for. Do not mention the solution."""


def with_solutions(chat: Chat, solutions: Sequence[Completion], request: str, rng: Random) -> Chat:
    """Return `chat` with `solutions` as data, in random order, and `request`."""
    mark = fence(rng)
    texts = [without_reasoning(solution.text) for solution in solutions]
    rng.shuffle(texts)
    shown = f"{data_notice('solution', mark)}\n\n{enclose(texts, 'solution', mark)}"
    return ask(chat, f"{shown}\n\n{request}")


def answer_from(chat: Chat, solution: Completion, llm: LLM, ctx: Context) -> Completion | FinalCall:
    """Return `solution` as the answer to `chat`, if it is within the client's `max_tokens`.

    Otherwise return the call that answers from it, which falls back on its beginning.
    """
    start = ctx.bounded(solution, llm.facts)
    if start is solution or solution.tool_calls:
        return solution
    ctx.progress("writing the answer")
    return FinalCall(with_solutions(chat, [solution], FINAL, ctx.rng), fallback=start)
