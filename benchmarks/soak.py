"""Minutes of mixed requests over two ill providers, with clients that hang up.

Each client sends its next request as soon as it has an answer, so the rate is the highest that the
machine holds. A fifth of the providers' calls fails, in five ways; one provider is slow. At the end
the series on `/metrics` are compared with the providers' own logs. A reply can cross with the
hang-up of the call that asked for it: the provider has billed it, and nobody has read it. Such
calls are counted on their own, and no other difference is allowed.
"""

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import marked, markers
from benchmarks.report import parser, publish, table
from tests.proxy import Config, Proxy, alias, hooked_config, model_group
from tests.upstream import CLOSED, CUT, MALFORMED, Call, Fault, Script, Status, Upstream

PLAIN: Final = "none-base"
"""Its calls are LiteLLM's own: our series do not count them, so the books leave them out."""

MODELS: Final = (
    "re2-base",
    "cot_reflection-base",
    "bon-base",
    "moa-base",
    "self_consistency-base",
    "genselect-base",
    "re2|cot_reflection-base",
    "re2&bon-base",
    "hurried",
    PLAIN,
)
FAULT_RATE: Final = 0.2
FAULTS: Final[Sequence[Fault]] = (Status(500), Status(503), CLOSED, MALFORMED, CUT)
HANG_UP_RATE: Final = 0.05
_PLAINLY: Final = "Just say"
QUICK_S, SLOW_S = 0.05, 2.0
_CONTENT: Final = re.compile(r'"content": ?"((?:[^"\\]|\\.)*)"')


@dataclass(slots=True)
class Seen:
    """What the clients have seen."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    problems: list[str] = field(default_factory=list[str])
    sent: int = 0

    def problem(self, text: str) -> None:
        self.outcomes["problem"] += 1
        self.problems.append(text)


@dataclass(frozen=True, slots=True)
class Sample:
    """The proxy at one moment."""

    seconds: float
    sent: int
    """Requests so far."""

    rss_mb: float
    files: int


def seldom_well(call: Call) -> Fault | None:
    """Fail a fifth of the calls, by their index only."""
    chosen = random.Random(call.index)  # noqa: S311
    return chosen.choice(FAULTS) if chosen.random() < FAULT_RATE else None


def soak_config(quick: Upstream, slow: Upstream) -> Config:
    """Return the configuration of a model group of two providers that fails over."""
    models = [
        model_group("base", quick.url, weight=4, timeout=20),
        model_group("base", slow.url, weight=1, timeout=20),
        alias("hurried", "moa", deadline_s=1.5),
    ]
    config = hooked_config(models)
    config["router_settings"]["enable_weighted_failover"] = True
    return config


async def _one(client: httpx.AsyncClient, seen: Seen, chosen: random.Random) -> None:
    """Send one request, and note whether it was answered, refused or given up."""
    number, seen.sent = seen.sent, seen.sent + 1
    marker, stream = f"marker-{number}-end", chosen.random() < 0.5
    model = chosen.choice(MODELS)
    asked = f"Say {marker}." if model != PLAIN else f"{_PLAINLY} {marker}."
    body = {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": asked}],
    }
    patience = chosen.uniform(0.0, 1.5) if chosen.random() < HANG_UP_RATE else 300.0
    try:
        async with asyncio.timeout(patience):
            answer = await client.post("/v1/chat/completions", json=body)
    except TimeoutError:
        if patience < 300:
            seen.outcomes["gave up"] += 1
        else:
            seen.problem(f"{model}: no answer")
        return
    except httpx.HTTPError as exc:
        seen.problem(f"{model}: {exc!r}")
        return
    judge(answer, model, marker, seen, stream=stream)


def judge(answer: httpx.Response, model: str, marker: str, seen: Seen, *, stream: bool) -> None:
    """Note whether an answer of `model` is whole and belongs to the request of `marker`."""
    error = _error(answer, stream=stream)
    if error == "":
        seen.problem(f"{model}: {answer.status_code} {answer.text[-300:]}")
        return
    if error is not None:
        seen.outcomes[f"refused with {error}"] += 1
        return
    text = "".join(_CONTENT.findall(answer.text))
    if stream and "[DONE]" not in answer.text:
        seen.problem(f"{model}: the stream has no end: {answer.text[-300:]}")
    elif markers(text) - {marker}:
        seen.problem(f"{model}: {marker} got {sorted(markers(text))}")
    else:
        seen.outcomes["answered"] += 1


def _error(answer: httpx.Response, *, stream: bool) -> str | None:
    """Return the code of OpenAI's error object; "" if it is none, None for an answer."""
    if answer.status_code == 200 and '"error":' not in answer.text:
        return None
    documents = [answer.text]
    if stream and answer.status_code == 200:
        documents = re.findall(r'^data: (\{"error".*)$', answer.text, re.MULTILINE)
    for document in documents:
        try:
            error = json.loads(document)["error"]
        except (ValueError, KeyError, TypeError):
            return ""
        if isinstance(error, dict) and error.get("message"):
            return str(error.get("code"))
    return ""


