"""What a decoding method is to the engine: it opens branches, and picks from what they wrote."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty, UncertaintyMetric
from optillm_hooks.types import FinishReason, Json


class Branch:
    """How one row goes on. This one samples with fixed parameters; it is the base of the others."""

    metrics: frozenset[UncertaintyMetric] = frozenset()
    """The metrics of uncertainty that it wants to see for each token."""

    steering: Mapping[str, float] = MappingProxyType({})
    """Steering vectors by name, with the strength of each: see `local_provider.steering`."""

    def __init__(self, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self.stopped = False
        """Set when the branch need not go on; it ends before its next token."""

    def sampling_params(self, _uncertainty: Uncertainty) -> SamplingParams:
        """Return the sampling parameters for the next token."""
        return self._sampling

    def take(self, token: int, _uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        """Return what is written for the token that was drawn (`end`: one that ends the reply).

        There is at least one; several are written one after another.
        """
        return [token]

    def facts(self) -> Mapping[str, Json]:
        """Return how it went, for the response's vendor fields. Never text."""
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
    """Whether the method itself stopped it."""


class Decoding(Protocol):
    """One request's decoding method, with its state."""

    live: bool
    """Whether each branch is a choice of its own, shown as it is written."""

    def open(self) -> Branch | None:
        """Return the next branch, or None if there is none to open now."""
        ...

    @property
    def wanted(self) -> int:
        """How many branches it would open now."""
        ...

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Look at the likeliest first tokens with their probabilities, likeliest first."""
        ...

    def close(self, branch: Branch, written: Written) -> None:
        """Take note of a branch that ended."""
        ...

    def outcome(self) -> Decoded:
        """Return the reply, when no branch is open and none wanted; of a live method the facts."""
        ...


class Samples:
    """A method whose n branches are the choices themselves."""

    live = True

    def __init__(self, make: Callable[[], Branch], n: int) -> None:
        # All at once, so that what cannot be is refused before anything is written.
        self._branches = [make() for _ in range(n)]
        self._opened = 0

    @property
    def wanted(self) -> int:
        return len(self._branches) - self._opened

    def open(self) -> Branch | None:
        self._opened += 1
        return self._branches[self._opened - 1]

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Nothing depends on the first tokens."""

    def close(self, branch: Branch, written: Written) -> None:
        """Nothing is picked from the samples."""

    def outcome(self) -> Decoded:
        facts = [dict(branch.facts()) for branch in self._branches]
        if len(facts) == 1 or not any(facts):
            return Decoded("", facts=facts[0] if facts else {})
        return Decoded("", facts={"choices": [*facts]})
