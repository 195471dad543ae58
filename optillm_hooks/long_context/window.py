"""How much a model can read at once, and how many calls of a kind a request can afford."""

from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from optillm_hooks.context import Context
from optillm_hooks.llm import LLM
from optillm_hooks.types import Message, Sampling

DEFAULT_WINDOW: Final = 8192
"""Tokens of a context window that is not known."""

ContextWindow = Annotated[
    int | None,
    Field(
        ge=1024,
        le=100_000_000,
        description="Tokens of the model's context window; unset: as LiteLLM or the deployment's "
        "model_info has it, or else 8192.",
    ),
]
"""The parameter `context_window` of an approach."""

_MARGIN: Final = 0.1
"""Share of a window that is left free: tokenizers differ, and templates add to a prompt."""

_MAX_REPLY: Final = 8192


@dataclass(frozen=True, slots=True)
class Window:
    """A model's context window."""

    llm: LLM
    tokens: int
    reply: int
    """Tokens left free for a reply."""

    @property
    def prompt(self) -> int:
        """Tokens of a prompt that leave room for a reply."""
        return int(self.tokens * (1 - _MARGIN)) - self.reply

    def count(self, text: str) -> int:
        """Return the tokens of a text, as a message."""
        return self.llm.facts.count_tokens((Message("user", text),), Sampling())


def window_of(llm: LLM, tokens: int | None, client: Sampling | None = None) -> Window:
    """Return the context window of `llm`.

    Args:
        llm: the model.
        tokens: its size, if it is given; else LiteLLM's, or `DEFAULT_WINDOW` if that has none.
        client: the client's fields, if its reply needs room.
    """
    size = tokens or llm.facts.max_input_tokens or DEFAULT_WINDOW
    asked = client.max_tokens if client is not None else None
    reply = min(asked or size // 4, size // 2, llm.facts.max_output_tokens or size, _MAX_REPLY)
    return Window(llm, size, reply)


def affordable(ctx: Context, window: Window, wanted: int, prompt: int, own: int) -> int:
    """Return how many of `wanted` calls with `prompt` tokens leave enough for what follows.

    Args:
        ctx: the run.
        window: that of the model.
        wanted: the number of calls that would be best.
        prompt: tokens of the prompt of each.
        own: the calls that the stage has declared. They are its share of the request's.
    """
    budget = ctx.budget
    limits, expected = budget.limits, max(budget.expected_calls, own + 1)
    found = wanted
    if limits.max_calls is not None:
        left = limits.max_calls - budget.calls_taken - 1
        found = min(found, left, max(own, 0) * limits.max_calls // expected)
    later = expected - own
    reply = min(window.reply, ctx.draft_tokens or window.reply)
    if limits.max_tokens_total is not None:
        left = limits.max_tokens_total - budget.tokens_taken
        kept = min(later * window.tokens, left // 2)
        found = min(found, (left - kept) // (prompt + reply))
    price = window.llm.facts.price
    if limits.max_cost_usd is not None and price is not None:
        money = limits.max_cost_usd - budget.cost_taken
        each = prompt * price.prompt + reply * price.completion
        keep = min(
            later * (window.tokens * price.prompt + window.reply * price.completion), money / 2
        )
        found = min(found, int((money - keep) / each) if each else found)
    return max(0, found)


def settle_calls(ctx: Context, declared: int, made: int) -> None:
    """Tell the budget that a stage makes `made` calls of those declared: others get the rest."""
    ctx.budget.expected_calls = max(1, ctx.budget.expected_calls - max(0, declared - made))
