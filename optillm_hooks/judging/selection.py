"""Choosing among rated candidates: by their ratings, or by ratings and agreement together."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from statistics import fmean
from typing import TypeVar

from optillm_hooks.answers.voting import leaders
from optillm_hooks.context import Context
from optillm_hooks.fanout import speculating
from optillm_hooks.judging.decoys import (
    MIDDLE,
    NO_DECOYS,
    UNTRUSTED,
    Decoys,
    Trust,
    compare,
    trust_in,
)
from optillm_hooks.judging.rating import rate_all
from optillm_hooks.judging.verdicts import Judge
from optillm_hooks.judging.voting import ballots, elected, vote
from optillm_hooks.llm import LLM
from optillm_hooks.registry import ChooseBy
from optillm_hooks.types import Answer, Chat

A = TypeVar("A", bound=Answer)


async def pick(
    candidates: Sequence[A],
    chat: Chat,
    llm: LLM,
    judge: Judge,
    ctx: Context,
    *,
    choose_by: ChooseBy = "auto",
    repeats: int = 1,
    decoys: Decoys = NO_DECOYS,
) -> A:
    """Return one of `candidates`, which are `contenders` without tool calls, by a judge's ratings.

    If all have the same final answer, it is the first, and the judge is not asked. Equal texts are
    rated once. Without any readable rating the candidates vote; see `voting.vote`. They also vote
    if the ratings of `decoys`, see `decoys_beside`, show that the judge is no better than chance.
    """
    if len(candidates) == 1:
        return candidates[0]
    equal = await ballots(candidates, chat, ctx)
    if agree(equal):
        ctx.trace.save(repeats * (len(candidates) + decoys.planned))
        return candidates[0]
    different = list(dict.fromkeys(candidate.text.strip() for candidate in candidates))
    ctx.progress(f"rating {len(different)} candidates")
    rated, trust = await rate_measured(
        different, equal, chat, llm, judge, ctx, decoys, repeats=repeats
    )
    of_text = dict(zip(different, rated, strict=True))
    ratings = [of_text[candidate.text.strip()] for candidate in candidates]
    if trust == "chance" or not any(rating is not None for rating in rated):
        ctx.trace.note("ratings", candidates=len(candidates), ratings=rated)
        return await vote(candidates, chat, llm, ctx)
    best = await rated_best(candidates, ratings, equal, chat, ctx, choose_by=choose_by, trust=trust)
    winner = different.index(best.text.strip())
    ctx.trace.note("ratings", candidates=len(candidates), ratings=rated, winner=winner)
    return best


async def rate_measured(
    texts: Sequence[str],
    equal: Sequence[int | None],
    chat: Chat,
    llm: LLM,
    judge: Judge,
    ctx: Context,
    decoys: Decoys,
    *,
    repeats: int = 1,
    until: float | None = None,
) -> tuple[list[float | None], Trust]:
    """Return the ratings of different `texts`, and what those of `decoys` have shown of the judge.

    If it is no better than chance, it is reported as put aside.

    Args:
        texts: the different texts of the candidates.
        equal: the `ballots` of the candidates.
        chat: the conversation that they answer.
        llm: the model that wrote candidates and decoys.
        judge: what rates them.
        ctx: of the request.
        decoys: see `decoys_beside`.
        repeats: as in `rate_all`.
        until: as in `rate_all`.
    """
    sneaky = await alike(await decoys.written(), equal, chat, ctx)
    rated = await rate_all([*texts, *sneaky], chat, judge, ctx, repeats=repeats, until=until)
    ours, of_decoys = rated[: len(texts)], rated[len(texts) :]
    trust = trust_in(judge.model, llm.model, compare(ours, of_decoys), ctx)
    if trust == "chance":
        ctx.trace.doubt(UNTRUSTED)
    return ours, trust


@asynccontextmanager
async def measuring(
    candidates: Sequence[Answer],
    chat: Chat,
    llm: LLM,
    judge: Judge,
    ctx: Context,
    decoys: Decoys,
    *,
    until: float | None = None,
) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Measure a judge concurrently with the block, in which it does something else than rating.

    The block gets a function that waits for the result, and returns whether the judge is to be put
    aside. For this the judge rates `candidates`, equal texts once, and `decoys`; without decoys it
    rates nothing and is not put aside. What still runs when the block ends is cancelled.
    """
    if not decoys.planned:
        yield _is_unmeasured
        return
    texts = list(dict.fromkeys(candidate.text.strip() for candidate in candidates))

    async def measured() -> Trust:
        equal = await ballots(candidates, chat, ctx)
        ctx.trace.save(len(candidates) - len(texts))
        ratings, trust = await rate_measured(
            texts, equal, chat, llm, judge, ctx, decoys, until=until
        )
        ctx.trace.note("ratings", candidates=len(candidates), ratings=ratings)
        return trust

    async with speculating(measured) as trust:

        async def is_untrusted() -> bool:
            return await trust() == "chance"

        yield is_untrusted


