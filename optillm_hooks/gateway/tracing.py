"""Traces of the requests that run a plan, by OpenTelemetry's conventions for generative AI.

They begin where the operator turns on LiteLLM's callback `otel`, and go where its spans go. A
request has a span `invoke_workflow {approach}` below LiteLLM's own span of it, and in that a span
for each stage. LiteLLM's spans of the calls lie below their stage. Ours hold names and figures,
never text of users or models.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import litellm

from optillm_hooks.gateway.caller import stage_span
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.gateway.observers import CANCELLED, Ended, Started, Watch, error_code
from optillm_hooks.gateway.selection import Selection
from optillm_hooks.trace import CallRecord, StageRun
from optillm_hooks.types import Usage

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram
    from opentelemetry.trace import Span

_INVOKE_WORKFLOW: Final = "invoke_workflow"
_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)


class Traces:
    """Traces each request; without LiteLLM's `otel` it does nothing.

    Args:
        label: returns the approach's name for the metric, of which there may not be too many.
    """

    def __init__(self, label: Callable[[Selection], str]) -> None:
        self._label = label

    def begin(self, started: Started, /) -> Watch | None:
        otel = _litellms_otel()
        if otel is None:
            return None
        return _Traced(started, otel.tracer, self._label(started.prepared.selection))


def _litellms_otel() -> Any:
    """Return LiteLLM's logger of OpenTelemetry, or None if the operator has not turned it on."""
    if (of_proxy := getattr(proxy_module(), "open_telemetry_logger", None)) is not None:
        return of_proxy
    if "opentelemetry.sdk.trace" not in sys.modules:
        return None
    logs = litellm.logging_callback_manager.get_all_callbacks()  # from Python, without a proxy
    return next((each for each in logs if hasattr(each, "tracer")), None)


class _Traced(Watch):
    def __init__(self, started: Started, tracer: Any, label: str) -> None:
        from opentelemetry.trace import format_trace_id

        prepared = started.prepared
        self._trace = prepared.trace
        self._prepared = prepared
        self._tracer = tracer
        self._label = label
        self._first_call = len(prepared.trace.calls)
        self._span: Span = tracer.start_span(
            f"{_INVOKE_WORKFLOW} {prepared.plan.label}",
            context=_below(started.caller.span),
            attributes={
                "gen_ai.operation.name": _INVOKE_WORKFLOW,
                "gen_ai.workflow.name": prepared.plan.label,
                "optillm.base_model": prepared.base,
                "optillm.call_id": prepared.trace.call_id,
                "optillm.stream": started.stream,
            },
        )
        self._trace.trace_id = format_trace_id(self._span.get_span_context().trace_id)

    @contextmanager
    def stage(self, stage: StageRun, /) -> Iterator[None]:
        from opentelemetry.trace import use_span

        span = self._tracer.start_span(
            stage.name,
            context=_below(stage_span.get() or self._span),
            attributes={"optillm.stage": stage.chain, "optillm.choice": stage.run},
        )
        outer = stage_span.set(span)
        try:
            with (
                use_span(span, record_exception=False, set_status_on_exception=False),
                _anchored(span),
            ):
                yield
        except BaseException as exc:
            _tell_error(span, error_code(exc))
            raise
        finally:
            stage_span.reset(outer)
            span.end()

    def call_ended(self, call: CallRecord, /) -> None:
        span: Any = stage_span.get()
        if span is None or not span.is_recording():
            return
        span.add_event(
            "optillm.call",
            {
                "gen_ai.request.model": call.model,
                "optillm.purpose": call.purpose,
                "optillm.outcome": call.outcome,
                "optillm.calls": call.usage.calls,
                "optillm.depth": call.depth,
                "optillm.seconds": call.seconds,
                "optillm.cost_usd": call.usage.cost_usd,
            },
        )

    def first_piece(self) -> None:
        self._span.add_event("optillm.first_piece")

    def ended(self, end: Ended, /) -> None:
        calls = self._trace.calls[self._first_call :]
        usage = sum((call.usage for call in calls), Usage())
        outcome = self._prepared.outcome
        told: dict[str, Any] = {
            "gen_ai.invoke_workflow.inference_calls": usage.calls,
            "optillm.cost_usd": usage.cost_usd,
            "optillm.depth": max((call.depth for call in calls), default=0),
            "optillm.calls_saved": self._trace.calls_saved,
        }
        if self._trace.stopped_by is not None:
            told["optillm.stopped_by"] = self._trace.stopped_by
        if outcome is not None and outcome.report.degraded:
            told["optillm.degraded"] = outcome.report.degraded
        self._span.set_attributes(told)
        _tell_error(self._span, end.error)
        self._span.end()
        _record_duration(self._label, end)


def _below(span: Any) -> "Context | None":
    """Return a context whose span is `span`; None, for the active one, without it."""
    from opentelemetry.trace import set_span_in_context

    return None if span is None else set_span_in_context(span)


def _tell_error(span: Any, code: str) -> None:
    """Set an error's code on a span. A span that was cancelled has it too, but has not failed."""
    from opentelemetry.trace import StatusCode

    if not code:
        return
    span.set_attribute("error.type", code)
    if code != CANCELLED:
        span.set_status(StatusCode.ERROR)


def _anchored(span: Any) -> AbstractContextManager[object]:
    """Return a context in which LiteLLM's newer tracing puts its spans below `span`.

    With `LITELLM_OTEL_V2`, it puts them below the span of the HTTP request, wherever they begin.
    """
    from litellm.integrations.otel.model.config import is_otel_v2_enabled

    return _anchored_v2(span) if is_otel_v2_enabled() else nullcontext()


@contextmanager
def _anchored_v2(span: Any) -> Iterator[None]:
    from litellm.integrations.otel.plumbing.context import request_root_span, set_request_root_span

    outer = request_root_span()
    set_request_root_span(span)
    try:
        yield
    finally:
        if outer is not None:
            set_request_root_span(outer)


def _record_duration(label: str, end: Ended) -> None:
    """Record how long a plan ran. It goes nowhere unless OpenTelemetry's metrics are configured."""
    failed = {"error.type": end.error} if end.error else {}
    _duration().record(end.seconds, {"gen_ai.workflow.name": label, **failed})


@cache
def _duration() -> "Histogram":
    from opentelemetry.metrics import get_meter

    return get_meter("optillm_hooks").create_histogram(
        "gen_ai.workflow.duration",
        unit="s",
        description="Seconds that a plan ran.",
        explicit_bucket_boundaries_advisory=_SECONDS,
    )
