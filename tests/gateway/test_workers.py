"""Two workers of one proxy: they count together, and both end with their best answers so far.

It is one test, because two workers take some 20 s of CPU time to start.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from tests.gateway.test_metrics import exported
from tests.gateway.test_shutdown import by_way, hang_at_ratings
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Upstream, differing
from tests.workers import own_port, owners

PATH: Final = "/v1/chat/completions"
BODY: Final[dict[str, Any]] = {
    "model": "rated",
    "messages": [{"role": "user", "content": "What is 6 times 7?"}],
}


def test_two_workers_count_together_and_end_with_the_best_answers_so_far(
    tmp_path: Path, upstream: Upstream
) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    env = {
        "NUM_WORKERS": "2",
        "PROMETHEUS_MULTIPROC_DIR": str(samples),
        "GRACEFUL_SHUTDOWN_TIMEOUT": "5",
        "KEEPALIVE_TIMEOUT": "60",
    }
    config = hooked_config([model_group("base", upstream.url), alias("rated", "bon(n=2)")])
    with (
        ThreadPoolExecutor(8) as threads,
        Proxy(config, tmp_path, ledger=False, env=env, command=True) as proxy,
    ):
        sums_equal_the_providers_log(proxy, upstream, samples, threads)
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


def both_return_the_best_answer_so_far(
    proxy: Proxy, upstream: Upstream, threads: ThreadPoolExecutor
) -> None:
    upstream.play(Script(reply=by_way, fault=hang_at_ratings))
    with one_client_of_each_worker(proxy) as clients:
        running = [threads.submit(client.post, PATH, json=BODY) for client in clients]
        upstream.wait_until(lambda it: len(it.alive) == 4, within_s=60)
        os.kill(proxy.pid, signal.SIGTERM)
        for answer in (request.result() for request in running):
            assert answer.status_code == 200, answer.text
            assert "By way" in answer.text
            assert '"stopped_by":"deadline"' in answer.text


@contextmanager
def one_client_of_each_worker(proxy: Proxy) -> Iterator[list[httpx.Client]]:
    """Yield two clients, each with an open connection to a worker of its own."""
    found: dict[int, httpx.Client] = {}
    with ExitStack() as resources:
        while len(found) < 2:
            client = resources.enter_context(
                httpx.Client(
                    base_url=proxy.url,
                    headers={"authorization": f"Bearer {proxy.master_key}"},
                    timeout=120,
                )
            )
            with client.stream("GET", "/health/liveliness") as answer:
                answer.read()
                port = own_port(answer)
            found.setdefault(owners(proxy, [port])[port], client)
        yield list(found.values())