async def _is_unmeasured() -> bool:
    return False


def agree(equal: Sequence[int | None]) -> bool:
    """Return whether all candidates have the same final answer, by their `ballots`."""
    return equal.count(0) == len(equal)


async def alike(
    decoys: Sequence[Answer], equal: Sequence[int | None], chat: Chat, ctx: Context
) -> list[str]:
    """Return the texts of the decoys that have a final answer, as the candidates have.

    A refusal to write a wrong solution has none. Any judge rates it low, so it would prove nothing.
    If fewer than half of the candidates have a final answer, all decoys are alike.
    """
    texts = [decoy.text.strip() for decoy in decoys]
    if not decoys or 2 * equal.count(None) > len(equal):
        return texts
    different = dict(zip(texts, decoys, strict=True))  # equal texts have equal ballots
    answers = await ballots(list(different.values()), chat, ctx)
    answered = {text for text, at in zip(different, answers, strict=True) if at is not None}
    return [text for text in texts if text in answered]


async def rated_best(
    candidates: Sequence[A],
    ratings: Sequence[float | None],
    equal: Sequence[int | None],
    chat: Chat,
    ctx: Context,
    *,
    choose_by: ChooseBy,
    trust: Trust = "unmeasured",
    support: Sequence[float] = (),
) -> A:
    """Return the candidate that ratings, of which at least one is known, select.

    The highest rating decides if `choose_by` says so and the judge is not in doubt, or if the judge
    has proved nearly always right and takes a candidate for right; those that share it vote.
    Otherwise see `by_agreement`.
    """
    highest = max(rating for rating in ratings if rating is not None)
    if (choose_by == "rating" and trust != "unclear") or (
        choose_by == "auto" and trust == "reliable" and highest >= MIDDLE
    ):
        return await elected([candidates[at] for at in leaders(ratings)], chat, ctx)
    return candidates[by_agreement(equal, ratings, support)]


def by_agreement(
    equal: Sequence[int | None],
    ratings: Sequence[float | None],
    support: Sequence[float] = (),
) -> int:
    """Return the index of the best candidate of the answer with the highest sum of ratings.

    Source: the weighted vote of Li et al. 2023, "Making Language Models Better Reasoners with
    Step-Aware Verifier", arXiv:2206.02336, section 2.2. A missing rating counts as the mean of the
    others. Of answers with equal sums the more frequent wins, then one with a rating, then the
    earlier. Of its candidates
    the one rated highest is taken, then the earlier.

    Args:
        equal: see `voting.ballots`. A candidate without a readable answer equals no other.
        ratings: from 0 up, at least one of them known.
        support: what else counts for the answer of each candidate, once for all that give it.
    """
    weights, answers = _weights(ratings), _answers(equal)
    sums, counts = _sums(equal, ratings), Counter(answers)
    for at, extra in enumerate(support):
        if answers[at] == at:
            sums[at] += extra
    rated = {answer for answer, rating in zip(answers, ratings, strict=True) if rating is not None}
    best = max(sums, key=lambda answer: (sums[answer], counts[answer], answer in rated, -answer))
    members = [at for at, answer in enumerate(answers) if answer == best]
    return max(members, key=lambda at: (weights[at], -at))


def lead(equal: Sequence[int | None], ratings: Sequence[float | None]) -> float:
    """Return by how much the highest sum of `by_agreement` exceeds the second highest, or 0."""
    first, second, *_ = [*sorted(_sums(equal, ratings).values(), reverse=True), 0.0]
    return first - second


def _sums(equal: Sequence[int | None], ratings: Sequence[float | None]) -> dict[int, float]:
    sums: dict[int, float] = {}
    for answer, weight in zip(_answers(equal), _weights(ratings), strict=True):
        sums[answer] = sums.get(answer, 0.0) + weight
    return sums


def _weights(ratings: Sequence[float | None]) -> list[float]:
    mean = fmean(rating for rating in ratings if rating is not None)
    return [mean if rating is None else rating for rating in ratings]


def _answers(equal: Sequence[int | None]) -> list[int]:
    return [at if ballot is None else ballot for at, ballot in enumerate(equal)]
