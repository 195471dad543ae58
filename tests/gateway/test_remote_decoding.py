"""Decoding methods over a deployment like vLLM's, through the real LiteLLM proxy.

The tests check what LiteLLM sends: the fields that are not OpenAI's, and the final assistant
message. They also check the log-probabilities that come back.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import openai
import pytest

from optillm_hooks.types import TokenLogprob
from tests.proxy import Proxy, hooked_config, model_group
from tests.upstream import HANG, Call, Fault, Upstream
from tests.vllm import peaked, sure, token, vllm

CONTINUES = {"optillm": {"continues_prefix": True}}
SERVERS = ("hosted_vllm", "openai")
"""LiteLLM's providers by which vLLM and SGLang are configured."""


def group(name: str, url: str, provider: str, info: Mapping[str, Any]) -> dict[str, Any]:
    made = model_group(name, url, model=f"{provider}/{name}")
    return {**made, "model_info": dict(info)}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [group(f"by_{p}", upstream.url, p, CONTINUES) for p in SERVERS]
    models += [
        group("stock", upstream.url, "openai", {}),
        group("mistaken", upstream.url, "openai", {"optillm": {"continues": True}}),
        model_group("silent", upstream.url, model="openai/o1"),
    ]
    with Proxy(hooked_config(models), tmp_path_factory.mktemp("proxy")) as running:
        yield running


def ask(proxy: Proxy, model: str, **fields: Any) -> Any:
    response = proxy.post(
        "/v1/chat/completions",
        {"model": model, "messages": [{"role": "user", "content": "6 * 7?"}], **fields},
    )
    assert response.status_code == 200, response.text
    return response.json()


def note(answer: Any) -> dict[str, Any]:
    [found] = answer["optillm"]["notes"]
    return dict(found)


def two_ways(prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
    rest = {
        "": [token("41", 0.5, ("Six", 0.3), ("By", 0.1)), *sure(" it is")],
        "41": sure("."),
        "Six": sure(" sevens", " are", " 42"),
        "By": sure(" heart", " is", " 42", margin=0.7),
    }
    return rest[prefix]


@pytest.mark.parametrize("provider", SERVERS)
def test_cot_decoding_branches_on_alternatives_and_continues_each(
    proxy: Proxy, upstream: Upstream, provider: str
) -> None:
    upstream.play(vllm(two_ways))
    answer = ask(
        proxy, f"by_{provider}", decoding="cot_decoding", k=3, max_tokens=9, temperature=0.7
    )
    assert answer["choices"][0]["message"]["content"] == "Six sevens are 42"
    assert note(answer)["agreeing"] == 2
    assert (answer["optillm"]["calls"], answer["optillm"]["depth"]) == (4, 2)
    first, *branches = [call.body for call in upstream.calls]
    assert (first["max_tokens"], first["top_logprobs"], first["temperature"]) == (1, 20, 0)
    assert "continue_final_message" not in first
    assert {branch["messages"][-1]["content"] for branch in branches} == {"41", "Six", "By"}
    for branch in branches:
        assert (branch["continue_final_message"], branch["add_generation_prompt"]) == (True, False)
        assert (branch["max_tokens"], branch["top_logprobs"], branch["temperature"]) == (8, 3, 0)
        assert "k" not in branch
        assert "decoding" not in branch
    told = upstream.bill
    assert answer["usage"]["completion_tokens"] == told.completion_tokens == 1 + 1 + 3 + 3
    assert answer["usage"]["prompt_tokens"] == told.prompt_tokens


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": "6 * 7?"}], "max_tokens": 9}),
        ("/v1/responses", {"input": "6 * 7?"}),
        ("/v1/completions", {"prompt": "6 * 7?"}),
    ],
)
def test_the_field_decoding_is_read_on_every_route(
    proxy: Proxy, upstream: Upstream, route: str, asked: dict[str, Any]
) -> None:
    upstream.play(vllm(two_ways))
    fields = {"decoding": "cot_decoding", "k": 3}
    response = proxy.post(route, {"model": "by_hosted_vllm", **asked, **fields})
    assert response.status_code == 200, response.text
    assert "Six sevens are 42" in response.text
    assert len(upstream.calls) == 4


