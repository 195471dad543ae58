"""The engine's requests and output events: plain values, without torch or LiteLLM."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.types import Fields, FinishReason, Json, ToolCall

Messages = Sequence[Mapping[str, Any]]
"""A conversation in OpenAI's format, oldest message first."""


class PromptTooLong(RequestRejected):
    """The prompt leaves no room for an answer in the model's context window."""

    code = "context_length_exceeded"


class UnknownModel(ProviderFailed):
    """No model of this name is configured. Nothing is looked up or loaded."""

    code = "model_not_found"

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404)


def check_adapter(name: str | None, known: Collection[str]) -> None:
    """Raise RequestRejected unless `name` is None or one of the `known` adapters.

    No UnknownModel: after a 404 LiteLLM's router takes a deployment out of service for all clients.
    """
    if name is not None and name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise RequestRejected(
            f"no adapter {name[:80]!r}; this model has: {listed}", param="active_adapter"
        )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one sequence: temperature, top-k, top-p, min-p, applied in this order.

    top_p applies to the tokens that top_k keeps. At temperature 0 (up to 1e-6) decoding is greedy;
    ties go to the lowest token id.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """Maximum number of tokens to sample from; 0 means no limit."""

    min_p: float = 0.0
    """Minimum probability, relative to that of the likeliest token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptOptions:
    """How the chat template writes the prompt, and how much the model shall think."""

    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Variables of the chat template, such as `enable_thinking`."""

    reasoning_effort: str | None = None
    """For templates that read it; for others it switches the thinking. None: not requested."""

    thinking: bool | None = None
    """Whether the model shall think, if its template can switch that. None: not requested."""

    thinking_budget: int | None = None
    """Maximum number of thinking tokens; None: no limit."""

    continue_final: bool = False
    """Leave the last message open, so that the reply continues it."""

    begin_reply: bool = True
    """Begin the assistant's turn at the end of the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """A request to the engine: messages, sampling parameters, constraints, decoding method."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None
    """Functions that the model may call, in OpenAI's format."""

    prompt: PromptOptions = PromptOptions()
    must_call: tuple[str, ...] = ()
    """The reply must call one of these functions; empty: no call is required."""

    parallel_tool_calls: bool = True
    schema: Mapping[str, Any] | None = None
    """JSON schema of the reply, enforced by constrained decoding; None: any text."""

    sampling: SamplingParams = SamplingParams()
    unset: frozenset[str] = frozenset()
    """Sampling parameters that the request leaves to the model."""

    n: int = 1
    max_tokens: int | None = None
    """Maximum number of tokens per choice, limited by the context; None: as many as fit."""

    min_tokens: int = 0
    """Minimum number of tokens per choice before an end token or stop string can end it."""

    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    """Tokens that end a choice, besides the model's end tokens."""

    ignore_eos: bool = False
    """The model's end tokens end no choice."""

    include_stop: bool = False
    """Keep the stop string, or the stop token, in the text."""

    skip_special_tokens: bool = True
    seed: int | None = None
    repetition_penalty: float = 1.0
    """Divides the positive logits of all tokens so far, those of the prompt too, and multiplies
    the negative ones."""

    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    adapter: str | None = None
    """The name of a LoRA adapter; None: the base model."""

    decoding: BaseModel | None = None
    """Settings of a decoding method; their type determines the method. None: plain sampling."""

    top_logprobs: int | None = None
    """Number of alternatives to report per token; None: no log-probabilities at all."""

    def logit_offsets(self, counts: Mapping[int, int]) -> Mapping[int, float]:
        """Return logit bias plus penalties by token id, for the generated tokens `counts`.

        As in OpenAI's API: `frequency_penalty` is subtracted for each occurrence of a token in this
        choice, and `presence_penalty` once. Prompt tokens do not count.
        """
        if not (self.presence_penalty or self.frequency_penalty):
            return self.logit_bias
        offsets = dict(self.logit_bias)
        for token, count in counts.items():
            penalty = self.frequency_penalty * count + self.presence_penalty
            offsets[token] = offsets.get(token, 0.0) - penalty
        return offsets


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token id with its log-probability in nats, and the likeliest alternatives with theirs.

    The log-probabilities are the model's own, before temperature and all other parameters.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A `ScoredToken` with the bytes of each token, which may be part of a character."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A delta of one choice. The last delta of a choice has a `finish_reason`."""

    choice: int
    text: str = ""
    reasoning: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    """The tokens of this delta, including reasoning and calls, if logprobs were requested."""

    finish_reason: FinishReason | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Complete calls; they follow the text."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request, with its token usage."""

    prompt_tokens: int
    completion_tokens: int
    """Generated tokens of all choices, including end tokens and stop strings."""

    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""

    reasoning_tokens: int = 0
    """Part of `completion_tokens`."""

    facts: Fields = field(default_factory=dict[str, Json])
    """Statistics of the decoding method, for the response's vendor fields."""


Event = Piece | Finished | Exception


@dataclass(slots=True)
class Choice:
    """A complete choice, assembled from its pieces."""

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
    """A request on its way through the engine, with the callback that gets its events."""

    request: EngineRequest
    deliver: Callable[[Event], None]
    """Called in the engine's thread; must not block.

    The last event is a `Finished` or an exception. A cancelled request gets no event after the
    current step.
    """

    cancelled: bool = False
    """Set from any thread; the engine's thread checks it before each step."""

    number: int = field(default_factory=itertools.count().__next__)
    """Requests are numbered in order of arrival."""
