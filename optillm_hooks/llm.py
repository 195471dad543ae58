"""The protocols of models, `LLM` and `Scorer`, what is known of one, and the final call."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from optillm_hooks.types import (
    Answer,
    Chat,
    Completion,
    Delta,
    DeltaFilter,
    Sampling,
    TextFilter,
    Usage,
)

Reasoning = Literal["never", "on_request", "always"]
"""When a model reasons by itself before it answers; `always`: unless a request switches it off."""

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
"""Values of the request field `reasoning_effort`. Which of them a model takes is its own matter."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token."""

    prompt: float
    completion: float


def _takes_all(_: Sampling) -> bool:
    return True


def _no_thinking(_: Sampling) -> int:
    return 0


def _not_remembered(_: frozenset[str]) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What is known about a model before it is called."""

    count_tokens: Callable[[Chat, Sampling], int]
    """Estimates the prompt tokens of a call."""

    max_n: int = 1
    """The maximum `n` of one call; 1 where the provider is not known to honour `n`."""

    max_output_tokens: int | None = None
    """The maximum tokens of a reply, or None if unknown."""

    max_input_tokens: int | None = None
    """The maximum tokens of a prompt, or None if unknown."""

    price: Price | None = None
    """None if unknown."""

    reasoning: Reasoning = "never"
    """When the model reasons by itself before it answers, as far as is known."""

    sees_images: bool = False
    """Whether it is known to take images."""

    max_scored: int = 0
    """The maximum number of texts that a `Scorer` scores in one call; 0 for a model that writes."""

    supported: frozenset[str] = frozenset()
    """The request fields that the model is known to accept."""

    takes: Callable[[Sampling], bool] = _takes_all
    """Returns False if the model is known to refuse the sampling fields of a call, together."""

    thinking_tokens: Callable[[Sampling], int] = _no_thinking
    """Returns the tokens of thinking that a call asks for, which its `max_tokens` must exceed."""

    remember: Callable[[frozenset[str]], None] = _not_remembered
    """Remembers fields that the model has refused together, so that `takes` knows it."""

    def price_of(self, _sampling: Sampling) -> Price | None:
        """Return the price of a call with these fields, which may choose a dearer service."""
        return self.price

    def supports(self, name: str) -> bool:
        """Return whether the model is known to accept the request field `name`."""
        return name in self.supported


class LLM(Protocol):
    """A model, or a group of deployments that share a name."""

    @property
    def model(self) -> str:
        """The name under which it is configured."""
        ...

    @property
    def facts(self) -> ModelFacts:
        """What is known about it. Looked up on first use: most calls do not need it."""
        ...

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        """Return one completion of `chat`, or raise a `SampleError`."""
        ...

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        """Return 1 to `n` completions of one call with `n`; the first carries the usage."""
        ...

    def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        """Yield the pieces of one completion. A `SampleError` may come before or between them."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one call of a `Scorer`."""

    values: Sequence[float]
    """One for each text: from 0 to 1 or on a scale of the model's own, higher is better."""

    usage: Usage
    cut: int = 0
    """How many of the texts were too long for the model, which has seen them in part."""


class Scorer(Protocol):
    """A reward model or a reranker: it scores answers, and writes nothing."""

    @property
    def model(self) -> str:
        """The name under which it is configured."""
        ...

    @property
    def facts(self) -> ModelFacts:
        """What is known about it. The reply to a call counts as one token."""
        ...

    async def score(self, chat: Chat, texts: Sequence[str], /) -> Scores:
        """Return the scores of 1 to `facts.max_scored` answers, or raise a `SampleError`."""
        ...


@dataclass(frozen=True, slots=True)
class FinalCall:
    """The last call of an approach, which the pipeline makes, streamed if the client streams."""

    chat: Chat
    sampling: Sampling = field(default_factory=Sampling)
    text_filter: Callable[[], TextFilter] | None = None
    """Returns a new filter for one reply; None leaves the reply as it is."""

    wrappers: tuple[Callable[[], DeltaFilter], ...] = ()
    """Each returns a new filter for one reply, after `text_filter`; the innermost wrapper's first.
    They see everything that the client gets, tool calls and reasoning too."""

    fallback: Answer | None = None
    """The answer if the call fails; with None the stage fails."""

    llm: LLM | None = None
    """The model to call; None is the one that the approach got."""

    thinking_tag: str = ""
    """The tag of the reply's thinking. LiteLLM moves a section `<thinking>` at the start of a whole
    reply to the reasoning, but not in a stream; so that both are the same, it is moved back."""
