"""The interface of decoding methods in the engine, and plain sampling as the default method.

A method opens branches. The engine decodes each branch as a separate sequence, and the method
builds the reply from them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

from pydantic import BaseModel

from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.reasoning import THINK, ReasoningFormat
from optillm_hooks.local_provider.uncertainty import Uncertainty, UncertaintyMetric
from optillm_hooks.types import FinishReason, Json

S = TypeVar("S", bound=BaseModel)


class Branch:
    """How one sequence is decoded. This base class samples with fixed parameters."""

    metrics: frozenset[UncertaintyMetric] = frozenset()
    """The uncertainty metrics that the branch needs for each token."""

    steering: Mapping[str, float] = MappingProxyType({})
    """Strengths of steering vectors by name: see `local_provider.steering`."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self.stopped = False
        """Set to end the branch before its next token."""

    def sampling_params(self, _uncertainty: Uncertainty) -> SamplingParams:
        """Return the sampling parameters for the next token."""
        return self._sampling

    def emit(self, token: int, _uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        """Return the tokens, at least one, to append in place of the sampled `token`.

        `end`: the sampled token is an end token.
        """
        return [token]

    def facts(self) -> Mapping[str, Json]:
        """Return statistics for the response's vendor fields. They never contain text."""
        return {}


@dataclass(frozen=True, slots=True)
class BranchOutput:
    """The output of a branch that has ended."""

    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    """For each token, the length of the text up to and including it."""

    finish_reason: FinishReason
    stopped: bool = False
    """Whether the method stopped the branch."""


class Decoding(Protocol):
    """The decoding method of one request, with its state."""

    live: bool
    """Whether each branch is a choice of the response and streamed while it is decoded."""

    def open(self) -> Branch | None:
        """Return the next branch, or None if none can start now."""
        ...

    @property
    def wanted(self) -> int:
        """Number of branches that the method could open now."""
        ...

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Receive the likeliest first tokens with their probabilities, in descending order."""
        ...

    def close(self, branch: Branch, output: BranchOutput) -> None:
        """Record the output of a branch that has ended."""
        ...

    def outcome(self) -> Decoded:
        """Return the reply when no branch is open or wanted; for live methods, only facts."""
        ...


class Samples:
    """Plain sampling: n branches, which are the choices of the response."""

    live = True

    def __init__(self, make: Callable[[], Branch], n: int) -> None:
        # Created now, so that a request they reject is rejected before anything is generated.
        self._branches = [make() for _ in range(n)]
        self._opened = 0

    @property
    def wanted(self) -> int:
        return len(self._branches) - self._opened

    def open(self) -> Branch | None:
        self._opened += 1
        return self._branches[self._opened - 1]

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Does nothing: samples do not depend on the likeliest first tokens."""

    def close(self, branch: Branch, output: BranchOutput) -> None:
        """Does nothing: all samples are returned."""

    def outcome(self) -> Decoded:
        facts = [dict(branch.facts()) for branch in self._branches]
        if len(facts) == 1 or not any(facts):
            return Decoded("", facts=facts[0] if facts else {})
        return Decoded("", facts={"choices": [*facts]})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Conversion of text to tokens, and of a token to its bytes."""

    encode: Callable[[str], Sequence[int]]
    token_bytes: Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class ReplyContext:
    """The request parameters that a decoding method needs."""

    sampling: SamplingParams
    n: int
    question: str
    """The last user turn."""

    max_tokens: int
    """Maximum length of the reply; always set."""

    vocabulary: Vocabulary
    opened: bool
    """Whether the prompt ends inside a thinking block."""

    reasoning: ReasoningFormat = THINK


@dataclass(frozen=True, slots=True)
class DecodingMethod(Generic[S]):
    """A decoding method of the engine; each module defines one, and `methods` lists them."""

    name: str
    settings: type[S]
    start: Callable[[S, ReplyContext], Decoding]
    """Returns the method's state for one request; may raise `RequestRejected`."""

    one_choice: bool = False
    """Whether it returns a single choice, made from many branches."""
