"""Rerankers and reward models as judges, through the proxy: the wire formats, money, and faults."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.json_host import json_host
from tests.proxy import PRICE, Entry, Proxy, alias, copy_of, hooked_config, model_group
from tests.score_hosts import TOO_LONG, ScoreHost
from tests.upstream import Call, Script, Upstream

QUESTION = "Which number is best?"
SCORE_PRICE, QUERY_PRICE = 1e-4, 0.002
KINDS = {
    "cohere": ("/v2/rerank", 1),
    "vllm-rerank": ("/rerank", 1),
    "tei": ("/tei/rerank", 1),
    "vllm-score": ("/score", 1),
    "vllm-pooling": ("/pooling", 4),
}
"""By model group: the route, and the calls for four candidates."""

WORDS = 4 * (4 + 2)
"""Tokens of the four calls, or texts: four of the question and two of each answer."""

COSTS = {"cohere": QUERY_PRICE, "vllm-rerank": 0.0}
"""What differs from the price of the tokens: LiteLLM has none for rerankers on vLLM."""

KEYS: dict[str, dict[str, object]] = {
    **{f"sk-{kind}": {"models": [], "key_alias": kind} for kind in KINDS},
    "sk-base-only": {"models": ["base"]},
    "sk-thin": {
        "models": [],
        "model_max_budget": {"vllm-score": {"budget_limit": 1e-9, "time_period": "1d"}},
    },
    "sk-cut": {"models": [], "key_alias": "cut"},
}


def scorer(name: str, model: str, api_base: str, **more: Any) -> dict[str, Any]:
    params = {"model": model, "api_base": api_base, "api_key": "host-key", "max_retries": 0}
    info = {"input_cost_per_token": SCORE_PRICE, **more}
    return {"model_name": name, "litellm_params": params, "model_info": info}


@pytest.fixture(scope="module")
def host() -> ScoreHost:
    return ScoreHost()


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, host: ScoreHost
) -> Iterator[Proxy]:
    with json_host(host, {"x-compute-tokens": str(WORDS)}) as url:
        config = hooked_config(
            [
                model_group("base", upstream.url, model="cerebras/base"),  # known not to take n
                # LiteLLM's map knows that it is a reranker, and its price for a query.
                {
                    "model_name": "cohere",
                    "litellm_params": {
                        "model": "cohere/rerank-v3.5",
                        "api_base": f"{url}/v2/rerank",
                        "api_key": "host-key",
                    },
                },
                scorer("vllm-rerank", "hosted_vllm/bge", url, mode="rerank"),
                scorer("tei", "optillm-score/bge", f"{url}/tei/rerank"),
                scorer("vllm-score", "optillm-score/bge", f"{url}/score"),
                scorer("vllm-pooling", "optillm-score/sky/reward", f"{url}/pooling"),
                scorer("small", "optillm-score/bge", f"{url}/score", max_input_tokens=300),
                scorer("wrong", "optillm-score/bge", url),
                scorer("down", "optillm-score/down", "http://127.0.0.1:9/score"),
                {
                    "model_name": "unpriced",
                    "litellm_params": {"model": "optillm-score/x", "api_base": f"{url}/score"},
                },
                alias("hurried", "bon(n=3;judge=vllm-score)", deadline_s=4),
                alias("metered", "bon(judge=unpriced)", max_cost_usd=1.0),
                alias("thrifty", "bon(n=4;judge=cohere)", max_cost_usd=0.001),
            ]
        )
        config["router_settings"]["fallbacks"] = [{"down": ["vllm-score"]}]
        with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS) as running:
            yield running
        host.opened.set()


def numbers(call: Call, choice: int) -> str:
    """Return a different answer in each sample."""
    return f"ANSWER: {(0.1, 0.9, 0.3, 0.2)[(call.index + choice) % 4]}"


def ask(
    proxy: Proxy,
    model: str,
    key: str = "sk-cut",
    text: str = QUESTION,
    **fields: Any,
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return proxy.post("/v1/chat/completions", body, key=key)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def report(response: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = response.json()["optillm"]
    return found


def booked(proxy: Proxy, key_alias: str) -> list[Entry]:
    proxy.settle()
    return [e for e in proxy.entries if e.key_alias == key_alias and e.model_group in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_four_candidates_are_scored_and_paid_for(
    proxy: Proxy, upstream: Upstream, host: ScoreHost, kind: str
) -> None:
    upstream.play(Script(reply=numbers))
    host.play()
    response = ask(proxy, f"bon(n=4;judge={kind})-base", key=f"sk-{kind}")
    assert text(response) == "ANSWER: 0.9"
    route, calls = KINDS[kind]
    assert [path for path, _ in host.calls] == [route] * calls
    assert "host-key" not in str(host.calls)
    made = report(response)
    assert (made["calls"], made["calls_saved"]) == (4 + calls, 4 - calls)
    assert (made["degraded"], made["depth"]) == ([], 3)
    entries = booked(proxy, kind)
    assert len(entries) == calls
    assert {entry.status for entry in entries} == {"success"}
    spent = sum(entry.cost for entry in entries)
    assert spent == pytest.approx(COSTS.get(kind, WORDS * SCORE_PRICE))
    told = 0 if kind == "cohere" else WORDS
    assert response.json()["usage"]["prompt_tokens"] == upstream.bill.prompt_tokens + told
    of_base = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    assert made["cost_usd"] == pytest.approx(of_base + spent)


def test_rewards_are_on_a_scale_of_their_own(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    upstream.play(Script(reply=numbers))
    host.play(lambda _, answer: 20.0 - 10 * float(answer.split()[-1]))
    assert text(ask(proxy, "bon(n=4;judge=vllm-pooling)-base")) == "ANSWER: 0.1"
    ((_, body), *_) = host.calls
    assert body["messages"][0] == {"role": "user", "content": QUESTION}
    assert body["messages"][-1]["role"] == "assistant"


def test_a_longer_conversation_is_the_query(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    upstream.play(Script(reply=numbers))
    host.play()
    messages = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    body = {"model": "bon(n=4;judge=vllm-score)-base", "messages": messages}
    assert text(proxy.post("/v1/chat/completions", body)) == "ANSWER: 0.9"
    asked = host.calls[0][1]["text_1"]
    assert asked == f"system: Be terse.\n\nuser: Hi.\n\nassistant: Hello.\n\nuser: {QUESTION}"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("bon(models=[vllm-score])-base", "'vllm-score' only scores answers, but 'bon' needs"),
        ("moa(judge=cohere)-base", "only scores answers"),
        ("moa(aggregator=tei)-base", "only scores answers"),
        ("bon-vllm-rerank", "the base model 'vllm-rerank' only scores answers"),
        ("metered", "the price of 'unpriced' is not known"),
    ],
)
def test_a_scorer_is_refused_where_it_cannot_stand(
    proxy: Proxy, upstream: Upstream, host: ScoreHost, model: str, message: str
) -> None:
    upstream.play(Script())
    host.play()
    response = ask(proxy, model)
    assert response.status_code == 400, response.text
    assert not upstream.calls
    assert not host.calls
    if not model.startswith("moa(judge"):  # it has no such parameter
        assert message in response.json()["error"]["message"]


def test_a_key_without_the_judge_is_refused(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    upstream.play(Script())
    host.play()
    response = ask(proxy, "bon(judge=vllm-score)-base", key="sk-base-only")
    assert response.status_code in (401, 403), response.text
    assert not upstream.calls


def test_a_budget_of_the_judge_that_ends_in_the_middle_stops_the_search(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    """The first rating is let in: nothing is spent yet. The next request is LiteLLM's to refuse."""
    upstream.play(Script(reply=numbers))
    host.play()
    model = "mcts(simulations=4;parallel=1;judge=vllm-score)-base"
    first = ask(proxy, model, key="sk-thin")
    assert text(first).startswith("ANSWER")
    assert report(first)["stopped_by"] == "caller_budget"
    assert len(host.calls) == 1
    proxy.settle()
    second = ask(proxy, model, key="sk-thin")
    assert 400 <= second.status_code < 500
    assert second.json()["error"]["type"] == "budget_exceeded"
    assert len(host.calls) == 1


