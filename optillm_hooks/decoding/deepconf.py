"""DeepConf: traces with low confidence are stopped; the others vote, weighted by confidence.

Source: Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260, sections 3.1 to 3.3. Group
confidence is the mean over a sliding window of tokens, and a trace is rated by its lowest group.
Online: warm-up traces set the floor, later traces below it are stopped and do not vote, and
sampling ends on consensus. Offline (no more traces than warm-up samples): no trace is stopped, and
the least confident ones, by the metric that weights the votes, do not vote. Deviations: see
`approaches.deepconf`.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.answers.equivalence import AnswerClasses
from optillm_hooks.decoding.outcome import Decoded
from optillm_hooks.types import FinishReason, Json

Metric = Literal["lowest_group", "average_confidence", "bottom_10_percent", "tail"]

_KEPT = {"low": 0.1, "high": 0.9}
"""Share of warm-up traces that reach the floor, by variant."""

_MIN_WINDOW = 16

_QUORUM = 5
"""Votes that a consensus needs, or half of the warm-up: of one or two, each is a consensus."""


class DeepConfSettings(BaseModel):
    """Settings of DeepConf in a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: Literal["low", "high"] = Field(
        default="high",
        description="Share of warm-up traces that reach the floor: high 90 %, low 10 %. low is "
        "cheaper, but loses to a plain vote where confidence tells nothing.",
    )
    warmup_samples: int = Field(
        default=8, ge=1, le=256, description="Number of complete traces that set the floor."
    )
    max_traces: int = Field(
        default=32, ge=1, le=1024, description="Maximum number of traces, warm-up included."
    )
    consensus_threshold: float = Field(
        default=0.95, gt=0, le=1, description="Share of the votes' weight at which sampling stops."
    )
    window_size: int = Field(
        default=2048, ge=1, le=65536, description="Maximum number of tokens of a confidence group."
    )
    min_trace_length: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Minimum number of tokens before a trace can be stopped.",
    )
    confidence_metric: Metric = Field(
        default="lowest_group",
        description="The weight of a trace's vote: its lowest group, the mean over its tokens, the "
        "mean over the lowest tenth of its groups, or its last group. If max_traces is not above "
        "warmup_samples, it also determines which traces vote.",
    )


@dataclass(frozen=True, slots=True)
class SampledTrace:
    """One sampled trace. It does not vote if its `answer` is None."""

    text: str
    answer: str | None
    confidence: float
    """The weight of its vote."""

    finish_reason: FinishReason = "stop"


class Vote:
    """Confidence-weighted majority voting; equivalent answers count as one."""

    def __init__(self, traces: Iterable[SampledTrace] = ()) -> None:
        self._traces: list[SampledTrace] = []
        self._classes = AnswerClasses()
        for trace in traces:
            self.add(trace)

    def add(self, trace: SampledTrace) -> None:
        """Add a trace. Its answer is compared with the others once, now."""
        self._traces.append(trace)
        if trace.answer is not None:
            self._classes.add(trace.answer)

    def weights(self) -> dict[str, float]:
        """Return the summed confidence of each answer, in order of first appearance."""
        names = self._classes.names()
        weights: dict[str, float] = defaultdict(float)
        for trace in self._traces:
            if trace.answer is not None:
                weights[names[trace.answer]] += trace.confidence
        return dict(weights)

    def winner(self) -> SampledTrace:
        """Return the most confident trace of the winning answer; without votes, of all traces."""
        names, weights = self._classes.names(), self.weights()
        best = max(weights, key=lambda answer: weights[answer], default=None)
        for_best = [t for t in self._traces if t.answer is not None and names[t.answer] == best]
        return max(for_best or self._traces, key=lambda trace: trace.confidence)

    def __len__(self) -> int:
        return len(self._traces)

    def has_consensus(self, share: float) -> bool:
        """Return True if one answer has at least `share` of the total weight."""
        weights = self.weights().values()
        return bool(weights) and max(weights) >= share * sum(weights)


def group_means(confidences: Sequence[float], window: int) -> list[float]:
    """Return the mean of each window of `window` tokens; one mean if the trace is shorter."""
    width = min(window, len(confidences))
    if not width:
        return []
    total = sum(confidences[:width])
    totals = [total]
    for old, new in zip(confidences, confidences[width:], strict=False):
        total += new - old
        totals.append(total)
    return [total / width for total in totals]


def trace_confidence(confidences: Sequence[float], window: int, metric: Metric) -> float:
    """Return the confidence of a trace; 0 if there are no tokens."""
    if metric == "average_confidence":
        return group_means(confidences, len(confidences))[0] if confidences else 0.0
    means = group_means(confidences, window)
    if metric == "tail":
        return means[-1] if means else 0.0
    means.sort()
    lowest = means[: 1 if metric == "lowest_group" else math.ceil(len(means) / 10)]
    return sum(lowest) / len(lowest) if lowest else 0.0


