"""What our hook adds to a request: two proxies, with and without it, over one 0 ms upstream.

Requests go one at a time, to all targets in turn and in random order, so that whatever else the
machine does hits them alike. A round's figure is the ratio of medians; the stock proxy is asked
twice, and its ratio to itself shows the noise.
"""

import http.client
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.report import Interval, interval, parser, publish, table
from tests.proxy import Proxy, alias, hooked_config, model_group, plain_config
from tests.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    hooked: bool
    model: str
    max_ratio: float | None
    """Maximum ratio of its time to the stock proxy's."""


TARGETS: Final = (
    Target("stock proxy", False, "base", None),
    Target("stock proxy again", False, "base", None),
    Target("with our hook, plain model", True, "base", 1.05),
    Target("with our hook, none-base", True, "none-base", 1.1),
    Target("with our hook, alias of one inner call", True, "reread", 2.0),
)


@dataclass(frozen=True, slots=True)
class Row:
    target: Target
    ms: Interval
    """Over the medians of the rounds."""

    ratio: Interval
    """Ratio to the stock proxy, round by round."""


class _Client:
    """A client with one keep-alive connection and as little work of its own as possible."""

    def __init__(self, proxy: Proxy, model: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=60)
        message = {"role": "user", "content": "What is 6 times 7?"}
        self._body = json.dumps({"model": model, "messages": [message]}).encode()
        self._headers = {
            "authorization": f"Bearer {proxy.master_key}",
            "content-type": "application/json",
        }

    def seconds(self) -> float:
        """Return how long one request takes."""
        started = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", self._body, self._headers)
        response = self._connection.getresponse()
        content = response.read()
        taken = time.perf_counter() - started
        assert response.status == 200, content
        return taken

    def close(self) -> None:
        self._connection.close()


@contextmanager
def proxies(upstream: Upstream, folder: Path) -> Iterator[tuple[Proxy, Proxy]]:
    """Start a stock proxy and one with our hook; everything else is the same."""
    base = model_group("base", upstream.url)
    (folder / "stock").mkdir()
    (folder / "hooked").mkdir()
    hooked_models = hooked_config([base, alias("reread", "re2")])
    with (
        Proxy(plain_config([base]), folder / "stock", ledger=False, command=True) as stock,
        Proxy(hooked_models, folder / "hooked", ledger=False, command=True) as hooked,
    ):
        yield stock, hooked


def measure(stock: Proxy, hooked: Proxy, *, rounds: int, requests: int) -> list[Row]:
    """Return a row per target, from `rounds` of `requests` to each."""
    clients = [_Client(hooked if t.hooked else stock, t.model) for t in TARGETS]
    try:
        _round(clients, requests)  # connections, caches, lazy imports
        medians = [_round(clients, requests) for _ in range(rounds)]
    finally:
        for client in clients:
            client.close()
    return [
        Row(
            target,
            interval([1000 * taken[i] for taken in medians]),
            interval([taken[i] / taken[0] for taken in medians]),
        )
        for i, target in enumerate(TARGETS)
    ]


def _round(clients: Sequence[_Client], requests: int) -> list[float]:
    """Return each client's median, in seconds."""
    taken: list[list[float]] = [[] for _ in clients]
    order = list(range(len(clients)))
    for _ in range(requests):
        random.shuffle(order)
        for i in order:
            taken[i].append(clients[i].seconds())
    return [statistics.median(seconds) for seconds in taken]


def show(rows: Sequence[Row]) -> str:
    return table(
        ("target", "ms per request", "ratio to stock", "maximum"),
        [
            (r.target.name, r.ms.show(2), r.ratio.show(), str(r.target.max_ratio or ""))
            for r in rows
        ],
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--requests", type=int, default=40, help="to each target, per round")
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Upstream() as upstream,
        proxies(upstream, Path(folder)) as (stock, hooked),
    ):
        rows = measure(stock, hooked, rounds=given.rounds, requests=given.requests)
    note = (
        f"Median of {given.rounds} interleaved rounds of {given.requests} requests, one at a time,"
        " and its 95 % interval. The upstream answers immediately."
    )
    publish("Overhead", "benchmarks.overhead", f"{note}\n\n{show(rows)}", write=given.write)


if __name__ == "__main__":
    main()
