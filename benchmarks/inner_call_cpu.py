"""Our own CPU time per inner call, beyond LiteLLM's router.

Plans of one and of many inner calls run in this process over a router and a 0 ms upstream, and are
measured twice. By a profile: the share of the time that lies in our functions and in what they
call, without what passes in `Router.acompletion`, taken of what the same requests need unwatched.
A profiler slows code of many small functions more than other code, so that share is too high. And
without one: the provider alone, over a router that immediately returns a prepared reply.
All times are of the thread's CPU, not of the clock.
"""

import asyncio
import cProfile
import os
import pstats
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
from litellm.types.utils import ModelResponse

import optillm_hooks
from benchmarks.report import parser, publish, table
from optillm_hooks.gateway import provider
from tests.proxy import model_group
from tests.upstream import Call, Script, Upstream

OURS: Final = str(Path(optillm_hooks.__file__).parent)
PLANS: Final = ("re2", "self_consistency(n=8)", "bon", "moa")
MAX_MS: Final = 1.0
QUESTION: Final = [{"role": "user", "content": "What is 6 times 7?"}]

Place = tuple[str, int, str]
"""A function in a profile: file, line, name."""


@dataclass(frozen=True, slots=True)
class Row:
    plan: str
    calls: int
    """Inner calls per request."""

    alone_ms: float
    """Our CPU time per inner call, measured without the router."""

    profiled_ms: float
    """Our CPU time per inner call, according to the profile."""

    router_ms: float
    """The router's CPU time per inner call, according to the profile."""


def own_seconds(stats: Mapping[Place, Any]) -> tuple[float, float]:
    """Return the time in our code with what it calls but the router, and that in the router.

    What enters our code from outside counts whole; what leaves it into the router is taken off.
    """
    entered = router = 0.0
    for (file, _, name), (_, _, _, _, callers) in stats.items():
        for (caller_file, _, _), (_, _, _, seconds) in callers.items():
            ours, from_ours = file.startswith(OURS), caller_file.startswith(OURS)
            if ours and not from_ours:
                entered += seconds
            elif from_ours and file.endswith("litellm/router.py") and name == "acompletion":
                router += seconds
    return entered - router, router


async def _ask(plan: str, times: int) -> None:
    for _ in range(times):
        await litellm.acompletion(model=f"optillm/{plan}/base", messages=QUESTION)


class _Answered(litellm.Router):
    """A router that returns the same ready reply to every call."""

    reply: ModelResponse

    async def acompletion(self, *_: Any, **__: Any) -> ModelResponse:
        return self.reply


async def _alone(plan: str, router: _Answered, requests: int) -> float:
    """Return the seconds that `requests` requests take in our provider alone."""
    provider.use(router)
    started = time.thread_time()
    for _ in range(requests):
        await provider.acompletion(
            model=f"{plan}/base",
            messages=QUESTION,
            model_response=ModelResponse(),
            optional_params={},
            litellm_params={},
        )
    return time.thread_time() - started


async def _measured(
    plan: str, router: litellm.Router, answered: _Answered, upstream: Upstream, requests: int
) -> Row:
    provider.use(router)
    await _ask(plan, 3)  # connections, caches, lazy imports
    before = len(upstream.calls)
    started = time.thread_time()
    await _ask(plan, requests)
    unwatched = time.thread_time() - started
    calls = len(upstream.calls) - before
    profile = cProfile.Profile(time.thread_time)
    started = time.thread_time()
    profile.enable()
    await _ask(plan, requests)
    profile.disable()
    watched = time.thread_time() - started
    own, in_router = own_seconds(pstats.Stats(profile).stats)  # type: ignore[attr-defined]
    true_ms = 1000 * unwatched / watched / calls
    return Row(
        plan=plan,
        calls=calls // requests,
        alone_ms=1000 * await _alone(plan, answered, requests) / calls,
        profiled_ms=own * true_ms,
        router_ms=in_router * true_ms,
    )


def differing(call: Call, choice: int) -> str:
    """Reply so that no two answers are the same, and raters and voters can read it."""
    answer = f"42{call.index:02}{choice}"
    return f"By way {call.index}.{choice}: {answer}.\nRating: {1 + choice}\nANSWER: {answer}"


def measure(upstream: Upstream, *, plans: tuple[str, ...], requests: int) -> list[Row]:
    """Return a row per plan, each from `requests` requests."""
    # A provider that LiteLLM knows not to take n: each sample is a call.
    groups = [model_group("base", upstream.url, model="cerebras/base")]

    async def run() -> list[Row]:
        # Made on the loop that uses it: it keeps connections.
        router = litellm.Router(model_list=groups, num_retries=0)
        answered = _Answered(model_list=groups, num_retries=0)
        answered.reply = await router.acompletion(model="base", messages=QUESTION)
        return [await _measured(plan, router, answered, upstream, requests) for plan in plans]

    upstream.play(Script(reply=differing))
    litellm.custom_provider_map = [{"provider": "optillm", "custom_handler": provider}]
    try:
        return asyncio.run(run())
    finally:
        provider.use(None)
        litellm.custom_provider_map = []


def show(rows: list[Row]) -> str:
    return table(
        (
            "plan",
            "inner calls",
            "ours, ms per call",
            "ours by profile, ms",
            "router's, ms",
            "maximum",
        ),
        [
            (
                f"`{row.plan}`",
                str(row.calls),
                f"{row.alone_ms:.2f}",
                f"{row.profiled_ms:.2f}",
                f"{row.router_ms:.2f}",
                str(MAX_MS),
            )
            for row in rows
        ],
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=50, help="of each plan")
    given = options.parse_args()
    with Upstream() as upstream:
        rows = measure(upstream, plans=PLANS, requests=given.requests)
    note = (
        f"{given.requests} requests of each plan. Our share of a request's CPU time is divided by"
        " its inner calls. The profile's figure is too high: profiling slows small functions most."
    )
    publish(
        "CPU per inner call",
        "benchmarks.inner_call_cpu",
        f"{note}\n\n{show(rows)}",
        write=given.write,
    )


if __name__ == "__main__":
    main()
