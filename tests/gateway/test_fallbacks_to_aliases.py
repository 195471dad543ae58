"""A router's fallback from a plain model to an alias: the alias answers as its plain base."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.gateway.test_fallback_kinds import NOT_ALLOWED, TOO_LONG
from tests.proxy import PRICE, Proxy, alias, copy_of, hooked_config, model_group
from tests.upstream import Call, Fault, Script, Status, Upstream, differing

BROKEN = (
    "solo",
    "looped",
    "cheap",
    "hop",
    "hop_on",
    "several",
    "shared",
    "one_at_a_time",
    "long",
    "barred",
    "frugal",
    "modest",
    "tired",
    "wrecked",
)
DEAR = 5
"""How many times the price of the other models that of the model `dear` is."""

KEYS: dict[str, dict[str, object]] = {
    "sk-all": {"models": [], "key_alias": "all"},
    "sk-solo": {"models": ["solo", "careful", "several", "lent"], "key_alias": "solo"},
    "sk-counted": {"models": [], "metadata": {"model_tpm_limit": {"base": 100_000}}},
}
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    unpriced = model_group("unpriced", upstream.url)
    for price in ("input_cost_per_token", "output_cost_per_token"):
        del unpriced["litellm_params"][price]
    config = hooked_config(
        [
            *(model_group(name, upstream.url) for name in (*BROKEN, "base", "other")),
            model_group("single", upstream.url, model="cerebras/single"),
            model_group("thinker", upstream.url, model="openai/gpt-5"),
            model_group("small_thinker", upstream.url, model="openai/gpt-5-mini"),
            unpriced,
            model_group(
                "dear",
                upstream.url,
                input_cost_per_token=DEAR * PRICE.prompt,
                output_cost_per_token=DEAR * PRICE.completion,
            ),
            alias("thoughtful", "re2", base="small_thinker"),
            alias("careful", "self_consistency(n=3)"),
            alias("again", "re2", base="looped"),
            alias("unknown", "re2", base="unpriced"),
            alias("first", "moa", base="hop_on"),
            alias("second", "bon(n=2)"),
            alias("two", "moa", base="other"),
            alias("two", "moa"),
            alias("lent", "re2", inherit_access=True),
            alias("limited", "self_consistency(n=3)", base="solo", max_calls=2),
            alias("one_by_one", "re2", base="single"),
            alias("rescue", "re2", base="wrecked"),
        ]
    )
    config["router_settings"] |= {
        "fallbacks": [
            {"solo": ["careful"]},
            {"looped": ["again"]},
            {"cheap": ["unknown"]},
            {"frugal": ["dear"]},
            {"modest": ["unpriced"]},
            {"hop": ["first"]},
            {"hop_on": ["second"]},
            {"several": ["lent"]},
            {"shared": ["two"]},
            {"thinker": ["thoughtful"]},
            {"one_at_a_time": ["one_by_one"]},
            {"tired": ["rescue"]},
        ],
        "model_group_retry_policy": {"rescue": {"InternalServerErrorRetries": 1}},
        "context_window_fallbacks": [{"long": ["careful"]}],
        "content_policy_fallbacks": [{"barred": ["careful"]}],
    }
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS) as running:
        yield running


def broken(call: Call) -> Fault | None:
    return Status(500) if call.body["model"] in BROKEN else None


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told of its request, streamed or not."""

    status: int
    report: dict[str, Any]
    tokens: int


def ask(
    proxy: Proxy,
    model: str,
    *,
    key: str = "sk-all",
    stream: bool = False,
    **fields: Any,
) -> httpx.Response:
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    messages = [{"role": "user", "content": "What is 6 times 7?"}]
    body = {"model": model, "messages": messages, **options, **fields}
    return proxy.post("/v1/chat/completions", body, key=key)


def told(answer: httpx.Response) -> Told:
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        whole = answer.json()
        return Told(200, whole["optillm"], whole["usage"]["total_tokens"])
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in data]
    [report] = [chunk["optillm"] for chunk in chunks if "optillm" in chunk]
    usage = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    return Told(200, report, usage[-1]["total_tokens"])


def answered(upstream: Upstream) -> Sequence[Call]:
    return [call for call in upstream.calls if call.outcome == "answered"]


