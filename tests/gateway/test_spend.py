"""Money: what LiteLLM logs for the caller's key is what the provider bills, no more and no less;
who may not call the base model cannot reach it by any form, and no budget check is waived."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from optillm_hooks.cli import main
from optillm_hooks.evaluation.asking import read_outcomes
from tests.gateway.shared import hang_up
from tests.proxy import PRICE, Entry, Proxy, alias, copy_of, hooked_config, model_group
from tests.upstream import (
    CLOSED,
    CUT,
    HANG,
    MALFORMED,
    NULL,
    Billed,
    Call,
    Fault,
    FaultRule,
    Reply,
    Script,
    Status,
    Upstream,
    always,
    at,
    differing,
    every,
    no_fault,
)

MODELS = (
    "base",
    "none-base",
    "re2-base",
    "cot_reflection-base",
    "bon-base",
    "moa-base",
    "self_consistency-base",
    "moa|re2-base",
    "re2&moa-base",
    "careful",
)
PLUGINS = (
    "deepthink-base",
    "genselect-base",
    "json&bon-base",
    "majority_voting-base",
    "privacy&moa-base",
    "router(approaches=[self_consistency])-base",
)
BUDGETED = [(model,) for model in MODELS] + [("base", "re2"), ("base", "moa"), ("base", "moa|bon")]
"""A model, and an approach in the body if any: only there does LiteLLM know a price beforehand."""

ROUTES: dict[str, dict[str, object]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "6 times 7?"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "6 times 7?"}], "max_tokens": 99},
    "/v1/responses": {"input": "6 times 7?"},
    "/v1/completions": {"prompt": "6 times 7?"},
}
OF_BASE = {"base": {"budget_limit": 1e-5, "time_period": "1d"}}
THIN: dict[str, tuple[dict[str, Any], dict[str, object]]] = {
    "key": ({"model": "moa-base"}, {"max_budget": 1e-5}),
    # Here LiteLLM reserves what a plain call may cost, and we do not take that for spent.
    "reserved": ({"model": "base", "optillm_approach": "moa"}, {"max_budget": 1e-5}),
    "user": ({"model": "moa-base"}, {"user_id": "thin", "user_max_budget": 1e-5}),
    "team": ({"model": "moa-base"}, {"team_id": "thin", "team_max_budget": 1e-5}),
    "organisation": ({"model": "moa-base"}, {"org_id": "o", "organization_max_budget": 1e-5}),
    "end user": ({"model": "moa-base"}, {"end_user_id": "e", "end_user_max_budget": 1e-5}),
    "key for the model": ({"model": "moa-base"}, {"model_max_budget": OF_BASE}),
    "team for the model": (
        {"model": "moa-base"},
        {"team_id": "thinner", "team_model_max_budget": OF_BASE},
    ),
}
"""A request, and the fields of a key whose budget ends in the middle of it."""

SLOW: dict[str, dict[str, object]] = {
    **{f"key-{form}": {"metadata": {"model_rpm_limit": {"base": 2}}} for form in range(5)},
    "team": {"team_id": "slow", "team_metadata": {"model_rpm_limit": {"base": 2}}},
    "organisation": {"org_id": "s", "organization_metadata": {"model_rpm_limit": {"base": 2}}},
}
"""Fields of keys that may ask the base model twice a minute."""

KEYS: dict[str, dict[str, object]] = {
    "sk-spender": {"models": [], "key_alias": "spender", "user_id": "u1", "team_id": None},
    "sk-counted": {"models": [], "tpm_limit": 1_000_000, "key_alias": "counted"},
    # Enough for one request, which is let in because nothing is spent yet.
    **{f"sk-poor-{i}": {"models": [], "max_budget": 1e-5} for i in range(5)},
    # A budget makes LiteLLM reserve the maximum cost of a request, and settle it afterwards.
    **{f"sk-rich-{'+'.join(form)}": {"models": [], "max_budget": 1000.0} for form in BUDGETED},
    # Enough for one call, in a budget that is checked between calls.
    **{f"sk-thin-{owner}": fields for owner, (_, fields) in THIN.items()},
    **{f"sk-slow-{owner}": fields for owner, fields in SLOW.items()},
    "sk-tokens": {"models": [], "metadata": {"model_tpm_limit": {"base": 100_000}}},
    "sk-few-tokens": {"models": [], "metadata": {"model_tpm_limit": {"base": 200}}},
    "sk-other-only": {"models": ["other"]},
    "sk-prefixes": {"models": ["other", "*-base"]},
    "sk-free-forms": {"models": ["other", "optillm/*", "moa-other"]},
    "sk-alias": {"models": ["careful", "lent"]},
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        model_group("other", upstream.url),
        model_group("mixed", upstream.url, order=1),
        model_group("mixed", upstream.url, order=2, input_cost_per_token=0.01),
        # Not priced by us, but in LiteLLM's map, where cached tokens have a price of their own.
        model_group(
            "gpt-4o-mini", upstream.url, input_cost_per_token=None, output_cost_per_token=None
        ),
        alias("careful", "re2"),
        alias("lent", "re2", inherit_access=True),
        alias("hurried", "moa", deadline_s=3),
        priced("priced", "litellm_params"),
        priced("informed", "model_info"),
    ]
    with Proxy(hooked_config(models), tmp_path_factory.mktemp("proxy"), keys=KEYS) as running:
        yield running


def priced(name: str, section: str) -> dict[str, Any]:
    """Return an alias to which its operator has given a price, where LiteLLM looks for one."""
    entry = alias(name, "re2")
    entry[section] |= {"input_cost_per_token": 0.01, "output_cost_per_token": 0.01}
    return entry


def cost(bill: Billed) -> float:
    return bill.cost(PRICE.prompt, PRICE.completion)


class Spending:
    """The entries that LiteLLM logs for a key of the test's own."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.key = copy_of("sk-spender")

    @property
    def entries(self) -> list[Entry]:
        return self._proxy.booked(self.key)

    @property
    def cut_off(self) -> list[Entry]:
        """Calls of which only the prompt was booked, by its estimate."""
        calls = [e for e in self.entries if e.provider == "openai"]
        return [e for e in calls if e.prompt_tokens and not e.completion_tokens]

    def assert_equals(self, bill: Billed, *, cut_off: int = 0) -> None:
        """Assert that LiteLLM has booked `bill`, beside that many calls that were cut off."""
        self._proxy.wait_until(lambda _: len(self.cut_off) >= cut_off)
        apart = self.cut_off
        assert len(apart) == cut_off
        assert all(e.cost == e.prompt_tokens * PRICE.prompt > 0 for e in apart)
        entries = [e for e in self.entries if e not in apart]
        assert sum(e.cost for e in entries) == pytest.approx(cost(bill), rel=1e-9, abs=1e-12)
        provider = [e for e in entries if e.provider == "openai" and e.status == "success"]
        assert sum(e.prompt_tokens for e in provider) == bill.prompt_tokens
        assert sum(e.completion_tokens for e in provider) == bill.completion_tokens


