"""CPU time of the proxy per request: plain and with approaches, with prices in either place.

Two proxies are asked in turn, round by round, by the same requests one at a time: in one, the
base model's prices are in `litellm_params`, in the other in `model_info`. The upstream answers
immediately. Of each round, only ratios are kept, so that the machine's speed counts little.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.inner_call_cpu import QUESTION, differing
from benchmarks.report import interval, parser, publish, table
from tests.proxy import Config, Proxy, hooked_config, model_group
from tests.upstream import Script, Upstream

MODELS: Final = ("base", "none-base", "re2-base", "moa-base")
_PRICES: Final = ("input_cost_per_token", "output_cost_per_token")
_TO_LOG_S: Final = 0.1
"""How long a proxy may take to log what it has answered."""


def priced_in_info(group: Config) -> Config:
    """Return a model's YAML entry with its prices in `model_info`."""
    params: dict[str, Any] = group["litellm_params"]
    return group | {
        "litellm_params": {name: params[name] for name in params if name not in _PRICES},
        "model_info": {name: params[name] for name in _PRICES},
    }


def _ask(proxy: Proxy, model: str, times: int) -> float:
    """Return the proxy's CPU seconds per request."""
    before = proxy.footprint.cpu_s
    for _ in range(times):
        body = {"model": model, "messages": QUESTION}
        proxy.post("/v1/chat/completions", body).raise_for_status()
    time.sleep(_TO_LOG_S)
    return (proxy.footprint.cpu_s - before) / times


def measure(*, rounds: int, requests: int) -> list[tuple[str, str, str, str]]:
    """Return a row per model: inner calls, ratio to a plain request, ratio of the two places."""
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(Script(reply=differing)))
        group = model_group("base", upstream.url)
        proxies: list[Proxy] = []
        for each in (group, priced_in_info(group)):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made = Proxy(hooked_config([each]), folder, ledger=False, command=True)
            proxies.append(stack.enter_context(made))
        calls = {}
        for model in MODELS:  # connections, caches, lazy imports
            before = len(upstream.calls)
            for proxy in proxies:
                _ask(proxy, model, 5)
            calls[model] = (len(upstream.calls) - before) / (5 * len(proxies))
        taken = [
            {model: [_ask(proxy, model, requests) for proxy in proxies] for model in MODELS}
            for _ in range(rounds)
        ]
    return [
        (
            f"`{model}`",
            f"{calls[model]:.0f}",
            interval([each[model][0] / each["base"][0] for each in taken]).show(2),
            interval([each[model][1] / each[model][0] for each in taken]).show(2),
        )
        for model in MODELS
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--requests", type=int, default=20, help="of each model, per round")
    given = options.parse_args()
    rows = measure(rounds=given.rounds, requests=given.requests)
    shown = table(("model", "calls", "to a plain request", "prices in `model_info`"), rows)
    note = (
        f"Median of {given.rounds} rounds of {given.requests} requests, and its 95 % interval: the"
        " proxy's CPU time in ratio to that of a plain request, and with the prices in"
        " `model_info` in ratio to that with prices in `litellm_params`."
    )
    publish("CPU per request", "benchmarks.request_cpu", f"{note}\n\n{shown}", write=given.write)


if __name__ == "__main__":
    main()
