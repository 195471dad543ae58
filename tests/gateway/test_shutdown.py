"""A proxy that is told to end while requests are running."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from litellm.proxy.shutdown.graceful_shutdown_manager import GracefulShutdownManager

from optillm_hooks.errors import SampleError
from optillm_hooks.gateway.shutdown import hurry_when_draining
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.running import RUNNING
from optillm_hooks.testing import HANG as NO_REPLY
from optillm_hooks.testing import ScriptedLLM, chat
from tests.proxy import ROOT, Proxy, alias, hooked_config, model_group
from tests.upstream import HANG, Broken, Call, Script, Upstream

MODELS = ("hurried", "patient")
DRAIN = {"DRAIN_ENDPOINT_TOKEN": "only-the-kubelet-knows"}


def by_way(call: Call, choice: int) -> str:
    return f"By way {choice}.\nANSWER: 42{call.index}{choice}"


def hang_at_ratings(call: Call) -> Broken | None:
    return HANG if call.body.get("n", 1) == 1 else None


def by_signal(proxy: Proxy) -> None:
    os.kill(proxy.pid, signal.SIGTERM)


def by_drain(proxy: Proxy) -> None:
    """Run the command of the Kubernetes manifest, which returns once nothing runs any more."""
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/deployment.yaml").read_text())
    [container] = pod["spec"]["template"]["spec"]["containers"]
    _, option, code = container["lifecycle"]["preStop"]["exec"]["command"]
    here = code.replace(":4000/", f":{proxy.port}/")
    assert here != code
    subprocess.run([sys.executable, option, here], env=DRAIN, check=True)
    assert proxy.http.get(f"{proxy.url}/health/readiness").status_code == 503


@pytest.mark.parametrize("ended", [by_signal, by_drain])
def test_running_requests_end_with_the_best_answer_so_far(
    tmp_path: Path, upstream: Upstream, ended: Callable[[Proxy], None]
) -> None:
    config = hooked_config(
        [
            model_group("base", upstream.url),
            alias("hurried", "bon(n=2)", deadline_s=60),
            alias("patient", "bon(n=2)"),
        ]
    )
    config["general_settings"] |= {"enable_drain_endpoint": True}
    upstream.play(Script(reply=by_way, fault=hang_at_ratings))
    grace = {"GRACEFUL_SHUTDOWN_TIMEOUT": "5", **DRAIN}
    with ThreadPoolExecutor() as threads, Proxy(config, tmp_path, env=grace) as proxy:
        asked = {"messages": [{"role": "user", "content": "6 * 7?"}]}
        bodies = [{**asked, "model": m, "stream": s} for m in MODELS for s in (False, True)]
        running = [threads.submit(proxy.post, "/v1/chat/completions", body) for body in bodies]
        upstream.wait_until(lambda u: len(u.alive) >= 2 * len(bodies))
        ended(proxy)
        answers = [request.result() for request in running]
        assert [answer.status_code for answer in answers] == [200] * 4
        for answer in answers:
            assert "By way" in answer.text
            assert '"stopped_by":"deadline"' in answer.text


async def running(llm: ScriptedLLM) -> Outcome:
    request = Request(plan=resolve(parse("bon(n=2)")), base="base", chat=chat("6 * 7?"))
    return await run(request, {"base": llm}.__getitem__)


@pytest.mark.anyio
async def test_a_drain_hurries_plans_under_way_and_to_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRACEFUL_SHUTDOWN_TIMEOUT", "0")
    monkeypatch.setattr(GracefulShutdownManager, "_is_shutting_down", False)
    monkeypatch.setattr(RUNNING, "_until", float("inf"))
    llm = ScriptedLLM(["By tens.\nANSWER: 41", "ANSWER: 42", NO_REPLY, NO_REPLY])
    async with asyncio.TaskGroup() as tasks:
        hurry_when_draining(RUNNING)
        plan = tasks.create_task(running(llm))
        await llm.until_hanging(2)
        GracefulShutdownManager.start_shutdown()
    assert plan.result().answers[0].text
    assert plan.result().report.stopped_by == "deadline"
    with pytest.raises(SampleError, match="the deadline passed"):
        await running(ScriptedLLM([NO_REPLY, NO_REPLY]))