@pytest.fixture
def spending(proxy: Proxy) -> Spending:
    return Spending(proxy)


def ask(
    proxy: Proxy,
    model: str,
    *,
    key: str = "sk-spender",
    text: str = "What is 6 times 7?",
    **fields: Any,
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return proxy.post("/v1/chat/completions", body, key=key)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", [*MODELS, *PLUGINS])
def test_the_key_is_charged_what_the_provider_bills(
    proxy: Proxy, upstream: Upstream, spending: Spending, model: str, stream: bool
) -> None:
    upstream.play(Script(reply=differing))
    for n in (1, 2):
        assert ask(proxy, model, key=spending.key, stream=stream, n=n).status_code == 200
    bill = upstream.bill
    assert bill.prompt_tokens >= 200
    spending.assert_equals(bill)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_report_tells_the_price_of_the_deployment_that_has_answered(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(reply=differing))
    told = ask(proxy, "re2-mixed", stream=stream).text
    [found] = re.findall(r'"cost_usd": ?([\d.e-]+)', told)
    assert float(found) == pytest.approx(cost(upstream.bill))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_report_tells_what_litellm_logs_where_tokens_are_cached(
    proxy: Proxy, upstream: Upstream, spending: Spending, stream: bool
) -> None:
    upstream.play(Script(reply=differing, cached_tokens=64))
    told = ask(proxy, "moa-gpt-4o-mini", key=spending.key, stream=stream).text
    [found] = re.findall(r'"cost_usd": ?([\d.e-]+)', told)
    logged = sum(entry.cost for entry in spending.entries)
    assert float(found) == pytest.approx(logged, rel=1e-9)
    assert logged > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"input_cost_per_token": 0, "output_cost_per_token": 0},
        {"base_model": "gpt-3.5-turbo"},
        {"mock_response": "free"},
        {"mock_testing_fallbacks": True, "fallbacks": ["other"]},
        {"cache": {"no-store": True}, "litellm_call_id": "x", "litellm_metadata": {"a": 1}},
    ],
    ids=",".join,
)
def test_a_client_cannot_steer_what_its_inner_calls_cost(
    proxy: Proxy, upstream: Upstream, spending: Spending, fields: dict[str, Any]
) -> None:
    upstream.play(Script(reply=differing))
    answer = ask(proxy, "re2-base", key=spending.key, **fields)
    if answer.status_code == 200 and upstream.calls:
        assert [call.body["model"] for call in upstream.calls] == ["base"]
    spending.assert_equals(upstream.bill)


