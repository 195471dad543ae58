"""Two providers behind one model group, one of them ill in the middle of a plan.

The routing is that of docs/recipes.md, unchanged but for the addresses and prices.
"""

import asyncio
import json
from collections.abc import Iterator, Mapping
from typing import Any

import litellm
import pytest
import yaml

from optillm_hooks.gateway import provider
from optillm_hooks.gateway.config_check import problems
from tests.documents import blocks_of
from tests.proxy import PRICE, ROOT, Config, Proxy, hooked_config, new_trace, traceparent
from tests.upstream import HANG, Fault, Script, Status, Upstream, always, differing

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}
TIMES_DEARER = 3
"""How many times the first provider's price the second one's is."""

TIMEOUT_S = 2.5
FAULTS: dict[str, Fault] = {
    "500": Status(500),
    "503": Status(503),
    "429": Status(429, retry_after="60"),
    "hang": HANG,
}
PRICES = {"input_cost_per_token": PRICE.prompt, "output_cost_per_token": PRICE.completion}
DEARER = {name: TIMES_DEARER * price for name, price in PRICES.items()}


def recipe(model: str) -> Config:
    """Return the block of the recipes that configures `model`."""
    texts = [b.text for b in blocks_of(ROOT / "docs" / "recipes.md") if b.language == "yaml"]
    [found] = [text for text in texts if f"model_name: {model}\n" in text]
    config: Config = yaml.safe_load(found)
    return config


@pytest.fixture(scope="module")
def second() -> Iterator[Upstream]:
    """The other provider; `upstream` is the first."""
    with Upstream() as server:
        yield server


def at_providers(
    config: Config, upstream: Upstream, second: Upstream, suffix: str = "", **params: object
) -> list[Config]:
    """Return the models of `config` at the two providers, under names that end in `suffix`."""
    servers = {"openai": (upstream, PRICES), "openrouter": (second, DEARER)}
    made = list[Config]()
    for model in config["model_list"]:
        entry = {**model, "model_name": model["model_name"] + suffix}
        named = dict(model["litellm_params"])
        of = named["model"].partition("/")[0]
        if of == "optillm":
            named["model"] += suffix
        else:
            server, prices = servers[of]
            # A provider that takes no `n`: each sample is a call.
            named |= {"model": "cerebras/x", "api_base": server.url, "api_key": "none"}
            named |= prices | params
        made.append(entry | {"litellm_params": named})
    return made


GROUPS = ("shared", "ranked", "main")


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, second: Upstream
) -> Iterator[Proxy]:
    """Each recipe once for each fault, since a cooldown would reach into the next test."""
    models, settings = list[Config](), dict[str, Any]()
    fallbacks = list[dict[str, list[str]]]()
    for group in GROUPS:
        config = recipe(group)
        settings |= config["router_settings"]
        for fault in FAULTS:
            hurried: dict[str, object] = {"timeout": TIMEOUT_S} if fault == "hang" else {}
            models += at_providers(config, upstream, second, f"-{fault}", **hurried)
            fallbacks += [
                {f"{source}-{fault}": [f"{target}-{fault}" for target in targets]}
                for entry in config["router_settings"].get("fallbacks", [])
                for source, targets in entry.items()
            ]
    config = hooked_config(models)
    config["router_settings"] = settings | {"fallbacks": fallbacks}
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


def ask(proxy: Proxy, model: str, *, stream: bool, trace: str = "") -> Mapping[str, Any]:
    """Return the `optillm` object of a request, which is answered."""
    body = {"model": model, "stream": stream, **QUESTION}
    answer = proxy.post(
        "/v1/chat/completions", body, headers=traceparent(trace or new_trace())
    ).raise_for_status()
    if not stream:
        told: Mapping[str, Any] = answer.json()["optillm"]
        return told
    assert '"error"' not in answer.text
    events = (line.removeprefix("data: ") for line in answer.text.splitlines())
    [report] = [
        json.loads(event)["optillm"]
        for event in events
        if event[:1] == "{" and '"optillm"' in event
    ]
    return report  # type: ignore[no-any-return]


