"""A model name that nothing serves: the error has the similar one that the key may call."""

import pytest
from litellm import Router
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.gateway.deployments import names_for
from tests.proxy import Proxy, model_group
from tests.upstream import Upstream

ASKED = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}


@pytest.mark.parametrize(
    ("path", "model", "told"),
    [
        ("/v1/chat/completions", "carefull", "'carefull' is configured (did you mean 'careful'?)"),
        ("/v1/messages", "bsae", "'bsae' is configured (did you mean 'base'?)"),
        ("/v1/chat/completions", "bon-bsae", "'bsae' is configured (did you mean 'base'?)"),
        ("/v1/chat/completions", "zzz", "no healthy deployments"),
    ],
    ids=["alias", "messages", "base of a prefix", "nothing is similar"],
)
def test_a_similar_name_is_suggested(
    proxy: Proxy, upstream: Upstream, path: str, model: str, told: str
) -> None:
    before = len(upstream.calls)
    answer = proxy.post(path, {"model": model, "max_tokens": 9, **ASKED})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]
    assert len(upstream.calls) == before


@pytest.mark.parametrize("fields", [{"fallbacks": ["base"]}, {"model": "openai/base"}])
def test_a_name_that_litellm_serves_is_left_to_it(proxy: Proxy, fields: dict[str, object]) -> None:
    answer = proxy.post("/v1/chat/completions", {"model": "bsae", **ASKED, **fields})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("key", "names"),
    [
        (UserAPIKeyAuth(), ["base", "secret", "careful"]),
        (UserAPIKeyAuth(models=["base", "gone"]), ["base"]),
        (UserAPIKeyAuth(models=["all-proxy-models"]), ["base", "secret", "careful"]),
        (UserAPIKeyAuth(team_id="t", team_models=["careful"]), ["careful"]),
        (UserAPIKeyAuth(team_id="t", team_models=["careful"], models=["base"]), ["base"]),
    ],
    ids=["no list", "key", "all of the proxy", "team", "key of a team"],
)
def test_names_are_those_that_the_key_may_call(key: UserAPIKeyAuth, names: list[str]) -> None:
    url = "http://127.0.0.1:9"
    router = Router(
        [model_group("base", url), model_group("secret", url), model_group("careful", url)]
    )
    assert sorted(names_for(router, key)) == sorted(names)