@pytest.mark.parametrize("form", BUDGETED, ids="+".join)
def test_the_budget_counter_of_the_key_ends_at_the_bill(
    proxy: Proxy, upstream: Upstream, form: tuple[str, ...]
) -> None:
    upstream.play(Script(reply=differing, fault=at({1: Status(500)}), n="refused"))
    key, (model, *approach) = f"sk-rich-{'+'.join(form)}", form
    fields = {"optillm_approach": approach[0]} if approach else {}
    for stream in (False, True, False):
        ask(proxy, model, key=key, stream=stream, **fields)
    bill = upstream.bill
    proxy.settle()
    assert proxy.charged(key) == pytest.approx(cost(bill), rel=1e-9)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ROUTES)
def test_so_on_every_route(
    proxy: Proxy, upstream: Upstream, spending: Spending, route: str, stream: bool
) -> None:
    upstream.play(Script(reply=differing))
    for model in ("re2-base", "moa-base", "priced", "informed"):
        body = {"model": model, "stream": stream, **ROUTES[route]}
        answer = proxy.post(route, body, key=spending.key)
        assert answer.status_code == 200
    spending.assert_equals(upstream.bill)


@pytest.mark.parametrize("model", ["priced", "informed"])
def test_a_stream_that_breaks_off_is_not_booked_at_the_price_of_its_alias(
    proxy: Proxy, upstream: Upstream, spending: Spending, model: str
) -> None:
    upstream.play(Script(reply=differing, fault=always(CUT)))
    ask(proxy, model, key=spending.key, stream=True)

    def of_the_alias() -> list[Entry]:
        return [entry for entry in spending.entries if entry.provider == "optillm"]

    proxy.wait_until(lambda _: bool(of_the_alias()))
    [outer] = of_the_alias()
    assert (outer.status, outer.cost) == ("failure", 0)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["bon-base", "moa-base", "self_consistency-base"])
@pytest.mark.parametrize(
    "fault", [Status(500), Status(429), CLOSED, MALFORMED, NULL], ids=["500", "429", *"CMN"]
)
def test_so_with_a_failing_inner_call(
    proxy: Proxy, upstream: Upstream, spending: Spending, model: str, fault: Fault, stream: bool
) -> None:
    upstream.play(Script(reply=differing, fault=at({1: fault}), n="refused"))
    ask(proxy, model, key=spending.key, stream=stream)
    spending.assert_equals(upstream.bill)


def test_so_with_every_third_call_failing(
    proxy: Proxy, upstream: Upstream, spending: Spending
) -> None:
    upstream.play(Script(reply=differing, fault=every(3, Status(500)), n="refused"))
    for model in MODELS:
        ask(proxy, model, key=spending.key)
    spending.assert_equals(upstream.bill)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_so_when_the_client_hangs_up_between_two_stages(
    proxy: Proxy, upstream: Upstream, spending: Spending, stream: bool
) -> None:
    upstream.play(Script(reply=differing, fault=_from(1, HANG)))
    body = {"model": "moa-base", "stream": stream, **ROUTES["/v1/chat/completions"]}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=1, key=spending.key)
    upstream.wait_until_idle()
    assert upstream.bill.prompt_tokens == 100
    spending.assert_equals(upstream.bill, cut_off=1)


def test_so_when_the_deadline_cuts_the_request(
    proxy: Proxy, upstream: Upstream, spending: Spending
) -> None:
    upstream.play(Script(reply=differing, fault=_from(1, HANG)))
    assert ask(proxy, "hurried", key=spending.key).status_code == 200
    spending.assert_equals(upstream.bill, cut_off=1)


