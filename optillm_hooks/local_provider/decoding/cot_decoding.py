"""CoT decoding: k branches, one per likely first token; the answer they are surest of wins.

Source: Wang and Zhou 2024, "Chain-of-Thought Reasoning Without Prompting", arXiv:2402.10200,
sections 2.2 and 3. As there, confidence is the mean gap between the two likeliest tokens over the
tokens of the answer alone, and the gaps of equal answers are added up. What the answer is, is read
off the text: a box, what stands behind "the answer is", a number, a yes or no. Where a branch has
none the paper asks the model to name it; here the text is then an answer of its own, with the gap
over the whole of it.
"""

from collections.abc import Sequence
from dataclasses import replace

from optillm_hooks.decoding.cot_decoding import CotSettings, Path, choose, read_path
from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.local_provider.decoding.base import Branch, Written
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty


class _FirstGiven(Branch):
    metrics = frozenset({"margin"})

    def __init__(self, first: int, sampling: SamplingParams) -> None:
        super().__init__(sampling)
        self._first: int | None = first
        self.margins: list[float] = []

    def take(self, token: int, uncertainty: Uncertainty, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        first, self._first = self._first, None
        self.margins.append(uncertainty.margin)
        return [token if first is None else first]


class CotDecoding:
    """The method in the engine: k rows from one prompt."""

    live = False

    def __init__(self, settings: CotSettings, sampling: SamplingParams) -> None:
        self._settings = settings
        self._sampling = replace(sampling, temperature=settings.branch_temperature or 0.0)
        self._firsts: list[int] = []
        self._paths: dict[Branch, Path] = {}
        self._opened: list[Branch] = []

    @property
    def wanted(self) -> int:
        return len(self._firsts)

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        self._firsts = [token for token, _ in likeliest[: self._settings.k]]

    def open(self) -> Branch | None:
        self._opened.append(_FirstGiven(self._firsts.pop(0), self._sampling))
        return self._opened[-1]

    def close(self, branch: Branch, written: Written) -> None:
        if isinstance(branch, _FirstGiven):
            self._paths[branch] = read_path(
                written.text, branch.margins, written.ends, written.finish_reason
            )

    def outcome(self) -> Decoded:
        paths = [self._paths[branch] for branch in self._opened]
        choice = choose(paths, aggregate=self._settings.aggregate_paths)
        return Decoded(choice.path.text, choice.path.finish_reason, choice.facts())
