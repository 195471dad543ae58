"""Metrics of the requests that run a plan, on `prometheus_client`'s default registry.

LiteLLM's `/metrics` exports them with its own. They are summed over the workers of a proxy
(`PROMETHEUS_MULTIPROC_DIR`); the gauge, over those that live. No label holds text that a client can
choose freely: its number of series is bounded by the configuration.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.kill_switch import SWITCHED_OFF
from optillm_hooks.gateway.observers import Ended, Started, Watch
from optillm_hooks.gateway.prepared import Prepared
from optillm_hooks.gateway.selection import Selection
from optillm_hooks.pipeline.plan import PASS_THROUGH
from optillm_hooks.trace import CallRecord, Trace

_REQUEST: Final = ("approach", "model_group")
_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_TIMES: Final = (1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 64, 128)

REQUESTS: Final = Counter(
    "optillm_requests_total", "Requests for approaches.", (*_REQUEST, "outcome")
)
CALLS: Final = Counter(
    "optillm_calls_total",
    "Requests sent to providers.",
    ("approach", "stage", "purpose", "model_group", "status"),
)
TOKENS: Final = Counter(
    "optillm_tokens_total", "Tokens that providers reported.", (*_REQUEST, "direction")
)
COST: Final = Counter("optillm_cost_usd_total", "Cost of the model calls in US dollars.", _REQUEST)
CALLS_SAVED: Final = Counter(
    "optillm_calls_saved_total", "Planned calls that were not needed.", _REQUEST
)
SECONDS: Final = Histogram(
    "optillm_request_seconds", "Seconds that a plan ran.", _REQUEST, buckets=_SECONDS
)
FIRST_TOKEN: Final = Histogram(
    "optillm_time_to_first_token_seconds",
    "Seconds until a streamed answer began.",
    _REQUEST,
    buckets=_SECONDS,
)
CRITICAL_PATH: Final = Histogram(
    "optillm_critical_path_calls",
    "Length of the longest chain of consecutive calls.",
    _REQUEST,
    buckets=_TIMES,
)
AMPLIFICATION: Final = Histogram(
    "optillm_amplification",
    "Tokens that all calls wrote for each token of an answer.",
    _REQUEST,
    buckets=_TIMES,
)
CANDIDATES: Final = Histogram(
    "optillm_candidates", "Answers among which a plan chose.", _REQUEST, buckets=_TIMES
)
AGREEMENT: Final = Histogram(
    "optillm_agreement",
    "Share of the voters that gave the most frequent answer.",
    _REQUEST,
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)
QUEUE_CALLS: Final = Gauge(
    "optillm_queue_calls", "Calls of plans by state.", ("state",), multiprocess_mode="livesum"
)
QUEUE_SECONDS: Final = Histogram(
    "optillm_queue_seconds",
    "Seconds that a call waited for others to end.",
    buckets=(0.01, *_SECONDS),
)
BROWNOUT_REQUESTS: Final = Counter(
    "optillm_brownout_requests_total",
    "Requests that took fewer samples because the worker was busy.",
    ("model_group", "width"),
)
SHADOWS: Final = Counter(
    "optillm_shadows_total", "Requests chosen for a shadow.", ("model_group", "outcome")
)

_OTHER: Final = "other"
_MAX_COMBINATIONS: Final = 32
"""How many combinations of approaches that clients made up get a label of their own."""


class Metrics:
    """Counts what each request does. Outside a proxy there is no `/metrics`, and it does nothing.

    A worker has one. Clients can combine approaches as they like, so it keeps the first few
    combinations and calls all later ones "other".
    """

    def __init__(self) -> None:
        self._combinations: set[str] = set()

    def begin(self, started: Started, /) -> Watch | None:
        if proxy_router() is None:
            return None
        prepared = started.prepared
        return _Counted(prepared.trace, self.label(prepared.selection), prepared.base, started)

    def label(self, selection: Selection) -> str:
        """Return the value of the label "approach"."""
        label = selection.plan.label
        if selection.source in ("alias", "default") or not {"&", "|"} & set(label):
            return label
        if len(self._combinations) < _MAX_COMBINATIONS:
            self._combinations.add(label)
        return label if label in self._combinations else _OTHER


class _Counted(Watch):
    def __init__(self, trace: Trace, approach: str, base: str, started: Started) -> None:
        self._trace = trace
        self._began = time.monotonic()
        self._first_call = len(trace.calls)
        self._first_event = len(trace.events)
        self._saved = trace.calls_saved
        self._approach = approach
        self._labels = (approach, group_label(base))
        self._prepared = started.prepared
        self._n = started.request.n

    def call_ended(self, call: CallRecord, /) -> None:
        group, usage = group_label(call.model), call.usage
        stage = _OTHER if self._approach == _OTHER else call.stage
        CALLS.labels(self._approach, stage, call.purpose, group, call.outcome).inc(usage.calls)
        TOKENS.labels(self._approach, group, "prompt").inc(usage.prompt_tokens)
        TOKENS.labels(self._approach, group, "completion").inc(usage.completion_tokens)
        COST.labels(self._approach, group).inc(usage.cost_usd)

    def first_piece(self) -> None:
        FIRST_TOKEN.labels(*self._labels).observe(time.monotonic() - self._began)

    def ended(self, end: Ended, /) -> None:
        calls = self._trace.calls[self._first_call :]
        REQUESTS.labels(*self._labels, self._outcome(end)).inc()
        SECONDS.labels(*self._labels).observe(end.seconds)
        CRITICAL_PATH.labels(*self._labels).observe(max((c.depth for c in calls), default=0))
        CALLS_SAVED.labels(*self._labels).inc(self._trace.calls_saved - self._saved)
        if candidates := sum(call.choices for call in calls if _answered(call)):
            CANDIDATES.labels(*self._labels).observe(candidates)
        for share in _agreements(self._trace.events[self._first_event :]):
            AGREEMENT.labels(*self._labels).observe(share)
        if answering := [tokens for call in calls if (tokens := _answered(call))]:
            written = sum(call.usage.completion_tokens for call in calls)
            AMPLIFICATION.labels(*self._labels).observe(written / (answering[-1] * self._n))

    def _outcome(self, end: Ended) -> str:
        if end.error == "cancelled":
            return end.error
        if self._trace.stopped_by is not None:
            return self._trace.stopped_by
        if end.error or self._prepared.outcome is None:
            return "error"
        if any(name == SWITCHED_OFF for name, _ in self._trace.events):
            return SWITCHED_OFF
        return "degraded" if self._prepared.outcome.report.degraded else "ok"


class QueueMetrics:
    """Tells of the queue of a worker's calls."""

    def changed(self, *, running: int, waiting: int) -> None:
        QUEUE_CALLS.labels("running").set(running)
        QUEUE_CALLS.labels("waiting").set(waiting)

    def began(self, waited_s: float) -> None:
        QUEUE_SECONDS.observe(waited_s)


