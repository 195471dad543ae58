"""Each limit, by each way in, on each route: what the provider was really asked for.

The provider of these tests writes as much as a call lets it. With `--junitxml`, each case has what
was made upstream as its properties.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import pytest

from tests.gateway.shared import pairs
from tests.proxy import PRICE, Proxy, alias, copy_of, hooked_config, model_group
from tests.upstream import HANG, Billed, Call, Fault, Script, Status, Upstream, always

Fields = Mapping[str, Any]
APPROACH = "self_consistency"
BASE = "single"  # LiteLLM knows that it takes no n: each sample is a call
PLANNED = 5
SETTLED = 3
"""Samples after which the vote is settled, as all of them agree."""
DEADLINE_S = 0.3
WORDS = 300  # of a reply that no max_tokens ends
ROUTES = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "completions": "/v1/completions",
}
WAYS = ("alias", "prefix", "body", "extra_body", "tag", "fallback", "streamed fallback")
_number = count()


def asked(call: Call) -> int:
    """Return the most tokens that a call lets its provider write."""
    limit = call.body.get("max_completion_tokens", call.body.get("max_tokens", WORDS))
    return int(limit) * int(call.body.get("n") or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy(Script):
    def bill(self, call: Call, choices: int) -> Billed:  # noqa: ARG002
        return Billed(prompt_tokens=10, completion_tokens=asked(call))


@dataclass(frozen=True, slots=True)
class Made:
    """What was made upstream for one request, without the model that fails before a fallback."""

    calls: list[Call]
    concurrent: int

    @property
    def billed(self) -> Billed:
        return sum((call.told for call in self.calls if call.told is not None), Billed())

    @property
    def dollars(self) -> float:
        return self.billed.cost(PRICE.prompt, PRICE.completion)

    @property
    def choices(self) -> int:
        return sum(int(call.body.get("n") or 1) for call in self.calls)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit, and whether what was made upstream is within it."""

    optillm: Fields
    holds: Callable[[Made], bool]
    key: Fields = field(default_factory=dict[str, Any])
    """Fields of the key, if the limit is one of LiteLLM's; its budgets are spent before."""

    request: Fields = field(default_factory=dict[str, Any])
    hangs: bool = False


OF_BASE = {BASE: {"budget_limit": 1e-9, "time_period": "1d"}}
LIMITS = {
    "max_calls": Limit({"max_calls": 3}, lambda made: len(made.calls) == 3),
    "max_tokens_total": Limit(
        {"max_tokens_total": 600}, lambda made: 300 < made.billed.total_tokens <= 600
    ),
    "max_cost_usd": Limit({"max_cost_usd": 0.004}, lambda made: 0.002 < made.dollars <= 0.004),
    "max_parallel": Limit(
        {"max_parallel": 2}, lambda made: len(made.calls) == SETTLED and made.concurrent <= 2
    ),
    "deadline_s": Limit(
        {"deadline_s": DEADLINE_S}, lambda made: len(made.calls) <= PLANNED, hangs=True
    ),
    "max_choices": Limit({}, lambda made: not made.calls, request={"n": 65}),
    "max_budget": Limit({}, lambda made: not made.calls, key={"max_budget": 1e-9}),
    "model_max_budget": Limit({}, lambda made: not made.calls, key={"model_max_budget": OF_BASE}),
    "rpm": Limit({}, lambda made: not made.calls, key={"metadata": {"model_rpm_limit": {BASE: 0}}}),
    "tpm": Limit({}, lambda made: not made.calls, key={"metadata": {"model_tpm_limit": {BASE: 1}}}),
}
KEYS: dict[str, dict[str, object]] = {
    f"sk-{name}": {"models": [], **limit.key} for name, limit in LIMITS.items()
}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    mixed = [
        model_group("mixed", upstream.url),
        model_group("mixed", upstream.url, input_cost_per_token=None, output_cost_per_token=None),
    ]
    unpriced = {**mixed[1], "model_name": "unpriced"}
    models = [
        model_group("base", upstream.url),
        model_group("other", upstream.url, model="cerebras/other"),  # has one route only
        model_group(BASE, upstream.url, model=f"cerebras/{BASE}"),
        *mixed,
        unpriced,
        *(
            alias(f"limited_{name}", APPROACH, BASE, **limit.optillm)
            for name, limit in LIMITS.items()
        ),
        alias("capped", "re2", max_cost_usd=0.01, max_tokens_total=2000),
        alias("wide", "re2"),
        alias("staged", "plansearch"),
        alias("capped_unpriced", "re2", "unpriced", max_cost_usd=1),
        alias("capped_mixed", "re2", "mixed", max_cost_usd=1),
        alias("capped_judge", "bon(judge=unpriced)", max_cost_usd=1),
    ]
    settings = {"forms": {"body": "all", "prefix": "all", "tag": [APPROACH, "re2"]}}
    config = hooked_config(models, optillm_settings=settings)
    keys: dict[str, dict[str, object]] = {**KEYS, "sk-all": {"models": []}}
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=keys) as running:
        upstream.play(Greedy())
        for name in ("max_budget", "model_max_budget"):
            spent = running.post(ROUTES["chat"], body_of("chat", BASE), key=f"sk-{name}")
            assert spent.status_code == 200, spent.text
        running.settle()
        yield running


