"""An alias of several deployments: base, plan and limits are those of the one that is chosen."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.proxy import Config, Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Upstream

ASKED = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    config = hooked_config(
        [
            model_group("one", upstream.url),
            model_group("two", upstream.url),
            alias("double", "re2", "one"),
            alias("double", "re2", "two", max_calls=7),
            alias("various", "self_consistency(n=2)", "one"),
            alias("various", "re2", "two"),
            alias("half_locked", "re2", "one"),
            alias("half_locked", "re2", "two", locked=True),
            alias("limited", "re2", "one", max_calls=3),
            alias("limited", "re2", "one", max_calls=9),
            alias("half_lost", "re2", "nobody"),
            alias("half_lost", "re2", "two"),
            tagged(alias("routed", "re2", "one"), "free"),
            tagged(alias("routed", "self_consistency(n=2)", "two"), "paid"),
            alias("mixed", "self_consistency(n=2)", "one"),
            {**model_group("plain", upstream.url), "model_name": "mixed"},
            {**model_group("plain", upstream.url), "model_name": "mixed_too"},
            alias("mixed_too", "self_consistency(n=2)", "one"),
            alias("ordered", "re2", "one") | {"litellm_params": ordered("re2/one", 2)},
            alias("ordered", "re2", "two") | {"litellm_params": ordered("re2/two", 1)},
            with_id(alias("by_id", "re2", "one"), "alias-one"),
            with_id(alias("by_id", "re2", "two"), "alias-two"),
            with_id({**model_group("plain", upstream.url), "model_name": "two_plain"}, "plain-one"),
        ]
    )
    config["router_settings"]["enable_tag_filtering"] = True
    with Proxy(config, tmp_path_factory.mktemp("proxy"), ledger=False) as running:
        yield running


def tagged(deployment: Config, tag: str) -> Config:
    return deployment | {"litellm_params": {**deployment["litellm_params"], "tags": [tag]}}


def ordered(plan: str, order: int) -> Config:
    return {"model": f"optillm/{plan}", "num_retries": 0, "order": order}


def with_id(deployment: Config, made: str) -> Config:
    return deployment | {"model_info": {**deployment.get("model_info", {}), "id": made}}


def answers(proxy: Proxy, model: str, **fields: object) -> list[Any]:
    """Return the answers to requests until both deployments have had one, and three more."""
    return [
        proxy.post("/v1/chat/completions", {"model": model, **ASKED, **fields}) for _ in range(16)
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_calls_go_to_the_base_of_the_deployment(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script())
    for answer in answers(proxy, "double", stream=stream):
        assert answer.status_code == 200, answer.text
    assert {call.body["model"] for call in upstream.calls} == {"one", "two"}


def test_headers_and_report_name_the_deployments_own(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    found = set()
    for answer in answers(proxy, "double"):
        base = answer.json()["optillm"]["base_model"]
        assert answer.headers["x-optillm-base-model"] == base
        found.add((base, answer.headers["x-optillm-max-calls"] == "7"))
    assert found == {("one", False), ("two", True)}


def test_each_deployment_has_its_own_plan(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    plans = {
        (answer.json()["optillm"]["approach"], answer.json()["optillm"]["base_model"])
        for answer in answers(proxy, "various")
    }
    assert plans == {("self_consistency(n=2)", "one"), ("re2", "two")}


def test_the_clients_approach_applies_on_each(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    found = answers(proxy, "various", optillm_approach="none|re2")
    assert {len(answer.json()["choices"]) for answer in found} == {2}
    assert {call.body["model"] for call in upstream.calls} == {"one", "two"}


def test_the_router_chooses_among_those_that_can_serve_the_request(
    proxy: Proxy, upstream: Upstream
) -> None:
    """One of the two is locked, so the client's approach runs on the other one."""
    upstream.play(Script())
    found = answers(proxy, "half_locked", optillm_approach="none|re2")
    assert {answer.status_code for answer in found} == {200}
    assert {call.body["model"] for call in upstream.calls} == {"one"}
    answers(proxy, "half_locked")
    assert {call.body["model"] for call in upstream.calls} == {"one", "two"}


