"""DeepConf: samples that lose confidence are stopped, the rest vote with their confidence.

Source: Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260, sections 3.1 to 3.3 (online
form). A group is the mean confidence of a window of tokens; a trace is as good as its lowest group.
Warm-up traces set the threshold, later ones end below it and do not vote, and sampling stops on
consensus. The paper's window of 2,048 tokens is for long reasoning: here it shrinks to a quarter of
the median warm-up trace, at least 16 tokens, or short answers would never have a group.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.local_provider.decoding.base import Branch, Outcome, Written
from optillm_hooks.local_provider.decoding.cot_decoding import answer_span, comparable
from optillm_hooks.local_provider.generation import Law
from optillm_hooks.local_provider.measures import Measured
from optillm_hooks.types import FinishReason

_KEPT = {"low": 0.1, "high": 0.9}
_LEAST_WINDOW = 16


class DeepConfSettings(BaseModel):
    """What a request can set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Literal["low", "high"] = Field(
        default="low",
        description="Share of traces whose confidence passes: low 10 % (cheap), high 90 %.",
    )
    warmup_samples: int = Field(
        default=16, ge=1, le=256, description="Whole traces that set the threshold."
    )
    max_traces: int = Field(
        default=128, ge=1, le=1024, description="Most traces, warm-up included."
    )
    consensus_threshold: float = Field(
        default=0.95, gt=0, le=1, description="Share of the vote at which sampling stops."
    )
    window_size: int = Field(
        default=2048, ge=1, le=65536, description="Most tokens of a confidence group."
    )


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample; `answer` None does not vote."""

    text: str
    answer: str | None
    confidence: float
    """Of its lowest group."""

    finish_reason: FinishReason = "stop"


def lowest_group(confidences: Sequence[float], window: int) -> float:
    """Return the least mean over `window` tokens in a row; of a shorter trace its mean."""
    if not confidences:
        return 0.0
    width = min(window, len(confidences))
    total = sum(confidences[:width])
    lowest = total
    for old, new in zip(confidences, confidences[width:], strict=False):
        total += new - old
        lowest = min(lowest, total)
    return lowest / width


def threshold(lowest: Sequence[float], kept: float) -> float:
    """Return the confidence that a share `kept` of the warm-up traces reach.

    The (100 - 100 * kept)-th percentile, linear between neighbours.
    """
    ordered = sorted(lowest)
    at = (1 - kept) * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def adapted_window(lengths: Sequence[int], most: int) -> int:
    """Return the tokens of a group for traces of these lengths."""
    return min(most, max(_LEAST_WINDOW, int(statistics.median(lengths)) // 4))


def votes(traces: Sequence[Trace]) -> dict[str, float]:
    """Return the summed confidence of each answer, in order of first appearance."""
    tally: dict[str, float] = defaultdict(float)
    for trace in traces:
        if trace.answer is not None:
            tally[trace.answer] += trace.confidence
    return dict(tally)


def winner(traces: Sequence[Trace]) -> Trace:
    """Return the surest trace of the answer with most votes; without votes the surest trace."""
    tally = votes(traces)
    if not tally:
        return max(traces, key=lambda trace: trace.confidence)
    best = max(tally, key=lambda answer: tally[answer])
    return max((t for t in traces if t.answer == best), key=lambda trace: trace.confidence)


def read_answer(text: str) -> str | None:
    """Return the final answer of a trace in comparable form, or None."""
    span = answer_span(text)
    return None if span is None else comparable(text[span.start : span.end])


class _Confident(Branch):
    """A sample that ends when a whole group of its tokens falls below the floor."""

    asks = frozenset({"confidence"})

    def __init__(self, law: Law, window: int, floor: float | None) -> None:
        super().__init__(law)
        self._window = window
        self._floor = floor
        self._total = 0.0
        self.confidences: list[float] = []

    def take(self, token: int, measured: Measured, *, end: bool) -> Sequence[int]:  # noqa: ARG002
        self.confidences.append(measured.confidence)
        self._total += measured.confidence
        extra = len(self.confidences) - self._window
        if extra > 0:
            self._total -= self.confidences[extra - 1]
        if self._floor is not None and extra >= 0 and self._total < self._floor * self._window:
            self.stopped = True
        return [token]


class DeepConf:
    """The method in the engine: stopped rows make room for further traces."""

    live = False

    def __init__(self, settings: DeepConfSettings, law: Law) -> None:
        self._settings = settings
        self._law = law
        self._warmup = min(settings.warmup_samples, settings.max_traces)
        self._window = settings.window_size
        self._floor: float | None = None
        self._opened: list[_Confident] = []
        self._ended: dict[Branch, Written] = {}
        self._agreed = False

    @property
    def wanted(self) -> int:
        if self._agreed:
            return 0
        most = self._warmup if self._floor is None else self._settings.max_traces
        return most - len(self._opened)

    def begin(self, likeliest: Sequence[tuple[int, float]]) -> None:
        """Nothing depends on the first tokens."""

    def open(self) -> Branch | None:
        self._opened.append(_Confident(self._law, self._window, self._floor))
        return self._opened[-1]

    def close(self, branch: Branch, written: Written) -> None:
        self._ended[branch] = written
        if self._floor is None:
            if len(self._ended) < self._warmup:
                return
            self._set_floor()
        tally = votes(self._voters())
        if tally and max(tally.values()) >= self._settings.consensus_threshold * sum(
            tally.values()
        ):
            self._agreed = True
            for running in self._opened:
                running.stopped = running.stopped or running not in self._ended

    def outcome(self) -> Outcome:
        voters = self._voters()
        best = winner(voters)
        return Outcome(
            best.text,
            best.finish_reason,
            {
                "traces": len(self._opened),
                "stopped": sum(written.stopped for written in self._ended.values()),
                "votes": {answer: round(weight, 3) for answer, weight in votes(voters).items()},
            },
        )

    def _set_floor(self) -> None:
        self._window = adapted_window(
            [len(branch.confidences) for branch in self._opened], self._settings.window_size
        )
        lowest = [lowest_group(branch.confidences, self._window) for branch in self._opened]
        self._floor = threshold(lowest, _KEPT[self._settings.variant])

    def _voters(self) -> list[Trace]:
        """Return the traces that vote: not stopped, and not below the floor (warm-up ones)."""
        whole = [
            (lowest_group(branch.confidences, self._window), self._ended[branch])
            for branch in self._opened
            if branch in self._ended and not self._ended[branch].stopped
        ]
        floor = -math.inf if self._floor is None else self._floor
        passed = [(low, written) for low, written in whole if low >= floor] or whole
        return [
            Trace(written.text, read_answer(written.text), low, written.finish_reason)
            for low, written in passed
        ]
