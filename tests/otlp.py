"""A collector of OpenTelemetry on loopback, over OTLP/HTTP, that remembers spans and metrics."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

TRACES: Final = "/v1/traces"
METRICS: Final = "/v1/metrics"


@dataclass(frozen=True, slots=True)
class Collected:
    """A span as it was exported. An SDK exports only spans that have ended."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    """The id of the span that it is below; empty without one."""

    attributes: dict[str, Any]
    failed: bool
    events: Sequence[tuple[str, dict[str, Any]]]
    started: int
    """Nanoseconds, as is `ended`."""

    ended: int


class Collector:
    def __init__(self) -> None:
        self.spans: list[Collected] = []
        self.histograms: dict[str, list[tuple[dict[str, Any], int]]] = {}
        """The attributes and the number of values of each series, by the metric's name."""

        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, name="collector")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def wait_until(self, holds: Callable[["Collector"], object], *, within_s: float = 30.0) -> None:
        """Wait until `holds`.

        Raises:
            AssertionError: it does not after `within_s` seconds.
        """
        with self._changed:
            assert self._changed.wait_for(lambda: holds(self), within_s), (
                f"not so after {within_s} s; spans: {[span.name for span in self.spans]}"
            )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, path: str, body: bytes) -> bytes:
        """Remember what was sent to `path`; return the answer."""
        with self._changed:
            if path == TRACES:
                self.spans += _spans(ExportTraceServiceRequest.FromString(body))
                answer: bytes = ExportTraceServiceResponse().SerializeToString()
            else:
                assert path == METRICS, path
                self.histograms |= _histograms(ExportMetricsServiceRequest.FromString(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
            self._changed.notify_all()
        return answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = take(self.path, self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        return Handler


def _spans(request: ExportTraceServiceRequest) -> list[Collected]:
    return [
        Collected(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            attributes=_attributes(span.attributes),
            failed=span.status.code == span.status.STATUS_CODE_ERROR,
            events=[(event.name, _attributes(event.attributes)) for event in span.events],
            started=span.start_time_unix_nano,
            ended=span.end_time_unix_nano,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _histograms(
    request: ExportMetricsServiceRequest,
) -> dict[str, list[tuple[dict[str, Any], int]]]:
    return {
        metric.name: [(_attributes(p.attributes), p.count) for p in metric.histogram.data_points]
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
