"""Ceilings in the metadata of a virtual key and of its team lower the limits of a request."""

import json
import re
from collections.abc import Iterator

import pytest

from tests.proxy import PRICE, Proxy, alias, hooked_config, model_group
from tests.upstream import Upstream

NO_PRICE = {"input_cost_per_token": None, "output_cost_per_token": None}
KEYS: dict[str, dict[str, object]] = {
    "sk-free": {"models": []},
    "sk-key": {"models": [], "metadata": {"optillm": {"max_calls": 2}}},
    "sk-team": {"models": [], "team_metadata": {"optillm": {"max_calls": 2}}},
    "sk-both": {
        "models": [],
        "metadata": {"optillm": {"max_calls": 40, "deadline_s": 30}},
        "team_metadata": {"optillm": {"max_calls": 2, "deadline_s": 50}},
    },
    "sk-dollars": {"models": [], "metadata": {"optillm": {"max_cost_usd": 1}}},
    "sk-unknown": {"models": [], "metadata": {"optillm": {"max_call": 2}}},
    "sk-list": {"models": [], "team_metadata": {"optillm": []}},
    "sk-off": {"models": [], "metadata": {"optillm": "off"}},
    "sk-team-off": {
        "models": [],
        "metadata": {"optillm": {"max_calls": 2}},
        "team_metadata": {"optillm": False},
    },
}
ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"max_tokens": 50},
    "/v1/messages": {"max_tokens": 50},
    "/v1/responses": {"input": "What is six times seven?", "messages": None},
    "/v1/completions": {"prompt": "What is six times seven?", "messages": None},
}
ASKED = {"messages": [{"role": "user", "content": "What is six times seven?"}]}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    config = hooked_config(
        [
            model_group("base", upstream.url, model="cerebras/single"),
            model_group("unpriced", upstream.url, **NO_PRICE),
            alias("three", "bon(n=3)", "base"),
        ]
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS) as started:
        yield started


@pytest.mark.parametrize("model", ["three", "bon(n=3)-base"])
@pytest.mark.parametrize("key", ["sk-key", "sk-team", "sk-both"])
def test_a_ceiling_limits_the_calls(proxy: Proxy, upstream: Upstream, key: str, model: str) -> None:
    before = len(upstream.calls)
    response = proxy.post("/v1/chat/completions", {"model": model, **ASKED}, key=key)
    assert response.status_code == 200, response.text
    assert response.headers["x-optillm-max-calls"] == "2"
    assert len(upstream.calls) - before == 2
    if key == "sk-both":
        assert response.headers["x-optillm-deadline-s"] == "30"


def test_a_ceiling_is_none_of_other_keys_and_cannot_be_raised(proxy: Proxy) -> None:
    body = {"model": "three", **ASKED, "optillm_limits": {"max_calls": 30}}
    free = proxy.post("/v1/chat/completions", body, key="sk-free")
    held = proxy.post("/v1/chat/completions", body, key="sk-key")
    lower = proxy.post(
        "/v1/chat/completions", {**body, "optillm_limits": {"max_calls": 1}}, key="sk-key"
    )
    found = [each.headers["x-optillm-max-calls"] for each in (free, held, lower)]
    assert found == ["30", "2", "1"]


def test_a_ceiling_of_dollars_needs_a_price(proxy: Proxy) -> None:
    body = {"model": "re2-unpriced", **ASKED}
    response = proxy.post("/v1/chat/completions", body, key="sk-dollars")
    assert response.status_code == 400
    assert "price of 'unpriced' is not known" in response.text


@pytest.mark.parametrize(
    ("key", "named"),
    [("sk-unknown", "metadata.optillm of the key.max_call"), ("sk-list", "of the team")],
)
def test_an_invalid_ceiling_is_refused_by_name(
    proxy: Proxy, upstream: Upstream, key: str, named: str
) -> None:
    before = len(upstream.calls)
    response = proxy.post("/v1/chat/completions", {"model": "three", **ASKED}, key=key)
    assert response.status_code == 400
    assert named in response.text
    assert len(upstream.calls) == before
    plain = proxy.post("/v1/chat/completions", {"model": "base", **ASKED}, key=key)
    assert plain.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_estimated_calls_are_known_before_the_start(proxy: Proxy, stream: bool) -> None:
    body = {"model": "three", **ASKED, "n": 2, "stream": stream}
    response = proxy.post("/v1/chat/completions", body, key="sk-free")
    assert response.headers["x-optillm-estimated-calls"] == str(2 * (3 + 3))  # each sample is rated
    plain = proxy.post("/v1/chat/completions", {"model": "base", **ASKED}, key="sk-free")
    assert "x-optillm-estimated-calls" not in plain.headers


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["three", "bon(n=3)-base"])
@pytest.mark.parametrize("key", ["sk-off", "sk-team-off"])
def test_a_key_for_which_approaches_are_off_gets_plain_answers(
    proxy: Proxy, upstream: Upstream, key: str, model: str, stream: bool
) -> None:
    before = len(upstream.calls)
    body = {"model": model, **ASKED, "stream": stream}
    response = proxy.post("/v1/chat/completions", body, key=key)
    assert response.status_code == 200, response.text
    assert response.headers["x-optillm-degraded"] == "switched_off"
    assert len(upstream.calls) - before == 1
    other = proxy.post("/v1/chat/completions", body, key="sk-free")
    assert other.headers["x-optillm-approach"] == "bon"


