"""Values that modules exchange: conversations, sampling parameters, completions, usage.

All are immutable, and none has behaviour beyond arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""What a JSON document can hold."""

Fields = Mapping[str, Json]
"""Named JSON values that are passed on unchanged."""

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]

StoppedBy = Literal["deadline", "max_calls", "max_tokens_total", "max_cost_usd", "caller_budget"]
"""The limit that ended a request early."""

Purpose = Literal["answer", "solution", "draft", "judge", "piece"]
"""What a call is for, which decides which fields of the client's request it gets.

* answer: its text may be the user's answer: every field.
* solution: an answer with all its working, from which the user's answer is made if it is too long:
  every field but `max_tokens`.
* draft: an intermediate step (a plan, a proposal that is fused later): sampling fields and tools,
  but neither `max_tokens` nor the fields that shape an answer's form (`response_format`, `stop`,
  `logprobs`).
* judge: it rates, compares or reads other texts: no sampling fields.
* piece: a part of a reply that a decoder assembles: the fields of a draft. It is not an answer by
  itself, and may be empty. The decoder sets its `max_tokens`.
"""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, with all its fields."""

    role: Role
    content: str | tuple[Fields, ...] | None = None
    """Text, or content parts (text, image, audio, file) in OpenAI's form, or None."""

    fields: Fields = field(default_factory=dict[str, Json])
    """All other fields: `name`, `tool_calls`, `tool_call_id`, `cache_control` and so on."""

    @property
    def text(self) -> str:
        """The message's text; text parts of its content are joined by newlines."""
        if isinstance(self.content, tuple):
            return "\n".join(
                str(p.get("text", "")) for p in self.content if p.get("type") == "text"
            )
        return self.content or ""


Chat = tuple[Message, ...]
"""A conversation, oldest message first. It is never flattened to one string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of one call. None leaves them to the client's request or the model."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    """Maximum tokens of the reply, reasoning included."""

    stop: tuple[str, ...] | None = None
    seed: int | None = None
    fields: Fields = field(default_factory=dict[str, Json])
    """All other fields of the request (`tools`, `response_format`, `top_k`, ...), as they are."""

    purpose: Purpose = "answer"
    sample: int = 0
    """The number of this sample among those of its prompt. It shifts the seed, so that samples
    differ, and keeps a response cache from returning one text for all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token usage and cost. `calls` counts requests to a provider: one with `n=3` is one call."""

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


ToolCallType = Literal["function", "custom", "function_call"]
"""Kind of a tool call.

* custom: the call of a tool that takes plain text.
* function_call: the call of OpenAI's old `functions`. It has no id, and a reply has only one.
"""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call by the model; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str
    type: ToolCallType = "function"
    fields: Fields = field(default_factory=dict[str, Json])
    """Other fields, such as the signature that Gemini must get back with the tool's result."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token, its log-probability in nats, and the most likely tokens at its position."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


def _holds_content(fields: Fields) -> bool:
    """Return whether fields of an assistant's message are an answer even without text."""
    return any(fields.get(name) for name in ("audio", "images"))


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer that the user gets as one choice."""

    text: str
    finish_reason: FinishReason = "stop"
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    fields: Fields = field(default_factory=dict[str, Json])
    """Other fields of the assistant's message (`annotations`, `thinking_blocks`, a refusal)."""

    choice_fields: Fields = field(default_factory=dict[str, Json])
    """Other fields of the choice: a content filter's results, the provider's own finish reason."""

    @property
    def truncated(self) -> bool:
        """Whether it was cut off, at its token limit or by a content filter."""
        return self.finish_reason in ("length", "content_filter")

    @property
    def empty(self) -> bool:
        """Whether it has no content: no text, tool call or other content. A refusal is none."""
        return not (self.text.strip() or self.tool_calls or _holds_content(self.fields))


@dataclass(frozen=True, slots=True)
class Completion(Answer):
    """One choice of one model call. It can be returned as an answer."""

    usage: Usage = field(default=Usage(calls=1))
    """Usage of the call; the first of several choices of one call carries all of it."""

    facts: Fields = field(default_factory=dict[str, Json])
    """Facts about how the model decoded the reply, for the trace. Never text."""


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
    """As in `Completion`; only one piece of a reply has them."""

    @property
    def empty(self) -> bool:
        """Whether it has no content: no text, tool call or other content."""
        return not (self.text.strip() or self.tool_calls or _holds_content(self.fields))


class DeltaFilter(Protocol):
    """A filter that turns the pieces of a reply into those of the answer.

    A whole reply is one piece.
    """

    def feed(self, piece: Delta, /) -> Delta:
        """Return what can be shown now that `piece` has arrived; it may have no content yet."""
        ...

    def close(self) -> Delta:
        """Return the rest, now that the reply has ended."""
        ...


class TextFilter(Protocol):
    """A streaming filter that turns the text of a reply into the text of the answer."""

    def feed(self, piece: str, /) -> str:
        """Return the text that can be shown now that `piece` has arrived."""
        ...

    def close(self) -> str:
        """Return the rest of the text, now that the reply has ended."""
        ...


def has_more_entries(value: object, most: int) -> bool:
    """Return whether the lists and mappings of `value` have more than `most` entries together.

    A list counts wherever it stands, so one that holds itself has more.
    """
    left, found = most, [value]
    while found:
        at = found.pop()
        if not isinstance(at, dict | list | tuple):
            continue
        left -= len(at)
        if left < 0:
            return True
        found += at.values() if isinstance(at, dict) else at
    return False
