"""The benchmarks that need a proxy run, and detect what they are made to detect."""

import pytest

from benchmarks import inner_call_cpu, load, overhead
from benchmarks.report import Interval
from tests.proxy import Proxy
from tests.upstream import Script, Upstream


def test_overhead(stock: Proxy, proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    rows = overhead.measure(stock, proxy, rounds=2, requests=3)
    assert [row.target for row in rows] == list(overhead.TARGETS)
    assert rows[0].ratio == Interval(1, 1, 1)
    assert all(0.1 < row.ratio.median < 10 for row in rows)
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
