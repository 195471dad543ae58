"""Our series on the proxy's `/metrics`: equal to the provider's log, and bounded."""

import json
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.shared import hang_up
from tests.proxy import PRICE, ROOT, Proxy, alias, hooked_config, model_group
from tests.upstream import (
    HANG,
    FaultRule,
    Script,
    Status,
    Upstream,
    always,
    at,
    differing,
    no_fault,
)

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}
Series = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        model_group("house/*", upstream.url, model="openai/*"),
        alias("careful", "self_consistency(n=3)"),
        alias("short", "bon(n=2)", max_calls=1),
        alias("saved", "re2", on_error="plain"),
        alias("mixed", "re2&moa"),
        alias("rated", "bon(n=2)"),
        alias("watched", "re2", shadow={"approach": "none", "share": 1.0, "check": "auto"}),
        model_group("single", upstream.url, model="cerebras/single"),  # known not to take n
        alias("busy", "self_consistency(n=5,first_m=5)", base="single"),
    ]
    settings = {
        "max_inner_calls": 2,
        "brownout": {"calls": 5, "hold_s": 0},
        "shadow": {"directory": str(tmp_path_factory.mktemp("shadows"))},
    }
    config = hooked_config(models, optillm_settings=settings)
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


def exported(proxy: Proxy, prefix: str = "optillm_") -> Series:
    """Return each sample whose name begins with `prefix`, by its name and labels."""
    key = {"authorization": f"Bearer {proxy.master_key}"}
    text = proxy.http.get(f"{proxy.url}/metrics/", headers=key).raise_for_status().text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(prefix) and not sample.name.endswith("_created")
    }


class Growth:
    """What the series grew by since it was made."""

    def __init__(self, proxy: Proxy, prefix: str = "optillm_") -> None:
        self._proxy = proxy
        self._prefix = prefix
        self._before = exported(proxy, prefix)

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            value - self._before.get((sample, having), 0)
            for (sample, having), value in exported(self._proxy, self._prefix).items()
            if sample == name and labels.items() <= dict(having).items()
        )

    def assert_billed(self, upstream: Upstream, **labels: str) -> None:
        bill = upstream.bill
        assert self.sum("optillm_calls_total", **labels) == len(upstream.calls)
        tokens = "optillm_tokens_total"
        assert self.sum(tokens, direction="prompt", **labels) == bill.prompt_tokens
        assert self.sum(tokens, direction="completion", **labels) == bill.completion_tokens
        cost = bill.cost(PRICE.prompt, PRICE.completion)
        assert self.sum("optillm_cost_usd_total", **labels) == pytest.approx(cost)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("model", "approach", "path", "amplification"),
    [
        ("careful", "self_consistency", 1, 3),  # three samples in one call
        ("mixed", "re2&moa", 3, (60 + 23 + 26) / 26),
        ("rated", "bon", 2, (40 + 23 + 26) / 20),
    ],
)
def test_sums_equal_the_providers_log(
    proxy: Proxy,
    upstream: Upstream,
    model: str,
    approach: str,
    path: int,
    amplification: float,
    stream: bool,
) -> None:
    upstream.play(Script(reply=differing))
    grown = Growth(proxy)
    proxy.post(
        "/v1/chat/completions", {"model": model, "stream": stream, **CHAT}
    ).raise_for_status()
    labels = {"approach": approach, "model_group": "base"}
    grown.assert_billed(upstream, **labels)
    assert grown.sum("optillm_requests_total") == 1
    assert grown.sum("optillm_requests_total", outcome="ok", **labels) == 1
    assert grown.sum("optillm_request_seconds_count", **labels) == 1
    assert grown.sum("optillm_time_to_first_token_seconds_count", **labels) == stream
    assert grown.sum("optillm_critical_path_calls_sum", **labels) == path
    assert grown.sum("optillm_amplification_count", **labels) == 1
    assert grown.sum("optillm_amplification_sum", **labels) == pytest.approx(amplification)


def test_saved_calls_are_counted(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    grown = Growth(proxy)
    body = {"model": "self_consistency-base", **CHAT}
    answer = proxy.post("/v1/chat/completions", body).raise_for_status().json()
    assert answer["optillm"]["calls_saved"] > 0
    assert grown.sum("optillm_calls_saved_total") == answer["optillm"]["calls_saved"]
    grown.assert_billed(upstream)


@pytest.mark.parametrize(
    ("model", "fault", "status", "outcome"),
    [
        ("careful", always(Status(500)), 500, "error"),
        ("saved", at({0: Status(500)}), 200, "degraded"),
        ("short", no_fault, 200, "max_calls"),
    ],
)
def test_outcomes(
    proxy: Proxy, upstream: Upstream, model: str, fault: FaultRule, status: int, outcome: str
) -> None:
    upstream.play(Script(reply=differing, fault=fault))
    grown = Growth(proxy)
    assert proxy.post("/v1/chat/completions", {"model": model, **CHAT}).status_code == status
    assert grown.sum("optillm_requests_total", outcome=outcome) == 1
    assert grown.sum("optillm_requests_total") == 1
    grown.assert_billed(upstream)
    failed = sum(call.told is None for call in upstream.calls)
    assert grown.sum("optillm_calls_total", status="failed") == failed


def test_a_client_that_hangs_up_is_counted(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(HANG)))
    grown = Growth(proxy)
    hang_up(proxy, upstream, "/v1/chat/completions", {"model": "careful", **CHAT}, done=0)
    proxy.wait_until(lambda _: grown.sum("optillm_requests_total", outcome="cancelled") == 1)
    assert grown.sum("optillm_calls_total", status="cancelled") == 1
    assert grown.sum("optillm_calls_total") == 1


