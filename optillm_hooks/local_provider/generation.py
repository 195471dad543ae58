"""What the engine is asked and what it answers. Plain values: no torch, no LiteLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.types import FinishReason

Messages = Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's form, oldest message first."""


class PromptTooLong(RequestRejected):
    """The prompt leaves no room for an answer in the model's context."""

    code = "context_length_exceeded"


class UnknownModel(ProviderFailed):
    """No model of this name is configured. Nothing was looked up or loaded for it."""

    code = "model_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404)


@dataclass(frozen=True, slots=True)
class Law:
    """The law by which one row draws its next token.

    Applied in this order: temperature, top_k, top_p of what top_k left, min_p. At temperature 0
    the likeliest token is taken, the one with the lowest id among equals.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Most tokens to draw from; 0 is no limit."""

    min_p: float = 0.0
    """Least probability, as a share of the likeliest token's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One request for `n` choices of a reply to `messages`."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None
    law: Law = Law()
    n: int = 1
    max_tokens: int | None = None
    """Most tokens of a choice; None and more than fits is what the context leaves."""

    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    """How many alternatives to report for each token; None reports no log-probabilities."""


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token id, its log-probability in nats, and the likeliest ids in its place with theirs.

    The log-probabilities are the model's own, before temperature and every other rule.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice has to show after a step. The last of a choice has a `finish_reason`."""

    choice: int
    text: str = ""
    tokens: tuple[ScoredToken, ...] = ()
    """The tokens of `text`, if log-probabilities were asked for."""

    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request, after the last piece of every choice."""

    prompt_tokens: int
    completion_tokens: int
    """Of all choices together: every token that was drawn, end tokens and stop text included."""

    cached_tokens: int = 0
    """Prompt tokens whose keys and values were already there."""


Event = Piece | Finished | Exception


@dataclass(slots=True)
class Choice:
    """A whole reply, put together from its pieces."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list[ScoredToken])
    finish_reason: FinishReason = "stop"

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
