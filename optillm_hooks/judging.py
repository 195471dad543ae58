"""LLM as a judge: asks a model to rate answers or to choose among them, and reads its verdicts.

Also the vote over final answers, which asks a model where too few answers can be read.

The judge sees the whole conversation, and the candidates as data: between lines that carry a mark
made from them all, so that no candidate can give the judge instructions. If a verdict cannot be
parsed, the judge is asked once more. A second unreadable verdict is ignored: it counts neither as a
zero nor as a vote for the first candidate.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from statistics import fmean
from typing import Final, NamedTuple, TypeVar

from optillm_hooks.answers.extraction import AnswerFormat, excerpt, without_reasoning
from optillm_hooks.answers.verdicts import last_part, read_choice, read_rating
from optillm_hooks.answers.voting import Tally, elect, majority, majority_call, wants_json
from optillm_hooks.context import Context
from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError
from optillm_hooks.fanout import finished, outcomes
from optillm_hooks.llm import LLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence, follow_up, question
from optillm_hooks.reading import read_or
from optillm_hooks.types import Answer, Chat, Sampling

A = TypeVar("A", bound=Answer)
V = TypeVar("V")

BEST: Final = "answers the user's last message best: correct first of all, then complete and clear"
MOST_CONSISTENT: Final = (
    "agrees most with the others: whose conclusions the largest number of them share"
)
"""The criterion of universal self-consistency (Chen et al. 2023, arXiv:2311.17311, section 3)."""

NO_VOTES: Final = Tally(0, {})
JUDGING: Final = Sampling(temperature=0.1, purpose="judge")
_LABEL = "answer"


class Chosen(NamedTuple):
    winner: int | None
    """The candidate chosen most often (the first of a tie), or None without a readable verdict."""

    votes: list[int]
    """How often each was chosen."""


async def vote(
    candidates: Sequence[A], chat: Chat, llm: LLM, ctx: Context, how: AnswerFormat = "auto"
) -> A:
    """Return the candidate with the most frequent answer; `candidates` are `contenders`.

    Tool calls and JSON vote as such. Texts vote by their final answers, which `how` says where to
    read. If fewer than half of them have one, a text that most of them equal wins; otherwise the
    model is asked once which of them agrees most with the others. If its choice cannot be read,
    the first candidate is returned. The trace counts the votes that were lost.
    """
    as_json, calling = wants_json(ctx.client), bool(candidates[0].tool_calls)
    tally = await count_votes(candidates, chat, ctx, how)
    votes = list(tally.votes.values())
    ctx.trace.note("vote", voters=len(candidates), votes=votes)
    if votes and not calling:
        ctx.trace.count("votes", lost=len(candidates) - sum(votes), of=len(candidates))
    if votes or calling or as_json:
        return candidates[tally.winner]
    texts = [without_reasoning(candidate.text) for candidate in candidates]
    same = await read_or(NO_VOTES, ctx, majority, [excerpt(text) for text in texts])
    if 2 * max(same.votes.values(), default=0) > len(texts):
        return candidates[same.winner]
    ctx.progress("choosing the answer that agrees most with the others")
    ctx.budget.expected_calls += 1
    chosen = await choose(texts, chat, llm, ctx, criterion=MOST_CONSISTENT)
    ctx.trace.note("choice", readable=chosen.winner is not None)
    return candidates[chosen.winner or 0]


async def elected(
    candidates: Sequence[A], chat: Chat, ctx: Context, how: AnswerFormat = "auto"
) -> A:
    """Return the first of `candidates`, which are `contenders`, with the most frequent answer.

    They vote as in `vote`, but without votes the first candidate is returned.
    """
    return candidates[(await count_votes(candidates, chat, ctx, how)).winner]


async def count_votes(
    candidates: Sequence[Answer], chat: Chat, ctx: Context, how: AnswerFormat = "auto"
) -> Tally:
    """Return the vote on tool calls, JSON or final answers; none if these are not read in time."""
    if candidates[0].tool_calls:
        calls = [
            [(call.name, excerpt(call.arguments, as_json=True)) for call in candidate.tool_calls]
            for candidate in candidates
        ]
        return await read_or(NO_VOTES, ctx, majority_call, calls)
    as_json = wants_json(ctx.client)
    whole = as_json or how == "json"
    texts = [excerpt(candidate.text, as_json=whole) for candidate in candidates]
    asked = question(chat)
    return await read_or(NO_VOTES, ctx, elect, texts, how, question=asked, as_json=as_json)


async def rate_all(
    candidates: Sequence[str],
    chat: Chat,
    judge: LLM,
    ctx: Context,
    *,
    repeats: int = 1,
    low: float = 0.0,
    high: float = 10.0,
    sampling: Sampling = JUDGING,
    until: float | None = None,
) -> list[float | None]:
    """Return the rating of each candidate answer to `chat`, None where there is none.

    Each candidate gets `repeats` calls of its own, all run concurrently, and the mean of the
    readable ratings. From `until` on, ratings that are still missing are given up. The trace counts
    the lost ones.
    """
    prompts = [_rating_prompt(chat, text, low, high) for text in candidates]
    plea = f"Give the rating alone: one number from {low:g} to {high:g}."

    def rating(prompt: Chat, repeat: int) -> Callable[[], Awaitable[float | None]]:
        async def read(text: str) -> float | None:
            return await read_or(None, ctx, read_rating, last_part(text), low, high)

        made = replace(sampling, sample=repeat)
        return lambda: _ask_twice(judge, prompt, made, read, plea)

    ended = await outcomes(
        [rating(prompt, repeat) for prompt in prompts for repeat in range(repeats)], until=until
    )
    ratings = [None if isinstance(outcome, SampleError) else outcome for outcome in ended]
    ctx.trace.count("ratings", lost=ratings.count(None), of=len(ratings))
    of_each = [ratings[at : at + repeats] for at in range(0, len(ratings), repeats)]
    readable = [[rating for rating in some if rating is not None] for some in of_each]
    return [fmean(some) if some else None for some in readable]


async def choose(
    candidates: Sequence[str],
    chat: Chat,
    judge: LLM,
    ctx: Context,
    *,
    criterion: str = BEST,
    orders: int = 1,
    sampling: Sampling = JUDGING,
) -> Chosen:
    """Return the candidate answer to `chat` that the judge chooses by `criterion`.

    The judge is asked `orders` times concurrently: with the candidates in a random order, in its
    reverse, in another random order, and so on. So position bias cancels out. The trace counts the
    votes that were lost.
    """
    plea = f"Name your choice alone: one number from 1 to {len(candidates)}."

    def comparison(order: Sequence[int]) -> Callable[[], Awaitable[int | None]]:
        shown = [candidates[at] for at in order]
        prompt = _choice_prompt(chat, shown, criterion)

        async def read(text: str) -> int | None:
            place = await read_or(None, ctx, read_choice, last_part(text), len(order))
            return None if place is None else order[place]

        return lambda: _ask_twice(judge, prompt, sampling, read, plea)

    calls = [comparison(order) for order in _orders(len(candidates), orders, ctx.rng)]
    choices = await finished(calls)
    ctx.trace.count("votes", lost=choices.count(None), of=len(choices))
    votes = Counter(choice for choice in choices if choice is not None)
    of_each = [votes[at] for at in range(len(candidates))]
    return Chosen(of_each.index(max(of_each)) if votes else None, of_each)


def _orders(count: int, orders: int, rng: Random) -> list[list[int]]:
    made: list[list[int]] = []
    for number in range(orders):
        made.append(made[-1][::-1] if number % 2 else rng.sample(range(count), count))
    return made


async def _ask_twice(
    judge: LLM,
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


def _rating_prompt(chat: Chat, candidate: str, low: float, high: float) -> Chat:
    shown = _shown([candidate])
    mark = fence(chat, shown)
    return ask(
        chat,
        f"""\
The conversation ends here; do not continue it. Below is an answer that was given to its last \
message. {data_notice(_LABEL, mark)}

{enclose(shown, _LABEL, mark)}

Rate that answer from {low:g} (wrong or useless) to {high:g} (could not be better). What counts \
is whether it is correct, then whether it is complete, then whether it is clear. Check what it \
claims instead of trusting its tone. You may think first. End with a line of its own:
RATING: <number>""",
    )


def _choice_prompt(chat: Chat, candidates: Sequence[str], criterion: str) -> Chat:
    shown = _shown(candidates)
    mark = fence(chat, shown)
    return ask(
        chat,
        f"""\
The conversation ends here; do not continue it. Below are {len(candidates)} answers that were \
given to its last message, in no particular order. {data_notice(_LABEL, mark)}

{enclose(shown, _LABEL, mark)}

Say which of them {criterion}. Compare what they claim, not their length or tone. You may think \
first. End with a line of its own:
BEST: <number>""",
    )


def _shown(candidates: Sequence[str]) -> list[str]:
    """Return the candidates without their reasoning, which the judge is not to rate."""
    return [without_reasoning(text) or text for text in candidates]
