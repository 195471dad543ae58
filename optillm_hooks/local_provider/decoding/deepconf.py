"""DeepConf in the engine: sequences stopped early make room for further traces.

Settings, confidence and the vote: `decoding.deepconf`.
"""

from collections.abc import Sequence

from optillm_hooks.answers.extraction import extract
from optillm_hooks.decoding.deepconf import ConfidenceMonitor, DeepConfSettings, Election
from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.decoding.base import (
    Branch,
    BranchOutput,
    DecodingMethod,
    ReplyContext,
)
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty


class _MonitoredTrace(Branch):
    """A trace that is stopped when the confidence of a full group of tokens is below the floor."""

    metrics = frozenset({"confidence"})

    def __init__(self, sampling: SamplingParams, number: int, monitor: ConfidenceMonitor) -> None:
        super().__init__(sampling)
        self.number = number
        self.monitor = monitor

    def emit(self, token: int, uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        self.stopped = self.monitor.add(uncertainty.confidence) or self.stopped
        return [token]


class DeepConf:
    """Opens traces until the vote is settled, then stops those that are still running."""

    live = False

    def __init__(self, settings: DeepConfSettings, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self._election = Election(settings)
        self._open: set[_MonitoredTrace] = set()

    @property
    def wanted(self) -> int:
        return self._election.wanted

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Does nothing: traces do not depend on the likeliest first tokens."""

    def open(self) -> Branch | None:
        branch = _MonitoredTrace(self._sampling, *self._election.open())
        self._open.add(branch)
        return branch

    def close(self, branch: Branch, output: BranchOutput) -> None:
        if not isinstance(branch, _MonitoredTrace):
            return
        self._open.discard(branch)
        found = extract(output.text, lenient=True)
        self._election.close(
            branch.number,
            branch.monitor,
            output.text,
            found.answer if found else None,
            output.finish_reason,
            stopped=output.stopped,
        )
        while self._election.count():
            pass
        if self._election.settled:
            for other in self._open:
                other.stopped = True

    def outcome(self) -> Decoded:
        return self._election.outcome()


def _start(settings: DeepConfSettings, reply: ReplyContext) -> DeepConf:
    return DeepConf(settings, reply.sampling)


METHOD = DecodingMethod("deepconf", DeepConfSettings, _start, one_choice=True)
