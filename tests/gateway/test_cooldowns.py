"""Two tenants: a failed request of one takes as much from the other as one failed plain request."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import httpx
import pytest

from tests.proxy import Config, Proxy, alias, hooked_config, model_group
from tests.upstream import HANG, Fault, Script, Status, Upstream, always

FAULTS: dict[str, Fault] = {"429": Status(429), "500": Status(500), "timeout": HANG}
MODELS = {"n": "openai/gpt-4o-mini", "single": "cerebras/single"}
"""One that LiteLLM knows to take `n`, and one that gets a call for each sample."""

ROUTERS: dict[str, Config] = {
    "defaults": {},
    "one failure allowed": {"allowed_fails": 1, "cooldown_time": 20},
}
CASES = [*product(("429", "500"), (1, 2), MODELS), ("timeout", 1, "single"), ("timeout", 2, "n")]
TIMEOUT_S = 1.5
"""Long enough for a neighbour's request on a loaded machine."""

REQUESTS = ("plain", "whole", "streamed")
FIVE = "self_consistency(n=5)"


def group(fault: str, deployments: int, model: str, request: str) -> str:
    """Return a model group for one case only: nothing else has cooled it down."""
    return f"{fault}-{deployments}-{model}-{request}"


@pytest.fixture(scope="module", params=ROUTERS.values(), ids=list(ROUTERS))
def proxy(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Proxy]:
    models = [
        model_group(
            group(fault, deployments, model, kind),
            upstream.url,
            model=MODELS[model],
            timeout=TIMEOUT_S if fault == "timeout" else 60.0,
        )
        for (fault, deployments, model), kind in product(CASES, (*REQUESTS, "dead", "dead-plan"))
        for _ in range(deployments)
    ]
    aliases = [alias("hurried", "re2", "free") for _ in range(2)]
    aliases += [alias("limited", "re2", "free") for _ in range(2)]
    config = hooked_config([*models, model_group("free", upstream.url), *aliases])
    config["router_settings"] = {
        name: value
        for name, value in config["router_settings"].items()
        if name != "disable_cooldowns"
    } | request.param
    keys: dict[str, dict[str, object]] = {
        "sk-first": {"models": []},
        "sk-second": {"models": []},
        "sk-limited": {"models": [], "metadata": {"model_tpm_limit": {"free": 1}}},
    }
    folder = tmp_path_factory.mktemp("proxy")
    with Proxy(config, folder, keys=keys, ledger=False) as running:
        yield running


def ask(proxy: Proxy, model: str, key: str, **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "What is 6 times 7?"}]}
    return proxy.post("/v1/chat/completions", body | fields, key=key)


def neighbour(proxy: Proxy, upstream: Upstream, model: str) -> tuple[int, Any]:
    """Return the status and the error code that the other tenant's plain request gets."""
    upstream.play(Script())
    answer = ask(proxy, model, "sk-second")
    return answer.status_code, answer.json().get("error", {}).get("code")


@pytest.mark.parametrize(("fault", "deployments", "model"), CASES)
def test_a_failed_plan_is_like_one_failed_plain_request(
    proxy: Proxy, upstream: Upstream, fault: str, deployments: int, model: str
) -> None:
    found = {}
    for kind in REQUESTS:
        asked = group(fault, deployments, model, kind)
        plan = {} if kind == "plain" else {"optillm_approach": FIVE, "stream": kind == "streamed"}
        upstream.play(Script(fault=always(FAULTS[fault])))
        assert ask(proxy, asked, "sk-first", **plan).status_code >= 400
        if kind != "plain" and model == "n" and fault != "500":
            assert len(upstream.calls) == 1  # no single calls in place of the failed one
        found[kind] = neighbour(proxy, upstream, asked)
    assert found["whole"] == found["streamed"] == found["plain"]


@pytest.mark.parametrize("plan", [{}, {"optillm_approach": FIVE}], ids=["plain", "plan"])
def test_dead_deployments_cool_down_after_failures_of_several_requests(
    proxy: Proxy, upstream: Upstream, request: pytest.FixtureRequest, plan: dict[str, str]
) -> None:
    """With one failure allowed, two dead deployments take four failures. By default LiteLLM looks
    at no fewer than five calls."""
    dead = group("500", 2, "single", "dead-plan" if plan else "dead")
    for _ in range(4):
        upstream.play(Script(fault=always(Status(500))))
        assert ask(proxy, dead, "sk-first", **plan).status_code >= 400
    status, _ = neighbour(proxy, upstream, dead)
    assert status == (200 if "defaults" in request.node.name else 429)


@pytest.mark.parametrize(
    ("model", "key", "asked", "status"),
    [
        ("hurried", "sk-first", {"optillm_limits": {"deadline_s": 0.001}}, 504),
        ("limited", "sk-limited", {}, 429),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_limit_of_ones_own_cools_no_alias_down(
    proxy: Proxy,
    upstream: Upstream,
    model: str,
    key: str,
    asked: dict[str, object],
    status: int,
    stream: bool,
) -> None:
    upstream.play(Script())
    for _ in range(5):  # more than both deployments of the alias are allowed together
        assert ask(proxy, model, key, **asked, stream=stream).status_code == status
    assert neighbour(proxy, upstream, model) == (200, None)
