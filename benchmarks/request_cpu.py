"""CPU time of the proxy per request: plain and with approaches, and what settings save.

One proxy has the shipped settings, each other one a measure more. They are asked in turn, round by
round, by the same requests one at a time. The upstream answers immediately. Of each round, only
ratios are kept, so that the machine's speed counts little.
"""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.inner_call_cpu import QUESTION, differing
from benchmarks.load import OWN_CLIENT
from benchmarks.report import interval, parser, publish, table
from tests.proxy import Config, Proxy, hooked_config, model_group
from tests.upstream import Script, Upstream

MODELS: Final = ("base", "none-base", "re2-base", "moa-base")
_TO_LOG_S: Final = 0.1
"""How long a proxy may take to log what it has answered."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What an operator may set to save CPU time."""

    litellm_settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    env: Mapping[str, str] = field(default_factory=dict[str, str])

    def config(self, group: Config) -> Config:
        return hooked_config([group], **self.litellm_settings)


_TWO_SERIES: Final = {
    "group": "spend", "metrics": ["litellm_spend_metric", "litellm_total_tokens_metric"],
}  # fmt: skip
MEASURES: Final = {
    "as shipped": Measure(),
    "two series of LiteLLM's": Measure({"prometheus_metrics_config": [_TWO_SERIES]}),
    "no Prometheus": Measure({"callbacks": ["optillm_hooks.gateway.hook"]}),
    "LiteLLM's HTTP handler": Measure(env=OWN_CLIENT),
    "both": Measure({"callbacks": ["optillm_hooks.gateway.hook"]}, OWN_CLIENT),
}


def _ask(proxy: Proxy, model: str, times: int) -> float:
    """Return the proxy's CPU seconds per request."""
    before = proxy.footprint.cpu_s
    for _ in range(times):
        body = {"model": model, "messages": QUESTION}
        proxy.post("/v1/chat/completions", body).raise_for_status()
    time.sleep(_TO_LOG_S)
    return (proxy.footprint.cpu_s - before) / times


def measure(
    *, rounds: int, requests: int, measures: Mapping[str, Measure] = MEASURES
) -> list[tuple[str, ...]]:
    """Return a row per model: inner calls, ratio to a plain request, ratio of each measure.

    The first of `measures` is what the others are put in ratio to.
    """
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(Script(reply=differing)))
        group = model_group("base", upstream.url)
        proxies: list[Proxy] = []
        for each in measures.values():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            made = Proxy(each.config(group), folder, ledger=False, command=True, env=each.env)
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
            *(
                interval([each[model][at] / each[model][0] for each in taken]).show(2)
                for at in range(1, len(proxies))
            ),
        )
        for model in MODELS
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--requests", type=int, default=20, help="of each model, per round")
    given = options.parse_args()
    rows = measure(rounds=given.rounds, requests=given.requests)
    shown = table(("model", "calls", "to a plain request", *list(MEASURES)[1:]), rows)
    note = (
        f"Median of {given.rounds} rounds of {given.requests} requests, and its 95 % interval: the"
        " proxy's CPU time in ratio to that of a plain request, and with each measure in ratio to"
        " that with the shipped settings."
    )
    publish("CPU per request", "benchmarks.request_cpu", f"{note}\n\n{shown}", write=given.write)


if __name__ == "__main__":
    main()
