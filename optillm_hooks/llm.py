"""The one door to a model."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from optillm_hooks.types import Answer, Chat, Completion, Delta, Sampling, TextFilter


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token."""

    prompt: float
    completion: float


class LLM(Protocol):
    """A model, or a group of deployments that share a name."""

    @property
    def model(self) -> str:
        """The name under which it is configured."""
        ...

    @property
    def max_n(self) -> int:
        """How many choices one call may ask for; 1 where the provider is not known to honour n."""
        ...

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that a reply can have, or None if nobody knows."""
        ...

    @property
    def price(self) -> Price | None:
        """What it costs, or None if nobody knows."""
        ...

    def supports(self, name: str, /) -> bool:
        """Return whether the model is known to take the request field `name`."""
        ...

    def count_tokens(self, chat: Chat, sampling: Sampling, /) -> int:
        """Return the estimated prompt tokens of a call."""
        ...

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        """Return one completion of `chat`, or raise a `SampleError`."""
        ...

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        """Return 1 to `n` completions of one call for `n`; the first carries the usage."""
        ...

    def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        """Yield the pieces of one completion. A `SampleError` may come before or between them."""
        ...


class Forwarding:
    """What an `LLM` over another one takes from it as it is."""

    def __init__(self, inner: LLM) -> None:
        self._inner = inner

    @property
    def model(self) -> str:
        return self._inner.model

    @property
    def max_n(self) -> int:
        return self._inner.max_n

    @property
    def max_output_tokens(self) -> int | None:
        return self._inner.max_output_tokens

    @property
    def price(self) -> Price | None:
        return self._inner.price

    def supports(self, name: str, /) -> bool:
        return self._inner.supports(name)

    def count_tokens(self, chat: Chat, sampling: Sampling, /) -> int:
        return self._inner.count_tokens(chat, sampling)


@dataclass(frozen=True, slots=True)
class FinalCall:
    """The last call of an approach, which the pipeline makes, and streams if the client does."""

    chat: Chat
    sampling: Sampling = field(default_factory=Sampling)
    text_filter: Callable[[], TextFilter] | None = None
    """Makes the filter of one reply; None shows the reply as it is."""

    fallback: Answer | None = None
    """The answer if the call fails; None lets the failure stand."""

    llm: LLM | None = None
    """The model that is asked; None is the one that the approach was handed."""
