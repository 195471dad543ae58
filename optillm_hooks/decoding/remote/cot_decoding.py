"""CoT decoding by calls: one for the alternatives of the first token, then one per branch.

A branch continues the text of its first token, which the server may tokenize differently.
Alternatives that differ only in whitespace are one branch; those that are not text (an end token,
part of a character) are left out.
"""

import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from optillm_hooks.answers.extraction import excerpt, extract
from optillm_hooks.context import Context
from optillm_hooks.decoding.confidence import listed_margin
from optillm_hooks.decoding.cot_decoding import CotSettings, Path, choose, read_path
from optillm_hooks.decoding.remote.calls import (
    MAX_ALTERNATIVES,
    piece_sampling,
    stop_strings,
    token_ends,
    token_logprobs,
    top_logprobs,
    with_prefix,
)
from optillm_hooks.errors import EmptyCompletion
from optillm_hooks.fanout import finished
from optillm_hooks.final_answer import groups
from optillm_hooks.llm import LLM
from optillm_hooks.reading import read_or
from optillm_hooks.types import Answer, Chat, Completion, Sampling, TokenLogprob, Usage

_NO_TEXT = re.compile(r"<[|\uff5c].*[|\uff5c]>|</?s>|<eos>|<end_of_turn>|\s*|.*\ufffd.*", re.DOTALL)
"""End tokens of common vocabularies, whitespace, and parts of a character."""

_MAX_READ = 100_000
"""Length of a branch that is searched for its answer."""

_TOP = 3
"""Top log-probabilities to request for the two likeliest: vLLM lists the sampled token first."""


class _Branch(NamedTuple):
    path: Path
    reply: Answer
    """The reply, including the first token."""


async def cot_decode(
    chat: Chat, sampling: Sampling, llm: LLM, settings: CotSettings, ctx: Context
) -> Completion:
    """Return the branch whose answer has the highest confidence.

    Failed branches are left out. If the likeliest remaining branch calls tools, it is returned.

    Raises:
        SamplesFailed: every branch failed.
    """
    first = await _first_token(chat, sampling, llm)
    starts = first_tokens(first, settings.k)
    ctx.budget.expected_calls += len(starts)
    branches = [partial(_branch, chat, sampling, llm, settings, ctx, *s, first) for s in starts]
    calls: list[Callable[[], Awaitable[_Branch]]] = [*branches]
    found = await finished(calls)
    ctx.trace.count("branches", lost=len(calls) - len(found), of=len(calls))
    if found[0].reply.tool_calls:
        return _completion(found[0].reply)
    paths = [branch.path for branch in found]
    same = await groups([excerpt(path.answer) for path in paths], ctx)
    choice = choose(paths, same, settings)
    ctx.trace.note("cot_decoding", **choice.facts())
    return _completion(next(branch.reply for branch in found if branch.path is choice.path))


def first_tokens(first: TokenLogprob, k: int) -> list[tuple[str, float]]:
    """Return the `k` likeliest first tokens with their probabilities, without those not text.

    Raises:
        EmptyCompletion: none of them is text.
    """
    ordered = sorted(first.top or ((first.token, first.logprob),), key=lambda t: -t[1])[:k]
    starts: dict[str, tuple[str, float]] = {}
    for text, logprob in ordered:
        if not _NO_TEXT.fullmatch(text):
            starts.setdefault(text.strip(), (text, math.exp(logprob)))
    if not starts:
        raise EmptyCompletion(Answer(""))
    return list(starts.values())


async def _first_token(chat: Chat, sampling: Sampling, llm: LLM) -> TokenLogprob:
    asked = piece_sampling(
        replace(sampling, temperature=0.0, max_tokens=1, stop=()), top=MAX_ALTERNATIVES
    )
    completion = await llm.complete(chat, asked)
    found = token_logprobs(completion)
    if not found:
        raise EmptyCompletion(completion if completion.empty else None)
    return found[0]


async def _branch(
    chat: Chat,
    sampling: Sampling,
    llm: LLM,
    settings: CotSettings,
    ctx: Context,
    start: str,
    probability: float,
    first: TokenLogprob,
) -> _Branch:
    limit = ctx.reply_limit(sampling)
    rest = Completion("", "length")
    if limit is None or limit > 1:
        continued = replace(
            sampling,
            temperature=settings.branch_temperature or 0.0,
            max_tokens=None if limit is None else limit - 1,
            stop=stop_strings(sampling, ctx),
        )
        asked = piece_sampling(continued, top=_TOP, continues=True)
        rest = await llm.complete(with_prefix(chat, start), asked)
    tokens = token_logprobs(rest)
    text = start + rest.text
    margins = [listed_margin(top_logprobs(token)) for token in (first, *tokens)]
    ends = token_ends(text, [start, *(token.token for token in tokens)])
    answer = await read_or(None, ctx, extract, text[:_MAX_READ], lenient=True)
    path = read_path(
        text,
        margins,
        ends,
        rest.finish_reason,
        answer,
        probability,
        every_mention=settings.every_mention,
    )
    return _Branch(path, replace(rest, text=text, logprobs=()))


def _completion(reply: Answer) -> Completion:
    """Return `reply` as a completion without usage, which has already been counted."""
    return Completion(
        reply.text,
        reply.finish_reason,
        reply.reasoning,
        reply.tool_calls,
        fields=reply.fields,
        usage=Usage(),
    )
