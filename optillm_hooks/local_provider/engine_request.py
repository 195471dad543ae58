"""What the engine is asked and what it answers. Plain values: no torch, no LiteLLM."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.types import Fields, FinishReason, Json, ToolCall

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


def check_adapter(name: str | None, known: Collection[str]) -> None:
    """Raise UnknownModel unless `name` is one of the adapters `known`, or None."""
    if name is not None and name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise UnknownModel(f"no adapter {name!r}; this model has: {listed}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one row draws its next token.

    Applied in this order: temperature, top_k, top_p of what top_k left, min_p. At temperature 0
    (up to a millionth) the likeliest token is taken, the one with the lowest id among equals.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Most tokens to draw from; 0 is no limit."""

    min_p: float = 0.0
    """Least probability, as a share of the likeliest token's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request for `n` choices of a reply to `messages`."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call, in OpenAI's form."""

    must_call: tuple[str, ...] = ()
    """The functions of which the reply has to call one; empty: it is free."""

    parallel_tool_calls: bool = True
    schema: Mapping[str, Any] | None = None
    """The JSON schema that the text of the reply has to obey; None: it is free."""

    sampling: SamplingParams = SamplingParams()
    n: int = 1
    max_tokens: int | None = None
    """Most tokens of a choice; None and more than fits is what the context leaves."""

    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    adapter: str | None = None
    """The name of a LoRA adapter; None is the base model."""

    decoding: BaseModel | None = None
    """The settings of a decoding method, whose type says which; None samples plainly."""

    top_logprobs: int | None = None
    """How many alternatives to report for each token; None reports no log-probabilities."""

    def shifts(self, counts: Mapping[int, int]) -> Mapping[int, float]:
        """Return what is added to logits before a token is drawn, by token id.

        As OpenAI defines it: the bias, less `frequency_penalty` for each time and
        `presence_penalty` once for each token that this choice has written. The prompt counts not.
        """
        if not (self.presence_penalty or self.frequency_penalty):
            return self.logit_bias
        shifts = dict(self.logit_bias)
        for token, count in counts.items():
            penalty = self.frequency_penalty * count + self.presence_penalty
            shifts[token] = shifts.get(token, 0.0) - penalty
        return shifts


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token id, its log-probability in nats, and the likeliest ids in its place with theirs.

    The log-probabilities are the model's own, before temperature and every other rule.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A `ScoredToken` with the bytes that tokens stand for, which may be half a character."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice has to show after a step. The last of a choice has a `finish_reason`."""

    choice: int
    text: str = ""
    reasoning: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    """All tokens of the reply, if log-probabilities were asked for."""

    finish_reason: FinishReason | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Whole calls; they come after the text."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request, after the last piece of every choice."""

    prompt_tokens: int
    completion_tokens: int
    """Of all choices together: every token that was drawn, end tokens and stop text included."""

    cached_tokens: int = 0
    """Prompt tokens whose keys and values were already there."""

    reasoning_tokens: int = 0
    """Part of `completion_tokens`."""

    facts: Fields = field(default_factory=dict[str, Json])
    """What a decoding method has to say about how the reply came about."""


Event = Piece | Finished | Exception


@dataclass(slots=True)
class Choice:
    """A whole reply, put together from its pieces."""

    text: str = ""
    reasoning: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    tool_calls: list[ToolCall] = field(default_factory=list[ToolCall])
    finish_reason: FinishReason = "stop"

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.reasoning += piece.reasoning
        self.tokens += piece.tokens
        self.tool_calls += piece.tool_calls
        self.finish_reason = piece.finish_reason or self.finish_reason


@dataclass(eq=False, slots=True)
class Submission:
    """A request inside the engine, and who wants to hear of it."""

    request: EngineRequest
    deliver: Callable[[Event], None]
    """Called in the engine's thread; must not block.

    The last event is a `Finished` or an exception. A cancelled request gets no event after the
    current step.
    """

    cancelled: bool = False
    """Set by anyone; the engine's thread looks at it before each step."""