async def _clients(proxy: Proxy, seen: Seen, clients: int, until: float) -> None:
    async def client(http: httpx.AsyncClient, number: int) -> None:
        chosen = random.Random(number)  # noqa: S311
        while time.monotonic() < until:
            await _one(http, seen, chosen)

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    headers = {"authorization": f"Bearer {proxy.master_key}"}
    async with httpx.AsyncClient(
        base_url=proxy.url, headers=headers, limits=limits, timeout=300
    ) as http:
        await asyncio.gather(*(client(http, number) for number in range(clients)))


async def soak(
    proxy: Proxy, *, clients: int, seconds: float, every_s: float
) -> tuple[Seen, list[Sample]]:
    """Return what the clients saw in `seconds`, and the proxy every `every_s`."""
    seen, samples, started = Seen(), list[Sample](), time.monotonic()
    work = asyncio.create_task(_clients(proxy, seen, clients, started + seconds))
    while not work.done():
        await asyncio.wait([work], timeout=every_s)
        samples.append(_sample(proxy, time.monotonic() - started, seen.sent))
    await work
    return seen, samples


def _sample(proxy: Proxy, seconds: float, sent: int) -> Sample:
    files = len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))
    return Sample(seconds, sent, proxy.footprint.rss_bytes / 2**20, files)


@dataclass(frozen=True, slots=True)
class Books:
    """Calls that were answered, and their tokens, by the proxy's series and by the providers."""

    counted_calls: int
    counted_tokens: int
    billed_calls: int
    billed_tokens: int
    crossed: int
    """Replies that nobody read: at most as many as the calls that the proxy counts as cut off."""

    @property
    def agree(self) -> bool:
        calls, tokens = (
            self.billed_calls - self.counted_calls,
            self.billed_tokens - self.counted_tokens,
        )
        return (calls, tokens) == (0, 0) or 0 < calls <= self.crossed


def books(proxy: Proxy, upstreams: Sequence[Upstream]) -> Books:
    every = [call for upstream in upstreams for call in upstream.calls]
    calls = [call for call in every if _PLAINLY not in call.text]
    counted = Counter[str]()
    for name, labels, value in _series(proxy):
        if name == "optillm_calls_total":
            counted[labels["status"]] += int(value)
        elif name == "optillm_tokens_total":
            counted["tokens"] += int(value)
    return Books(
        counted["ok"],
        counted["tokens"],
        sum(call.told is not None for call in calls),
        sum(call.told.total_tokens for call in calls if call.told is not None),
        counted["cancelled"],
    )


def _series(proxy: Proxy) -> Iterator[tuple[str, dict[str, str], float]]:
    key = {"authorization": f"Bearer {proxy.master_key}"}
    text = proxy.http.get(f"{proxy.url}/metrics/", headers=key, timeout=60).raise_for_status().text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def show(seen: Seen, samples: Sequence[Sample], found: Books) -> str:
    outcomes = [(name, str(number)) for name, number in seen.outcomes.most_common()]
    every = max(1, len(samples) // 10)
    shown = [*samples[::every], samples[-1]]
    rows = [(f"{s.seconds:.0f}", str(s.sent), f"{s.rss_mb:.0f}", str(s.files)) for s in shown]
    compared = [
        ("the providers' logs", str(found.billed_calls), str(found.billed_tokens)),
        ("`/metrics`", str(found.counted_calls), str(found.counted_tokens)),
    ]
    return "\n\n".join(
        (
            table(("outcome", "requests"), outcomes),
            table(("seconds", "requests", "proxy MB", "open files"), rows),
            table(("book", "answered calls", "tokens"), compared),
            f"{found.crossed} calls were cut off while they ran.",
        )
    )


def _given() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=3.0)
    options.add_argument("--clients", type=int, default=32)
    return options.parse_args()


def main() -> None:
    given = _given()
    quick_script = Script(reply=marked, fault=seldom_well, latency_s=QUICK_S)
    slow_script = Script(reply=marked, fault=seldom_well, latency_s=SLOW_S)
    with (
        tempfile.TemporaryDirectory() as folder,
        Upstream(quick_script) as quick,
        Upstream(slow_script) as slow,
        Proxy(soak_config(quick, slow), Path(folder), ledger=False) as proxy,
    ):
        seconds = 60 * given.minutes
        seen, samples = asyncio.run(
            soak(proxy, clients=given.clients, seconds=seconds, every_s=max(2.0, seconds / 40))
        )
        for upstream in (quick, slow):
            upstream.wait_until(lambda u: not u.alive, within_s=60)
        found = books(proxy, (quick, slow))
    for problem in seen.problems[:10]:
        print(problem)
    note = (
        f"{given.clients} clients for {given.minutes:g} minutes, each of which sends its next"
        f" request when it has an answer; {HANG_UP_RATE:.0%} hang up. {FAULT_RATE:.0%} of the"
        f" providers' calls fail; one provider takes {1000 * QUICK_S:.0f} ms, the other"
        f" {SLOW_S:.0f} s, and gets a fifth of the calls."
    )
    publish("Soak", "benchmarks.soak", f"{note}\n\n{show(seen, samples, found)}", write=given.write)
    if seen.problems or not found.agree:
        sys.exit(f"{len(seen.problems)} problems; the books {'agree' if found.agree else 'differ'}")


if __name__ == "__main__":
    main()
