"""Self-consistency: sample independent reasoning paths, return the most frequent answer.

Source: Wang et al. 2022, "Self-Consistency Improves Chain of Thought Reasoning in Language
Models", arXiv:2203.11171, section 2 (unweighted majority over final answers); for free text, Chen
et al. 2023, "Universal Self-Consistency for Large Language Model Generation", arXiv:2311.17311,
section 3. Deviations: answers are equal if they are equivalent, not only if the strings are equal;
tool calls and JSON are voted on as such; the model that chooses among free texts sees the paths in
random order.
Cost: `n` calls, all concurrent; the latency is that of the slowest path. If fewer than half of the
paths have a readable answer, as in free text, one more call asks which path agrees most with the
others.
"""

import re
from dataclasses import replace
from typing import Final

from pydantic import Field

from optillm_hooks.answers.extraction import AnswerFormat, without_reasoning
from optillm_hooks.answers.voting import contenders, wants_json
from optillm_hooks.context import Context
from optillm_hooks.fanout import sample_many
from optillm_hooks.judging import vote
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import instruct, question
from optillm_hooks.registry import Cost, DraftingParams, approach
from optillm_hooks.types import Answer, Chat, Sampling

REASON: Final = "Reason step by step."
MARK: Final = """\
If the last message has one definite answer, put it alone on the last line, as:
ANSWER: <answer>"""

_OWN_FORMAT = re.compile(
    r"\banswer\b[*_`\"]*\s*[:\uff1a]\s*\S|\\boxed|####|</?answer>", re.IGNORECASE
)
"""A format in which the client asks for the answer, and in which it is read."""

_MARKED_LINE = re.compile(
    r"(?:\A|\n|(?<=</think>)|(?<=</thinking>))[ \t>*_`#]*ANSWER[ \t*_`]*:[ \t*_`]*\n?"
    r"(?P<value>[^\n]*\S)\s*\Z"
)


class SelfConsistencyParams(DraftingParams):
    n: int = Field(default=5, ge=1, le=64, description="Reasoning paths to sample.")
    temperature: float = Field(
        default=0.7, gt=0, le=2, description="Paths must differ to vote, so 0 is not allowed."
    )
    answer_format: AnswerFormat = Field(
        default="auto", description="How the final answer is read from a path."
    )


@approach(
    "self_consistency", SelfConsistencyParams, cost=lambda params: Cost(calls=params.n, depth=1)
)
async def self_consistency(
    chat: Chat, llm: LLM, params: SelfConsistencyParams, ctx: Context
) -> Answer:
    """Return the first path that reaches the most frequent final answer.

    A path that failed, was truncated while others were not, or has no readable answer does not
    vote. Ties go to the answer that comes first in the order of the calls, so the result does not
    depend on which reply arrives first. If fewer than half of the paths have a readable answer, the
    model is asked which path agrees most with the others; if its choice cannot be read, the first
    path is returned. The line that marks the answer for the vote is not part of the result.

    Raises:
        SamplesFailed: no path finished within the request's deadline and budget.
    """
    marked = _needs_mark(chat, params.answer_format, ctx)
    asked = _instructed(chat, llm, ctx, marked=marked)
    sampling = Sampling(temperature=params.temperature)
    sampled = await sample_many(llm, asked, sampling, ctx, n=params.n)
    ctx.trace.note("samples", asked=params.n, finished=len(sampled))
    winner = await vote(contenders(sampled), chat, llm, ctx, params.answer_format)
    return without_mark(winner) if marked else winner


def _needs_mark(chat: Chat, how: AnswerFormat, ctx: Context) -> bool:
    """Return whether the vote needs a line of its own with the answer."""
    if wants_json(ctx.client) or how not in ("auto", "marked"):
        return False
    system = [m.text for m in chat if m.role in ("system", "developer")]
    return not any(_OWN_FORMAT.search(text) for text in (*system, question(chat)))


def _instructed(chat: Chat, llm: LLM, ctx: Context, *, marked: bool) -> Chat:
    if wants_json(ctx.client):
        return chat
    wanted = [*([] if ctx.reasons(llm) else [REASON]), *([MARK] if marked else [])]
    return instruct(chat, " ".join(wanted)) if wanted else chat


def without_mark(answer: Answer) -> Answer:
    """Return `answer` without the line that `MARK` asks for.

    If the text before it does not contain the value of that line, the value stays.
    """
    found = _MARKED_LINE.search(answer.text)
    if found is None or answer.tool_calls:
        return answer
    before, value = answer.text[: found.start()].rstrip(), _without_emphasis(found["value"])
    shown, core = without_reasoning(before), value.strip("*_`$. ")
    if core and re.search(rf"(?<![\w.,]){re.escape(core)}(?!\w|[.,]\d)", shown):
        return replace(answer, text=before, logprobs=answer.logprobs[: _tokens_in(answer, before)])
    return replace(answer, text=f"{before}\n\n{value}" if shown else before + value, logprobs=())


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
