"""The critical path: the number of sequential model calls, measured with a slow provider."""

import pytest

from tests.proxy import Proxy
from tests.upstream import Script, Upstream, differing

LATENCIES_S = (0.1, 0.4, 2.0)
"""Tried one after another, until the calls of each stage overlap.

They start one after another. On a busy machine that takes longer than a short latency, and then
calls that do not need each other look like a chain; a real chain stays one at any latency.
"""

DEPTHS = {
    "none-base": 1,
    "re2-base": 1,
    "cot_reflection-base": 1,
    "bon-base": 3,
    "moa-base": 3,
    "self_consistency-base": 2,
    "moa|bon-base": 3,
    "re2&bon-base": 3,
    "re2|cot_reflection-base": 1,
    "bon&self_consistency-base": 5,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("n", [1, 3], ids=["one choice", "three choices"])
@pytest.mark.parametrize(("model", "depth"), DEPTHS.items(), ids=DEPTHS)
def test_calls_that_do_not_need_each_other_run_at_once(
    proxy: Proxy, upstream: Upstream, model: str, depth: int, n: int, stream: bool
) -> None:
    body = {
        "model": model,
        "n": n,
        "stream": stream,
        "messages": [{"role": "user", "content": "What is 6 times 7?"}],
    }
    for latency_s in LATENCIES_S:
        upstream.play(Script(reply=differing, latency_s=latency_s))
        answer = proxy.post("/v1/chat/completions", body)
        assert answer.status_code == 200, answer.text
        upstream.wait_until_idle()
        if upstream.depth <= depth:
            break
    assert upstream.depth == depth
    if not stream and "x-optillm-depth" in answer.headers:
        assert int(answer.headers["x-optillm-depth"]) == depth
        assert int(answer.headers["x-optillm-calls"]) == len(upstream.calls)