def _from(first: int, fault: Fault) -> FaultRule:
    def rule(call: Call) -> Fault | None:
        return fault if call.index >= first else None

    return rule


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["re2-base", "moa-base", "bon-base", "careful"])
def test_each_token_counts_once_towards_the_limit_per_minute(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    """With SSE keep-alive, LiteLLM itself keeps what it has reserved for a stream."""

    def remaining(key: str) -> int:
        proxy.settle()
        answer = ask(proxy, "base", key=key)
        return int(answer.headers["x-ratelimit-api_key-remaining-tokens"])

    def counted(model: str) -> int:
        upstream.play(Script(reply=differing))
        key = copy_of("sk-counted")  # its minute begins now
        before = remaining(key)
        assert ask(proxy, model, key=key, stream=stream).status_code == 200
        spent = upstream.bill.total_tokens
        return before - remaining(key) - spent

    assert counted(model) == (counted("base") if stream else 0)


@pytest.mark.parametrize(
    ("number", "model", "fields"),
    [
        (0, "re2-base", {}),
        (1, "moa-base", {}),
        (2, "careful", {}),
        (3, "base", {"optillm_approach": "moa"}),
        (4, "optillm/re2/base", {}),
    ],
    ids=["prefix", "several calls", "alias", "body field", "deployment name"],
)
def test_a_spent_budget_stops_every_form(
    proxy: Proxy, upstream: Upstream, number: int, model: str, fields: dict[str, Any]
) -> None:
    upstream.play(Script(reply=differing))
    key = f"sk-poor-{number}"
    assert ask(proxy, model, key=key, **fields).status_code == 200
    paid = len(upstream.calls)
    proxy.settle()
    refused = ask(proxy, model, key=key, **fields)
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "budget_exceeded")
    assert len(upstream.calls) == paid


@pytest.mark.parametrize("owner", THIN)
def test_a_budget_that_ends_in_the_middle_of_a_request_ends_its_calls(
    proxy: Proxy, upstream: Upstream, owner: str
) -> None:
    """LiteLLM books a call shortly after it has ended: two stages later it is visible."""
    upstream.play(Script(reply=differing, latency_s=0.4))
    (request, _) = THIN[owner]
    answer = ask(proxy, key=f"sk-thin-{owner}", **request)
    assert answer.status_code == 200, answer.text
    assert answer.json()["optillm"]["stopped_by"] == "caller_budget"
    assert 1 <= len(upstream.calls) <= 2  # of 3


@pytest.mark.parametrize(
    ("key", "model", "fields"),
    [
        ("key-0", "re2-base", {}),
        ("key-1", "none-base", {}),
        ("key-2", "careful", {}),
        ("key-3", "base", {"optillm_approach": "moa"}),
        ("key-4", "moa-other", {"optillm_params": {"moa": {"models": ["base"]}}}),
        ("team", "re2-base", {}),
        ("organisation", "re2-base", {}),
    ],
    ids=["prefix", "none", "alias", "body field", "another model", "team", "organisation"],
)
def test_a_models_limit_of_requests_counts_each_request_once_by_every_form(
    proxy: Proxy, upstream: Upstream, key: str, model: str, fields: dict[str, Any]
) -> None:
    upstream.play(Script(reply=differing))
    key = f"sk-slow-{key}"
    assert ask(proxy, model, key=key, **fields).status_code == 200
    assert ask(proxy, "base", key=key).status_code == 200
    paid = len(upstream.calls)
    refused = ask(proxy, model, key=key, **fields)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60"), refused.text
    assert ask(proxy, "base", key=key).status_code == 429
    assert len(upstream.calls) == paid


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["base", "none-base", "re2-base", "moa-base", "careful"])
def test_each_token_counts_once_towards_the_models_limit(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    key = copy_of("sk-tokens")  # its minute begins now

    def remaining() -> int:
        proxy.settle()
        answer = ask(proxy, "base", key=key, max_tokens=1)
        return int(answer.headers["x-ratelimit-model_per_key-remaining-tokens"])

    upstream.play(Script(reply=differing, fault=at({1: Status(500)}), n="refused"))
    before = remaining()
    ask(proxy, model, key=key, stream=stream)
    spent = upstream.bill.total_tokens
    assert before - remaining() == spent


def test_a_models_limit_of_tokens_ends_a_request_between_its_calls(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=differing))
    answer = ask(proxy, "moa-base", key="sk-few-tokens")
    assert answer.status_code == 200, answer.text
    assert "rate_limit_exceeded" in answer.json()["optillm"]["degraded"]
    assert len(upstream.calls) == 1
    assert ask(proxy, "re2-base", key="sk-few-tokens").status_code == 200  # fits in what is left
    refused = ask(proxy, "re2-base", key="sk-few-tokens")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60"), refused.text


