"""Many mixed concurrent requests, and memory over many requests.

Each request carries a marker of its own, which the upstream puts into its replies: an answer with
another marker, or none, is cross-talk.

With `--optillm ENVIRONMENT` the proxy is compared with OptiLLM 0.4.0 from that virtual environment,
and with LiteLLM alone. All are asked in turn, round by round, so that their ratios hold on a busy
machine too. The environment takes 3 GB and needs no other package:

    python -m venv ENVIRONMENT
    ENVIRONMENT/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    ENVIRONMENT/bin/pip install optillm==0.4.0
"""

import asyncio
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import httpx

from benchmarks.report import parser, publish, table
from tests.proxy import (
    Footprint,
    Proxy,
    alias,
    footprint,
    free_port,
    hooked_config,
    model_group,
    plain_config,
)
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
PLAIN_AT_ONCE: Final = (1, 8, 32, 64)
MOA_AT_ONCE: Final = (1, 32, 128)
MOA_LATENCY_S: Final = 0.2
OWN_CLIENT: Final = {"EXPERIMENTAL_OPENAI_BASE_LLM_HTTP_HANDLER": "true"}
"""LiteLLM asks hosts of OpenAI's form by its own HTTP client, not by OpenAI's SDK."""

_START_S: Final = 120.0
_CHECK_S: Final = 0.2
_TO_LOG_S: Final = 0.1
"""How long a server may take to log what it has answered."""

_MARKER: Final = re.compile(r"marker-\d+-end")


def markers(text: str) -> set[str]:
    return set(_MARKER.findall(text))


def marked(call: Call, choice: int) -> str:
    """Reply with the marker of the prompt, each time in another answer, for raters too."""
    seen = ", ".join(sorted(markers(call.text)))
    way = f"{call.index}.{choice}"
    return f"Seen by {way}: {seen}.\nRating: {1 + choice}\nANSWER: {seen} by {way}"


SCRIPT: Final = Script(reply=marked, latency_s=LATENCY_S)


class Server(Protocol):
    """A server that is put under load."""

    @property
    def url(self) -> str: ...
    @property
    def master_key(self) -> str: ...
    @property
    def footprint(self) -> Footprint: ...


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


async def _one(
    client: httpx.AsyncClient, model: str, number: int, *, stream: bool
) -> tuple[float, str, str]:
    """Return the latency of a request, its failure if any, and its cross-talk if any."""
    marker = f"marker-{number}-end"
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
    server: Server,
    models: Sequence[str],
    numbers: Sequence[int],
    concurrency: int,
    *,
    streams: bool,
) -> Load:
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=server.url,
        headers={"authorization": f"Bearer {server.master_key}"},
        limits=limits,
        timeout=300,
    ) as client:
        places = asyncio.Semaphore(concurrency)  # a request's time begins once it is sent

        async def ask(number: int) -> tuple[float, str, str]:
            async with places:
                stream = streams and number % 2 == 1
                return await _one(client, models[number % len(models)], number, stream=stream)

        started = time.perf_counter()
        results = await asyncio.gather(*map(ask, numbers))
        wall_s = time.perf_counter() - started
    return Load(
        tuple(seconds for seconds, _, _ in results),
        wall_s,
        tuple(failure for _, failure, _ in results if failure),
        tuple(mixed for _, _, mixed in results if mixed),
    )


def burst(
    server: Server,
    *,
    requests: int,
    concurrency: int,
    first: int = 0,
    models: Sequence[str] = MODELS,
    streams: bool = True,
) -> Load:
    """Send `requests` mixed requests, `concurrency` at a time; every other one is streamed."""
    numbers = range(first, first + requests)
    return asyncio.run(_all(server, models, numbers, concurrency, streams=streams))


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


@dataclass(frozen=True, slots=True)
class OptiLLM:
    """OptiLLM's own server."""

    url: str
    pid: int
    master_key: str = "none"

    @property
    def footprint(self) -> Footprint:
        return footprint(self.pid)


