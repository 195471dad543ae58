"""An alias of several deployments: base, plan and limits are those of the one that is chosen."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.proxy import Proxy, alias, hooked_config, model_group
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
        ]
    )
    with Proxy(config, tmp_path_factory.mktemp("proxy"), ledger=False) as running:
        yield running


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