TAG = "<optillm_approach>{}</optillm_approach> What is 6 times 7?"
MOA_WITH_BASE = {"optillm_params": {"moa": {"models": ["base"]}}}


@pytest.mark.parametrize(
    ("key", "model", "text", "fields"),
    [
        ("sk-other-only", "base", "", {"optillm_approach": "re2"}),
        ("sk-other-only", "re2-base", "", {}),
        ("sk-other-only", "none-base", "", {}),
        ("sk-other-only", "optillm/re2/base", "", {}),
        ("sk-other-only", "careful", "", {}),
        ("sk-other-only", "base", TAG.format("re2"), {}),
        ("sk-prefixes", "re2-base", "", {}),
        ("sk-prefixes", "none-base", "", {}),
        ("sk-prefixes", "moa|re2-base", "", {}),
        ("sk-free-forms", "optillm/re2/base", "", {}),
        ("sk-free-forms", "optillm/none/base", "", {}),
        ("sk-free-forms", "moa-other", "", MOA_WITH_BASE),
        ("sk-other-only", "other", "", {"optillm_approach": "moa", **MOA_WITH_BASE}),
        ("sk-other-only", "other", "", {"optillm_approach": "moa(aggregator=base)"}),
        ("sk-alias", "careful", "", {}),
    ],
)
def test_a_key_without_the_base_model_cannot_reach_it(
    proxy: Proxy,
    upstream: Upstream,
    key: str,
    model: str,
    text: str,
    fields: dict[str, object],
) -> None:
    upstream.play(Script(reply=differing))
    refused = ask(proxy, model, key=key, text=text or "What is 6 times 7?", **fields)
    assert refused.status_code in (401, 403), refused.text
    assert refused.json()["error"]["type"] == "key_model_access_denied"
    assert upstream.calls == []


def test_an_alias_may_lend_its_base_model(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=differing))
    assert ask(proxy, "lent", key="sk-alias").status_code == 200
    assert [call.body["model"] for call in upstream.calls] == ["base"]


@pytest.mark.parametrize("model", ["re2-other", "optillm/re2/other", "other"])
def test_a_key_with_the_base_model_reaches_it(proxy: Proxy, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=differing, fault=no_fault))
    fields = {"optillm_approach": "re2"} if model == "other" else {}
    limited = ("sk-poor", "sk-rich", "sk-thin", "sk-slow", "sk-tokens", "sk-few-tokens")
    keys = [key for key in KEYS if not key.startswith(limited)]
    statuses = {key: ask(proxy, model, key=key, **fields).status_code for key in keys}
    allowed = {"sk-spender", "sk-counted"}
    allowed |= {"sk-free-forms"} if model.startswith("optillm/") else set()
    allowed |= {"sk-other-only", "sk-prefixes", "sk-free-forms"} if model == "other" else set()
    assert {key for key, status in statuses.items() if status == 200} == allowed


def test_an_evaluation_reports_what_is_booked_for_it(
    proxy: Proxy, upstream: Upstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LiteLLM's spend log has the trace of a call as its session; the calls of a plan share it."""

    def reply(call: Call, choice: int) -> Reply | str:
        return "RIGHT" if "RIGHT" in str(call.body) else differing(call, choice)

    upstream.play(Script(reply=reply))
    (tmp_path / "own.jsonl").write_text('{"question": "6 * 7?", "answer": 42, "check": "judge"}')
    options = {
        "--base-url": f"{proxy.url}/v1", "--key": "sk-spender", "--models": "base,moa-base",
        "--judge": "other", "--tasks": f"{tmp_path / 'own.jsonl'}", "--out": f"{tmp_path}",
    }  # fmt: skip
    assert main(["eval", *itertools.chain(*options.items())]) == 0
    run = json.loads((tmp_path / "run.json").read_text())["id"]
    outcomes = read_outcomes(tmp_path / "outcomes.jsonl")
    said = sum((each.cost_usd or 0) + (each.judge_usd or 0) for each in outcomes)
    assert said == pytest.approx(cost(upstream.bill), rel=1e-6)

    def booked() -> list[Entry]:
        return [e for e in proxy.entries if run in (e.trace_id or "")]

    proxy.wait_until(lambda _: sum(e.cost for e in booked()) == pytest.approx(said, rel=1e-6))
    groups = Counter(e.model_group for e in booked() if e.provider == "openai")
    assert groups["base"] >= 1 + 2  # a plain call, and a plan of several
    assert groups["other"] == 2
    assert "nothing to check it against" in capsys.readouterr().out  # no database here