@contextmanager
def optillm(environment: Path, upstream: Upstream, folder: Path) -> Iterator[OptiLLM]:
    """Yield OptiLLM's server, which runs from a virtual environment of its own."""
    port = free_port()
    options = ("--host", "127.0.0.1", "--port", str(port), "--base-url", upstream.url)
    with (folder / "optillm.log").open("wb") as log:
        process = subprocess.Popen(
            [environment / "bin" / "optillm", *options],
            cwd=folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "OPENAI_API_KEY": "upstream-key",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "HF_HUB_OFFLINE": "1",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        made = OptiLLM(f"http://127.0.0.1:{port}", process.pid)
        _wait_for(made, process)
        yield made
    finally:
        process.terminate()
        process.wait()


def _wait_for(server: OptiLLM, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            httpx.get(f"{server.url}/health", timeout=5).raise_for_status()
        except httpx.HTTPError:
            time.sleep(_CHECK_S)
        else:
            return
    raise RuntimeError(f"OptiLLM has not started: exit status {process.poll()}")


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and the model that is asked for."""

    name: str
    server: Server
    model: str


@dataclass(frozen=True, slots=True)
class Measured:
    """A burst of requests to one target."""

    load: Load
    cpu_s: float
    """Per request."""

    rss_bytes: int


Rounds = Mapping[str, Sequence[Measured]]
"""The bursts of each target, round by round."""


def compare(targets: Sequence[Target], *, rounds: int, requests: int, at_once: int) -> Rounds:
    """Return the bursts of each target, which are asked in turn."""
    found: dict[str, list[Measured]] = {target.name: [] for target in targets}
    for _ in range(rounds):
        for target in targets:
            before = target.server.footprint.cpu_s
            load = burst(
                target.server,
                requests=requests,
                concurrency=at_once,
                models=[target.model],
                streams=False,
            )
            time.sleep(_TO_LOG_S)
            after = target.server.footprint
            spent = (after.cpu_s - before) / requests
            found[target.name].append(Measured(load, spent, after.rss_bytes))
    return found


def rows_of(at_once: int, found: Rounds, over: str) -> list[tuple[str, ...]]:
    """Return a row per target; its time is put in ratio to that of the target `over`."""
    return [_row(at_once, name, measured, found[over]) for name, measured in found.items()]


def _row(
    at_once: int, name: str, found: Sequence[Measured], over: Sequence[Measured]
) -> tuple[str, ...]:
    loads = [each.load for each in found]
    seconds = tuple(second for load in loads for second in load.seconds)
    together = Load(seconds, sum(load.wall_s for load in loads), (), ())
    ratios = [one.load.wall_s / two.load.wall_s for one, two in zip(found, over, strict=True)]
    return (
        str(at_once),
        name,
        f"{statistics.median(load.wall_s for load in loads):.2f}",
        f"{statistics.median(ratios):.2f}",
        f"{len(seconds) / together.wall_s:.1f}",
        *(f"{1000 * together.percentile(share):.0f}" for share in (0.5, 0.95, 0.99)),
        f"{1000 * statistics.median(each.cpu_s for each in found):.0f}",
        f"{found[-1].rss_bytes / 2**20:.0f}",
        str(sum(len(load.failures) + len(load.cross_talk) for load in loads)),
    )


_HEAD: Final = (
    "at once", "server", "wall s", "to OptiLLM", "requests/s", "p50 ms", "p95 ms", "p99 ms",
    "CPU ms per request", "MB", "errors",
)  # fmt: skip


def comparison(environment: Path, *, rounds: int, requests: int) -> str:
    """Return tables of plain requests and of `moa` by each server, at several rates."""
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(SCRIPT))
        group = model_group("base", upstream.url)

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        hooked, workers = hooked_config([group]), {"NUM_WORKERS": "2"}
        lean = hooked_config([group], callbacks=["optillm_hooks.gateway.hook"])
        ours, alone, two, lean_one, lean_two, granian = (
            stack.enter_context(
                Proxy(config, folder(), ledger=False, command=True, env=env, options=options)
            )
            for config, env, options in (
                (hooked, {}, ()),
                (plain_config([group]), {}, ()),
                (hooked, workers, ()),
                (lean, OWN_CLIENT, ()),
                (lean, {**OWN_CLIENT, **workers}, ()),
                (lean, {**OWN_CLIENT, **workers}, ("--run_granian",)),
            )
        )
        other = stack.enter_context(optillm(environment, upstream, folder()))
        plain = [
            Target("this extension", ours, "none-base"),
            Target("LiteLLM alone", alone, "base"),
            Target("OptiLLM", other, "none-base"),
        ]
        moa = [
            Target("this extension", ours, "moa-base"),
            Target("this extension, 2 workers", two, "moa-base"),
            Target("lean", lean_one, "moa-base"),
            Target("lean, 2 workers", lean_two, "moa-base"),
            Target("lean, 2 workers of Granian", granian, "moa-base"),
            Target("OptiLLM", other, "moa-base"),
        ]
        compare([*plain, *moa], rounds=1, requests=8, at_once=4)  # caches, connections
        tables = []
        for targets, latency_s, counts in (
            (plain, LATENCY_S, [(n, max(requests, 3 * n)) for n in PLAIN_AT_ONCE]),
            (moa, MOA_LATENCY_S, [(n, n) for n in MOA_AT_ONCE]),
        ):
            upstream.play(Script(reply=marked, latency_s=latency_s))
            found = [
                (n, compare(targets, rounds=rounds, requests=count, at_once=n))
                for n, count in counts
            ]
            tables.append(
                table(_HEAD, [row for n, each in found for row in rows_of(n, each, "OptiLLM")])
            )
        return "\n\n".join(tables)


def _publish_comparison(environment: Path, *, rounds: int, requests: int, write: bool) -> None:
    before = os.getloadavg()[0]
    shown = comparison(environment, rounds=rounds, requests=requests)
    note = (
        f"{datetime.now(UTC):%Y-%m-%d}; the machine's load, this run's included, was {before:.1f}"
        f" before and {os.getloadavg()[0]:.1f} after. {rounds} rounds, in which the servers are"
        " asked in turn; medians of the rounds, and percentiles of all requests together. First"
        " plain requests (`none-` in a server with approaches, and an upstream of"
        f" {1000 * LATENCY_S:.0f} ms), then `moa` (three calls, one after the other, of"
        f" {1000 * MOA_LATENCY_S:.0f} ms). Wall times are those of a round."
    )
    publish(
        "Load compared", "benchmarks.load --optillm ENVIRONMENT", f"{note}\n\n{shown}", write=write
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--at-once", type=int, default=200)
    options.add_argument("--batches", type=int, default=10)
    options.add_argument("--requests", type=int, default=200, help="of each batch")
    options.add_argument("--optillm", type=Path, help="compare with OptiLLM from this environment")
    options.add_argument("--rounds", type=int, default=5, help="of a comparison")
    given = options.parse_args()
    if given.optillm is not None:
        _publish_comparison(given.optillm, rounds=given.rounds, requests=30, write=given.write)
        return
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
