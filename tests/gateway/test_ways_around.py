"""Attempts to bypass the hook and its limits, from outside: each must fail."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from tests.gateway.refusals import REFUSALS, refused_models
from tests.proxy import PRICE, Proxy, alias, hooked_config, model_group
from tests.upstream import Call, Script, Status, Upstream, always, at, differing

WAYS = ("by name", "as a fallback", "as a streamed fallback", "after a comma")
TINY = {"base": {"budget_limit": 1e-9, "time_period": "1d"}}
ONE_A_MINUTE = {"model_rpm_limit": {"base": 1}}
KEYS: dict[str, dict[str, object]] = {
    "sk-all": {"models": []},
    "sk-forms": {"models": ["other", "optillm/*"]},
    "sk-alias": {"models": ["other", "careful", "lent"]},
    **{
        f"sk-model-budget-{number}": {"models": [], "model_max_budget": TINY} for number in range(5)
    },
    "sk-slow-aliases": {"models": [], "metadata": ONE_A_MINUTE},
    "sk-team": {"models": [], "team_id": "t", "team_models": []},
    "sk-other": {"models": ["other", *REFUSALS]},
    **{f"sk-spent-{n}": {"models": [], "model_max_budget": TINY} for n, _ in enumerate(WAYS)},
    **{f"sk-slow-{n}": {"models": [], "metadata": ONE_A_MINUTE} for n, _ in enumerate(WAYS)},
}
ROUTES = ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"]
_number = count()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    team = model_group("hidden", upstream.url)
    team["model_info"] = {"team_id": "t", "team_public_model_name": "prod-base"}
    numbered = model_group("numbered", upstream.url)
    numbered["model_info"] = {"id": "eu-base"}
    any_name = model_group("served/*", upstream.url)
    any_name["litellm_params"]["model"] = "openai/*"
    models = [
        model_group("base", upstream.url),
        model_group("other", upstream.url),
        team,
        numbered,
        any_name,
        alias("careful", "re2"),
        alias("lent", "re2", inherit_access=True),
        alias("covered", "re2"),
        alias("tiny", "re2", max_tokens_total=1),
        alias("counted", "re2", max_tokens_total=5000),
        alias("both", "re2|none"),
        alias("one_by_one", "self_consistency(n=3)", "chatty", max_parallel=1),
        model_group("chatty", upstream.url, model="cerebras/chatty"),  # has no responses route
        *refused_models(upstream),
    ]
    config = hooked_config(models, cache=True, cache_params={"type": "local"})
    config["router_settings"]["fallbacks"] = [{"covered": ["other"]}]
    folder, env = tmp_path_factory.mktemp("proxy"), {"LITELLM_LOG": "INFO"}
    with Proxy(config, folder, keys=KEYS, env=env) as running:
        yield running


def fresh() -> str:
    """Return a question that no cache knows."""
    return f"What is 6 times {next(_number)}?"


def ask(
    proxy: Proxy,
    model: str,
    *,
    key: str = "sk-all",
    route: str = ROUTES[0],
    text: str | None = None,
    **fields: Any,
) -> httpx.Response:
    question = text or fresh()
    asked: dict[str, object] = {"messages": [{"role": "user", "content": question}]}
    if route == "/v1/messages":
        asked["max_tokens"] = 99
    if route == "/v1/responses":
        asked = {"input": question}
    if route == "/v1/completions":
        asked = {"prompt": question}
    return proxy.post(route, {"model": model, **asked, **fields}, key=key)


def asked_models(upstream: Upstream) -> list[str]:
    return [call.body["model"] for call in upstream.calls]


def ask_by(proxy: Proxy, way: str, model: str, **request: Any) -> httpx.Response:
    """Ask for an alias by its name, or beside another model, which fails."""
    if way == "by name":
        return ask(proxy, model, **request)
    if way == "after a comma":
        return ask(proxy, f"other,{model}", **request)
    return ask(proxy, "other", fallbacks=[model], stream="streamed" in way, **request)


def assert_told(proxy: Proxy, way: str, reason: str, answer: httpx.Response, before: int) -> None:
    """Assert that the answer has the reason; or the log, where LiteLLM answers with other models.

    The calls of a comma share their metadata, so that the ledger may have either's model.
    """
    if way == "after a comma":
        proxy.wait_until(lambda p: reason in p.log[before:])
    else:
        assert reason in answer.text


def by_number(call: Call, choice: int) -> str:
    return f"{call.body['model']}, call {call.index}, choice {choice}"


@pytest.mark.parametrize(
    ("key", "hidden"),
    [
        pytest.param("sk-forms", "optillm/re2/base", id="a plan spelt in the request"),
        pytest.param("sk-all", "optillm/bon(n=9)/base", id="so with access, past the limits"),
        pytest.param("sk-alias", "careful", id="an alias that lends nothing"),
    ],
)
def test_no_plan_comes_in_beside_another_model(
    proxy: Proxy, upstream: Upstream, key: str, hidden: str
) -> None:
    upstream.play(Script())
    ask(proxy, f"other,{hidden}", key=key)
    assert asked_models(upstream) == ["other"]
    upstream.play(Script(fault=at({0: Status(500)})))
    refused = ask(proxy, "other", key=key, fallbacks=[hidden])
    assert refused.status_code == 500
    assert asked_models(upstream) == ["other"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSALS)
def test_a_plan_that_must_not_run_is_refused_by_every_way_in(
    proxy: Proxy, upstream: Upstream, name: str, way: str
) -> None:
    upstream.play(Script(fault=at({0: Status(500)})))
    refusal, before = REFUSALS[name], len(proxy.log)
    answer = ask_by(proxy, way, name, key=refusal.key, **refusal.fields)
    assert_told(proxy, way, refusal.reason, answer, before)
    assert asked_models(upstream) == ([] if way == "by name" else ["other"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("limit", "reason"),
    [("spent", "udget"), ("slow", "rate limit of 'base' reached: 1 requests")],
)
def test_a_keys_limits_for_the_base_hold_by_every_way_in(
    proxy: Proxy, upstream: Upstream, limit: str, reason: str, way: str
) -> None:
    upstream.play(Script())
    key = f"sk-{limit}-{WAYS.index(way)}"
    assert ask(proxy, "base", key=key).status_code == 200
    proxy.settle()
    upstream.play(Script(fault=at({0: Status(500)})))
    before = len(proxy.log)
    assert_told(proxy, way, reason, ask_by(proxy, way, "careful", key=key), before)
    assert asked_models(upstream) == ([] if way == "by name" else ["other"])


def test_a_fallback_from_one_alias_to_another_is_one_request(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(fault=at({0: Status(500)})))
    answer = ask(proxy, "careful", key="sk-slow-aliases", fallbacks=["lent"])
    assert answer.status_code == 200, answer.text
    assert asked_models(upstream) == ["base", "base"]
    assert ask(proxy, "careful", key="sk-slow-aliases").status_code == 429


@pytest.mark.parametrize("streamed", [False, True])
def test_the_clients_limits_hold_for_a_fallbacks_plan(
    proxy: Proxy, upstream: Upstream, streamed: bool
) -> None:
    upstream.play(Script())
    fields: dict[str, Any] = {"fallbacks": ["careful"], "stream": streamed}
    refused = ask(proxy, "lent", optillm_limits={"max_tokens_total": 1}, **fields)
    assert (
        "no room left under max_tokens_total (max_tokens_total is 1; it is set by "
        "optillm_limits of the request)"
    ) in refused.text
    assert upstream.calls == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_fallback_of_several_answers_is_refused_on_a_route_with_one(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=at({0: Status(500)})))
    answer = ask(proxy, "chatty", route="/v1/messages", fallbacks=["both"], stream=stream)
    assert "this route returns one answer" in answer.text
    assert asked_models(upstream) == ["chatty"]


def test_an_alias_is_a_fallback_for_who_may_call_its_base_or_is_lent_it(
    proxy: Proxy, upstream: Upstream
) -> None:
    for key, fallback in (("sk-all", "careful"), ("sk-alias", "lent")):
        upstream.play(Script(fault=at({0: Status(500)})))
        assert ask(proxy, "other", key=key, fallbacks=[fallback]).status_code == 200
        assert asked_models(upstream) == ["other", "base"]


@pytest.mark.parametrize(
    ("model", "approach"),
    [
        ("careful", "bon(n=2;judge=careful)"),
        ("base", "bon(judge=careful)"),
        ("base", "moa(models=[base, careful])"),
        ("base", "re2&moa(aggregator=careful)"),
        ("base", 'bon(judge="optillm/*")'),
        ("base", 'bon(judge="optillm/re2/base")'),
    ],
)
def test_a_plan_cannot_name_plans_as_its_models(
    proxy: Proxy, upstream: Upstream, model: str, approach: str
) -> None:
    upstream.play(Script(reply=by_number))
    refused = ask(proxy, model, optillm_approach=approach)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "optillm_params"
    assert upstream.calls == []


def test_a_judge_may_be_a_model_under_a_wildcard(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=by_number))
    answer = ask(proxy, "base", optillm_approach='bon(n=2;judge="served/judge")')
    assert answer.status_code == 200
    assert set(asked_models(upstream)) == {"base", "judge"}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_cached_answer_is_never_another_plans(
    proxy: Proxy, upstream: Upstream, route: str, stream: bool
) -> None:
    upstream.play(Script(reply=by_number))
    text = fresh()
    for model in ("re2-base", "re2-other", "re2(think=true)-base"):
        assert ask(proxy, model, route=route, text=text, stream=stream).status_code == 200
    assert asked_models(upstream) == ["base", "other", "base"]


def test_samples_are_cached_apart(proxy: Proxy, upstream: Upstream) -> None:
    """Or a vote would count copies of one reply, where a model does not take `n`."""
    upstream.play(Script(reply=differing))
    text, calls = fresh(), []
    for cache in ({}, {}, {"no-cache": True}):
        before = len(upstream.calls)
        answer = ask(proxy, "one_by_one", text=text, cache=cache)
        assert answer.status_code == 200
        calls.append(len(upstream.calls) - before)
    assert calls == [3, 0, 3]


@pytest.mark.parametrize(
    ("failing", "headers"),
    [
        (1, {"x-should-retry": "false"}),
        (0, {}),
    ],
    ids=["after a paid call", "before any"],
)
def test_a_client_is_told_not_to_repeat_what_was_paid(
    proxy: Proxy, upstream: Upstream, failing: int, headers: dict[str, str]
) -> None:
    busy = Status(429, retry_after="7")
    upstream.play(Script(fault=lambda call: busy if call.index >= failing else None))
    answer = ask(proxy, "plansearch-base")
    assert answer.status_code == 429
    told = {name: value for name, value in answer.headers.items() if name == "x-should-retry"}
    assert told == headers
    assert answer.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    "field",
    [
        {"seed": "abc"},
        {"seed": [1]},
        {"seed": True},
        {"stop": 5},
        {"stop": [5]},
        {"stop": {"a": 1}},
        {"temperature": "hot"},
        {"top_p": [1]},
        {"max_tokens": "5"},
        {"max_completion_tokens": 1.5},
        {"allowed_openai_params": 5},
        {"allowed_openai_params": "tools"},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", ["bon-base", "counted"])
def test_a_field_of_the_wrong_type_is_refused(
    proxy: Proxy, upstream: Upstream, model: str, field: dict[str, Any]
) -> None:
    upstream.play(Script())
    refused = ask(proxy, model, **field)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == next(iter(field))
    assert upstream.calls == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ["/v1/messages", "/v1/responses"])
@pytest.mark.parametrize(
    ("model", "fields"), [("re2|none-base", {}), ("re2-base", {"n": 2})], ids=["branches", "n"]
)
def test_a_route_without_choices_is_not_given_several(
    proxy: Proxy,
    upstream: Upstream,
    route: str,
    stream: bool,
    model: str,
    fields: dict[str, Any],
) -> None:
    upstream.play(Script())
    refused = ask(proxy, model, route=route, stream=stream, **fields)
    assert refused.status_code == 400
    assert "this route returns one answer" in refused.json()["error"]["message"]
    assert upstream.calls == []


def test_a_name_with_a_line_break_writes_no_header(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    answer = ask(proxy, "re2-served/x\r\nx-evil: 1")
    assert answer.status_code == 200
    assert answer.headers["x-optillm-base-model"] == "served/x??x-evil: 1"
    assert "x-evil" not in answer.headers


PARTS: list[dict[str, object]] = [
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png", "detail": "high"}},
    {"type": "image_url", "image_url": {"url": "no address", "detail": "high"}},
    {"type": "input_audio", "input_audio": {"data": "aa", "format": "wav"}},
    {"type": "file", "file": {"file_id": "f"}},
]


@pytest.mark.parametrize("part", PARTS, ids=["image", "broken image", "audio", "file"])
def test_a_limit_on_tokens_bears_with_content_that_cannot_be_counted(
    proxy: Proxy, upstream: Upstream, part: dict[str, object]
) -> None:
    upstream.play(Script())
    content = [{"type": "text", "text": fresh()}, part]
    body = {"model": "counted", "messages": [{"role": "user", "content": content}]}
    assert proxy.post(ROUTES[0], body, key="sk-all").status_code == 200
    assert upstream.calls[0].messages[-1]["content"][-1] == part


@pytest.mark.parametrize(("key", "model"), [("sk-team", "prod-base"), ("sk-all", "eu-base")])
def test_a_model_that_litellm_knows_by_another_name_is_no_misspelt_approach(
    proxy: Proxy, upstream: Upstream, key: str, model: str
) -> None:
    upstream.play(Script())
    assert ask(proxy, model, key=key).status_code == 200
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("number", "model", "fields"),
    [
        (0, "re2-base", {}),
        (1, "none-base", {}),
        (2, "careful", {}),
        (3, "base", {"optillm_approach": "re2"}),
        (4, "re2-other", {"optillm_approach": "moa(aggregator=base)"}),
    ],
    ids=["prefix", "none", "alias", "body field", "named model"],
)
def test_a_spent_budget_of_the_base_model_stops_every_form(
    proxy: Proxy, upstream: Upstream, number: int, model: str, fields: dict[str, Any]
) -> None:
    upstream.play(Script())
    key = f"sk-model-budget-{number}"
    assert ask(proxy, "base", key=key).status_code == 200
    proxy.settle()
    refused = ask(proxy, model, key=key, **fields)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "budget_exceeded")
    assert len(upstream.calls) == 1


def logged(proxy: Proxy, answer: httpx.Response) -> list[dict[str, str]]:
    """Return the values of each line that was logged for the plan of a request."""
    mark = f"call_id={answer.headers['x-litellm-call-id']} "
    proxy.wait_until(lambda p: mark in p.log)
    lines = [line for line in proxy.log.splitlines() if mark in line and "INFO" in line]
    return [dict(word.split("=", 1) for word in line.split(" - ", 2)[2].split()) for line in lines]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_one_line_is_logged_for_each_plan(proxy: Proxy, upstream: Upstream, stream: bool) -> None:
    upstream.play(Script(reply=differing, fault=at({2: Status(500)})))
    answer = ask(proxy, "moa(temperature=0.7)-base", stream=stream)
    [line] = logged(proxy, answer)
    seconds = float(line.pop("seconds"))
    assert 0 < seconds < 30
    bill = upstream.bill
    assert line == {
        "call_id": answer.headers["x-litellm-call-id"],
        "approach": "moa",
        "base": "base",
        "calls": "3",
        "depth": "3",
        "cost_usd": f"{bill.cost(PRICE.prompt, PRICE.completion):.8f}",
        "stopped_by": "-",
        "degraded": "provider_failed",
        "error": "-",
    }


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_failed_plan_is_logged_with_its_error(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=always(Status(500))))
    [line] = logged(proxy, ask(proxy, "re2-base", stream=stream))
    assert (line["error"], line["calls"]) == ("provider_failed", "1")
    assert float(line["cost_usd"]) == 0


def test_a_log_line_cannot_be_forged(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    answer = ask(proxy, "re2-served/x\r\nINFO calls=9")
    [line] = logged(proxy, answer)
    assert (line["base"], line["calls"]) == ("served/x??INFO?calls=9", "1")


def test_an_operators_fallback_is_told(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(fault=at({0: Status(500)})))
    answer = ask(proxy, "covered")
    assert asked_models(upstream) == ["base", "other"]
    assert answer.status_code == 200
    assert answer.headers["x-optillm-degraded"] == "fallback"
    assert "x-should-retry" not in answer.headers
    upstream.play(Script())
    assert "x-optillm-degraded" not in ask(proxy, "covered").headers


@pytest.mark.parametrize("approach", ["none", "re2"])
def test_an_aliass_limits_hold_for_whatever_approach_replaces_its_own(
    proxy: Proxy, upstream: Upstream, approach: str
) -> None:
    upstream.play(Script())
    refused = ask(proxy, "tiny", optillm_approach=approach)
    assert refused.status_code == 400
    assert "max_tokens_total" in refused.json()["error"]["message"]
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("&".join(["re2"] * 3) + "-base", {}, "appears more than 2 times"),
        ("&".join(["re2"] * 40) + "-base", {}, "at most 32"),
        ("|".join(["re2"] * 33) + "-base", {}, "at most 32"),
        ("re2|none-base", {"n": 33}, "asks for 66 choices"),
    ],
    ids=["doubling", "doubling without end", "branches", "branches by n"],
)
def test_a_short_name_cannot_start_endless_work(
    proxy: Proxy, upstream: Upstream, model: str, fields: dict[str, Any], message: str
) -> None:
    upstream.play(Script())
    refused = ask(proxy, model, **fields)
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]
    assert upstream.calls == []
