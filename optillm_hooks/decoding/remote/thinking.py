"""ThinkDeeper by calls: each call continues the thinking so far.

The closing marker is a stop string while the model thinks, and is inserted at the maximum. Inserted
text is part of the prompt here and does not count against the budget. Thinking beyond the maximum
number of thoughts is paid for, then cut after the words that begin the surplus thought.
"""

import re
from dataclasses import dataclass, replace
from itertools import islice

from optillm_hooks.context import Context
from optillm_hooks.decoding.remote.calls import (
    piece_sampling,
    reply_limit_or_default,
    stop_strings,
    with_prefix,
)
from optillm_hooks.decoding.thinkdeeper import ThinkingBudget, ThinkSettings
from optillm_hooks.errors import SampleError
from optillm_hooks.llm import LLM
from optillm_hooks.types import Chat, Completion, Json, Sampling, Usage

_MAX_PUSHES = 8
"""Maximum number of forced continuations: each is a call that prefills the prompt again."""

_FORM = ("response_format",)
"""Fields of the client's request that apply only to the answer, the last call."""

_CHARS_PER_TOKEN = 4
"""Estimate for English, used if the provider does not report token usage."""


@dataclass(slots=True)
class _Thoughts:
    text: str = ""
    tokens: int = 0
    thoughts: int = 0
    pushed: int = 0


async def think(
    chat: Chat, sampling: Sampling, llm: LLM, settings: ThinkSettings, ctx: Context
) -> tuple[Completion, dict[str, Json]]:
    """Return the reply, with its thinking as reasoning, and the use of the thinking budget.

    All calls together generate at most the reply's `max_tokens` (by default 4,096). A failed call
    ends the thinking, unless it is the first.
    """
    max_tokens = reply_limit_or_default(sampling, ctx)
    budget = ThinkingBudget(settings, max_tokens)
    opening = f"{settings.start_think_token}\n{settings.prefill}"
    thoughts = await _thoughts(chat, sampling, llm, settings, budget, opening, ctx)
    prefix = f"{opening}{thoughts.text.rstrip()}\n{settings.end_think_token}\n\n"
    left = max_tokens - thoughts.tokens
    if left < 1:  # sent to a server, it could mean no limit
        return Completion(
            "", "length", (settings.prefill + thoughts.text).strip(), usage=Usage()
        ), (budget.facts(thoughts.tokens, thoughts.thoughts, thoughts.pushed))
    form = {name: ctx.client.fields[name] for name in _FORM if name in ctx.client.fields}
    asked = replace(
        sampling,
        max_tokens=left,
        stop=stop_strings(sampling, ctx),
        fields={**form, **sampling.fields},
    )
    answer = await llm.complete(with_prefix(chat, prefix), piece_sampling(asked, continues=True))
    said = Completion(
        answer.text or answer.reasoning,
        answer.finish_reason,
        (settings.prefill + thoughts.text).strip(),
        answer.tool_calls,
        fields=answer.fields,
        usage=Usage(),
    )
    return said, budget.facts(thoughts.tokens, thoughts.thoughts, thoughts.pushed)


async def _thoughts(
    chat: Chat,
    sampling: Sampling,
    llm: LLM,
    settings: ThinkSettings,
    budget: ThinkingBudget,
    opening: str,
    ctx: Context,
) -> _Thoughts:
    words = settings.thought_switch_tokens
    so_far = _Thoughts()
    while so_far.tokens < budget.max_tokens and so_far.thoughts < budget.max_thoughts:
        asked = replace(
            sampling,
            max_tokens=budget.max_tokens - so_far.tokens,
            stop=(settings.end_think_token,),
            sample=sampling.sample + so_far.pushed,
        )
        prompt = with_prefix(chat, opening + so_far.text)
        try:
            with ctx.trace.step("continuations"):
                reply = await llm.complete(prompt, piece_sampling(asked, continues=True))
        except SampleError:
            if not so_far.text:
                raise
            break
        thought = (reply.reasoning + reply.text).partition(settings.end_think_token)[0]
        so_far.tokens += _tokens(reply)
        kept, switches = up_to_thought(thought, words, budget.max_thoughts - so_far.thoughts)
        so_far.text += kept
        so_far.thoughts += switches
        enough = so_far.tokens >= budget.min_tokens or so_far.pushed == _MAX_PUSHES
        if reply.truncated or enough:
            break
        so_far.text = f"{so_far.text.rstrip()}\n{words[so_far.pushed % len(words)]}"
        so_far.pushed += 1
        so_far.thoughts += 1
    return so_far


def up_to_thought(text: str, words: tuple[str, ...], maximum: int) -> tuple[str, int]:
    """Return `text` up to the start of thought number `maximum`, and the number of its thoughts.

    `words` begin thoughts. Words that overlap count as one thought.
    """
    if maximum <= 0:
        return "", 0
    shortest_first = sorted(words, key=len)
    starts = re.finditer("|".join(re.escape(word) for word in shortest_first), text)
    found = list(islice(starts, maximum))
    return text[: found[-1].end()] if len(found) == maximum else text, len(found)


def _tokens(reply: Completion) -> int:
    written = len(reply.reasoning) + len(reply.text)
    return max(1, reply.usage.completion_tokens or written // _CHARS_PER_TOKEN)
