"""Many concurrent users: no errors, no cross-talk, and no growing memory."""

from benchmarks.load import MODELS, SCRIPT, burst, markers, memory
from tests.proxy import Proxy
from tests.upstream import Upstream

CONCURRENCY = 200
MAX_GROWTH = 40 * 2**20
"""Bytes over the batches after the first; the full measurement is `benchmarks.load`."""


def test_two_hundred_mixed_requests_at_once(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(SCRIPT)
    load = burst(proxy, requests=CONCURRENCY, concurrency=CONCURRENCY)
    assert load.failures == ()
    assert load.cross_talk == ()
    assert len(load.seconds) == CONCURRENCY
    mixed = [call.index for call in upstream.calls if len(markers(call.text)) != 1]
    assert mixed == []


def test_memory_stays(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(SCRIPT)
    sizes = []
    for _, rss, load in memory(proxy, batches=4, requests=4 * len(MODELS)):
        assert load.failures == ()
        sizes.append(rss)
    assert sizes[-1] - sizes[0] < MAX_GROWTH
