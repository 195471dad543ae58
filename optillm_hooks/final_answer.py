"""The user's answer from a solution, which has all its working and may be too long to be one."""

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Final, TypeVar

from optillm_hooks.answers.equivalence import classes
from optillm_hooks.answers.extraction import excerpt, extract_answers, without_reasoning
from optillm_hooks.answers.voting import wants_json
from optillm_hooks.context import Context
from optillm_hooks.llm import LLM, FinalCall
from optillm_hooks.prompts import ask, data_notice, enclose, fence, instruct, question
from optillm_hooks.reading import read_or
from optillm_hooks.types import Answer, Chat, Completion

A = TypeVar("A", bound=Answer)

FINAL = """\
Above is a worked solution. Answer the original request from it, in the form the request asks \
for. Do not mention the solution."""

MARK: Final = """\
Put the final answer, if there is one, alone on the last line, as: ANSWER: <answer>"""

MARK_IF_DEFINITE: Final = """\
If the last message has one definite answer, put it alone on the last line, as:
ANSWER: <answer>"""

REASON: Final = "Reason step by step."

_OWN_FORMAT = re.compile(
    r"\banswer\b[*_`\"]*\s*[:\uff1a]\s*\S|\\boxed|####|</?answer>", re.IGNORECASE
)
"""A format in which the client asks for the answer, and in which it is read."""

_MAX_MARKED = 4000
"""Characters at the end of an answer in which the marked line is looked for."""

_MAX_VALUE = 600
"""Maximum length of a marked value that is looked for in the text before it."""

_MAX_SEARCHED = 20_000
"""Characters before the marked line in which its value is looked for."""

_MARKED_LINE = re.compile(
    r"(?:\A|\n|(?<=</think>)|(?<=</thinking>))[ \t>*_`#]*ANSWER[ \t*_`]*+:[ \t*_`]*+\n?"
    r"(?P<value>(?=.*\S)(?:[^\n<]++|<(?!/think))++)(?:\n\s*+)?\Z"
)


def with_solutions(chat: Chat, solutions: Sequence[Completion], request: str, rng: Random) -> Chat:
    """Return `chat` with `solutions` as data, in random order, and `request`."""
    texts = [without_reasoning(solution.text) for solution in solutions]
    rng.shuffle(texts)
    mark = fence(chat, texts)
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


async def final_answers(texts: Sequence[str], chat: Chat, ctx: Context) -> list[str | None]:
    """Return the final answer to `chat` in each text, or None where it has none or is not read."""
    shown = [excerpt(text) for text in texts]
    unread: list[str | None] = [None] * len(texts)
    return await read_or(unread, ctx, extract_answers, shown, question=question(chat))


async def groups(answers: Sequence[str | None], ctx: Context) -> list[int | None]:
    """Return the index of the first equivalent answer for each; None for None, or if not read."""
    unread: list[int | None] = [None] * len(answers)
    return await read_or(unread, ctx, classes, answers)


def needs_mark(chat: Chat, ctx: Context) -> bool:
    """Return whether a line of its own can mark the final answer, for a vote to read it.

    Not if the client asks for a form of its own, which the line would not fit.
    """
    if wants_json(ctx.client):
        return False
    system = [m.text for m in chat if m.role in ("system", "developer")]
    return not any(_OWN_FORMAT.search(text) for text in (*system, question(chat)))


def reasoning_aloud(chat: Chat, llm: LLM, ctx: Context, *, marked: bool) -> Chat:
    """Return `chat` with the request to reason step by step, unless the model does so by itself.

    If `marked`, also with the request to mark the answer. A client that wants JSON gets neither.
    """
    if wants_json(ctx.client):
        return chat
    wanted = [*([] if ctx.reasons(llm) else [REASON]), *([MARK_IF_DEFINITE] if marked else [])]
    return instruct(chat, " ".join(wanted)) if wanted else chat


def without_mark(answer: A) -> A:
    """Return `answer` without the last line that marks its final answer.

    If the text before it does not contain the value of that line, the value stays.
    """
    found = _MARKED_LINE.search(answer.text, max(0, len(answer.text) - _MAX_MARKED))
    if found is None or answer.tool_calls:
        return answer
    before, value = answer.text[: found.start()].rstrip(), _without_emphasis(found["value"])
    shown, core = without_reasoning(before), value.strip("*_`$. ")
    if 0 < len(core) <= _MAX_VALUE and _states(shown, core):
        return replace(answer, text=before, logprobs=answer.logprobs[: _tokens_in(answer, before)])
    return replace(answer, text=f"{before}\n\n{value}" if shown else before + value, logprobs=())


def _states(text: str, value: str) -> bool:
    stated = re.compile(rf"(?<![\w.,]){re.escape(value)}(?!\w|[.,]\d)")
    return stated.search(text, max(0, len(text) - _MAX_SEARCHED)) is not None


def _without_emphasis(text: str) -> str:
    """Return `text` without emphasis that begins before it or ends after it."""
    text = text.strip()
    for mark in ("**", "__", "`"):
        if text.count(mark) % 2:
            text = text.removesuffix(mark).rstrip()
    return text


def _tokens_in(answer: Answer, text: str) -> int:
    """Return how many tokens of `answer` its beginning `text` has."""
    length = 0
    for number, token in enumerate(answer.logprobs):
        length += len(token.token)
        if length > len(text):
            return number
    return len(answer.logprobs)