def brown_out(proxy: Proxy, upstream: Upstream, grown: Growth) -> Any:
    """Return the report of a request that begins while two calls of another hang and three wait."""
    upstream.play(Script(reply=differing, fault=at({0: HANG, 1: HANG})))
    asked: list[Future[Any]] = []

    def ask_another() -> None:
        waiting = ("optillm_queue_calls", frozenset({("state", "waiting")}))
        proxy.wait_until(lambda _: exported(proxy).get(waiting) == 3)
        body = {"model": "self_consistency(n=8)-base", **CHAT}
        asked.append(threads.submit(proxy.post, "/v1/chat/completions", body))
        proxy.wait_until(lambda _: grown.sum("optillm_brownout_requests_total", width="3") == 1)

    with ThreadPoolExecutor(1) as threads:
        body = {"model": "busy", **CHAT}
        hang_up(proxy, upstream, "/v1/chat/completions", body, done=1, until=ask_another)
        return asked[0].result().raise_for_status().json()["optillm"]


def test_a_busy_worker_queues_calls_and_takes_fewer_samples(
    proxy: Proxy, upstream: Upstream
) -> None:
    grown = Growth(proxy)
    report = brown_out(proxy, upstream, grown)
    assert "brownout:3" in report["degraded"]
    proxy.wait_until(lambda _: grown.sum("optillm_requests_total") == 2)
    assert grown.sum("optillm_candidates_sum") == 3
    assert grown.sum("optillm_agreement_count") == 1
    assert grown.sum("optillm_brownout_requests_total", model_group="base") == 1
    assert grown.sum("optillm_queue_seconds_count") == 3  # those that still waited never began
    states = [
        value for (name, _), value in exported(proxy).items() if name == "optillm_queue_calls"
    ]
    assert states == [0, 0]


def test_what_clients_choose_adds_a_bounded_number_of_series(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script())

    def ask(model: str, **fields: object) -> None:
        proxy.post("/v1/chat/completions", {"model": model, **CHAT, **fields}).raise_for_status()

    def names(label: str) -> set[str]:
        return {dict(having)[label] for _, having in exported(proxy) if label in dict(having)}

    ask("re2-house/one")
    before = set(exported(proxy))
    ask("re2-house/two", user="someone", temperature=0.7, optillm_limits={"max_calls": 9})
    ask("re2-house/one", metadata={"tags": ["t"]})
    assert set(exported(proxy)) == before
    assert names("model_group") == {"base", "single", "house/*"}
    pairs = [
        "|".join(chains)
        for size in (2, 3)
        for chains in product(("none", "re2", "cot_reflection"), repeat=size)
    ]
    upstream.play(Script())
    grown = Growth(proxy)
    for pair in pairs:
        ask(f"{pair}-base")
    assert len(names("approach") & set(pairs)) == 32
    assert grown.sum("optillm_requests_total", approach="other") == len(pairs) - 32
    assert names("stage") >= {"none", "re2", "cot_reflection", "other"}
    grown.assert_billed(upstream)


def test_litellms_own_series_count_once_without_the_clients_requests(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=differing))
    grown = Growth(proxy, "litellm_")
    proxy.post("/v1/chat/completions", {"model": "rated", **CHAT}).raise_for_status()
    proxy.settle()
    tokens = "litellm_total_tokens_metric_total"
    total = upstream.bill.total_tokens
    assert grown.sum(tokens, api_provider="optillm", requested_model="rated") == total
    assert grown.sum(tokens, api_provider="openai", requested_model="base") == total
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert grown.sum("litellm_spend_metric_total") == pytest.approx(cost)


def test_dashboard_and_alerts_ask_for_series_and_labels_that_exist(
    proxy: Proxy, upstream: Upstream
) -> None:
    brown_out(proxy, upstream, Growth(proxy))
    proxy.post("/v1/chat/completions", {"model": "careful", "stream": True, **CHAT})
    proxy.post("/v1/chat/completions", {"model": "watched", **CHAT}).raise_for_status()
    proxy.wait_until(lambda it: any(n == "optillm_shadows_total" for n, _ in exported(it)))
    labels: dict[str, set[str]] = {}
    for name, having in exported(proxy):
        labels.setdefault(name, set()).update(dict(having))
    expressions = [*dashboard_expressions(), *alert_expressions()]
    used = {name for text in expressions for name in re.findall(r"optillm_\w+", text)}
    assert used <= set(labels)
    for text in expressions:
        known = set().union(*(labels[name] for name in re.findall(r"optillm_\w+", text)))
        asked = set(re.findall(r"(\w+)(?:=~|!=|=)\"", text))
        for group in re.findall(r"by \(([^)]*)\)", text):
            asked |= set(group.split(", "))
        assert asked <= known, text
    table = (ROOT / "docs" / "observability.md").read_text()
    ours = {family(name) for name in labels}
    assert set(re.findall(r"^\| `(optillm_\w+)` \|", table, re.MULTILINE)) == ours
    shown = re.findall(r"optillm_\w+", " ".join(dashboard_expressions()))
    assert {family(name) for name in shown} == ours


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def dashboard_expressions() -> list[str]:
    board = json.loads((ROOT / "deploy" / "grafana" / "optillm.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def alert_expressions() -> list[str]:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    return [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