def body_of(route: str, model: str, text: str = "", **fields: Any) -> dict[str, Any]:
    question = f"{text}What is 6 times {next(_number)}?"
    body: dict[str, Any] = {"messages": [{"role": "user", "content": question}]}
    if route == "messages":
        body["max_tokens"] = 900
    if route == "responses":
        body = {"input": question}
    if route == "completions":
        body = {"prompt": question}
    return {"model": model, **body, **fields}


def request_by(way: str, route: str, name: str, limit: Limit) -> dict[str, Any]:
    """Return a request for the approach under the limit, which an alias has or the client sets."""
    limits: dict[str, Any] = {"optillm_limits": dict(limit.optillm)} if limit.optillm else {}
    named = {"optillm_approach": APPROACH, **limits}
    asked = dict(limit.request)
    if way == "alias":
        return body_of(route, f"limited_{name}", **asked)
    if way == "prefix":
        return body_of(route, f"{APPROACH}-{BASE}", **limits, **asked)
    if way == "body":
        return body_of(route, BASE, **named, **asked)
    if way == "extra_body":
        return body_of(route, BASE, extra_body=named, **asked)
    if way == "tag":
        tag = f"<optillm_approach>{APPROACH}</optillm_approach> "
        return body_of(route, BASE, tag, **limits, **asked)
    return body_of(route, "other", fallbacks=[f"limited_{name}"], stream="streamed" in way, **asked)


def made(upstream: Upstream) -> Made:
    calls = [call for call in upstream.calls if call.body["model"] != "other"]
    return Made(calls, upstream.max_concurrency)


def failing_other(call: Call) -> Fault | None:
    return Status(500) if call.body["model"] == "other" else None


def hanging(call: Call) -> Fault | None:
    return failing_other(call) or HANG


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_holds_by_every_way_on_every_route(
    request: pytest.FixtureRequest,
    proxy: Proxy,
    upstream: Upstream,
    name: str,
    way: str,
    route: str,
) -> None:
    limit = LIMITS[name]
    latency_s = 0.02 if name == "max_parallel" else 0
    upstream.play(Greedy(fault=hanging if limit.hangs else failing_other, latency_s=latency_s))
    body = request_by(way, route, name, limit)
    answer = proxy.post(ROUTES[route], body, key=f"sk-{name}")
    found = made(upstream)
    request.node.user_properties += [
        ("status", answer.status_code),
        ("calls", len(found.calls)),
        ("tokens", found.billed.total_tokens),
        ("concurrent", found.concurrent),
    ]
    assert limit.holds(found), f"{answer.status_code} {answer.text[:500]}"


