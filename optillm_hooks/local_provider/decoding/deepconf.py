"""DeepConf in the engine: stopped sequences make room for further traces.

Settings, confidence and the vote: `decoding.deepconf`.
"""

from collections.abc import Sequence

from optillm_hooks.decoding.deepconf import DeepConfSettings, Election, Watch
from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.decoding.base import Branch, DecodingMethod, ReplyContext, Written
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty


class _Confident(Branch):
    """A sample that stops when the confidence of a whole window of tokens is below the floor."""

    metrics = frozenset({"confidence"})

    def __init__(self, sampling: SamplingParams, number: int, watch: Watch) -> None:
        super().__init__(sampling)
        self.number = number
        self.watch = watch

    def take(self, token: int, uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        self.stopped = self.watch.falls(uncertainty.confidence) or self.stopped
        return [token]


class DeepConf:
    """Opens traces until their vote is settled, and then stops those that still run."""

    live = False

    def __init__(self, settings: DeepConfSettings, sampling: SamplingParams) -> None:
        self._sampling = sampling
        self._election = Election(settings)
        self._open: set[_Confident] = set()

    @property
    def wanted(self) -> int:
        return self._election.wanted

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Traces do not depend on the likeliest first tokens."""

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


def _start(settings: DeepConfSettings, reply: ReplyContext) -> DeepConf:
    return DeepConf(settings, reply.sampling)


METHOD = DecodingMethod("deepconf", DeepConfSettings, _start, one_choice=True)