@STREAMED
@pytest.mark.parametrize("model", ["re2-solo", "bon(n=2)-solo", "moa-solo", "limited"])
def test_each_call_that_falls_back_stays_one_call_and_counts(
    proxy: Proxy, upstream: Upstream, model: str, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    key = copy_of("sk-all")
    result = told(ask(proxy, model, key=key, stream=stream))
    made = [call.body["model"] for call in upstream.calls]
    assert made.count("base") == len(answered(upstream)) == result.report["calls"]
    assert set(made) == {"solo", "base"}
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert result.report["cost_usd"] == pytest.approx(cost, abs=1e-8)
    assert result.tokens == upstream.bill.total_tokens
    calls = result.report["calls"]
    assert f"fallbacks:{calls}/{calls}" in result.report["degraded"]
    assert sum(entry.cost for entry in proxy.booked(key)) == pytest.approx(cost)


@STREAMED
@pytest.mark.parametrize(
    ("limit", "value"), [("max_calls", 2), ("max_tokens_total", 300), ("max_cost_usd", 0.0009)]
)
def test_limits_hold_as_where_no_call_falls_back(
    proxy: Proxy, upstream: Upstream, limit: str, value: float, stream: bool
) -> None:
    def spent(model: str) -> tuple[int, object]:
        upstream.play(Script(reply=differing, fault=broken))
        fields: dict[str, Any] = {"stream": stream, "optillm_limits": {limit: value}}
        result = told(ask(proxy, f"self_consistency(n=2)&moa(proposers=2)-{model}", **fields))
        return len(answered(upstream)), result.report["stopped_by"]

    assert spent("solo") == spent("base")
    assert spent("base")[1] == limit


@STREAMED
def test_several_hops_end_at_the_first_model_that_answers(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    result = told(ask(proxy, "re2-hop", stream=stream))
    assert [call.body["model"] for call in upstream.calls] == ["hop", "hop_on", "base"]
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert result.report["cost_usd"] == pytest.approx(cost, abs=1e-8)


@STREAMED
def test_an_alias_of_the_model_that_has_failed_does_not_ask_it_again(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    answer = ask(proxy, "re2-looped", stream=stream)
    assert answer.status_code in (500, 503)  # some versions of the router raise the first error
    assert [call.body["model"] for call in upstream.calls] == ["looped"]


@STREAMED
def test_a_policy_of_retries_runs_no_plan_again(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    assert ask(proxy, "tired", stream=stream).status_code in (500, 503)
    assert [call.body["model"] for call in upstream.calls] == ["tired", "wrecked"]


@STREAMED
@pytest.mark.parametrize("limits", [{}, {"max_cost_usd": 1.0}], ids=["no limit", "limit"])
def test_an_unpriced_base_is_refused_under_max_cost(
    proxy: Proxy, upstream: Upstream, limits: dict[str, float], stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    answer = ask(proxy, "re2-cheap", stream=stream, optillm_limits=limits)
    models = [call.body["model"] for call in upstream.calls]
    if limits:
        assert answer.status_code in (500, 503)
        assert models == ["cheap"]
    else:
        assert answer.status_code == 200
        assert models == ["cheap", "unpriced"]


@STREAMED
def test_a_key_reaches_only_bases_that_it_may_call_or_is_lent(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    asked: dict[str, Any] = {"key": "sk-solo", "stream": stream, "optillm_approach": "re2"}
    assert ask(proxy, "solo", **asked).status_code in (401, 403, 500)
    assert [call.body["model"] for call in upstream.calls] == ["solo"]
    upstream.play(Script(fault=broken))
    answer = ask(proxy, "several", **asked)
    assert answer.status_code == 200, answer.text
    assert [call.body["model"] for call in upstream.calls] == ["several", "base"]


@STREAMED
@pytest.mark.parametrize(
    ("model", "fault"), [("long", TOO_LONG["OpenAI"]), ("barred", NOT_ALLOWED["OpenAI"])]
)
def test_fallbacks_for_rejected_prompts_too(
    proxy: Proxy, upstream: Upstream, model: str, fault: Status, stream: bool
) -> None:
    upstream.play(Script(fault=lambda call: fault if call.body["model"] == model else None))
    result = told(ask(proxy, f"re2-{model}", stream=stream))
    assert [call.body["model"] for call in upstream.calls] == [model, "base"]
    assert result.report["calls"] == 1
    assert result.report["degraded"] == ["fallbacks:1/1"]


def test_an_alias_of_several_deployments_answers_by_the_base_of_one(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(fault=broken))
    result = told(ask(proxy, "moa-shared"))
    assert {call.body["model"] for call in answered(upstream)} <= {"base", "other"}
    assert len(answered(upstream)) == result.report["calls"]
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert result.report["cost_usd"] == pytest.approx(cost, abs=1e-8)


def test_several_samples_of_a_base_that_gives_one_at_a_time(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=differing, fault=broken))
    result = told(ask(proxy, "self_consistency(n=3)-one_at_a_time"))
    made = [call.body["model"] for call in upstream.calls]
    assert made.count("single") == 3 == result.report["calls"]
    assert all("n" not in call.body for call in answered(upstream))


@STREAMED
def test_fields_of_the_call_reach_the_base(proxy: Proxy, upstream: Upstream, stream: bool) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    fields: dict[str, Any] = {
        "tools": [tool],
        "top_k": 5,
        "max_tokens": 77,
        "stop": ["END"],
        "user": "u",
    }
    upstream.play(Script(fault=broken))
    told(ask(proxy, "re2-solo", stream=stream, temperature=0.3, **fields))
    first, second = (dict(call.body) for call in upstream.calls)
    assert first.pop("model") == "solo"
    assert second.pop("model") == "base"
    assert first == second


@STREAMED
@pytest.mark.parametrize("field", [{"reasoning_effort": "low"}, {"verbosity": "low"}], ids=str)
def test_fields_of_reasoning_reach_the_base(
    proxy: Proxy, upstream: Upstream, field: dict[str, Any], stream: bool
) -> None:
    upstream.play(Script(fault=lambda c: Status(500) if c.body["model"] == "gpt-5" else None))
    told(ask(proxy, "re2-thinker", stream=stream, **field))
    [last] = answered(upstream)
    assert last.body["model"] == "gpt-5-mini"
    assert field.items() <= last.body.items()


@STREAMED
def test_a_dearer_fallback_keeps_to_what_is_held_for_the_call(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    limit = 0.01
    asked = ask(proxy, "re2-frugal", stream=stream, optillm_limits={"max_cost_usd": limit})
    assert told(asked).report["calls"] == 1
    [tried, call] = upstream.calls
    assert (tried.body["model"], call.body["model"]) == ("frugal", "dear")
    assert tried.body["max_tokens"] > 1000
    most = DEAR * (call.body["max_tokens"] * PRICE.completion)
    assert 0.8 * limit < most < limit


@STREAMED
def test_a_fallback_without_a_price_does_not_answer_under_max_cost(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=broken))
    asked = ask(proxy, "re2-modest", stream=stream, optillm_limits={"max_cost_usd": 0.01})
    assert asked.status_code in (500, 503)
    assert [call.body["model"] for call in upstream.calls] == ["modest"]
    assert told(ask(proxy, "re2-modest", stream=stream)).report["calls"] == 1