SMUGGLED: dict[str, Any] = {
    "extra_body": {"extra_body": {"max_tokens": 50_000}},
    "extra_body camel": {"extra_body": {"maxOutputTokens": 50_000}},
    "extra_body twice": {"extra_body": {"extra_body": {"max_tokens": 50_000}}},
    "upper case": {"MAX_TOKENS": 50_000},
    "num_predict": {"options": {"num_predict": 50_000}},
    "gemini": {"generationConfig": {"maxOutputTokens": 50_000, "candidateCount": 30}},
    "bedrock": {"inferenceConfig": {"maxTokens": 50_000}},
    "titan": {"textGenerationConfig": {"maxTokenCount": 50_000}},
    "hugging face": {"parameters": {"max_new_tokens": 50_000}},
    "choices": {"extra_body": {"n": 200}},
    "best_of": {"best_of": 200},
    "candidates": {"candidateCount": 200},
    "sequences": {"extra_body": {"num_return_sequences": 200}},
    "litellm_params": {"litellm_params": {"max_tokens": 50_000, "n": 200}},
    "optional_params": {"optional_params": {"max_tokens": 50_000, "n": 200}},
    "allowed": {"allowed_openai_params": ["n", "best_of"], "best_of": 30},
    "dropped": {"additional_drop_params": ["max_tokens", "max_completion_tokens"]},
    "models": {"extra_body": {"models": ["dearer"]}},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"a": "word " * 8000}}},
    "prediction": {"prediction": {"type": "content", "content": "word " * 8000}},
}


OTHERS = ("messages", "responses", "completions")
LONG_PROMPTS = ("prediction", "schema")


def numbers(value: object) -> Iterator[float]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize(
    ("smuggled", "way", "route"),
    [
        *((*case, "chat") for case in pairs(SMUGGLED, ["alias", "fallback"])),
        *((*case, route) for case, route in pairs(pairs(SMUGGLED, ["fallback", "alias"]), OTHERS)),
    ],
)
def test_no_field_carries_a_length_or_choices_past_the_limits(
    proxy: Proxy, upstream: Upstream, smuggled: str, route: str, way: str
) -> None:
    upstream.play(Greedy(fault=failing_other))
    fallback: dict[str, Any] = {"fallbacks": ["capped"]} if way == "fallback" else {}
    body = body_of(route, "other" if fallback else "capped", **fallback, **SMUGGLED[smuggled])
    proxy.post(ROUTES[route], body, key="sk-all")
    found = made(upstream)
    assert found.choices <= (0 if route == "chat" and smuggled in LONG_PROMPTS else 1)
    assert found.dollars <= 0.01
    assert found.billed.total_tokens <= 2000
    for call in found.calls:
        assert call.body["model"] == "base"
        assert set(numbers(call.body)).isdisjoint({50_000, 200, 30})


UNPRICED_WAYS: dict[str, dict[str, Any]] = {
    "alias": {"model": "capped_{0}"},
    "prefix": {"model": "re2-{0}", "optillm_limits": {"max_cost_usd": 1}},
    "body": {"model": "{0}", "optillm_approach": "re2", "optillm_limits": {"max_cost_usd": 1}},
    "extra_body": {
        "model": "{0}",
        "extra_body": {"optillm_approach": "re2", "optillm_limits": {"max_cost_usd": 1}},
    },
    "none": {"model": "none-{0}", "optillm_limits": {"max_cost_usd": 1}},
    "fallback": {"model": "other", "fallbacks": ["capped_{0}"]},
    "streamed fallback": {"model": "other", "fallbacks": ["capped_{0}"], "stream": True},
}


@pytest.mark.parametrize(
    ("way", "base", "route"),
    [
        *((way, "unpriced", "chat") for way in UNPRICED_WAYS),
        *((way, "mixed", route) for way, route in pairs(UNPRICED_WAYS, OTHERS)),
    ],
)
def test_a_model_without_a_price_is_refused_where_cost_is_limited(
    proxy: Proxy, upstream: Upstream, base: str, way: str, route: str
) -> None:
    upstream.play(Greedy(fault=lambda call: Status(500) if call.body["model"] == "other" else None))
    fields = dict(UNPRICED_WAYS[way])
    model = fields.pop("model").format(base)
    if "fallbacks" in fields:
        fields["fallbacks"] = [fields["fallbacks"][0].format(base)]
    answer = proxy.post(ROUTES[route], body_of(route, model, **fields), key="sk-all")
    assert not made(upstream).calls
    assert f"the price of '{base}' is not known" in answer.text