def thinker(prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
    if prefix.endswith("</think>\n\n"):
        return sure("It", " is", " 42.")
    return sure(*["hm "] * 99)


@pytest.mark.parametrize(("decoding", "most"), [("thinkdeeper", 12), ("autothink", 26)])
def test_thinking_ends_at_the_budget_and_is_told_apart_from_the_answer(
    proxy: Proxy, upstream: Upstream, decoding: str, most: int
) -> None:
    """For autothink, `6 * 7?` has two numbers: a score of 0.2, a share of 0.2 of 128 tokens."""
    upstream.play(vllm(thinker))
    fields = {"max_thinking_tokens": 12} if decoding == "thinkdeeper" else {}
    answer = ask(proxy, "by_hosted_vllm", decoding=decoding, max_tokens=128, **fields)
    message = answer["choices"][0]["message"]
    budget = note(answer)["most_thinking"]
    assert message["content"] == "It is 42."
    assert message["reasoning_content"] == ("hm " * budget).strip()
    assert budget == note(answer)["thinking"] == most
    thinking, answering = [call.body for call in upstream.calls]
    assert (thinking["max_tokens"], thinking["stop"]) == (budget, ["</think>"])
    assert answering["max_tokens"] == 128 - budget
    assert "stop" not in answering
    assert answer["usage"]["completion_tokens"] == budget + 3


@pytest.mark.parametrize("model", ["by_hosted_vllm", "stock"])
def test_deepconf_hangs_up_on_streams_that_lose_confidence(
    proxy: Proxy, upstream: Upstream, model: str
) -> None:
    numbers = count(40)

    def deciding(_prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        """The two warm-up samples differ; of the streams, each is unsure of itself."""
        if body.get("stream"):
            return [peaked("x", 1.0)] * 400
        return [*[peaked("x", 10.0)] * 20, peaked(f" {next(numbers)}", 10.0)]

    upstream.play(vllm(deciding, piece_s=0.01, n="refused"))
    fields = {"warmup_samples": 2, "max_traces": 4, "variant": "high", "decoding": "deepconf"}
    answer = ask(proxy, model, **fields)
    upstream.wait_until_idle()
    assert note(answer)["stopped"] == 2
    assert note(answer)["votes"] == pytest.approx([10, 10])
    assert answer["choices"][0]["message"]["content"].startswith("x" * 20)
    assert [c.outcome for c in upstream.calls if c.streamed] == ["gone", "gone"]
    streamed = answer["usage"]["completion_tokens"] - upstream.bill.completion_tokens
    assert streamed == 2 * 16, "what was read of the streams is counted"


def prefix_of(body: Mapping[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


@pytest.mark.parametrize(
    ("model", "alive"),
    [
        ("cot_decoding(k=3)-by_openai", 3),
        ("thinkdeeper-by_openai", 1),
        ("deepconf(warmup_samples=2;variant=high)-by_openai", 2),
    ],
)
def test_a_client_that_hangs_up_ends_every_call(
    proxy: Proxy, upstream: Upstream, model: str, alive: int
) -> None:
    """It goes when branches, answer or streams are under way, after a first call; none goes on."""
    numbers = count(40)

    def hangs(call: Call) -> Fault | None:
        body = call.body
        continues = "continue_final_message" in body and prefix_of(body) != "<think>\n"
        return HANG if body.get("stream") or continues else None

    def writes(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        if prefix == "<think>\n":
            return sure(*["hm "] * 2000)
        if body["top_logprobs"] == 20 and body.get("max_tokens") != 1:
            return [*[peaked("x", 10.0)] * 20, peaked(f" {next(numbers)}", 10.0)]
        return two_ways(prefix, body)

    upstream.play(vllm(writes, fault=hangs))
    asked = {"model": model, "messages": [{"role": "user", "content": "6 * 7?"}]}
    with proxy.http.stream(
        "POST",
        f"{proxy.url}/v1/chat/completions",
        json={**asked, "stream": True},
        headers={"authorization": f"Bearer {proxy.master_key}"},
    ):
        upstream.wait_until(lambda u: len(u.alive) == alive)
    upstream.wait_until_idle()
    assert [call.outcome for call in upstream.calls].count("gone") == alive


def test_facts_come_on_streams_too(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(vllm(two_ways))
    with proxy.openai().chat.completions.create(
        model="cot_decoding(k=3)-by_openai",
        messages=[{"role": "user", "content": "6 * 7?"}],
        stream=True,
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Six sevens are 42"
    [report] = [extra["optillm"] for c in chunks if "optillm" in (extra := c.model_extra or {})]
    assert note({"optillm": report})["paths"] == 3


def test_samples_of_an_approach_are_decoded_each(proxy: Proxy, upstream: Upstream) -> None:
    def writes(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        return two_ways(prefix, body) if "top_logprobs" in body else sure("RATING: 9")

    upstream.play(vllm(writes))
    answer = ask(
        proxy,
        "bon(n=2)-by_hosted_vllm",
        decoding="cot_decoding",
        optillm_params={"cot_decoding": {"k": 3}},
    )
    assert answer["choices"][0]["message"]["content"] == "Six sevens are 42"
    branches = [c.body for c in upstream.calls if "continue_final_message" in c.body]
    assert {branch["temperature"] for branch in branches} == {1.0}
    assert len(branches) == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "cot_decoding-stock"}, "continues_prefix: true"),
        ({"model": "thinkdeeper-stock"}, "continues_prefix: true"),
        ({"model": "stock", "decoding": "autothink"}, "continues_prefix: true"),
        ({"model": "re2&entropy_decoding-by_openai"}, "need the whole distribution"),
        ({"model": "deepconf(max_traces=65)-by_openai"}, "estimated at 65 model calls"),
        ({"model": "deepconf-silent"}, "known to return top_logprobs"),
        (
            {"model": "by_openai", "decoding": "autothink", "pattern_strengths": {"a": 0.1}},
            "steering changes the activations between a model's layers",
        ),
        ({"model": "stock", "decoding": "beam"}, "unknown decoding 'beam'; known: autothink, cot"),
        ({"model": "cot_decoding-mistaken"}, "model_info.optillm.continues: unknown setting"),
        ({"model": "cot_decoding&moa(models=[by_openai;stock])-by_openai"}, "'stock' is not"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["model"]),
)
def test_what_cannot_be_is_a_400_that_says_why_before_anything_is_paid_for(
    proxy: Proxy, upstream: Upstream, fields: dict[str, Any], message: str
) -> None:
    upstream.play(vllm(two_ways))
    messages: Any = [{"role": "user", "content": "6 * 7?"}]
    create = partial(proxy.openai().chat.completions.create, messages=messages)
    with pytest.raises(openai.BadRequestError, match=message):
        create(model="replaced below", extra_body=fields)
    assert upstream.calls == []


def test_a_judge_need_not_be_able_to_decode(proxy: Proxy, upstream: Upstream) -> None:
    numbers = count(1)

    def writes(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        if "top_logprobs" not in body:
            return sure("RATING: 9")
        return two_ways("", body) if prefix == "" else sure(f" makes {next(numbers)}")

    upstream.play(vllm(writes))
    ask(proxy, "cot_decoding(k=1)&bon(n=2;judge=stock)-by_openai")
    judged = [call.body for call in upstream.calls if call.body["model"] == "stock"]
    assert len(judged) == 2
    assert not any("continue_final_message" in body for body in judged)
