"""Many mixed concurrent requests, and memory over many requests.

Each request carries a marker of its own, which the upstream puts into its replies: an answer with
another marker, or none, is cross-talk.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.report import parser, publish, table
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Upstream

MODELS: Final = (
    "base",
    "none-base",
    "re2-base",
    "cot_reflection-base",
    "bon-base",
    "moa-base",
    "self_consistency-base",
    "re2|cot_reflection-base",
    "re2&bon-base",
    "reread",
)
LATENCY_S: Final = 0.05
_MARKER: Final = re.compile(r"marker-\d+-end")


def markers(text: str) -> set[str]:
    return set(_MARKER.findall(text))


def marked(call: Call, choice: int) -> str:
    """Reply with the marker of the prompt, each time in another answer, for raters too."""
    seen = ", ".join(sorted(markers(call.text)))
    way = f"{call.index}.{choice}"
    return f"Seen by {way}: {seen}.\nRating: {1 + choice}\nANSWER: {seen} by {way}"


SCRIPT: Final = Script(reply=marked, latency_s=LATENCY_S)


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a batch of requests."""

    seconds: tuple[float, ...]
    """Of each request, in order of asking."""

    wall_s: float
    failures: tuple[str, ...]
    cross_talk: tuple[str, ...]

    def percentile(self, share: float) -> float:
        return sorted(self.seconds)[min(int(share * len(self.seconds)), len(self.seconds) - 1)]


async def _one(client: httpx.AsyncClient, model: str, number: int) -> tuple[float, str, str]:
    """Return the latency of a request, its failure if any, and its cross-talk if any."""
    marker, stream = f"marker-{number}-end", number % 2 == 1
    body = {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": f"Say {marker}."}],
    }
    started = time.perf_counter()
    try:
        answer = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as exc:
        return time.perf_counter() - started, f"{model}: {exc!r}", ""
    seconds = time.perf_counter() - started
    if answer.status_code != 200 or '"error"' in answer.text:
        return seconds, f"{model}: {answer.status_code} {answer.text[:300]}", ""
    text = "".join(re.findall(r'"content": ?"((?:[^"\\]|\\.)*)"', answer.text))
    seen = markers(text)
    return seconds, "", "" if seen == {marker} else f"{model}: {marker} got {sorted(seen)}"


async def _all(
    proxy: Proxy, models: Sequence[str], numbers: Sequence[int], concurrency: int
) -> Load:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=proxy.url,
        headers={"authorization": f"Bearer {proxy.master_key}"},
        limits=limits,
        timeout=300,
    ) as client:
        started = time.perf_counter()
        results = await asyncio.gather(
            *(_one(client, models[number % len(models)], number) for number in numbers)
        )
        wall_s = time.perf_counter() - started
    return Load(
        tuple(seconds for seconds, _, _ in results),
        wall_s,
        tuple(failure for _, failure, _ in results if failure),
        tuple(mixed for _, _, mixed in results if mixed),
    )


def burst(
    proxy: Proxy, *, requests: int, concurrency: int, first: int = 0, models: Sequence[str] = MODELS
) -> Load:
    """Send `requests` mixed requests, `concurrency` at a time."""
    return asyncio.run(_all(proxy, models, range(first, first + requests), concurrency))


def memory(
    proxy: Proxy, *, batches: int, requests: int, models: Sequence[str] = MODELS
) -> Iterator[tuple[int, int, Load]]:
    """Yield, batch by batch, the requests so far, the proxy's bytes in memory, and the load."""
    for batch in range(1, batches + 1):
        load = burst(
            proxy, requests=requests, concurrency=50, first=batch * 1_000_000, models=models
        )
        yield batch * requests, proxy.footprint.rss_bytes, load


def show_burst(load: Load, calls: int) -> str:
    return table(
        (
            "concurrent requests",
            "upstream calls",
            "errors",
            "cross-talk",
            "p50 s",
            "p95 s",
            "total, s",
        ),
        [
            (
                str(len(load.seconds)),
                str(calls),
                str(len(load.failures)),
                str(len(load.cross_talk)),
                f"{load.percentile(0.5):.2f}",
                f"{load.percentile(0.95):.2f}",
                f"{load.wall_s:.1f}",
            )
        ],
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--at-once", type=int, default=200)
    options.add_argument("--batches", type=int, default=10)
    options.add_argument("--requests", type=int, default=200, help="of each batch")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, Upstream(SCRIPT) as upstream:
        config = hooked_config([model_group("base", upstream.url), alias("reread", "re2")])
        with Proxy(config, Path(folder), ledger=False, command=True) as proxy:
            burst(proxy, requests=len(MODELS) * 2, concurrency=4)
            upstream.play(SCRIPT)
            load = burst(proxy, requests=given.at_once, concurrency=given.at_once)
            shown = show_burst(load, len(upstream.calls))
            rows = [
                (
                    str(done),
                    f"{rss / 2**20:.0f}",
                    str(len(part.failures)),
                    str(len(part.cross_talk)),
                )
                for done, rss, part in memory(proxy, batches=given.batches, requests=given.requests)
            ]
    for problem in (*load.failures, *load.cross_talk)[:10]:
        print(problem)
    sizes = table(("further requests", "proxy MB", "errors", "cross-talk"), rows)
    note = (
        f"The requests use these models in turn: {', '.join(f'`{model}`' for model in MODELS)};"
        f" every other one is streamed. The upstream takes {1000 * LATENCY_S:.0f} ms per call."
    )
    publish("Load", "benchmarks.load", f"{note}\n\n{shown}\n\n{sizes}", write=given.write)


if __name__ == "__main__":
    main()
