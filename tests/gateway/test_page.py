"""The page's routes: what is open, what needs a key, and who sees which plan."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import litellm
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from litellm.proxy._types import LitellmUserRoles, ProxyException, UserAPIKeyAuth

from optillm_hooks.gateway import page_routes
from optillm_hooks.gateway.recent_plans import KeptPlan, RecentPlans, Whose
from tests.proxy import PRICE, Proxy, alias, hooked_config, model_group
from tests.upstream import Script, Status, Upstream, always, differing

KEYS: dict[str, dict[str, object]] = {
    "sk-anna": {"models": [], "user_role": "internal_user"},
    "sk-ben": {"models": [], "user_role": "internal_user"},
    "sk-cleo": {"models": ["careful"], "user_role": "internal_user"},
}
SECRET = "What is 6 times 7, my dear Watson?"
ANNA: Whose = ("key", "anna")
BEN: Whose = ("key", "ben")


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        alias("careful", "self_consistency(n=3)"),
        alias("rated", "re2&bon(n=2)"),
        alias("saved", "re2"),
    ]
    with Proxy(hooked_config(models), tmp_path_factory.mktemp("page"), keys=KEYS) as running:
        yield running


def get(proxy: Proxy, path: str, key: str | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return proxy.http.get(f"{proxy.url}/optillm{path}", headers=headers)


def ask(proxy: Proxy, model: str, key: str, *, stream: bool = False) -> str:
    """Return the id of a request that has ended."""
    body = {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": SECRET}],
    }
    response = proxy.post("/v1/chat/completions", body, key=key)
    return response.headers["x-litellm-call-id"]


def test_the_shell_is_open_and_strict(proxy: Proxy) -> None:
    shell = get(proxy, "")
    assert shell.status_code == 200
    policy = shell.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert shell.headers["x-content-type-options"] == "nosniff"
    files = re.findall(r'"(optillm/page/[\w.]+)"', shell.text)
    assert len(files) == 3
    for file in files:
        assert get(proxy, file.removeprefix("optillm")).status_code == 200
    for inline in (r"<script(?![^>]*src=)", r"<style", r"\sstyle=", r"\son\w+=", "https?://"):
        assert not re.search(inline, shell.text)


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2fpage_routes.py"])
def test_no_other_file_is_served(proxy: Proxy, name: str) -> None:
    assert get(proxy, f"/page/{name}").status_code == 404


@pytest.mark.parametrize(
    "path", ["/approaches", "/price?model=base", "/counters", "/plans", "/plans/x"]
)
@pytest.mark.parametrize("key", [None, "sk-unknown"])
def test_data_need_a_key(proxy: Proxy, path: str, key: str | None) -> None:
    assert get(proxy, path, key).status_code == 401


def test_approaches_come_with_parameters_and_cost(proxy: Proxy) -> None:
    listed = get(proxy, "/approaches", "sk-anna").raise_for_status().json()["data"]
    by_name = {each["name"]: each for each in listed}
    bon = by_name["bon"]
    assert (by_name["none"]["calls"], bon["depth"]) == (1, 3)
    [n] = [each for each in bon["parameters"] if each["name"] == "n"]
    assert n["bounds"].startswith("≥ ")
    assert n["description"]


def test_a_price_is_for_keys_that_may_call_the_model(proxy: Proxy) -> None:
    """The playground shows with it what a plain call has cost."""
    found = get(proxy, "/price?model=base", "sk-anna").raise_for_status().json()
    assert found["usd"] == {"prompt": PRICE.prompt, "completion": PRICE.completion}
    assert get(proxy, "/price", "sk-anna").status_code == 400
    assert get(proxy, "/price?model=careful", "sk-anna").json()["usd"] is None
    assert get(proxy, "/price?model=base", "sk-cleo").status_code in (401, 403)


def test_counters_are_an_admins(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=differing))
    ask(proxy, "careful", "sk-anna")
    refused = get(proxy, "/counters", "sk-anna")
    assert refused.status_code == 403
    assert "admin" in refused.json()["error"]["message"]
    samples = get(proxy, "/counters", proxy.master_key).raise_for_status().json()["data"]
    counted = [
        each["value"]
        for each in samples
        if each["name"] == "optillm_requests_total"
        and each["labels"]["approach"] == "self_consistency"
    ]
    assert counted == [1]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_plan_is_its_keys_own(proxy: Proxy, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=differing))
    call_id = ask(proxy, "rated", "sk-anna", stream=stream)
    assert get(proxy, f"/plans/{call_id}", "sk-ben").status_code == 404
    assert call_id not in get(proxy, "/plans", "sk-ben").text
    for key in ("sk-anna", proxy.master_key):
        listed = get(proxy, "/plans?limit=1", key).raise_for_status().json()["data"]
        assert [plan["id"] for plan in listed] == [call_id]
        assert get(proxy, f"/plans/{call_id}", key).json()["id"] == call_id


@pytest.mark.parametrize("path", ["/approaches", "/counters", "/plans", "/plans/{id}"])
def test_no_cache_keeps_data(proxy: Proxy, upstream: Upstream, path: str) -> None:
    upstream.play(Script(reply=differing))
    path = path.format(id=ask(proxy, "saved", "sk-anna"))
    read = get(proxy, path, proxy.master_key).raise_for_status()
    assert read.headers["cache-control"] == "no-store"


def test_a_plan_says_which_stage_spent_what(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=differing))
    call_id = ask(proxy, "rated", "sk-anna")
    text = get(proxy, f"/plans/{call_id}", "sk-anna").text
    assert "Watson" not in text
    plan: dict[str, Any] = json.loads(text)
    names = [stage["name"] for stage in plan["stages"]]
    assert names[:2] == ["re2", "bon"]
    made = [names[call["stage"]] for call in plan["model_calls"]]
    assert set(made) == {"bon"}
    billed = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert sum(call["cost_usd"] for call in plan["model_calls"]) == pytest.approx(billed)
    assert plan["cost_usd"] == pytest.approx(billed)
    assert plan["calls"] == len(upstream.calls)
    assert "ratings" in [note["name"] for note in plan["notes"]]
    assert plan["error"] is None


def test_a_failed_plan_is_kept_with_its_error(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(Status(500))))
    ask(proxy, "saved", "sk-anna")
    [plan] = get(proxy, "/plans?limit=1", "sk-anna").json()["data"]
    assert plan["error"]
    assert plan["choices"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "all=1"])
def test_a_wrong_query_is_refused(proxy: Proxy, query: str) -> None:
    assert get(proxy, f"/plans?{query}", "sk-anna").status_code == 400


COUNT = """
from prometheus_client import Counter
Counter("optillm_of_workers", "Of a worker.", ["approach"]).labels("bon").inc(2)
Counter("litellm_of_workers", "Not ours.").inc()
"""


def test_counters_add_up_what_the_workers_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for _ in range(2):
        subprocess.run([sys.executable, "-c", COUNT], check=True)
    admin = UserAPIKeyAuth(api_key="sk-x", user_role=LitellmUserRoles.PROXY_ADMIN)
    sample = {"name": "optillm_of_workers_total", "labels": {"approach": "bon"}, "value": 4}
    assert page_routes.counters(admin)["data"] == [sample]


@pytest.mark.parametrize("path", ["", "/page/app.js", "/approaches", "/plans", "/counters"])
def test_the_operator_can_switch_the_page_off(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = FastAPI()
    app.include_router(page_routes.router)
    monkeypatch.setattr(litellm, "optillm_settings", {"page": {"enabled": False}}, raising=False)
    with TestClient(app) as client, pytest.raises(ProxyException, match=r"page\.enabled is false"):
        client.get(f"/optillm{path}")


def kept(whose: Whose | None, at: float, text: str = "{}") -> KeptPlan:
    return KeptPlan(whose, at, {"at": at}, text)


def test_the_least_recently_used_plan_goes() -> None:
    plans = RecentPlans()
    plans.keep("1", kept(ANNA, 1), 2)
    plans.keep("2", kept(BEN, 2), 2)
    assert plans.find("1", ANNA, everyones=False)
    plans.keep("3", kept(BEN, 3), 2)
    assert plans.summaries(None, everyones=True, limit=9) == [
        {"at": 3},
        {"at": 1},
    ]


def test_the_store_is_bounded_in_size_and_counts_a_replaced_plan_once() -> None:
    plans = RecentPlans(max_chars=100)
    for at in range(50):
        plans.keep("same", kept(ANNA, at, "x" * 40), 1000)
    plans.keep("other", kept(ANNA, 50, "x" * 60), 1000)
    assert len(plans.summaries(ANNA, everyones=False, limit=9)) == 2
    plans.keep("whole", kept(ANNA, 51, "x" * 101), 1000)
    assert len(plans.summaries(ANNA, everyones=False, limit=9)) == 2


def test_a_key_with_many_plans_pushes_out_its_own_only() -> None:
    plans = RecentPlans(max_chars=100)
    plans.keep("one", kept(BEN, 0, "x" * 10), 5)
    for at in range(1, 20):
        plans.keep(str(at), kept(ANNA, at), 5)
    assert len(plans.summaries(ANNA, everyones=False, limit=9)) == 4
    for at in range(20, 30):
        plans.keep(str(at), kept(ANNA, at, "x" * 40), 5)
    assert len(plans.summaries(ANNA, everyones=False, limit=9)) == 2
    assert plans.find("one", BEN, everyones=False)


def test_two_keys_may_send_the_same_id() -> None:
    plans = RecentPlans()
    plans.keep("id", kept(ANNA, 1, "anna's"), 9)
    plans.keep("id", kept(BEN, 2, "ben's"), 9)
    assert plans.find("id", ANNA, everyones=False) == "anna's"
    assert plans.find("id", BEN, everyones=False) == "ben's"


def test_without_a_known_owner_only_an_admin_sees_a_plan() -> None:
    plans = RecentPlans()
    plans.keep("id", kept(None, 1), 9)
    assert plans.find("id", None, everyones=False) is None
    assert plans.summaries(None, everyones=False, limit=9) == []
    assert plans.find("id", None, everyones=True) == "{}"