def test_the_requests_own_budget_ends_in_a_vote(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    """A query costs 0.002 dollars, and the request may cost 0.001."""
    upstream.play(Script(reply=numbers))
    host.play()
    response = ask(proxy, "thrifty", max_tokens=5)
    assert text(response)
    assert report(response)["stopped_by"] == "max_cost_usd"
    assert not host.calls


def test_a_judge_that_hangs_costs_the_deadline_and_is_booked(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    upstream.play(Script(reply=numbers))
    host.play()
    host.opened.clear()
    key = copy_of("sk-cut")
    try:
        response = ask(proxy, "hurried", key=key)
        assert text(response).startswith("ANSWER")
        assert report(response)["stopped_by"] == "deadline"
        assert report(response)["degraded"] == ["ratings:3/3"]
    finally:
        host.opened.set()

    def scored() -> list[Entry]:
        return [entry for entry in proxy.booked(key) if entry.model_group in KINDS]

    proxy.wait_until(lambda _: bool(scored()))
    [entry] = scored()
    assert entry.model_group == "vllm-score"
    assert entry.cost > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_judge_that_fails_ends_in_a_vote(
    proxy: Proxy, upstream: Upstream, host: ScoreHost, kind: str
) -> None:
    upstream.play(Script(reply=numbers))
    host.play(fails=503)
    response = ask(proxy, f"bon(n=4;judge={kind})-base")
    assert text(response).startswith("ANSWER")
    assert report(response)["degraded"] == ["ratings:4/4"]


def test_an_address_that_names_no_route_ends_in_a_vote(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=numbers))
    assert report(ask(proxy, "bon(n=4;judge=wrong)-base"))["degraded"] == ["ratings:4/4"]


def test_the_routers_fallback_answers(proxy: Proxy, upstream: Upstream, host: ScoreHost) -> None:
    upstream.play(Script(reply=numbers))
    host.play()
    response = ask(proxy, "bon(n=4;judge=down)-base")
    assert text(response) == "ANSWER: 0.9"
    assert host.calls


def test_long_candidates_are_cut_and_it_is_said(
    proxy: Proxy, upstream: Upstream, host: ScoreHost
) -> None:
    def long(call: Call, choice: int) -> str:
        return f"{'word ' * (TOO_LONG + 100)}{numbers(call, choice)}"

    upstream.play(Script(reply=long))
    host.play()
    response = ask(proxy, "bon(n=4;judge=small)-base")
    assert text(response).endswith("ANSWER: 0.9")
    assert report(response)["degraded"] == ["whole_candidates:4/4"]
    shown = host.calls[0][1]["text_2"]
    assert all(each.startswith("word word") and each[-12:].startswith(" ANSWER") for each in shown)


def test_a_client_cannot_use_a_reward_model_as_embeddings(proxy: Proxy) -> None:
    response = proxy.post("/v1/embeddings", {"model": "vllm-score", "input": ["x"]})
    assert response.status_code == 400
    assert "scores answers" in response.text
