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

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.decoding.cot_decoding import answer_span, comparable
from optillm_hooks.decoding.outcome import Outcome
from optillm_hooks.types import FinishReason, Json

Metric = Literal["lowest_group", "average_confidence", "bottom_10_percent", "tail"]


_KEPT = {"low": 0.1, "high": 0.9}


_MIN_WINDOW = 16


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
    min_trace_length: int = Field(
        default=0, ge=0, le=1_000_000, description="Tokens before which no trace is stopped."
    )
    confidence_metric: Metric = Field(
        default="lowest_group",
        description="What a trace's vote weighs: its lowest group, the mean over its tokens, over "
        "the lowest tenth of its groups, or over its last group. With no more traces than warm-up "
        "ones it says too which of them vote.",
    )


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample; `answer` None does not vote."""

    text: str
    answer: str | None
    confidence: float
    """What its vote weighs."""

    finish_reason: FinishReason = "stop"


def group_means(confidences: Sequence[float], window: int) -> list[float]:
    """Return the mean of each `window` tokens in a row; of a shorter trace its one mean."""
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
    """Return the confidence that a share `kept` of the warm-up traces reach.

    The (100 - 100 * kept)-th percentile, linear between neighbours.
    """
    ordered = sorted(confidences)
    at = (1 - kept) * (len(ordered) - 1)
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (at - below) * (ordered[above] - ordered[below])


def adapted_window(lengths: Sequence[int], most: int) -> int:
    """Return the tokens of a group for traces of these lengths."""
    return min(most, max(_MIN_WINDOW, int(statistics.median(lengths)) // 4))


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


class Watch:
    """The confidences of a trace that is being written, and whether it is to be stopped."""

    def __init__(self, window: int, floor: float | None, least: int) -> None:
        self._window = window
        self._floor = floor
        self._least = least
        self._total = 0.0
        self.confidences: list[float] = []

    def falls(self, confidence: float) -> bool:
        """Take the confidence of the next token; return whether its group lies below the floor.

        Only a whole group can, and none that ends within the first `least` tokens.
        """
        self.confidences.append(confidence)
        self._total += confidence
        extra = len(self.confidences) - self._window
        if extra > 0:
            self._total -= self.confidences[extra - 1]
        if self._floor is None or extra < 0 or len(self.confidences) < self._least:
            return False
        return self._total < self._floor * self._window


@dataclass(frozen=True, slots=True)
class _Ended:
    confidences: Sequence[float]
    text: str
    finish_reason: FinishReason
    stopped: bool


class Election:
    """The traces of one request: how many are wanted, which of them vote, and for what.

    A trace that came to nothing is closed without an end.
    """

    def __init__(self, settings: DeepConfSettings) -> None:
        self._settings = settings
        self._warmup = min(settings.warmup_samples, settings.max_traces)
        offline = self._warmup == settings.max_traces
        # Online all are held to what later traces are stopped by.
        self._filter: Metric = settings.confidence_metric if offline else "lowest_group"
        self._window = settings.window_size
        self._floor: float | None = None
        self._ended: dict[int, _Ended | None] = {}
        self._counted = 0
        self._stopped = 0
        self._whole: list[tuple[float, Trace]] = []
        """The traces that were counted and not stopped, each with what is held to the floor."""

        self.opened = 0
        self.settled = False
        """Whether no further trace can be of use."""

    @property
    def wanted(self) -> int:
        """How many traces may be begun now."""
        if self.settled:
            return 0
        return (self._warmup if self._floor is None else self._settings.max_traces) - self.opened

    def open(self) -> tuple[int, Watch]:
        """Return the number of the next trace, and what watches over it."""
        self.opened += 1
        watch = Watch(self._window, self._floor, self._settings.min_trace_length)
        return self.opened - 1, watch

    def close(
        self, number: int, watch: Watch, text: str, finish_reason: FinishReason, *, stopped: bool
    ) -> None:
        """Take note of the end of a trace."""
        self._close(number, _Ended(watch.confidences, text, finish_reason, stopped))

    def give_up(self, number: int) -> None:
        """Take note that a trace failed."""
        self._close(number, None)

    def outcome(self) -> Outcome:
        """Return the surest trace of the answer with most votes. There must be one at least."""
        voters = self._voters()
        best = winner(voters)
        weights = sorted(votes(voters).values(), reverse=True)
        facts: dict[str, Json] = {
            "traces": self._counted,
            "stopped": self._stopped,
            "votes": [round(weight, 3) for weight in weights],
        }
        return Outcome(best.text, best.finish_reason, facts)

    def _close(self, number: int, ended: _Ended | None) -> None:
        self._ended[number] = ended
        if self._floor is None:
            if len(self._ended) < self._warmup:
                return
            self._set_floor()
            for _ in range(self._warmup):
                self._count()
            self.settled = self._agreed()
        while not self.settled and self._counted in self._ended:
            self._count()
            self.settled = self._agreed()

    def _count(self) -> None:
        """Take the next trace, which has ended, into account."""
        ended = self._ended[self._counted]
        self._counted += 1
        if ended is None:
            return
        if ended.stopped:
            self._stopped += 1
            return
        metric = self._settings.confidence_metric
        trace = Trace(
            ended.text,
            read_answer(ended.text),
            trace_confidence(ended.confidences, self._window, metric),
            ended.finish_reason,
        )
        passes_by = trace_confidence(ended.confidences, self._window, self._filter)
        self._whole.append((passes_by, trace))

    def _set_floor(self) -> None:
        whole = [ended.confidences for ended in self._ended.values() if ended is not None]
        if not whole:
            return
        self._window = adapted_window([len(c) for c in whole], self._settings.window_size)
        passes_by = [trace_confidence(c, self._window, self._filter) for c in whole]
        self._floor = threshold(passes_by, _KEPT[self._settings.variant])

    def _agreed(self) -> bool:
        tally = votes(self._voters())
        share = self._settings.consensus_threshold
        return bool(tally) and max(tally.values()) >= share * sum(tally.values())

    def _voters(self) -> list[Trace]:
        """Return the traces that vote: not stopped, and not below the floor (warm-up ones)."""
        floor = -math.inf if self._floor is None else self._floor
        passed = [trace for passes_by, trace in self._whole if passes_by >= floor]
        return passed or [trace for _, trace in self._whole]
