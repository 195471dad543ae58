"""Two workers of one proxy: they count together, one is killed alone, and both end in order.

It is one test, because two workers take some 20 s of CPU time to start.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.gateway.test_metrics import exported
from tests.gateway.test_shutdown import by_way, hang_at_ratings
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import HANG, Broken, Call, Script, Upstream, differing
from tests.workers import one_client_of_each_worker

PATH: Final = "/v1/chat/completions"
_START_S: Final = 120.0
BODY: Final[dict[str, Any]] = {
    "model": "rated",
    "messages": [{"role": "user", "content": "What is 6 times 7?"}],
}
LOST: Final = "a request that is lost with its worker"


def test_two_workers_count_together_die_alone_and_end_with_the_best_answers_so_far(
    tmp_path: Path, upstream: Upstream
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    env = {
        "NUM_WORKERS": "2",
        "PROMETHEUS_MULTIPROC_DIR": str(samples),
        "GRACEFUL_SHUTDOWN_TIMEOUT": "5",
        "KEEPALIVE_TIMEOUT": "60",
        "TIMEOUT_WORKER_HEALTHCHECK": "120",  # on a busy machine a start may take long
    }
    config = hooked_config([model_group("base", upstream.url), alias("rated", "bon(n=2)")])
    with (
        ThreadPoolExecutor(8) as threads,
        Proxy(config, tmp_path, ledger=False, env=env, command=True) as proxy,
    ):
        sums_equal_the_providers_log(proxy, upstream, samples, threads)
        a_killed_worker_takes_no_other_request_with_it(proxy, upstream, threads)
        both_return_the_best_answer_so_far(proxy, upstream, threads)


def sums_equal_the_providers_log(
    proxy: Proxy, upstream: Upstream, samples: Path, threads: ThreadPoolExecutor
) -> None:
    def counting() -> int:
        """Return how many workers have counted a request."""
        files = list(samples.glob("counter_*.db"))
        return sum(b"optillm_requests_total" in file.read_bytes() for file in files)

    def ask(_: int) -> int:
        # A connection stays with its worker, and the first that is up may take all of them.
        headers = {"authorization": f"Bearer {proxy.master_key}", "connection": "close"}
        url = f"{proxy.url}{PATH}"
        return proxy.http.post(url, json=BODY, headers=headers, timeout=60).status_code

    upstream.play(Script(reply=differing))
    asked = 0
    while counting() < 2:
        assert asked < 2000
        assert set(threads.map(ask, range(8))) == {200}
        asked += 8
    having = exported(proxy)
    total = {name: sum(v for (n, _), v in having.items() if n == name) for name, _ in having}
    assert total["optillm_requests_total"] == asked
    assert total["optillm_request_seconds_count"] == asked
    assert total["optillm_calls_total"] == len(upstream.calls) == 3 * asked
    assert total["optillm_tokens_total"] == upstream.bill.total_tokens


def a_killed_worker_takes_no_other_request_with_it(
    proxy: Proxy, upstream: Upstream, threads: ThreadPoolExecutor
) -> None:
    def hang_at_ratings_of_the_lost(call: Call) -> Broken | None:
        return HANG if LOST in call.text and hang_at_ratings(call) else None

    lost = {**BODY, "messages": [{"role": "user", "content": LOST}]}
    # One second leaves the other plan in the middle of its ratings when the worker is killed.
    upstream.play(Script(reply=differing, fault=hang_at_ratings_of_the_lost, latency_s=1.0))
    with one_client_of_each_worker(proxy) as clients:
        (victim, its_client), (_, other) = clients.items()
        asked = threads.submit(its_client.post, PATH, json=lost)
        upstream.wait_until(lambda it: len(it.calls) == 3, within_s=60)
        kept = threads.submit(other.post, PATH, json=BODY)
        upstream.wait_until(lambda it: len(it.calls) == 6, within_s=60)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(httpx.HTTPError):
            asked.result()
        assert kept.result().status_code == 200
        assert '"degraded":[]' in kept.result().text
        upstream.wait_until(lambda it: not it.alive, within_s=60)
        upstream.play(Script(reply=differing))
        assert other.post(PATH, json=lost).status_code == 200, "what was lost can be sent again"
    proxy.wait_until(lambda it: it.log.count("startup complete") > 2, within_s=_START_S)


def both_return_the_best_answer_so_far(
    proxy: Proxy, upstream: Upstream, threads: ThreadPoolExecutor
) -> None:
    upstream.play(Script(reply=by_way, fault=hang_at_ratings))
    with one_client_of_each_worker(proxy) as clients:
        running = [threads.submit(it.post, PATH, json=BODY) for it in clients.values()]
        upstream.wait_until(lambda it: len(it.alive) == 4, within_s=60)
        os.kill(proxy.pid, signal.SIGTERM)
        for answer in (request.result() for request in running):
            assert answer.status_code == 200, answer.text
            assert "By way" in answer.text
            assert '"stopped_by":"deadline"' in answer.text
