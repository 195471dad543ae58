"""The benchmarks that need a proxy run, and detect what they are made to detect."""

import sys
from pathlib import Path

import httpx
import pytest

from benchmarks import inner_call_cpu, load, overhead, soak
from benchmarks.report import Interval
from tests.proxy import Proxy
from tests.upstream import Script, Upstream


def test_overhead(stock: Proxy, proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    rows = overhead.measure(stock, proxy, rounds=2, requests=3)
    assert [row.target for row in rows] == list(overhead.TARGETS)
    assert rows[0].ratio == Interval(1, 1, 1)
    assert all(0 < row.ratio.low <= row.ratio.median <= row.ratio.high for row in rows)
    assert len(upstream.calls) == 3 * 3 * len(overhead.TARGETS)


def test_a_burst_of_mixed_requests(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(load.SCRIPT)
    burst = load.burst(proxy, requests=20, concurrency=20)
    assert (burst.failures, burst.cross_talk) == ((), ())
    assert len(burst.seconds) == 20
    assert burst.percentile(0.95) >= burst.percentile(0.5) >= load.LATENCY_S
    assert not [call for call in upstream.calls if len(load.markers(call.text)) != 1]


def test_a_burst_sees_cross_talk(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=lambda call, _: "marker-0-end" if call.index else "none"))
    burst = load.burst(proxy, requests=3, concurrency=1, models=("base",))
    assert [line.split(": ")[1] for line in burst.cross_talk] == [
        "marker-0-end got []",
        "marker-1-end got ['marker-0-end']",
        "marker-2-end got ['marker-0-end']",
    ]
    assert sum(burst.seconds) <= burst.wall_s  # the wait for a place is not a request's time


def test_servers_are_compared(stock: Proxy, proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(load.SCRIPT)
    targets = [load.Target("ours", proxy, "none-base"), load.Target("alone", stock, "base")]
    found = load.compare(targets, rounds=2, requests=3, at_once=2)
    ours, alone = load.rows_of(2, found, "alone")
    assert (ours[:2], alone[:2]) == (("2", "ours"), ("2", "alone"))
    assert (float(ours[3]) > 0, alone[3]) == (True, "1.00")
    assert float(ours[5]) >= 1000 * load.LATENCY_S
    assert float(ours[8]) > 0
    assert ours[-1] == alone[-1] == "0"
    assert len(upstream.calls) == 2 * 2 * 3


SERVER = """
import http.server, sys
address = ("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1]))
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(address, Health).serve_forever()
"""


@pytest.mark.parametrize("program", [SERVER, "raise SystemExit(3)"], ids=["starts", "fails"])
def test_optillm_runs_from_its_own_environment(
    tmp_path: Path, upstream: Upstream, program: str
) -> None:
    command = tmp_path / "bin" / "optillm"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\n{program}")
    command.chmod(0o755)
    if program != SERVER:
        with pytest.raises(RuntimeError, match="3"), load.optillm(tmp_path, upstream, tmp_path):
            pass
        return
    with load.optillm(tmp_path, upstream, tmp_path) as server:
        assert server.footprint.rss_bytes > 0
    assert server.footprint.rss_bytes == 0


def test_memory_is_read_after_each_batch(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(load.SCRIPT)
    batches = list(load.memory(proxy, batches=2, requests=4, models=("base", "reread")))
    assert [done for done, _, _ in batches] == [4, 8]
    assert all(rss > 50e6 and not part.failures for _, rss, part in batches)


@pytest.mark.filterwarnings("ignore:.*ReadOnly:UserWarning")  # of LiteLLM, at its first call
def test_our_cpu_per_inner_call(upstream: Upstream) -> None:
    few, many = inner_call_cpu.measure(upstream, plans=("re2", "moa"), requests=3)
    assert (few.calls, many.calls) == (1, 5)
    for row in (few, many):
        assert 0 < row.alone_ms < row.router_ms
        assert 0 < row.profiled_ms < row.router_ms


@pytest.mark.parametrize(
    ("status", "text", "outcome"),
    [
        (200, '{"content": "marker-1-end"}', "answered"),
        (200, '{"content": "marker-2-end"}', "problem"),
        (503, '{"error": {"message": "busy", "code": "503"}}', "refused with 503"),
        (500, "Internal Server Error", "problem"),
        (500, '{"error": "busy"}', "problem"),
    ],
)
def test_a_soak_tells_answers_and_refusals_from_problems(
    status: int, text: str, outcome: str
) -> None:
    seen = soak.Seen()
    soak.judge(httpx.Response(status, text=text), "re2-base", "marker-1-end", seen, stream=False)
    assert seen.outcomes == {outcome: 1}


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ('data: {"content": "marker-1-end"}\n\ndata: [DONE]\n\n', "answered"),
        ('data: {"content": "marker-1-end"}\n\n', "problem"),
        ('data: {"error": {"message": "late", "code": "504"}}\n\n', "refused with 504"),
    ],
)
def test_a_soak_reads_streams(text: str, outcome: str) -> None:
    seen = soak.Seen()
    soak.judge(httpx.Response(200, text=text), "re2-base", "marker-1-end", seen, stream=True)
    assert seen.outcomes == {outcome: 1}


def test_the_books_of_a_soak_agree_but_for_replies_that_nobody_read() -> None:
    assert soak.Books(2, 300, 2, 300, crossed=0).agree
    assert soak.Books(2, 300, 3, 400, crossed=1).agree
    assert not soak.Books(2, 300, 3, 400, crossed=0).agree
    assert not soak.Books(2, 300, 2, 301, crossed=5).agree
    assert not soak.Books(3, 300, 2, 200, crossed=5).agree
