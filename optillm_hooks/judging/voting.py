"""The vote over final answers, which asks a model where too few answers can be read."""

from collections.abc import Sequence
from typing import Final, TypeVar

from optillm_hooks.answers.extraction import AnswerFormat, excerpt, without_reasoning
from optillm_hooks.answers.questions import Asked, asked_for
from optillm_hooks.answers.voting import (
    Tally,
    elect,
    equal_answers,
    majority,
    majority_call,
    wants_json,
)
from optillm_hooks.context import Context
from optillm_hooks.judging.choosing import MOST_CONSISTENT, choose
from optillm_hooks.judging.verdicts import Judge
from optillm_hooks.prompts import question
from optillm_hooks.reading import read_or
from optillm_hooks.types import Answer, Chat

A = TypeVar("A", bound=Answer)

NO_VOTES: Final = Tally(0, {})


async def vote(
    candidates: Sequence[A], chat: Chat, judge: Judge, ctx: Context, how: AnswerFormat = "auto"
) -> A:
    """Return the candidate with the most frequent answer; `candidates` are `contenders`.

    Tool calls and JSON vote as such. Texts vote by their final answers, which `how` says where to
    read. If fewer than half of them have one, a text that most of them equal wins; otherwise the
    judge is asked once which of them agrees most with the others. If its choice cannot be read,
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
    chosen = await choose(texts, chat, judge, ctx, criterion=MOST_CONSISTENT)
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


async def agreement(
    candidates: Sequence[Answer], chat: Chat, ctx: Context, how: AnswerFormat = "auto"
) -> Tally:
    """Return the votes by which candidates may agree: those of `count_votes`, except on texts.

    Where the user wants a text (`wants_text`), there are none.
    """
    if not candidates[0].tool_calls and how == "auto" and wants_text(chat, ctx):
        return NO_VOTES
    return await count_votes(candidates, chat, ctx, how)


def wants_text(chat: Chat, ctx: Context) -> bool:
    """Return whether the user wants a text, such as an essay or a program.

    A final answer says too little of it: two essays that say yes may differ in all else.
    """
    return asked_for(question(chat)) is Asked.TEXT and not wants_json(ctx.client)


async def ballots(
    candidates: Sequence[Answer], chat: Chat, ctx: Context, how: AnswerFormat = "auto"
) -> list[int | None]:
    """Return for each text of `candidates` the index of the first that gives the same answer.

    None for one without a readable answer, unless an equal text comes before it or after it. Where
    the user wants a text (`wants_text`), only equal texts give the same answer.
    """
    whole = wants_json(ctx.client) or how == "json"
    texts = [excerpt(candidate.text, as_json=whole) for candidate in candidates]
    same: list[int | None] = [None] * len(texts)
    if how != "auto" or not wants_text(chat, ctx):
        asked = question(chat)
        same = await read_or(same, ctx, equal_answers, texts, how, question=asked, as_json=whole)
    first = {text: at for at, text in reversed(list(enumerate(texts)))}
    return [
        first[text] if ballot is None and texts.count(text) > 1 else ballot
        for ballot, text in zip(same, texts, strict=True)
    ]
