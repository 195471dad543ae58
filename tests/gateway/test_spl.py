"""spl and the routes of our own, through the real proxy: two keys, a team, an admin."""

import asyncio
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from fastapi import FastAPI
from litellm.proxy._types import LiteLLMRoutes, LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.route_checks import RouteChecks

from optillm_hooks.gateway import http_routes
from optillm_hooks.store.records import Namespace, NewNote
from optillm_hooks.store.store import Store
from tests.proxy import PRICE, Proxy, alias, copy_of, hooked_config, model_group
from tests.upstream import HANG, Broken, Call, Script, Upstream

KEYS: dict[str, dict[str, object]] = {
    "sk-anna": {"models": [], "team_id": "t1", "user_id": "anna", "user_role": "internal_user"},
    "sk-ben": {"models": [], "team_id": "t1", "user_id": "ben", "user_role": "internal_user"},
    "sk-carl": {"models": [], "team_id": "t2", "user_role": "internal_user"},
    "sk-taught": {"models": []},
    "sk-paying": {"models": []},
}
TRAINS = "A train leaves the station at 60 km/h and another at 80 km/h. When do they meet?"
LESSON = {
    "covered_by": None,
    "when": "trains that meet",
    "keywords": "train leaves station meet km/h speed",
    "steps": "Add the speeds.",
}


def reply(call: Call, _: int) -> str:
    learning = "tasks of this kind are best solved" in call.text
    return json.dumps(LESSON) if learning else "42"


SCRIPT = Script(reply=reply)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("proxy")


@pytest.fixture(scope="module")
def proxy(folder: Path, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        alias("learner", "spl(learn=true)"),
        alias("of-team", "spl(learn=true;scope=team)"),
        alias("keeps", "spl"),
    ]
    settings = {"spl": {"learning": True}, "store": {"directory": "os.environ/KEPT"}}
    config = hooked_config(models, optillm_settings=settings)
    with Proxy(config, folder, keys=KEYS, env={"KEPT": str(folder / "kept")}) as running:
        yield running


def call(
    proxy: Proxy, method: str, path: str, key: str, body: object = None, **query: str | int
) -> httpx.Response:
    return proxy.http.request(
        method,
        f"{proxy.url}/optillm{path}",
        headers={"authorization": f"Bearer {key}"},
        params=query,
        content=None if body is None else json.dumps(body),
    )


def strategies(proxy: Proxy, key: str, **query: str) -> list[dict[str, Any]]:
    found = call(proxy, "GET", "/strategies", key, **query)
    assert found.status_code == 200, found.text
    data: list[dict[str, Any]] = found.json()["data"]
    return data


