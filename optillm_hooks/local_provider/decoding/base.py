"""The interface between the engine and a decoding method, and sampling, the plain method.

A method opens branches. The engine writes each as a sequence of its own, and the method makes the
reply out of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel

from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty, UncertaintyMetric
from optillm_hooks.types import FinishReason, Json

S = TypeVar("S", bound=BaseModel)


class Branch:
    """How one sequence is decoded. This base class samples with fixed parameters."""

    metrics: frozenset[UncertaintyMetric] = frozenset()
    """The uncertainty metrics that it needs for each token."""

    steering: Mapping[str, float] = MappingProxyType({})
    """The strength of each steering vector, by name: see `local_provider.steering`."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self.stopped = False
        """Set to end the branch before its next token."""

    def sampling_params(self, _uncertainty: Uncertainty) -> SamplingParams:
        """Return the sampling parameters for the next token."""
        return self._sampling

    def take(self, token: int, _uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        """Return the tokens, at least one, to write in place of the sampled one.

        `end`: the sampled token is one that ends the reply.
        """
        return [token]

    def facts(self) -> Mapping[str, Json]:
        """Return statistics for the response's vendor fields. They never contain text."""
        return {}


@dataclass(frozen=True, slots=True)
class Written:
    """What a branch wrote before it ended."""

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    """For each id, the length of the text up to and including it."""

    finish_reason: FinishReason
    stopped: bool = False
    """Whether the method stopped it."""


class Decoding(Protocol):
    """One request's decoding method, with its state."""

    live: bool
    """Whether each branch is a choice of its own, streamed while it is written."""

    def open(self) -> Branch | None:
        """Return the next branch, or None if the method opens none now."""
        ...

    @property
    def wanted(self) -> int:
        """How many branches the method would open now."""
        ...

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Receive the likeliest first tokens with their probabilities, likeliest first."""
        ...

    def close(self, branch: Branch, written: Written) -> None:
        """Record what a branch wrote before it ended."""
        ...

    def outcome(self) -> Decoded:
        """Return the reply once no branch is open or wanted. A live method returns facts only."""
        ...


class Samples:
    """A method whose n branches are the choices of the response."""

    live = True

    def __init__(self, make: Callable[[], Branch], n: int) -> None:
        # All are made now, so that a request they refuse is refused before anything is written.
        self._branches = [make() for _ in range(n)]
        self._opened = 0

    @property
    def wanted(self) -> int:
        return len(self._branches) - self._opened

    def open(self) -> Branch | None:
        self._opened += 1
        return self._branches[self._opened - 1]

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Samples do not depend on the likeliest first tokens."""

    def close(self, branch: Branch, written: Written) -> None:
        """All samples are returned: none is picked."""

    def outcome(self) -> Decoded:
        facts = [dict(branch.facts()) for branch in self._branches]
        if len(facts) == 1 or not any(facts):
            return Decoded("", facts=facts[0] if facts else {})
        return Decoded("", facts={"choices": [*facts]})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Text to tokens, and a token to its bytes."""

    encode: Callable[[str], Sequence[int]]
    token_bytes: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """What a decoding method knows of the reply that it decodes."""

    sampling: SamplingParams
    n: int
    question: str
    """The last user turn."""

    max_tokens: int
    """The maximum length of the reply; never unset."""

    vocabulary: Vocabulary
    opened: bool
    """Whether the prompt ends inside a block of thinking."""


@dataclass(frozen=True, slots=True)
class DecodingMethod(Generic[S]):
    """A decoding method of the engine, as its module registers it in `methods`."""

    name: str
    settings: type[S]
    start: Callable[[S, ReplyContext], Decoding]
    """Makes the state of one request. It may raise `RequestRejected`."""

    one_choice: bool = False
    """Whether it makes one reply of many branches."""
