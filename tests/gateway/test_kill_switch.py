"""The kill switch: every approach becomes a plain call of its base, and the answer says so."""

import json
from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway import admission
from optillm_hooks.gateway.kill_switch import is_off
from optillm_hooks.gateway.planning import plan_request
from tests.gateway.test_metrics import Growth
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Fault, Script, Status, Upstream

KEYS: dict[str, dict[str, object]] = {
    "sk-all": {"models": []},
    "sk-alias": {"models": ["three", "lent", "optillm/*"]},
    "sk-limited": {"models": [], "metadata": {"optillm": {"max_calls": "many"}}},
}
SWITCHED_OFF = {
    "x-optillm-approach": "none",
    "x-optillm-base-model": "base",
    "x-optillm-degraded": "switched_off",
}
COUNTED = {"approach": "none", "model_group": "base", "outcome": "switched_off"}
QUESTION = "What is six times seven?"
FORMS: dict[str, dict[str, Any]] = {
    "alias": {"model": "three"},
    "prefix": {"model": "bon(n=3)-base"},
    "wildcard": {"model": "optillm/moa/base"},
    "tag": {"model": "base", "text": f"<optillm_approach>re2</optillm_approach>{QUESTION}"},
    "body": {
        "model": "base",
        "optillm_approach": "bon",
        "optillm_params": {"bon": {"n": 3}},
        "optillm_limits": {"max_calls": 9},
    },
    "decoding": {"model": "lent", "decoding": "cot_decoding"},
    "optillm's own": {"model": "moa-base", "optillm_approach": "auto"},
}
ROUTES = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    config = hooked_config(
        [
            model_group("base", upstream.url, model="cerebras/base"),  # has one route only
            model_group("other", upstream.url),
            model_group("broken", upstream.url),
            alias("three", "bon(n=3)", locked=True),
            alias("lent", "re2", inherit_access=True),
            alias("two", "moa", "base"),
            alias("two", "moa", "other"),
            alias("mixed", "moa", "other"),
            model_group("mixed", upstream.url, model="cerebras/base"),
            alias("failing", "re2", "broken"),
            alias("behind", "moa", "base"),
        ],
    )
    config["router_settings"]["fallbacks"] = [{"broken": ["behind"]}]
    off = {"OPTILLM_DISABLED": "1"}
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS, env=off) as running:
        yield running


def body_for(route: str, form: dict[str, Any], *, stream: bool) -> dict[str, Any]:
    fields = {name: value for name, value in form.items() if name != "text"}
    turns = [{"role": "user", "content": form.get("text", QUESTION)}]
    asked = {"input": turns} if route.endswith("responses") else {"messages": turns}
    least = {"max_tokens": 50} if route.endswith("messages") else {}
    return {**fields, **asked, **least, "stream": stream}


@STREAMED
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_form_is_one_plain_call_of_the_base(
    proxy: Proxy, upstream: Upstream, route: str, form: str, stream: bool
) -> None:
    upstream.play(Script())
    grown = Growth(proxy)
    answer = proxy.post(route, body_for(route, FORMS[form], stream=stream), key="sk-all")
    assert answer.status_code == 200, answer.text
    assert "42" in answer.text
    assert {name: answer.headers.get(name) for name in SWITCHED_OFF} == SWITCHED_OFF
    assert grown.sum("optillm_requests_total") == 1
    assert grown.sum("optillm_requests_total", **COUNTED) == 1
    [call] = upstream.calls
    assert call.body["model"] == "base"
    assert call.text.strip() == QUESTION
    sent = json.dumps(dict(call.body))
    assert "optillm" not in sent
    assert "decoding" not in sent


@pytest.mark.parametrize("model", ["base", "none-base"])
def test_what_was_a_plain_call_before_says_nothing(proxy: Proxy, model: str) -> None:
    body = body_for(ROUTES[0], {"model": model}, stream=False)
    answer = proxy.post(ROUTES[0], body, key="sk-all")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-optillm")]


def test_an_alias_of_several_base_models_is_refused_with_their_names(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script())
    body = body_for(ROUTES[0], {"model": "two"}, stream=False)
    answer = proxy.post(ROUTES[0], body, key="sk-all")
    assert answer.status_code == 400
    assert "request one of 'base', 'other' instead" in answer.json()["error"]["message"]
    assert not upstream.calls