def test_so_with_a_tag_and_with_a_judge(proxy: Proxy, upstream: Upstream) -> None:
    """A tag that cannot be served is text, to which no limits apply."""
    limited = {"optillm_limits": {"max_cost_usd": 1}}
    tagged = body_of("chat", "unpriced", "<optillm_approach>re2</optillm_approach> ", **limited)
    upstream.play(Greedy())
    for body, reason in (
        (tagged, "optillm_limits need an approach"),
        (body_of("chat", "capped_judge"), "the price of 'unpriced' is not known"),
    ):
        answer = proxy.post(ROUTES["chat"], body, key="sk-all")
        assert answer.status_code == 400
        assert reason in answer.text
    assert not upstream.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class Lying(Script):
    """Reports a usage that is no usage."""

    def bill(self, call: Call, choices: int) -> Billed:  # noqa: ARG002
        return Billed(prompt_tokens=-1000, completion_tokens=-5000)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_negative_usage_lowers_no_limit_and_no_spend(
    proxy: Proxy, upstream: Upstream, route: str, stream: bool
) -> None:
    key = copy_of("sk-all")
    upstream.play(Lying())
    for name in ("max_tokens_total", "max_cost_usd"):
        body = body_of(route, f"limited_{name}", stream=stream)
        assert proxy.post(ROUTES[route], body, key=key).status_code == 200
        most = sum(map(asked, upstream.calls))
        assert most <= 600
        upstream.play(Lying())
    proxy.settle()
    assert proxy.charged(key) >= 0


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("field", [{"no-log": True}, {"no_log": True}], ids=str)
def test_a_request_cannot_keep_its_calls_out_of_its_keys_spend(
    proxy: Proxy, upstream: Upstream, field: Fields, route: str
) -> None:
    key = copy_of("sk-all")
    upstream.play(Greedy())
    for fields in (field, {"metadata": field}, {"litellm_metadata": field}, {"extra_body": field}):
        body = body_of(route, "wide", **fields)
        answer: httpx.Response = proxy.post(ROUTES[route], body, key=key)
        assert answer.status_code in (200, 400), answer.text
    proxy.settle()
    bill = made(upstream)
    assert bill.calls
    assert proxy.charged(key) == pytest.approx(bill.dollars)


def test_a_clients_limits_are_for_its_whole_request(proxy: Proxy, upstream: Upstream) -> None:
    """The first plan fails after it has paid for a call; its fallback gets what is left."""

    def fault(call: Call) -> Fault | None:
        return Status(500) if call.body["model"] == "base" and call.index > 0 else None

    upstream.play(Greedy(fault=fault))
    body = body_of(
        "chat",
        "staged",
        fallbacks=["limited_max_parallel"],
        optillm_limits={"max_calls": 6},
    )
    answer = proxy.post(ROUTES["chat"], body, key="sk-all")
    assert answer.status_code == 200, answer.text
    asked_models = [call.body["model"] for call in upstream.calls]
    assert asked_models.count("base") >= 2
    assert asked_models.count(BASE) >= 1
    assert len(asked_models) == 6, asked_models


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("limited_deadline_s", {}),
        ("limited_max_calls", {"optillm_limits": {"deadline_s": DEADLINE_S}}),
    ],
    ids=["of the alias", "of the client"],
)
def test_no_deadline_begins_anew_with_a_fallback(
    proxy: Proxy, upstream: Upstream, model: str, fields: Fields, stream: bool
) -> None:
    """The first plan takes all the time, so its fallback, which would hang, makes no call."""
    upstream.play(Script(fault=always(HANG)))
    body = body_of("chat", model, fallbacks=["wide"], stream=stream, **fields)
    answer = proxy.post(ROUTES["chat"], body, key="sk-all")
    assert answer.status_code == 504, answer.text
    assert {call.body["model"] for call in upstream.calls} <= {BASE}
