"""The critical path: the number of sequential model calls, measured with a slow provider."""

import pytest

from tests.proxy import Proxy
from tests.upstream import Script, Upstream, differing

LATENCY_S = {1: 0.25, 3: 0.4}
"""By the number of choices: calls of one stage start one after another, in a fraction of it."""

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
    upstream.play(Script(reply=differing, latency_s=LATENCY_S[n]))
    body = {
        "model": model,
        "n": n,
        "stream": stream,
        "messages": [{"role": "user", "content": "What is 6 times 7?"}],
    }
    answer = proxy.post("/v1/chat/completions", body)
    assert answer.status_code == 200, answer.text
    upstream.wait_until(lambda u: not u.alive)
    assert upstream.depth == depth
    if not stream and "x-optillm-depth" in answer.headers:
        assert int(answer.headers["x-optillm-depth"]) == depth
        assert int(answer.headers["x-optillm-calls"]) == len(upstream.calls)