def on_route(route: str, **more: object) -> dict[str, object]:
    body = {"model": "three", **ASKED, **ROUTES[route], **more}
    return {name: value for name, value in body.items() if value is not None}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
def test_a_dry_run_shows_the_plan_and_calls_no_model(
    proxy: Proxy, upstream: Upstream, route: str, stream: bool
) -> None:
    before = len(upstream.calls)
    asked = {"optillm_params": {"dry_run": True}, "optillm_limits": {"deadline_s": 20}}
    response = proxy.post(route, on_route(route, stream=stream, **asked), key="sk-key")
    assert response.status_code == 200, response.text
    assert "Dry run" in response.text
    found = re.search(r'"optillm":\s*(\{.*)', response.text)
    assert found is not None, response.text
    report, _ = json.JSONDecoder().raw_decode(found[1])
    plan = report["plan"]
    assert (plan["base_model"], plan["estimated_calls"], plan["depth"]) == ("base", 6, 2)
    assert 5 <= plan["prompt_tokens"] <= 9
    calls, usual = 6, plan["prompt_tokens"] * PRICE.prompt + 400 * PRICE.completion
    assert plan["cost_usd"]["low"] == pytest.approx(calls * usual)
    assert plan["cost_usd"]["high"] > plan["cost_usd"]["low"]
    assert plan["limits"]["max_calls"] == {"value": 2, "from": "key or team"}
    assert plan["limits"]["deadline_s"] == {"value": 20, "from": "request"}
    assert (report["calls"], report["cost_usd"]) == (0, 0)
    assert len(upstream.calls) == before


def test_a_dry_run_is_no_request_in_the_metrics(proxy: Proxy, upstream: Upstream) -> None:
    def counted() -> list[str]:
        return [line for line in metrics(proxy).splitlines() if line.startswith("optillm_requests")]

    before, calls = counted(), len(upstream.calls)
    response = proxy.http.post(
        f"{proxy.url}/v1/chat/completions",
        json=on_route("/v1/chat/completions"),
        headers={"authorization": f"Bearer {proxy.master_key}", "x-optillm-dry-run": "true"},
    )
    assert response.json()["optillm"]["plan"]["estimated_calls"] == 6
    assert response.json()["usage"]["total_tokens"] == 0
    assert counted() == before
    assert len(upstream.calls) == calls


def metrics(proxy: Proxy) -> str:
    key = {"authorization": f"Bearer {proxy.master_key}"}
    return proxy.http.get(f"{proxy.url}/metrics/", headers=key).raise_for_status().text


@pytest.mark.parametrize(
    ("model", "key", "dry_run", "told"),
    [
        ("base", "sk-free", True, "names none"),
        ("three", "sk-free", "yes", "must be true or false"),
        ("three", "sk-off", True, "switched off"),
        ("three", "sk-unknown", True, "max_call"),
        ("bon(n=40)-base", "sk-free", True, "estimated at 80 model calls"),
    ],
)
def test_a_dry_run_that_cannot_be_planned_costs_nothing(
    proxy: Proxy, upstream: Upstream, model: str, key: str, dry_run: object, told: str
) -> None:
    before = len(upstream.calls)
    body = {"model": model, **ASKED, "optillm_params": {"dry_run": dry_run}}
    response = proxy.post("/v1/chat/completions", body, key=key)
    assert response.status_code == 400, response.text
    assert told in response.text
    assert len(upstream.calls) == before


@pytest.mark.parametrize("stream", [False, True])
def test_the_estimated_cost_is_known_before_the_start(proxy: Proxy, stream: bool) -> None:
    body = {"model": "three", **ASKED, "stream": stream}
    headers = proxy.post("/v1/chat/completions", body).headers
    floor = 6 * 400 * PRICE.completion
    assert floor < float(headers["x-optillm-estimated-cost"]) < floor + 6 * 20 * PRICE.prompt
    unpriced = proxy.post("/v1/chat/completions", {"model": "re2-unpriced", **ASKED}).headers
    assert unpriced["x-optillm-estimated-calls"] == "1"
    assert "x-optillm-estimated-cost" not in unpriced
