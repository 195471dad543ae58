"""A proxy that is told to end while requests are running."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import HANG, Broken, Call, Script, Upstream

ASKED = {"model": "hurried", "messages": [{"role": "user", "content": "6 * 7?"}]}


def by_way(call: Call, choice: int) -> str:
    return f"By way {choice}.\nANSWER: 42{call.index}{choice}"


def hang_at_ratings(call: Call) -> Broken | None:
    return HANG if call.body.get("n", 1) == 1 else None


def test_running_requests_end_with_the_best_answer_so_far(
    tmp_path: Path, upstream: Upstream
) -> None:
    config = hooked_config(
        [model_group("base", upstream.url), alias("hurried", "bon(n=2)", deadline_s=3)]
    )
    upstream.play(Script(reply=by_way, fault=hang_at_ratings))
    with Proxy(config, tmp_path, command=True) as proxy, ThreadPoolExecutor() as threads:
        running = [
            threads.submit(proxy.post, "/v1/chat/completions", {**ASKED, "stream": stream})
            for stream in (False, True)
        ]
        upstream.wait_until(lambda u: len(u.alive) >= 2)
        os.kill(proxy.pid, signal.SIGTERM)
        answers = [request.result() for request in running]
        assert [answer.status_code for answer in answers] == [200, 200]
        for answer in answers:
            assert "By way" in answer.text
            assert '"stopped_by":"deadline"' in answer.text
