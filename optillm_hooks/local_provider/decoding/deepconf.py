"""DeepConf: samples that lose confidence are stopped, the rest vote with their confidence.

Source: Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260, sections 3.1 to 3.3. A group
is the mean confidence of a window of tokens; a trace is as good as its lowest group. Warm-up traces
set the threshold, later ones end below it and do not vote, and sampling stops on consensus (the
online form); with no more traces than warm-up ones it is the offline form: all are whole, and the
least confident, by the metric that votes weigh, do not vote. The paper's window of 2,048 tokens is
for long reasoning: here it shrinks to a quarter of the median warm-up trace, at least 16 tokens, or
short answers would never have a group. Traces count in the order in which they were begun, so that
which of them ends first changes nothing.
"""

from collections.abc import Sequence

from optillm_hooks.decoding.deepconf import DeepConfSettings, Election, Watch
from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.decoding.base import Branch, Written
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty


class _Confident(Branch):
    """A sample that ends when a whole group of its tokens falls below the floor."""

    metrics = frozenset({"confidence"})

    def __init__(self, sampling: SamplingParams, number: int, watch: Watch) -> None:
        super().__init__(sampling)
        self.number = number
        self.watch = watch

    def take(self, token: int, uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        self.stopped = self.watch.falls(uncertainty.confidence) or self.stopped
        return [token]


class DeepConf:
    """The method in the engine: stopped rows make room for further traces."""

    live = False

    def __init__(self, settings: DeepConfSettings, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self._election = Election(settings)
        self._open: set[_Confident] = set()

    @property
    def wanted(self) -> int:
        return self._election.wanted

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Nothing depends on the first tokens."""

    def open(self) -> Branch | None:
        branch = _Confident(self._sampling, *self._election.open())
        self._open.add(branch)
        return branch

    def close(self, branch: Branch, written: Written) -> None:
        if not isinstance(branch, _Confident):
            return
        self._open.discard(branch)
        self._election.close(
            branch.number,
            branch.watch,
            written.text,
            written.finish_reason,
            stopped=written.stopped,
        )
        if self._election.settled:
            for other in self._open:
                other.stopped = True

    def outcome(self) -> Decoded:
        return self._election.outcome()