def ask(proxy: Proxy, key: str, model: str = "learner", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": TRAINS}], **fields}
    answer = proxy.post("/v1/chat/completions", body, key=key)
    assert answer.status_code == 200, answer.text
    return answer


def soon(holds: Callable[[], bool]) -> None:
    """Wait until what is done after an answer has been done."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def taught(proxy: Proxy, upstream: Upstream, key: str, model: str = "learner") -> None:
    upstream.play(SCRIPT)
    scope = {"scope": "team"} if model == "of-team" else {}
    ask(proxy, key, model)
    soon(lambda: bool(strategies(proxy, key, **scope)))


def test_what_a_key_teaches_only_it_gets_and_its_reward_counts(
    proxy: Proxy, upstream: Upstream
) -> None:
    taught(proxy, upstream, "sk-anna")
    assert strategies(proxy, "sk-ben") == strategies(proxy, "sk-anna", scope="team") == []
    upstream.play(SCRIPT)
    answer = ask(proxy, "sk-anna")
    ask(proxy, "sk-ben", "keeps")
    own, others = upstream.calls[0], upstream.calls[-1]
    assert "Add the speeds." in own.text
    assert "Add the speeds." not in others.text
    soon(lambda: strategies(proxy, "sk-anna")[0]["uses"] == 1)
    given = {"request_id": answer.headers["x-litellm-call-id"], "reward": 0.5}
    for key, counted in (("sk-ben", 0), ("sk-anna", 1), ("sk-anna", 0)):
        told = call(proxy, "POST", "/feedback", key, given)
        assert (told.status_code, told.json()["strategies"]) == (200, counted)
    [found] = strategies(proxy, "sk-anna")
    assert (found["uses"], found["rewarded"], found["reward"]) == (1, 1, 0.5)


def test_a_team_shares_and_another_has_nothing(proxy: Proxy, upstream: Upstream) -> None:
    taught(proxy, upstream, "sk-anna", "of-team")
    [shared] = strategies(proxy, "sk-ben", scope="team")
    assert strategies(proxy, "sk-carl", scope="team") == []
    answer = ask(proxy, "sk-ben", "of-team")
    soon(lambda: strategies(proxy, "sk-ben", scope="team")[0]["uses"] == 1)
    given = {"request_id": answer.headers["x-litellm-call-id"], "reward": 1}
    for key, counted in (("sk-carl", 0), ("sk-ben", 1), ("sk-ben", 0)):
        assert call(proxy, "POST", "/feedback", key, given).json()["strategies"] == counted
    path = f"/strategies/{shared['id']}"
    refused = call(proxy, "DELETE", path, "sk-carl", scope="team")
    assert (refused.status_code, refused.json()["error"]["message"]) == (404, "no such strategy")
    assert call(proxy, "POST", f"{path}/rollback", "sk-ben", {"version": 1}).status_code == 404
    far = {"version": 10**30, "scope": "team"}
    assert call(proxy, "POST", f"{path}/rollback", "sk-ben", far).status_code == 400
    back = call(proxy, "POST", f"{path}/rollback", "sk-ben", {"version": 1, "scope": "team"})
    assert back.json() == {"object": "optillm.strategy", "id": shared["id"], "version": 1}
    assert call(proxy, "DELETE", path, "sk-ben", scope="team").json()["deleted"] is True
    assert strategies(proxy, "sk-anna", scope="team") == []


def test_only_an_admin_reaches_others(proxy: Proxy, upstream: Upstream) -> None:
    taught(proxy, upstream, "sk-taught")
    owner = owned_by("sk-taught").owner
    refused = call(proxy, "GET", "/strategies", "sk-ben", owner=owner)
    assert refused.status_code == 403
    assert refused.json()["error"]["message"] == "only an admin of the proxy may name an owner"
    [seen] = strategies(proxy, proxy.master_key, owner=owner)
    path = f"/strategies/{seen['id']}"
    assert call(proxy, "DELETE", path, proxy.master_key, owner=owner).status_code == 200
    assert strategies(proxy, "sk-taught") == []


def owned_by(key: str) -> Namespace:
    return Namespace("key", hashlib.sha256(key.encode()).hexdigest())


@pytest.fixture(scope="module")
def kept(folder: Path) -> None:
    """Notes of two keys, written by another process to the proxy's own file."""

    async def write() -> None:
        store = Store(directory=folder / "kept")
        for name in ("anna", "ben"):
            notes = [NewNote(text=f"{name} {number}", source="doc") for number in range(3)]
            await store.add_notes(owned_by(f"sk-{name}"), notes, ttl_s=3600)
        store.close()

    asyncio.run(write())


@pytest.mark.usefixtures("kept")
def test_a_key_lists_and_deletes_its_own_notes_only(proxy: Proxy) -> None:
    first = call(proxy, "GET", "/notes", "sk-anna", limit=2).json()
    rest = call(proxy, "GET", "/notes", "sk-anna", after=first["data"][-1]["id"]).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    notes = [*first["data"], *rest["data"]]
    assert sorted(note["text"] for note in notes) == ["anna 0", "anna 1", "anna 2"]
    assert {(note["object"], note["source"]) for note in notes} == {("optillm.note", "doc")}
    assert all(note["expires_at"] - note["created_at"] == 3600 for note in notes)
    theirs = call(proxy, "GET", "/notes", "sk-ben", after=notes[0]["id"]).json()
    assert theirs["data"] == []
    for key, status in (("sk-ben", 404), ("sk-anna", 200), ("sk-anna", 404)):
        gone = call(proxy, "DELETE", f"/notes/{notes[0]['id']}", key)
        assert gone.status_code == status
    assert gone.json()["error"]["message"] == "no such note"
    emptied = call(proxy, "DELETE", "/notes", "sk-anna")
    assert emptied.json() == {"object": "optillm.notes.deleted", "notes": 2, "cached_texts": 0}
    assert len(call(proxy, "GET", "/notes", "sk-ben").json()["data"]) == 3


@pytest.mark.parametrize(
    ("method", "path", "body", "query", "field"),
    [
        ("GET", "/notes", None, {"limit": 0}, "limit"),
        ("GET", "/notes", None, {"scope": "world"}, "scope"),
        ("GET", "/notes", None, {"page": 2}, "page"),
        ("GET", "/strategies", None, {"owner": ""}, "owner"),
        ("POST", "/feedback", {"request_id": "r"}, {}, "reward"),
        ("POST", "/feedback", {"request_id": "r", "reward": 1.5}, {}, "reward"),
        ("POST", "/feedback", {"request_id": "r", "reward": 1, "x": 1}, {}, "x"),
        ("POST", "/feedback", {"request_id": "r", "reward": 1}, {"scope": "team"}, "scope"),
        ("POST", "/strategies/x/rollback", {"version": 1}, {"owner": "t1"}, "owner"),
    ],
)
def test_bad_input_is_refused_in_openais_form(
    proxy: Proxy, method: str, path: str, body: object, query: dict[str, Any], field: str
) -> None:
    refused = call(proxy, method, path, "sk-anna", body, **query)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", field)


def test_a_scope_that_the_key_has_not_is_refused(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(SCRIPT)
    refused = call(proxy, "GET", "/notes", "sk-carl", scope="user")
    assert refused.status_code == 400
    assert "has no user" in refused.json()["error"]["message"]
    body = {"model": "of-team", "messages": [{"role": "user", "content": TRAINS}]}
    answer = proxy.post("/v1/chat/completions", body, key="sk-taught")
    assert (answer.status_code, upstream.calls) == (400, [])
    assert "has no team" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/notes"), ("DELETE", "/notes"), ("POST", "/feedback"), ("GET", "/strategies")],
)
def test_a_caller_without_a_key_is_told_nothing(proxy: Proxy, method: str, path: str) -> None:
    assert call(proxy, method, path, "sk-unknown").status_code == 401


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # LiteLLM's own, when it is loaded
@pytest.mark.parametrize("path", ["/optillm/notes", "/optillm/strategies/x/rollback"])
def test_litellms_own_check_lets_a_virtual_key_in(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for keys of its database: without our entries it keeps the routes for admins."""

    def check() -> None:
        RouteChecks.non_proxy_admin_allowed_routes_check(
            user_obj=None,
            _user_role=LitellmUserRoles.INTERNAL_USER,
            route=path,
            request=None,
            valid_token=UserAPIKeyAuth(api_key="sk-x"),
            request_data={},
        )

    managed = LiteLLMRoutes.self_managed_routes.value
    monkeypatch.setattr(LiteLLMRoutes.self_managed_routes, "_value_", list(managed))
    with pytest.raises(Exception, match="admin"):
        check()
    assert http_routes.mount(FastAPI()) is None
    check()
    monkeypatch.setattr(LiteLLMRoutes.self_managed_routes, "_value_", frozenset())
    assert "only admins" in str(http_routes.mount(FastAPI()))


def test_the_lesson_is_billed_to_the_key_and_no_part_of_the_answer(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(SCRIPT)
    key = copy_of("sk-paying")
    answer = ask(proxy, key).json()
    soon(lambda: bool(strategies(proxy, key)))
    proxy.settle()
    whole, lesson = [each.told for each in upstream.calls]
    assert whole is not None
    assert lesson is not None
    assert answer["usage"]["total_tokens"] == whole.total_tokens
    expected = (whole + lesson).cost(PRICE.prompt, PRICE.completion)
    soon(lambda: abs(proxy.charged(key) - expected) < 1e-9)


def test_the_body_field_of_optillm_and_streams_and_other_routes(
    proxy: Proxy, upstream: Upstream
) -> None:
    """The two ways of asking in which OptiLLM never applied a strategy."""
    taught(proxy, upstream, "sk-carl")
    upstream.play(SCRIPT)
    messages: Any = [{"role": "user", "content": TRAINS}]
    client = proxy.openai("sk-carl")
    extra = {"optillm_approach": "spl", "spl_learning": True}
    stream = client.chat.completions.create(
        model="base", messages=messages, extra_body=extra, stream=True
    )
    text = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
    assert text == "42"
    soon(lambda: sum("best solved" in each.text for each in upstream.calls) == 1)
    assert client.responses.create(model="keeps", input=TRAINS).output_text == "42"
    claude = anthropic.Anthropic(base_url=proxy.url, api_key="sk-carl", max_retries=0)
    with claude:
        said = claude.messages.create(model="keeps", messages=messages, max_tokens=50)
    assert isinstance(said.content[0], anthropic.types.TextBlock)
    assert said.content[0].text == "42"
    answers = [each for each in upstream.calls if "best solved" not in each.text]
    assert len(answers) == 3
    for each in answers:
        assert "Add the speeds." in each.text
        assert "spl_learning" not in each.body


def test_a_lesson_does_not_keep_the_proxy_from_ending(proxy: Proxy, upstream: Upstream) -> None:
    """The last test of this module: the proxy is gone after it."""

    def hangs(call: Call) -> Broken | None:
        return HANG if "best solved" in call.text else None

    upstream.play(Script(reply=reply, fault=hangs))
    ask(proxy, "sk-ben")
    upstream.wait_until(lambda u: len(u.calls) == 2)
    os.kill(proxy.pid, signal.SIGTERM)
    upstream.wait_until_idle()