def cost(upstream: Upstream, second: Upstream) -> float:
    first = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    return first + TIMES_DEARER * second.bill.cost(PRICE.prompt, PRICE.completion)


def play(upstream: Upstream, second: Upstream, fault: Fault) -> None:
    """Let the first provider fall ill at its third call.

    No two answers are the same, of one provider or of both: no call is given up as needless.
    """
    upstream.play(Script(reply=differing, fault=lambda call: fault if call.index > 1 else None))
    second.play(Script(reply=lambda call, choice: differing(call, choice).replace("42", "43")))


@pytest.mark.parametrize("group", ["ranked", "main", "shared"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_provider_that_falls_ill_loses_no_sample(
    proxy: Proxy, upstream: Upstream, second: Upstream, group: str, fault: str
) -> None:
    """The first request falls over the fault; the deployment then cools down, if it can."""
    play(upstream, second, FAULTS[fault])
    trace = new_trace()
    for number in range(3):
        report = ask(proxy, f"{group}-careful-{fault}", stream=number == 1, trace=trace)
        samples = [reason for reason in report["degraded"] if not reason.startswith("fallbacks:")]
        assert samples == []
        assert bool(report["degraded"]) == (group == "main")
    paid = [entry.cost for entry in proxy.booked(trace) if entry.origin == "optillm"]
    assert sum(paid) == pytest.approx(cost(upstream, second))
    if group != "main":  # a group's only deployment does not cool down
        asked = len(upstream.calls)
        report = ask(proxy, f"{group}-careful-{fault}", stream=False)
        assert len(upstream.calls) == asked
        assert report["degraded"] == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("group", ["fast", "cheap"])
def test_routing_by_latency_and_by_cost_fails_over(
    upstream: Upstream, second: Upstream, group: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(group)
    hurried: dict[str, object] = {"timeout": TIMEOUT_S} if fault == "hang" else {}
    models = at_providers(config, upstream, second, "", **hurried)
    handler = [{"provider": "optillm", "custom_handler": provider}]
    monkeypatch.setattr(litellm, "custom_provider_map", handler)
    play(upstream, second, FAULTS[fault])

    async def reports() -> list[Mapping[str, Any]]:
        router = litellm.Router(model_list=models, **config["router_settings"])
        provider.use(router)
        answers = [await router.acompletion(model=f"{group}-careful", **QUESTION) for _ in range(3)]
        return [answer.optillm for answer in answers]

    try:
        told = asyncio.run(reports())
    finally:
        provider.use(None)
    assert [report["degraded"] for report in told] == [[], [], []]
    assert sum(report["cost_usd"] for report in told) == pytest.approx(cost(upstream, second))


def test_a_cooldown_ends(upstream: Upstream, second: Upstream) -> None:
    """The provider is asked again when its time is over."""
    config = recipe("ranked")
    models = [
        model | {"model_info": {**model["model_info"], "allowed_fails": 0, "cooldown_time": 1}}
        for model in at_providers(config, upstream, second)
        if model["model_name"] == "ranked"
    ]

    async def again() -> None:
        router = litellm.Router(model_list=models, **config["router_settings"])
        await router.acompletion(model="ranked", **QUESTION)
        upstream.play(Script())
        while not upstream.calls:
            await router.acompletion(model="ranked", **QUESTION)

    upstream.play(Script(fault=always(Status(500))))
    second.play(Script())
    asyncio.run(asyncio.wait_for(again(), 60))
    assert second.calls


@pytest.mark.parametrize("group", [*GROUPS, "fast", "cheap"])
def test_the_check_has_nothing_against_the_recipes(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "LITELLM_MASTER_KEY"):
        monkeypatch.setenv(name, "sk-unused")
    config = recipe(group)
    whole = hooked_config(config["model_list"])
    assert problems(whole | {"router_settings": config["router_settings"]}) == []
