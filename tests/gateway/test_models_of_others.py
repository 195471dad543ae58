"""Models that a key may not call, and those of teams: who may use them, and what others learn."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.proxy import Config, Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Upstream

KEYS: dict[str, dict[str, object]] = {
    "sk-base": {"models": ["base", "optillm/*", "*-base", "re2-*", "foo-*", "lent", "unlent"]},
    "sk-red": {
        "team_id": "red",
        "team_models": ["red-model", "red-careful", "base", "wild/*"],
        "models": [],
    },
    "sk-blue": {"team_id": "blue", "models": []},
    "sk-no-team": {"models": []},
    "sk-group": {"models": ["beta", "optillm/*"]},
    "sk-renamed": {
        "models": ["base", "optillm/*", "re2-*", "unlent", "lent"],
        "aliases": {"secret": "base", "nick": "base"},
    },
    "sk-renamed-team": {
        "models": [],
        "team_id": "green",
        "team_models": ["base"],
        "team_model_aliases": {"secret": "base", "nick": "base", "old": "model_name_green_gone"},
    },
}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "What is 6 times 7?"}]}


def of_team(deployment: Config, team: str, name: str) -> Config:
    """Return a deployment as LiteLLM stores one that a team adds."""
    return deployment | {
        "model_name": f"model_name_{team}_{name}",
        "model_info": {
            **deployment.get("model_info", {}),
            "team_id": team,
            "team_public_model_name": name,
        },
    }


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    open_to_beta = model_group("open", upstream.url)
    open_to_beta["model_info"] = {"access_groups": ["beta"]}
    config = hooked_config(
        [
            model_group("base", upstream.url),
            model_group("secret", upstream.url),
            alias("hidden", "re2", "base"),
            alias("lent", "re2", "secret", inherit_access=True),
            alias("unlent", "re2", "secret"),
            of_team(model_group("red", upstream.url), "red", "red-model"),
            of_team(alias("red", "re2", "red-model"), "red", "red-careful"),
            of_team(model_group("red-wild", upstream.url), "red", "wild/*"),
            open_to_beta,
        ]
    )
    config["router_settings"]["model_group_alias"] = {"short": "base", "red-short": "red-model"}
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS, ledger=False) as running:
        yield running


def ask(proxy: Proxy, key: str, body: dict[str, Any], route: str = "/v1/chat/completions") -> Any:
    return proxy.post(route, {**ASKED, "max_tokens": 100, **body}, key=key)


WAYS: dict[str, Any] = {
    "our form": lambda name: {"model": f"optillm/re2/{name}"},
    "prefix": lambda name: {"model": f"re2-{name}"},
    "prefix of two": lambda name: {"model": f"re2-moa-{name}"},
    "none": lambda name: {"model": f"optillm/none/{name}"},
    "misspelt prefix": lambda name: {"model": f"foo-{name}"},
    "judge": lambda name: {"model": "base", "optillm_approach": f"bon(judge={name})"},
    "models": lambda name: {"model": "base", "optillm_approach": f"moa(models=[base,{name}])"},
    "parameters": lambda name: {
        "model": "base",
        "optillm_approach": "mcts",
        "optillm_params": {"mcts": {"judge": name}},
    },
    "judge in a name": lambda name: {"model": f"optillm/bon(judge={name})/base"},
    "limits": lambda name: {
        "model": f"optillm/re2/{name}",
        "optillm_limits": {"max_cost_usd": 0.001},
    },
    "decoder": lambda name: {"model": f"optillm/cot_decoding/{name}"},
}


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("way", WAYS)
def test_a_key_does_not_learn_which_other_models_there_are(
    proxy: Proxy, upstream: Upstream, way: str, route: str
) -> None:
    """Plain models, aliases and models of a team are told as one that does not exist."""
    upstream.play(Script())
    told = set()
    for name in ("nobody", "secret", "hidden", "red-model", "model_name_red_red-model"):
        answer = ask(proxy, "sk-base", WAYS[way](name), route)
        told.add((answer.status_code, answer.text.replace(name, "NAME")))
    assert len(told) == 1, told
    assert upstream.calls == []


@pytest.mark.parametrize("way", ["our form", "judge", "models", "parameters"])
def test_litellms_own_words_refuse_a_model(proxy: Proxy, upstream: Upstream, way: str) -> None:
    upstream.play(Script())
    plain = ask(proxy, "sk-base", {"model": "secret"})
    answer = ask(proxy, "sk-base", WAYS[way]("secret"))
    assert answer.status_code == plain.status_code == 403
    assert answer.json()["error"] == plain.json()["error"]


def test_an_alias_lends_its_base_only_if_the_operator_says_so(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script())
    assert ask(proxy, "sk-base", {"model": "unlent"}).status_code == 403
    assert upstream.calls == []
    assert ask(proxy, "sk-base", {"model": "lent"}).status_code == 200


def test_who_may_call_all_models_is_told_what_is_wrong(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    for model, words in {
        "re2-nobody": "no model 'nobody' is configured",
        "re2-hidden": "itself an alias",
        "foo-secret": "unknown approach 'foo'",
    }.items():
        answer = ask(proxy, "sk-no-team", {"model": model})
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]


# ------------------------------------------------------------------------------------- teams


TEAM_WAYS: dict[str, dict[str, Any]] = {
    "body field": {"model": "red-model", "optillm_approach": "re2"},
    "prefix": {"model": "re2-red-model"},
    "our form": {"model": "optillm/re2/red-model"},
    "tag": {
        "model": "red-model",
        "messages": [
            {"role": "user", "content": "<optillm_approach>re2</optillm_approach> Hello?"}
        ],
    },
    "alias of the team": {"model": "red-careful"},
    "body field on its alias": {"model": "red-careful", "optillm_approach": "re2&re2"},
    "judge": {"model": "base", "optillm_approach": "mcts(branching=2;judge=red-model)"},
    "wildcard of the team": {"model": "wild/any", "optillm_approach": "re2"},
    "group alias": {"model": "red-short", "optillm_approach": "re2"},
    "internal name": {"model": "model_name_red_red-model", "optillm_approach": "re2"},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", TEAM_WAYS)
def test_a_teams_model_works_for_its_keys_only(
    proxy: Proxy, upstream: Upstream, way: str, stream: bool
) -> None:
    body = {**TEAM_WAYS[way], "stream": stream}
    upstream.play(Script())
    answer = ask(proxy, "sk-red", body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-optillm-approach"]
    assert any(call.body["model"].startswith("red") for call in upstream.calls)
    upstream.play(Script())
    for other in ("sk-blue", "sk-no-team"):
        assert ask(proxy, other, body).status_code in (400, 403)
    assert upstream.calls == []


def test_the_admins_key_may_use_a_teams_model(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    for body in ({"model": "red-model", "optillm_approach": "re2"}, {"model": "red-careful"}):
        answer = proxy.post("/v1/chat/completions", {**ASKED, **body})
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-optillm-approach"] == "re2"


# ---------------------------------------------------------------- other names, access groups


@pytest.mark.parametrize("model", ["re2-short", "optillm/re2/short"])
def test_a_groups_other_name_is_a_base(proxy: Proxy, upstream: Upstream, model: str) -> None:
    upstream.play(Script())
    answer = ask(proxy, "sk-no-team", {"model": model})
    assert answer.status_code == 200, answer.text
    assert [call.body["model"] for call in upstream.calls] == ["base"]


def test_an_access_group_opens_its_models_with_approaches(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    assert ask(proxy, "sk-group", {"model": "open", "optillm_approach": "re2"}).status_code == 200
    assert ask(proxy, "sk-group", {"model": "optillm/re2/open"}).status_code == 200
    assert ask(proxy, "sk-group", {"model": "optillm/re2/base"}).status_code == 403


@pytest.mark.parametrize("key", ["sk-renamed", "sk-renamed-team"])
@pytest.mark.parametrize("name", ["secret", "nick"])
@pytest.mark.parametrize("way", ["our form", "prefix", "none", "judge", "models", "limits"])
def test_an_alias_of_a_key_or_team_replaces_the_models_of_a_plan(
    proxy: Proxy, upstream: Upstream, key: str, name: str, way: str
) -> None:
    """LiteLLM checks access to what the alias leads to, so that is what must be called."""
    upstream.play(Script())
    answer = ask(proxy, key, WAYS[way](name))
    assert answer.status_code == 200, answer.text
    assert {call.body["model"] for call in upstream.calls} == {"base"}


@pytest.mark.parametrize("model", ["unlent", "lent"])
def test_an_alias_of_a_key_holds_for_the_base_that_an_alias_does_not_lend(
    proxy: Proxy, upstream: Upstream, model: str
) -> None:
    upstream.play(Script())
    answer = ask(proxy, "sk-renamed", {"model": model})
    called = {"unlent": "base", "lent": "secret"}[model]
    assert [call.body["model"] for call in upstream.calls] == [called]
    assert answer.headers["x-optillm-base-model"] == called
