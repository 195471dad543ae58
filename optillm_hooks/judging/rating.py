"""Ratings of candidate answers by a judge."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from statistics import fmean

from optillm_hooks.answers.verdicts import last_part, read_rating
from optillm_hooks.context import Context, MeteredScorer
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes
from optillm_hooks.judging.scoring import score_all
from optillm_hooks.judging.verdicts import JUDGING, LABEL, Judge, ask_twice, shown
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.reading import read_or
from optillm_hooks.types import Chat, Sampling


async def rate_all(
    candidates: Sequence[str],
    chat: Chat,
    judge: Judge,
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
    the lost ones. A scorer rates many candidates in one call, and each once.
    """
    if isinstance(judge, MeteredScorer):
        ctx.trace.save(repeats * len(candidates) - -(-len(candidates) // judge.facts.max_scored))
        scores = await score_all(shown(candidates), chat, judge, ctx, until=until)
        return [None if score is None else low + score * (high - low) for score in scores]
    prompts = [_rating_prompt(chat, text, low, high) for text in candidates]
    plea = f"Give the rating alone: one number from {low:g} to {high:g}."

    def rating(prompt: Chat, repeat: int) -> Callable[[], Awaitable[float | None]]:
        async def read(text: str) -> float | None:
            return await read_or(None, ctx, read_rating, last_part(text), low, high)

        made = replace(sampling, sample=repeat)
        return lambda: ask_twice(judge, prompt, made, read, plea)

    ended = await outcomes(
        [rating(prompt, repeat) for prompt in prompts for repeat in range(repeats)], until=until
    )
    ratings = [None if isinstance(outcome, SampleError) else outcome for outcome in ended]
    ctx.trace.count("ratings", lost=ratings.count(None), of=len(ratings))
    of_each = [ratings[at : at + repeats] for at in range(0, len(ratings), repeats)]
    readable = [[rating for rating in some if rating is not None] for some in of_each]
    return [fmean(some) if some else None for some in readable]


def _rating_prompt(chat: Chat, candidate: str, low: float, high: float) -> Chat:
    framed = shown([candidate])
    mark = fence(chat, framed)
    return ask(
        chat,
        f"""\
The conversation ends here; do not continue it. Below is an answer that was given to its last \
message. {data_notice(LABEL, mark)}

{enclose(framed, LABEL, mark)}

Rate that answer from {low:g} (wrong or useless) to {high:g} (could not be better). What counts \
is whether it is correct, then whether it is complete, then whether it is clear. Check what it \
claims instead of trusting its tone. You may think first. End with a line of its own:
RATING: <number>""",
    )
