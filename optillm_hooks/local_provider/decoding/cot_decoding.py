"""CoT decoding in the engine: k sequences from one prompt, each with a different first token.

Settings, confidence and the choice of a branch: `decoding.cot_decoding`.
"""

from collections.abc import Sequence
from dataclasses import replace

from optillm_hooks.answers.equivalence import classes
from optillm_hooks.answers.extraction import extract
from optillm_hooks.decoding.cot_decoding import CotSettings, Path, choose, read_path
from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.decoding.base import (
    Branch,
    BranchOutput,
    DecodingMethod,
    ReplyContext,
)
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty


class _ForcedFirstToken(Branch):
    """A branch with a forced first token, which records the margin of each token."""

    metrics = frozenset({"margin"})

    def __init__(self, first: int, probability: float, sampling: SamplingParams) -> None:
        super().__init__(sampling)
        self._first: int | None = first
        self.probability = probability
        self.margins: list[float] = []

    def emit(self, token: int, uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        first, self._first = self._first, None
        self.margins.append(uncertainty.margin)
        return [token if first is None else first]


class CotDecoding:
    """Opens one branch per likely first token, and chooses one when all have ended."""

    live = False

    def __init__(self, settings: CotSettings, sampling: SamplingParams) -> None:
        self._settings = settings
        self._sampling = replace(sampling, temperature=settings.branch_temperature or 0.0)
        self._firsts: list[tuple[int, float]] = []
        self._paths: dict[Branch, Path] = {}
        self._opened: list[Branch] = []

    @property
    def wanted(self) -> int:
        return len(self._firsts)

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        self._firsts = [*likeliest[: self._settings.k]]

    def open(self) -> Branch | None:
        self._opened.append(_ForcedFirstToken(*self._firsts.pop(0), self._sampling))
        return self._opened[-1]

    def close(self, branch: Branch, output: BranchOutput) -> None:
        if isinstance(branch, _ForcedFirstToken):
            found = extract(output.text, lenient=True)
            self._paths[branch] = read_path(
                output.text,
                branch.margins,
                output.ends,
                output.finish_reason,
                found,
                branch.probability,
                every_mention=self._settings.every_mention,
            )

    def outcome(self) -> Decoded:
        paths = [self._paths[branch] for branch in self._opened]
        same = classes([path.answer for path in paths])
        choice = choose(paths, same, self._settings)
        return Decoded(choice.path.text, choice.path.finish_reason, choice.facts())


def _start(settings: CotSettings, reply: ReplyContext) -> CotDecoding:
    return CotDecoding(settings, reply.sampling)


METHOD = DecodingMethod("cot_decoding", CotSettings, _start, one_choice=True)
