"""Ceilings in the metadata of a virtual key and of its team lower the limits of a request."""

from collections.abc import Iterator

import pytest

from tests.proxy import Proxy, alias, hooked_config, model_group
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
