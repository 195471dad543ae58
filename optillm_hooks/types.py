"""Values that cross module borders. All immutable, none with behaviour beyond arithmetic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""What a JSON document can hold."""

Fields = Mapping[str, Json]
"""Named JSON values that we carry without looking at them."""

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

Purpose = Literal["answer", "draft", "judge", "piece"]
"""What a call is for, which decides the fields of the client's request that it gets.

* answer: its text may be the user's answer as it stands: every field of the client.
* draft: a step on the way (a plan, a proposal that is fused later): sampling fields and tools, but
  not what shapes the answer's form (`response_format`, `stop`, `logprobs`).
* judge: it rates, compares or reads other texts: none of the client's sampling fields.
* piece: a part of a reply that a decoder puts together: the fields of a draft. It is no answer by
  itself, and may be empty.
"""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, with every field that its author gave it."""

    role: Role
    content: str | tuple[Fields, ...] | None = None
    """Text, or content parts (text, image, audio, file) in OpenAI's form, or None."""

    fields: Fields = field(default_factory=dict[str, Json])
    """Everything else: `name`, `tool_calls`, `tool_call_id`, `cache_control` and so on."""

    @property
    def text(self) -> str:
        """The message's text; of content parts, those of type text, joined by newlines."""
        if isinstance(self.content, tuple):
            return "\n".join(
                str(p.get("text", "")) for p in self.content if p.get("type") == "text"
            )
        return self.content or ""


Chat = tuple[Message, ...]
"""A whole conversation, oldest message first. Never flattened to one string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one model call is made. None leaves a choice to the client's request, then the model."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    """Most tokens of the reply, reasoning included."""

    stop: tuple[str, ...] | None = None
    seed: int | None = None
    fields: Fields = field(default_factory=dict[str, Json])
    """Every other field of the request (`tools`, `response_format`, `top_k`, ...), as it is."""

    purpose: Purpose = "answer"
    sample: int = 0
    """Which of several samples of one prompt this is: it moves the seed, so that samples differ,
    and keeps a response cache from giving the same text twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What was paid for. `calls` counts requests to a provider: one with `n=3` is one call."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of `completion_tokens`."""

    cached_tokens: int = 0
    """Part of `prompt_tokens`."""

    cost_usd: float = 0.0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            cost_usd=self.cost_usd + other.cost_usd,
        )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that the model wants called; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token, its log-probability in nats, and the likeliest tokens in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


def _holds_content(fields: Fields) -> bool:
    """Return whether fields of an assistant's message are an answer without any text."""
    return any(fields.get(name) for name in ("refusal", "audio", "images", "function_call"))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the user gets as one choice."""

    text: str
    finish_reason: FinishReason = "stop"
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    fields: Fields = field(default_factory=dict[str, Json])
    """Other fields of the assistant's message (`refusal`, `annotations`, `thinking_blocks`)."""

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it that a user could use."""
        return not (self.text.strip() or self.tool_calls or _holds_content(self.fields))


@dataclass(frozen=True, slots=True)
class Completion(Answer):
    """One choice of one model call, which can be an answer as it stands."""

    usage: Usage = field(default=Usage(calls=1))
    """What the call cost; of a call that returned several choices, the first carries all."""

    facts: Fields = field(default_factory=dict[str, Json])
    """What the model says of how the reply was decoded, for the trace. Never text."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed reply. `finish_reason` and `usage` come once, near the end."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Fields, ...] = ()
    """Pieces of tool calls in OpenAI's form: `index`, then parts of id, name and arguments."""

    logprobs: tuple[TokenLogprob, ...] = ()
    fields: Fields = field(default_factory=dict[str, Json])
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    facts: Fields = field(default_factory=dict[str, Json])
    """As in `Completion`; in one piece only."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it that a user could use."""
        return not (self.text.strip() or self.tool_calls or _holds_content(self.fields))


class TextFilter(Protocol):
    """Turns the text of a reply into the text of the answer, piece by piece."""

    def feed(self, piece: str, /) -> str:
        """Return what can be shown so far of the text up to and including `piece`."""
        ...

    def close(self) -> str:
        """Return the rest, now that the reply has ended."""
        ...
