"""ThinkDeeper by calls: each call continues the thinking so far.

The end marker is a stop string while the model thinks, and is written for it at the maximum. What
is written for the model is part of the prompt here and does not count against the budget. Thinking
beyond the maximum number of thoughts is paid for and then cut after the words that begin the
surplus thought.
"""

from dataclasses import dataclass, replace

from optillm_hooks.context import Context
from optillm_hooks.decoding.remote.calls import continuing, piece, stops, usual_room
from optillm_hooks.decoding.thinkdeeper import ThinkingBudget, ThinkSettings
from optillm_hooks.errors import SampleError
from optillm_hooks.llm import LLM
from optillm_hooks.types import Chat, Completion, Json, Sampling, Usage

_MAX_PUSHES = 8
"""Maximum of times that a model is made to go on: each is a call that prefills the prompt again."""

_FORM = ("response_format",)
"""Fields of the client's request that apply to the last piece only."""

_CHARS_PER_TOKEN = 4
"""Estimate, for English, where the provider does not return the number of tokens."""


@dataclass(slots=True)
class _Thoughts:
    text: str = ""
    tokens: int = 0
    thoughts: int = 0
    pushed: int = 0


async def think(
    chat: Chat, sampling: Sampling, llm: LLM, settings: ThinkSettings, ctx: Context
) -> tuple[Completion, dict[str, Json]]:
    """Return the reply, with its thinking apart from its text, and how much of the budget it used.

    All calls together write at most the reply's `max_tokens` (4,096 if nobody sets one). A call
    that fails ends the thinking, unless it is the first.
    """
    max_tokens = usual_room(sampling, ctx)
    budget = ThinkingBudget(settings, max_tokens)
    opening = f"{settings.start_think_token}\n{settings.prefill}"
    thoughts = await _thoughts(chat, sampling, llm, settings, budget, opening)
    prefix = f"{opening}{thoughts.text.rstrip()}\n{settings.end_think_token}\n\n"
    form = {name: ctx.client.fields[name] for name in _FORM if name in ctx.client.fields}
    asked = replace(
        sampling,
        max_tokens=max_tokens - thoughts.tokens,
        stop=stops(sampling, ctx),
        fields={**form, **sampling.fields},
    )
    answer = await llm.complete(continuing(chat, prefix), piece(asked, continues=True))
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
        prompt = continuing(chat, opening + so_far.text)
        try:
            reply = await llm.complete(prompt, piece(asked, continues=True))
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
    """Return `text` up to the word that begins thought `maximum`, and its number of thoughts.

    `words` begin thoughts. Where two overlap, one thought is counted.
    """
    at = thoughts = 0
    while thoughts < maximum:
        found = [(text.find(word, at), len(word)) for word in words if word in text[at:]]
        if not found:
            return text, thoughts
        start, length = min(found)
        at = start + length
        thoughts += 1
    return text[:at], thoughts


def _tokens(reply: Completion) -> int:
    written = len(reply.reasoning) + len(reply.text)
    return max(1, reply.usage.completion_tokens or written // _CHARS_PER_TOKEN)