def test_plain_deployments_of_the_same_name_answer_alone(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    for _ in range(5):
        body = body_for(ROUTES[0], {"model": "mixed"}, stream=False)
        answer = proxy.post(ROUTES[0], body, key="sk-all")
        assert answer.headers["x-optillm-degraded"] == "switched_off"
        assert answer.headers["x-optillm-base-model"] == "mixed"
    assert {call.body["model"] for call in upstream.calls} == {"base"}


@pytest.mark.parametrize(("model", "may"), [("lent", True), ("three", False), ("re2-base", False)])
def test_no_key_gets_to_a_model_that_it_may_not_call(
    proxy: Proxy, upstream: Upstream, model: str, may: bool
) -> None:
    upstream.play(Script())
    body = body_for(ROUTES[0], {"model": model}, stream=False)
    answer = proxy.post(ROUTES[0], body, key="sk-alias")
    assert answer.status_code in ((200,) if may else (401, 403)), answer.text
    assert len(upstream.calls) == may


def test_ceilings_do_not_matter(proxy: Proxy) -> None:
    """They are of requests that run an approach, so that a wrong one refuses nothing here."""
    body = body_for(ROUTES[0], {"model": "three"}, stream=False)
    assert proxy.post(ROUTES[0], body, key="sk-limited").status_code == 200


@STREAMED
@pytest.mark.parametrize("model", ["broken", "failing"])
def test_an_alias_that_is_a_fallback_makes_one_call_too(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    def broken(call: Call) -> Fault | None:
        return Status(500) if call.body["model"] == "broken" else None

    upstream.play(Script(fault=broken))
    body = body_for(ROUTES[0], {"model": model}, stream=stream)
    grown = Growth(proxy)
    answer = proxy.post(ROUTES[0], body, key="sk-all")
    assert answer.status_code == 200, answer.text
    asked = 1 + (model == "failing")  # a fallback's plan counts too
    assert grown.sum("optillm_requests_total", outcome="switched_off") == asked
    assert [call.body["model"] for call in upstream.calls] == ["broken", "base"]
    assert '"approach": "none"' in answer.text.replace('":"', '": "')
    assert "switched_off" in answer.text


@pytest.mark.anyio
async def test_wrong_settings_refuse_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def allowed(*_: object) -> None: ...

    for check in ("check_access", "check_budgets"):  # they load LiteLLM's proxy
        monkeypatch.setattr(admission, check, allowed)
    monkeypatch.setattr(litellm, "optillm_settings", {"max_choice": 3}, raising=False)
    router = Router(model_list=[model_group("base", "http://127.0.0.1:9")])
    body = body_for(ROUTES[0], {"model": "bon-base"}, stream=False)
    off, on = UserAPIKeyAuth(metadata={"optillm": "off"}), UserAPIKeyAuth()
    planned = await plan_request(body, "chat", router, off)
    assert planned.switched_off
    assert planned.prepared is not None
    assert planned.prepared.base == "base"
    with pytest.raises(RequestRejected, match="max_choice"):
        await plan_request(body, "chat", router, on)


def test_the_log_says_so(proxy: Proxy) -> None:
    assert "OPTILLM_DISABLED is set" in proxy.log


@pytest.mark.parametrize(
    ("given", "off"),
    [("1", True), ("true", True), ("yes", True), ("now!", True), ("off ", False), ("0", False),
     ("False", False), ("", False), (None, False)],
)  # fmt: skip
def test_the_variable_is_off_only_if_it_says_so(
    monkeypatch: pytest.MonkeyPatch, given: str | None, off: bool
) -> None:
    monkeypatch.delenv("OPTILLM_DISABLED", raising=False)
    if given is not None:
        monkeypatch.setenv("OPTILLM_DISABLED", given)
    assert is_off(None) is off
    assert is_off(UserAPIKeyAuth()) is off


@pytest.mark.parametrize(
    ("value", "off"),
    [("off", True), (" OFF ", True), (False, True), (None, False), ({}, False), ("on", False),
     ({"max_calls": 1}, False), (0, False)],
)  # fmt: skip
def test_the_metadata_of_a_key_and_of_its_team_switch_off(value: object, off: bool) -> None:
    assert is_off(UserAPIKeyAuth(metadata={"optillm": value})) is off
    assert is_off(UserAPIKeyAuth(team_metadata={"optillm": value})) is off