def test_deployments_that_differ_in_their_settings_only_have_their_own(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script())
    found = answers(proxy, "limited")
    assert {answer.headers["x-optillm-max-calls"] for answer in found} == {"3", "9"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_headers_are_those_of_the_deployment(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    found = set()
    for _ in range(16):
        upstream.play(Script())
        body = {"model": "various", **ASKED, "stream": stream}
        answer = proxy.post("/v1/chat/completions", body)
        asked = {call.body["model"] for call in upstream.calls}
        assert asked == {answer.headers["x-optillm-base-model"]}
        assert f'"base_model":"{asked.pop()}"' in answer.text.replace(" ", "")
        found.add(answer.headers["x-optillm-approach"])
    assert found == {"re2", "self_consistency"}


def test_a_deployment_that_cannot_run_is_left_out(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    assert {answer.status_code for answer in answers(proxy, "half_lost")} == {200}
    assert {call.body["model"] for call in upstream.calls} == {"two"}


@pytest.mark.parametrize(("tag", "approach"), [("free", "re2"), ("paid", "self_consistency")])
@pytest.mark.parametrize("way", ["metadata", "header"])
def test_tags_of_a_request_route_it_to_its_deployment(
    proxy: Proxy, upstream: Upstream, tag: str, approach: str, way: str
) -> None:
    upstream.play(Script())
    for _ in range(4):
        metadata = {"metadata": {"tags": [tag]}} if way == "metadata" else {}
        headers = {"x-litellm-tags": tag} if way == "header" else {}
        answer = proxy.http.post(
            f"{proxy.url}/v1/chat/completions",
            json={"model": "routed", **ASKED, **metadata},
            headers={"authorization": f"Bearer {proxy.master_key}", **headers},
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-optillm-approach"] == approach
    assert {call.body["model"] for call in upstream.calls} == {"one" if tag == "free" else "two"}


def test_the_first_in_order_runs(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    bases = {answer.headers["x-optillm-base-model"] for answer in answers(proxy, "ordered")}
    assert bases == {"two"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["mixed", "mixed_too"])
def test_a_plain_deployment_of_an_aliass_name_answers_plainly(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    """Nothing says that an approach has answered where a plain model has, or the other way."""
    found = set()
    for _ in range(16):
        upstream.play(Script())
        answer = proxy.post("/v1/chat/completions", {"model": model, **ASKED, "stream": stream})
        assert answer.status_code == 200, answer.text
        [asked] = {call.body["model"] for call in upstream.calls}
        told = (answer.headers.get("x-optillm-approach"), '"optillm"' in answer.text)
        assert told == ((None, False) if asked == "plain" else ("self_consistency", True))
        found.add(asked)
    assert found == {"one", "plain"}


@pytest.mark.parametrize(
    "fields",
    [{"optillm_approach": "re2"}, {"optillm_limits": {"max_calls": 5}}],
    ids=["an approach", "limits"],
)
def test_what_only_a_plan_can_do_is_not_left_to_a_plain_deployment(
    proxy: Proxy, upstream: Upstream, fields: dict[str, object]
) -> None:
    upstream.play(Script())
    for model in ("mixed", "mixed_too"):
        for answer in answers(proxy, model, **fields):
            assert answer.json()["optillm"]["base_model"] == "one"
    assert {call.body["model"] for call in upstream.calls} == {"one"}


@pytest.mark.parametrize(
    ("model", "fields", "told"),
    [
        ("alias-one", {}, ("re2", "one")),
        ("alias-two", {}, ("re2", "two")),
        ("alias-two", {"optillm_approach": "none|re2"}, ("none|re2", "two")),
        ("plain-one", {"optillm_approach": "re2"}, ("re2", "plain-one")),
        ("re2-plain-one", {}, ("re2", "plain-one")),
    ],
)
def test_a_deployment_can_be_named_by_its_id(
    proxy: Proxy,
    upstream: Upstream,
    model: str,
    fields: dict[str, object],
    told: tuple[str, str],
) -> None:
    upstream.play(Script())
    answer = proxy.post("/v1/chat/completions", {"model": model, **ASKED, **fields})
    assert answer.status_code == 200, answer.text
    report = answer.json()["optillm"]
    assert (report["approach"], report["base_model"]) == told


def test_a_choice_of_several_that_all_refuse_is_the_first_ones_refusal(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script())
    answer = proxy.post(
        "/v1/chat/completions", {"model": "double", **ASKED, "optillm_approach": "nope"}
    )
    assert answer.status_code == 400
    assert "unknown approach 'nope'" in answer.json()["error"]["message"]
    assert upstream.calls == []
