"""Provider failures: an approach answers if one sample succeeds; if none does, the client gets the
provider's own status, also on a stream that has not begun."""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.gateway.shared import MANY, pairs
from tests.proxy import Proxy
from tests.upstream import (
    CLOSED,
    CUT,
    HANG,
    LENGTH,
    MALFORMED,
    NO_CHOICES,
    NO_USAGE,
    NULL,
    Call,
    Fault,
    Script,
    Status,
    Upstream,
    always,
    at,
    chance,
    differing,
)

CHAT = "/v1/chat/completions"
ONE = ("none", "re2", "cot_reflection")
STATUSES = (400, 401, 403, 404, 429, 500, 503)
BROKEN: dict[str, Fault] = {
    "status 500": Status(500),
    "status 429": Status(429, retry_after="1"),
    "status 401": Status(401),
    "status 400": Status(400),
    "closed connection": CLOSED,
    "malformed JSON": MALFORMED,
    "content null": NULL,
    "no choices": NO_CHOICES,
    "cut": CUT,
}
"""Faults that leave a call without an answer."""

NAMES_AND_FAULTS = [
    pytest.param(name, BROKEN[fault], id=f"{name}-{fault}") for name, fault in pairs(MANY, BROKEN)
]
SPOILT: dict[str, Fault] = {"truncated": LENGTH, "no usage": NO_USAGE}
"""Faults that still leave an answer."""


def ask(
    proxy: Proxy, model: str, *, stream: bool = False, n: int = 1, about: str = ""
) -> httpx.Response:
    messages = [{"role": "user", "content": f"What is 6 times 7? {about}"}]
    return proxy.post(CHAT, {"model": model, "messages": messages, "stream": stream, "n": n})