def count_brownout(prepared: Prepared, width: int) -> None:
    """Count a request that runs with at most `width` samples."""
    BROWNOUT_REQUESTS.labels(group_label(prepared.base), str(width)).inc()


def count_switched_off(base: str) -> None:
    """Count a request that the kill switch has made a plain call of `base`."""
    REQUESTS.labels(PASS_THROUGH, group_label(base), SWITCHED_OFF).inc()


def count_shadow(model: str, outcome: str) -> None:
    """Count how the shadow of a request for `model` has ended, or why there was none."""
    SHADOWS.labels(group_label(model), outcome).inc()


def _agreements(events: Sequence[tuple[str, Mapping[str, object]]]) -> Iterator[float]:
    """Yield the share of the most frequent answer in each vote."""
    for name, facts in events:
        votes, voters = facts.get("votes"), facts.get("voters")
        if name == "vote" and isinstance(votes, list) and isinstance(voters, int) and voters:
            yield max(votes, default=0) / voters


def _answered(call: CallRecord) -> float:
    """Return the tokens of one reply of a call that may have written the answer, else 0."""
    answers = call.outcome == "ok" and call.purpose in ("answer", "solution")
    return call.usage.completion_tokens / call.choices if answers else 0.0


def group_label(name: str) -> str:
    """Return a model's name as the configuration writes it: for a wildcard's model, the wildcard.

    A deployment's id becomes the name of its group.
    """
    router = proxy_router()
    if router is None:
        return _OTHER
    if name in router.model_names or name in (router.model_group_alias or {}):
        return name
    if name in router.team_public_model_names:
        return name
    if (deployment := router.get_deployment(model_id=name)) is not None:
        return str(deployment.model_name)
    matching = router.pattern_router.route(name) or []
    return str(matching[0]["model_name"]) if matching else _OTHER
