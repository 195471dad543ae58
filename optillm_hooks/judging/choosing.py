"""Choices among candidate answers by a judge."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Final, NamedTuple

from optillm_hooks.answers.verdicts import last_part, read_choice
from optillm_hooks.context import Context, MeteredScorer
from optillm_hooks.fanout import finished
from optillm_hooks.judging.scoring import score_all
from optillm_hooks.judging.verdicts import JUDGING, LABEL, Judge, ask_twice, shown
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.reading import read_or
from optillm_hooks.types import Chat, Sampling

BEST: Final = "answers the user's last message best: correct first of all, then complete and clear"
MOST_CONSISTENT: Final = (
    "agrees most with the others: whose conclusions the largest number of them share"
)
"""The criterion of universal self-consistency (Chen et al. 2023, arXiv:2311.17311, section 3)."""


class Chosen(NamedTuple):
    winner: int | None
    """The candidate chosen most often (the first of a tie), or None without a readable verdict."""

    votes: list[int]
    """How often each was chosen."""


async def choose(
    candidates: Sequence[str],
    chat: Chat,
    judge: Judge,
    ctx: Context,
    *,
    criterion: str = BEST,
    orders: int = 1,
    sampling: Sampling = JUDGING,
) -> Chosen:
    """Return the candidate answer to `chat` that the judge chooses by `criterion`.

    The judge is asked `orders` times concurrently: with the candidates in a random order, in its
    reverse, in another random order, and so on. So position bias cancels out. The trace counts the
    votes that were lost. A scorer's choice is what it scores highest, whatever the order and the
    criterion.
    """
    if isinstance(judge, MeteredScorer):
        return await _scored(candidates, chat, judge, ctx, orders)
    plea = f"Name your choice alone: one number from 1 to {len(candidates)}."

    def comparison(number: int, order: Sequence[int]) -> Callable[[], Awaitable[int | None]]:
        prompt = choice_prompt(chat, [candidates[at] for at in order], criterion)

        async def read(text: str) -> int | None:
            place = await read_or(None, ctx, read_choice, last_part(text), len(order))
            return None if place is None else order[place]

        made = replace(sampling, sample=number)  # the orders of two candidates repeat
        return lambda: ask_twice(judge, prompt, made, read, plea)

    made = _orders(len(candidates), orders, ctx.rng)
    calls = [comparison(number, order) for number, order in enumerate(made)]
    choices = await finished(calls)
    ctx.trace.count("votes", lost=choices.count(None), of=len(choices))
    votes = Counter(choice for choice in choices if choice is not None)
    of_each = [votes[at] for at in range(len(candidates))]
    return Chosen(of_each.index(max(of_each)) if votes else None, of_each)


async def _scored(
    candidates: Sequence[str], chat: Chat, scorer: MeteredScorer, ctx: Context, votes: int
) -> Chosen:
    """Return the choice of a scorer, which has all of the votes."""
    ctx.trace.save(max(0, votes - -(-len(candidates) // scorer.facts.max_scored)))
    scores = await score_all(shown(candidates), chat, scorer, ctx)
    known = [(score, -at) for at, score in enumerate(scores) if score is not None]
    if not known:
        return Chosen(None, [0] * len(candidates))
    winner = -max(known)[1]
    return Chosen(winner, [votes * (at == winner) for at in range(len(candidates))])


def _orders(count: int, orders: int, rng: Random) -> list[list[int]]:
    made: list[list[int]] = []
    for number in range(orders):
        made.append(made[-1][::-1] if number % 2 else rng.sample(range(count), count))
    return made


def choice_prompt(chat: Chat, candidates: Sequence[str], criterion: str) -> Chat:
    """Return the request to choose among candidate answers to `chat`; `read_choice` reads it."""
    framed = shown(candidates)
    mark = fence(chat, framed)
    return ask(
        chat,
        f"""\
The conversation ends here; do not continue it. Below are {len(candidates)} answers that were \
given to its last message, in no particular order. {data_notice(LABEL, mark)}

{enclose(framed, LABEL, mark)}

Say which of them {criterion}. Compare what they claim, not their length or tone. You may think \
first. End with a line of its own:
BEST: <number>""",
    )