def threshold(confidences: Sequence[float], kept: float) -> float:
    """Return the floor that a share `kept` of the warm-up traces reaches.

    This is the percentile 100 - 100 * kept, linearly interpolated.
    """
    ordered = sorted(confidences)
    at = (1 - kept) * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def adapted_window(lengths: Sequence[int], maximum: int) -> int:
    """Return the group size in tokens, adapted to the lengths of the warm-up traces."""
    return min(maximum, max(_MIN_WINDOW, int(statistics.median(lengths)) // 4))


class ConfidenceMonitor:
    """Tracks the confidence of a running trace, to stop it below the floor."""

    def __init__(self, window: int, floor: float | None, min_length: int) -> None:
        self._window = window
        self._floor = floor
        self._min_length = min_length
        self._total = 0.0
        self.confidences: list[float] = []

    def add(self, confidence: float) -> bool:
        """Add the confidence of the next token; return True if its group is below the floor.

        Only full groups count, and only once the trace has `min_length` tokens.
        """
        self.confidences.append(confidence)
        self._total += confidence
        extra = len(self.confidences) - self._window
        if extra > 0:
            self._total -= self.confidences[extra - 1]
        if self._floor is None or extra < 0 or len(self.confidences) < self._min_length:
            return False
        return self._total < self._floor * self._window


@dataclass(frozen=True, slots=True)
class _Ended:
    confidences: Sequence[float]
    text: str
    answer: str | None
    finish_reason: FinishReason
    stopped: bool


class Election:
    """The traces of one request and their vote: how many are wanted, and which of them vote.

    Traces are counted in the order in which they were opened, not in which they ended.
    """

    def __init__(self, settings: DeepConfSettings) -> None:
        self._settings = settings
        self._warmup = min(settings.warmup_samples, settings.max_traces)
        offline = self._warmup == settings.max_traces
        # Online, warm-up traces are filtered by the same metric that stops later ones.
        self._filter: Metric = settings.confidence_metric if offline else "lowest_group"
        self._window = settings.window_size
        self._floor: float | None = None
        self._ended: dict[int, _Ended | None] = {}
        self._counted = 0
        self._stopped = 0
        self._vote = Vote()
        self._below: list[SampledTrace] = []
        """Complete (warm-up) traces below the floor, which do not vote."""

        self.opened = 0
        self.settled = False
        """Whether further traces cannot change the result."""

    @property
    def wanted(self) -> int:
        """Number of traces that may be opened now."""
        if self.settled:
            return 0
        return (self._warmup if self._floor is None else self._settings.max_traces) - self.opened

    def open(self) -> tuple[int, ConfidenceMonitor]:
        """Return the number of the next trace, and its confidence monitor."""
        self.opened += 1
        monitor = ConfidenceMonitor(self._window, self._floor, self._settings.min_trace_length)
        return self.opened - 1, monitor

    def close(
        self,
        number: int,
        monitor: ConfidenceMonitor,
        text: str,
        answer: str | None,
        finish_reason: FinishReason,
        *,
        stopped: bool,
    ) -> None:
        """Record the end of a trace, whose final answer is `answer`; `count` then counts it."""
        self._ended[number] = _Ended(monitor.confidences, text, answer, finish_reason, stopped)

    def fail(self, number: int) -> None:
        """Record that a trace failed."""
        self._ended[number] = None

    def count(self) -> bool:
        """Count the next trace, if it has ended; return whether there was one.

        One at a time, so that an event loop can run in between.
        """
        warming = self._counted < self._warmup
        if self.settled or self._counted not in self._ended:
            return False
        if warming and len(self._ended) < self._warmup:
            return False
        if not self._counted:
            self._set_floor()
        self._count()
        if self._counted >= self._warmup:
            self.settled = self._has_consensus()
        return True

    def outcome(self) -> Decoded:
        """Return the most confident trace of the answer with the highest weight.

        At least one trace must be complete. If none reached the floor, which only rounding or NaN
        confidences can cause, all of them vote.
        """
        while self.count():
            pass
        vote = self._vote if len(self._vote) else Vote(self._below)
        best = vote.winner()
        weights = sorted(vote.weights().values(), reverse=True)
        facts: dict[str, Json] = {
            "traces": self._counted,
            "stopped": self._stopped,
            "votes": [round(weight, 3) for weight in weights],
        }
        return Decoded(best.text, best.finish_reason, facts)

    def _count(self) -> None:
        """Count the next trace, which has ended."""
        ended = self._ended[self._counted]
        self._counted += 1
        if ended is None:
            return
        if ended.stopped:
            self._stopped += 1
            return
        trace = SampledTrace(
            ended.text,
            ended.answer,
            trace_confidence(ended.confidences, self._window, self._settings.confidence_metric),
            ended.finish_reason,
        )
        filtered_by = trace_confidence(ended.confidences, self._window, self._filter)
        if self._floor is None or filtered_by >= self._floor:
            self._vote.add(trace)
        else:
            self._below.append(trace)

    def _set_floor(self) -> None:
        whole = [ended.confidences for ended in self._ended.values() if ended is not None]
        if not whole:
            return
        self._window = adapted_window([len(c) for c in whole], self._settings.window_size)
        filtered_by = [trace_confidence(c, self._window, self._filter) for c in whole]
        self._floor = threshold(filtered_by, _KEPT[self._settings.variant])

    def _has_consensus(self) -> bool:
        quorum = min(_QUORUM, math.ceil(self._warmup / 2))
        return len(self._vote) >= quorum and self._vote.has_consensus(
            self._settings.consensus_threshold
        )