def events(answer: httpx.Response) -> list[dict[str, object]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def text_of(answer: httpx.Response, *, stream: bool) -> str:
    """Return the text of choice 0."""
    if not stream:
        return str(answer.json()["choices"][0]["message"]["content"])
    deltas = [
        choice["delta"].get("content") or ""
        for event in events(answer)
        for choice in event.get("choices", [])  # type: ignore[attr-defined]
        if choice["index"] == 0
    ]
    return "".join(deltas)


def assert_answered(answer: httpx.Response, *, stream: bool = False) -> None:
    assert answer.status_code == 200, answer.text[:1000]
    assert '"error"' not in answer.text
    assert "42" in text_of(answer, stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("name", "fault"), NAMES_AND_FAULTS)
def test_one_failed_sample_of_several_does_not_show(
    proxy: Proxy, upstream: Upstream, name: str, fault: Fault, stream: bool
) -> None:
    upstream.play(Script(fault=at({1: fault}), n="refused"))
    assert_answered(ask(proxy, f"{name}-base", stream=stream), stream=stream)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", SPOILT.values(), ids=SPOILT)
@pytest.mark.parametrize("name", [*ONE, *MANY])
def test_a_truncated_or_uncounted_reply_is_used_as_far_as_it_goes(
    proxy: Proxy, upstream: Upstream, name: str, fault: Fault, stream: bool
) -> None:
    upstream.play(
        Script(reply=lambda *_: "The answer is 42.\nANSWER: 42 " * 2, fault=always(fault))
    )
    answer = ask(proxy, f"{name}-base", stream=stream)
    assert_answered(answer, stream=stream)
    expected = "length" if fault is LENGTH else "stop"
    assert f'"finish_reason":"{expected}"' in answer.text.replace(": ", ":")


@pytest.mark.parametrize("n", ["honoured", "ignored", "refused"])
@pytest.mark.parametrize("name", MANY)
def test_whatever_the_provider_does_with_n(
    proxy: Proxy, upstream: Upstream, name: str, n: str
) -> None:
    upstream.play(Script(n=n))  # type: ignore[arg-type]
    assert_answered(ask(proxy, f"{name}-base"))


@pytest.mark.parametrize("name", MANY)
def test_a_provider_that_is_known_not_to_take_n_is_not_asked_to(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    upstream.play(Script(n="refused"))
    assert_answered(ask(proxy, f"{name}-single"))
    assert {call.body.get("n", 1) for call in upstream.calls} == {1}
    assert {call.outcome for call in upstream.calls} == {"answered"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", MANY)
def test_with_three_calls_of_ten_failing(
    proxy: Proxy, upstream: Upstream, name: str, seed: int
) -> None:
    """There is an answer whenever a call succeeded whose text can be the answer."""
    upstream.play(Script(fault=chance(0.3, Status(500), seed=seed), n="ignored"))
    answer = ask(proxy, f"{name}-base")
    if any(call.outcome == "answered" for call in upstream.calls):
        assert_answered(answer)
    else:
        assert answer.status_code == 500


HANGING = [(name, stream) for name in MANY for stream in (False, True)]


@pytest.fixture(scope="module")
def answers_with_one_call_hanging(proxy: Proxy, upstream: Upstream) -> list[httpx.Response]:
    """Return the answers to `HANGING`, asked concurrently: each may take until its deadline.

    A plan may have what it needs before it makes its third call.
    """
    calls: Counter[str] = Counter()
    hung: list[Call] = []

    def the_third(call: Call) -> Fault | None:
        [case] = set(re.findall(r"case \d+", call.text))
        calls[case] += 1
        if calls[case] == 3:
            hung.append(call)
            return HANG
        return None

    def answer(number: int) -> httpx.Response:
        name, stream = HANGING[number]
        return ask(proxy, f"hurried-{name}", stream=stream, about=f"case {number}")

    upstream.play(Script(fault=the_third, n="refused"))
    with ThreadPoolExecutor(len(HANGING)) as pool:
        answers = list(pool.map(answer, range(len(HANGING))))
    upstream.wait_until_idle()
    assert {call.outcome for call in hung} == {"gone"}
    return answers


@pytest.mark.parametrize("number", range(len(HANGING)), ids=[str(case) for case in HANGING])
def test_one_call_hanging(answers_with_one_call_hanging: list[httpx.Response], number: int) -> None:
    assert_answered(answers_with_one_call_hanging[number], stream=HANGING[number][1])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("name", "code"), [*pairs([*ONE, *MANY], STATUSES), ("re2", 429)])
def test_when_nothing_lives_the_client_gets_the_providers_status(
    proxy: Proxy, upstream: Upstream, name: str, code: int, stream: bool
) -> None:
    upstream.play(Script(fault=always(Status(code, "sorry, no", retry_after="70"))))
    answer = ask(proxy, f"{name}-base", stream=stream)
    assert answer.status_code == code, answer.text[:500]
    assert "sorry, no" in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    # LiteLLM itself leaves the header out; of a stream, the headers have been written by then.
    if code == 429 and name != "none" and not stream:
        assert answer.headers["retry-after"] == "70"


@pytest.mark.parametrize(
    ("name", "fault", "stream"),
    [
        pytest.param(
            name, fault, stream, id=f"{name}-{fault!r}-{'streamed' if stream else 'whole'}"
        )
        for name, fault in pairs(("re2", "cot_reflection", *MANY), (NO_CHOICES, MALFORMED, CLOSED))
        for stream in (False, True)
        if not (stream and fault is NO_CHOICES)  # LiteLLM itself ends such a stream with "stop"
    ],
)
def test_an_error_is_never_told_as_an_answer(
    proxy: Proxy, upstream: Upstream, name: str, fault: Fault, stream: bool
) -> None:
    upstream.play(Script(fault=always(fault)))
    answer = ask(proxy, f"{name}-base", stream=stream)
    assert 500 <= answer.status_code < 505, answer.text[:500]
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["re2", "moa"])
def test_a_stream_that_breaks_after_it_began_ends_in_an_error_event(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    def last_call(call: Call) -> Fault | None:
        return CUT if call.streamed else None

    upstream.play(Script(reply=differing, fault=last_call))
    answer = ask(proxy, f"{name}-base", stream=True)
    assert answer.status_code == 200
    assert [event for event in events(answer) if "error" in event]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_plain_call_may_stand_in_and_says_so(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    def proposals(call: Call) -> Fault | None:
        """Fail the call for several choices, if there is one, and the three single ones."""
        before = [other for other in upstream.calls[: call.index] if other.body.get("n", 1) == 1]
        return Status(500) if call.body.get("n", 1) > 1 or len(before) < 3 else None

    upstream.play(Script(fault=proposals, n="ignored"))
    answer = ask(proxy, "plainly", stream=stream)
    assert_answered(answer, stream=stream)
    assert '"degraded":[]' not in answer.text.replace(" ", "")
    assert '"degraded"' in answer.text


def test_a_step_that_is_lost_is_in_the_report_and_the_header(
    proxy: Proxy, upstream: Upstream
) -> None:
    def critique(call: Call) -> Fault | None:
        return Status(500) if "Review each response" in call.text else None

    upstream.play(Script(reply=differing, fault=critique))
    answer = ask(proxy, "moa-base")
    assert answer.status_code == 200, answer.text
    assert answer.json()["optillm"]["degraded"] == ["critiques:1/1"]
    assert answer.headers["x-optillm-degraded"] == "critiques:1/1"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_nothing_to_show_at_the_deadline_is_a_504(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script(fault=always(HANG)))
    answer = ask(proxy, "hasty", stream=stream)
    assert answer.status_code == 504
    upstream.wait_until_idle()


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/messages": {
        "messages": [{"role": "user", "content": "What is 6 times 7?"}],
        "max_tokens": 99,
    },
    "/v1/responses": {"input": "What is 6 times 7?"},
    "/v1/completions": {"prompt": "What is 6 times 7?"},
}


LITELLM_BEGINS = ("/v1/messages", "/v1/responses")
"""Routes whose streams LiteLLM opens with an event of its own before it asks a custom provider."""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("name", "code"), pairs(["re2", "moa"], [401, 429, 500]))
@pytest.mark.parametrize("route", ROUTES)
def test_the_providers_status_on_every_route(
    proxy: Proxy, upstream: Upstream, route: str, name: str, code: int, stream: bool
) -> None:
    upstream.play(Script(fault=always(Status(code, "sorry, no"))))
    answer = proxy.post(route, {"model": f"{name}-base", "stream": stream, **ROUTES[route]})
    assert "sorry, no" in answer.text
    if stream and route in LITELLM_BEGINS:
        assert '"error"' in answer.text
    else:
        assert answer.status_code == code, answer.text[:500]
