"""Asks a judge for a verdict, and reads it.

The judge sees the whole conversation, and the candidates as data: between lines that carry a mark
made from them all, so that no candidate can give the judge instructions. If a verdict cannot be
parsed, the judge is asked once more. A second unreadable verdict is ignored: it counts neither as a
zero nor as a vote for the first candidate.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar

from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.context import Context, MeteredScorer
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import follow_up
from optillm_hooks.types import Chat, Completion, Sampling

V = TypeVar("V")

Judge = LLM | MeteredScorer
"""A model that gives its verdict in words, or a reward model or reranker that scores."""


class Writes(Protocol):
    """The part of an `LLM` that a judge needs."""

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion: ...


JUDGING: Final = Sampling(temperature=0.1, purpose="judge")
_AS_IT_IS: Final = Pattern(r"(?!\w)(?!\W*+(?i:except|but|if|unless|no|not)\b)")
"""What follows a word that is said without reservation."""

LABEL: Final = "answer"
"""What candidates are called in the prompts of judges."""


def judge_of(name: str | None, llm: LLM, ctx: Context) -> Judge:
    """Return the judge that a parameter names, or `llm` if it names none."""
    if name is None:
        return llm
    return ctx.scorer(name) or ctx.llm(name)


async def ask_twice(
    judge: Writes,
    prompt: Chat,
    sampling: Sampling,
    read: Callable[[str], Awaitable[V | None]],
    plea: str,
) -> V | None:
    """Return the verdict in the judge's reply, or else in a second reply, or None.

    A truncated reply has not come to its verdict: a number in it may be a quotation.
    """
    try:
        first = await judge.complete(prompt, sampling)
        said = without_reasoning(first.text)
    except (BudgetExceeded, DeadlineExceeded):
        return None
    except SampleError:
        again = prompt
    else:
        verdict = None if first.truncated else await read(said)
        if verdict is not None:
            return verdict
        again = follow_up(prompt, said, plea) if said else prompt
    try:
        second = await judge.complete(again, sampling)
    except SampleError:
        return None
    return None if second.truncated else await read(second.text)


def says(word: str, text: str) -> bool:
    """Return whether a reply says `word`, which it was asked to give in capitals and alone.

    It is the word alone, or begins or ends with a line that begins with the word in capitals.
    With a reservation, as in "EQUIVALENT except for 0", it does not count.
    """
    lines = [line.strip(" \t*_`#>\"'") for line in without_reasoning(text).strip().splitlines()]
    if len(lines) == 1 and lines[0].strip(".!").upper() == word:
        return True
    ends = (*lines[:1], *lines[-1:])
    return any(line.startswith(word) and _AS_IT_IS.match(line[len(word) :]) for line in ends)


def shown(candidates: Sequence[str]) -> list[str]:
    """Return the candidates without their reasoning, which the judge is not to rate."""
    return [without_reasoning(text) or text for text in candidates]
