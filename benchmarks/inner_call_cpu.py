"""Our own CPU time per inner call, beyond LiteLLM's router, by a profile.

Plans of one and of many inner calls run in this process over a router and a 0 ms upstream. Ours is
the share of the profile that lies in our functions and in what they call, without what passes in
`Router.acompletion`. A profiler slows what it watches, so that share is taken of the time that the
same requests need without it. All times are of the thread's CPU, not of the clock.
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

import optillm_hooks
from benchmarks.report import parser, publish, table
from optillm_hooks.gateway import provider
from tests.proxy import model_group
from tests.upstream import Upstream

OURS: Final = str(Path(optillm_hooks.__file__).parent)
PLANS: Final = ("re2", "self_consistency(n=8)", "moa", "bon")
MOST_MS: Final = 1.0

Place = tuple[str, int, str]
"""A function in a profile: file, line, name."""


@dataclass(frozen=True, slots=True)
class Row:
    plan: str
    calls: int
    """Inner calls per request."""

    own_ms: float
    """Ours per inner call."""

    router_ms: float
    profiled_ms: float
    """Ours, with the profiler's cost in it."""


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
        await litellm.acompletion(
            model=f"optillm/{plan}/base", messages=[{"role": "user", "content": "6 times 7?"}]
        )


async def _profiled(plan: str, upstream: Upstream, requests: int) -> Row:
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
    own, router = own_seconds(pstats.Stats(profile).stats)  # type: ignore[attr-defined]
    true_ms = 1000 * unwatched / watched / calls
    return Row(plan, calls // requests, own * true_ms, router * true_ms, 1000 * own / calls)


def measure(upstream: Upstream, *, plans: tuple[str, ...], requests: int) -> list[Row]:
    """Return a row per plan, each from `requests` requests."""

    async def run() -> list[Row]:
        # Made on the loop that uses it: it keeps connections.
        provider.use(litellm.Router(model_list=[model_group("base", upstream.url)], num_retries=0))
        return [await _profiled(plan, upstream, requests) for plan in plans]

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
            "ours, ms per inner call",
            "at most",
            "router's, ms",
            "profiled, ms",
        ),
        [
            (
                f"`{row.plan}`",
                str(row.calls),
                f"{row.own_ms:.2f}",
                str(MOST_MS),
                f"{row.router_ms:.2f}",
                f"{row.profiled_ms:.2f}",
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
        f"{given.requests} requests of each plan, profiled and not. All that a request costs us is"
        " shared out to its inner calls. The last column has the profiler's own cost in it."
    )
    publish(
        "CPU per inner call",
        "benchmarks.inner_call_cpu",
        f"{note}\n\n{show(rows)}",
        write=given.write,
    )


if __name__ == "__main__":
    main()
