"""The scripted provider: its counts and faults are those that a client saw."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from optillm_hooks.types import TokenLogprob
from tests.upstream import (
    CLOSED,
    CUT,
    HANG,
    LENGTH,
    MALFORMED,
    NO_CHOICES,
    NO_USAGE,
    NULL,
    Billed,
    Broken,
    Call,
    FaultRule,
    Reply,
    Script,
    Status,
    Upstream,
    always,
    at,
    chance,
    every,
    longest_chain,
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def client(upstream: Upstream) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=upstream.url, api_key="none", max_retries=0) as made:
        yield made
    upstream.wait_until_idle()


def ask(
    client: openai.OpenAI, text: str = "hi", **fields: object
) -> openai.types.chat.ChatCompletion:
    return client.chat.completions.create(  # type: ignore[no-any-return,call-overload]
        model="base", messages=[{"role": "user", "content": text}], **fields
    )


def echo(call: Call, choice: int) -> str:
    return f"{call.text} #{choice}"


def test_replies_are_a_function_of_the_request_and_the_choice(
    upstream: Upstream, client: openai.OpenAI
) -> None:
    upstream.play(Script(reply=echo))
    answer = ask(client, "marker", n=2)
    assert [choice.message.content for choice in answer.choices] == ["marker #0", "marker #1"]


@pytest.mark.parametrize(("n", "choices"), [("honoured", 3), ("ignored", 1)])
def test_n_choices(upstream: Upstream, client: openai.OpenAI, n: str, choices: int) -> None:
    upstream.play(Script(n=n))  # type: ignore[arg-type]
    assert len(ask(client, n=3).choices) == choices


def test_n_can_be_refused(upstream: Upstream, client: openai.OpenAI) -> None:
    upstream.play(Script(n="refused"))
    with pytest.raises(openai.BadRequestError, match="one at a time"):
        ask(client, n=3)
    assert ask(client, n=1).choices[0].finish_reason == "stop"


def test_the_bill_is_the_sum_of_the_usages_that_the_client_saw(
    upstream: Upstream, client: openai.OpenAI
) -> None:
    upstream.play(Script(fault=at({1: Status(500), 2: NO_USAGE}), reasoning_tokens=4))
    seen = []
    for number in range(4):
        if number == 1:
            with pytest.raises(openai.InternalServerError):
                ask(client)
        else:
            seen.append(ask(client).usage)
    paid = [usage for usage in seen if usage is not None]
    assert len(paid) == 2
    assert paid[0] != paid[1]
    assert upstream.bill.prompt_tokens == sum(usage.prompt_tokens for usage in paid)
    assert upstream.bill.total_tokens == sum(usage.total_tokens for usage in paid)
    assert upstream.bill.reasoning_tokens == 8
    assert Billed(prompt_tokens=2, completion_tokens=3).cost(0.5, 2.0) == 7.0


def test_a_stream_comes_in_words_with_usage_only_if_asked(
    upstream: Upstream, client: openai.OpenAI
) -> None:
    upstream.play(Script(reply=lambda _call, _choice: "one two"))
    with ask(client, stream=True) as plain:  # type: ignore[attr-defined]
        chunks = list(plain)
    assert [chunk.choices[0].delta.content for chunk in chunks] == [None, "one", " two", None]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert upstream.bill == Billed()
    with ask(client, stream=True, stream_options={"include_usage": True}) as full:  # type: ignore[attr-defined]
        usage = list(full)[-1].usage
    assert usage.total_tokens == upstream.bill.total_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_reasoning_and_logprobs(
    upstream: Upstream, client: openai.OpenAI, stream: bool
) -> None:
    scored = TokenLogprob("Hi", -0.5, (("Hi", -0.5), ("Ho", -1.5)))
    reply = Reply("Hi", "hm", (("weather", '{"city": "Oslo"}'),), (scored,))
    upstream.play(Script(reply=lambda _call, _choice: reply))
    if stream:
        with client.chat.completions.stream(
            model="base", messages=[{"role": "user", "content": "hi"}], logprobs=True
        ) as pieces:
            choice = pieces.get_final_completion().choices[0]
    else:
        choice = ask(client, logprobs=True).choices[0]  # type: ignore[assignment]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Hi"
    assert choice.message.reasoning_content == "hm"  # type: ignore[attr-defined]
    [tool] = choice.message.tool_calls or []
    assert (tool.function.name, json.loads(tool.function.arguments)) == (
        "weather",
        {"city": "Oslo"},
    )
    assert choice.logprobs is not None
    [token] = choice.logprobs.content or []
    assert (token.logprob, [other.token for other in token.top_logprobs]) == (-0.5, ["Hi", "Ho"])


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_can_have_more_fields(
    upstream: Upstream, client: openai.OpenAI, stream: bool
) -> None:
    upstream.play(Script(reply=lambda *_: Reply(fields={"refusal": "I cannot."})))
    if stream:
        with ask(client, stream=True) as pieces:  # type: ignore[attr-defined]
            said = [chunk.choices[0].delta.refusal for chunk in pieces]
    else:
        said = [ask(client).choices[0].message.refusal]
    assert [text for text in said if text] == ["I cannot."]


def test_an_error_can_have_a_body_of_its_own(upstream: Upstream, client: openai.OpenAI) -> None:
    upstream.play(Script(fault=always(Status(400, body={"detail": "too long"}))))
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client)
    assert refused.value.body == {"detail": "too long"}


def test_a_refusal_has_its_status_and_retry_after(
    upstream: Upstream, client: openai.OpenAI
) -> None:
    upstream.play(Script(fault=always(Status(429, "slow down", retry_after="7", error="rate"))))
    with pytest.raises(openai.RateLimitError, match="slow down") as refused:
        ask(client)
    assert refused.value.response.headers["retry-after"] == "7"
    assert refused.value.code == "rate"
    assert upstream.calls[0].outcome == "failed"


@pytest.mark.parametrize("fault", [CLOSED, CUT], ids=repr)
def test_a_closed_connection_is_an_error_of_the_connection(
    upstream: Upstream, client: openai.OpenAI, fault: Broken
) -> None:
    upstream.play(Script(fault=always(fault)))
    with pytest.raises(openai.APIConnectionError):
        ask(client)


def test_malformed_json_has_status_200(upstream: Upstream) -> None:
    upstream.play(Script(fault=always(MALFORMED)))
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(f"{upstream.url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


@pytest.mark.parametrize("fault", [CUT, MALFORMED], ids=repr)
def test_a_stream_can_break_in_the_middle(
    upstream: Upstream, client: openai.OpenAI, fault: Broken
) -> None:
    upstream.play(Script(fault=always(fault)))
    seen = []
    with (
        pytest.raises((httpx.RemoteProtocolError, json.JSONDecodeError)),
        ask(client, stream=True) as pieces,  # type: ignore[attr-defined]
    ):
        seen += [chunk.choices[0].delta.content for chunk in pieces]
    assert upstream.calls[0].outcome == "failed"
    assert upstream.bill == Billed()


@pytest.mark.parametrize(
    ("fault", "content", "finish_reason"),
    [(NULL, None, "stop"), (LENGTH, "12345", "length")],
    ids=["null", "length"],
)
def test_a_spoilt_reply_is_paid_like_a_good_one(
    upstream: Upstream,
    client: openai.OpenAI,
    fault: Broken,
    content: str | None,
    finish_reason: str,
) -> None:
    upstream.play(Script(reply=lambda _call, _choice: "1234567890", fault=always(fault)))
    [choice] = ask(client).choices
    assert (choice.message.content, choice.finish_reason) == (content, finish_reason)
    assert upstream.bill.total_tokens > 0


def test_no_choices(upstream: Upstream, client: openai.OpenAI) -> None:
    upstream.play(Script(fault=always(NO_CHOICES)))
    assert ask(client).choices == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_call(
    upstream: Upstream, client: openai.OpenAI, stream: bool
) -> None:
    upstream.play(Script(fault=always(HANG)))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client, stream=stream, timeout=0.2)
        upstream.wait_until(lambda u: len(u.calls) == 1)
        with pytest.raises(openai.APITimeoutError):
            waiting.result()
    upstream.wait_until_idle()
    assert upstream.calls[0].outcome == "gone"


def test_concurrent_calls_count_as_one_step() -> None:
    with Upstream() as provider:
        for together in (4, 1):
            for call in [provider.started({}, {}) for _ in range(together)]:
                provider.ended(call, "answered")
    assert (len(provider.calls), provider.max_concurrency, provider.depth) == (5, 4, 2)


def test_longest_chain() -> None:
    assert longest_chain([]) == 0
    assert longest_chain([(0, 9), (0, 1), (1, 2), (1.5, 3), (2, 4)]) == 3


@pytest.mark.parametrize(
    ("rule", "hit"),
    [
        pytest.param(every(3, HANG), [2, 5, 8], id="every third"),
        pytest.param(at({0: HANG, 7: CUT}), [0, 7], id="by index"),
        pytest.param(chance(0.0, HANG, seed=1), [], id="never"),
        pytest.param(chance(1.0, HANG, seed=1), list(range(9)), id="always"),
    ],
)
def test_fault_rules(rule: FaultRule, hit: list[int]) -> None:
    calls = [Call(index, {}, {}, 0.0) for index in range(9)]
    assert [call.index for call in calls if rule(call) is not None] == hit


def test_chance_hits_its_share() -> None:
    """By Hoeffding, 10,000 draws stray from 0.3 by 0.03 with probability under 2*exp(-18)."""
    calls = [Call(index, {}, {}, 0.0) for index in range(10_000)]
    rule = chance(0.3, HANG, seed=5)
    assert abs(sum(rule(call) is not None for call in calls) / 10_000 - 0.3) < 0.03


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", {"model": "m", "messages": [{"role": "user"}]}),
        ("/chat/completions", {"messages": [{"role": "user"}]}),
        ("/chat/completions", {"model": "m", "messages": []}),
        ("/chat/completions", {"model": "m", "messages": "hi"}),
        ("/chat/completions", {"model": "m", "messages": [{"role": "user"}], "n": "two"}),
        ("/chat/completions", []),
    ],
    ids=["route", "no model", "no messages", "text for messages", "text for n", "not an object"],
)
def test_what_is_against_the_contract_fails_the_test(path: str, body: object) -> None:
    with pytest.raises(AssertionError, match=path), Upstream() as strict:
        assert httpx.post(strict.url + path, json=body, timeout=60).status_code == 404


def test_a_script_that_raises_fails_the_test() -> None:
    def buggy(_call: Call, _choice: int) -> str:
        raise ZeroDivisionError

    strict = Upstream(Script(reply=buggy))
    body = {"model": "base", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(AssertionError, match="ZeroDivisionError"), strict:
        assert (
            httpx.post(f"{strict.url}/chat/completions", json=body, timeout=60).status_code == 500
        )


def test_a_new_script_needs_the_old_calls_to_be_over(
    upstream: Upstream, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.play(Script(fault=always(HANG)))
    monkeypatch.setattr("tests.upstream._CLOSING_S", 0.1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client, timeout=3.0)
        upstream.wait_until(lambda u: len(u.alive) == 1)
        with pytest.raises(AssertionError, match="still alive"):
            upstream.play(Script())
        assert isinstance(waiting.exception(), openai.APITimeoutError)
