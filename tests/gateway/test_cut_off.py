"""Calls that are cut off are booked on the caller's account, once, with their prompt's estimate."""

from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest

from optillm_hooks.gateway import cut_off
from tests.gateway.shared import hang_up
from tests.proxy import PRICE, Entry, Proxy, alias, copy_of, hooked_config, model_group
from tests.upstream import HANG, Script, Status, Upstream, always

OWNERS: dict[str, object] = {"user_id": "u", "team_id": "t", "org_id": "o", "end_user_id": "e"}
KEYS: dict[str, dict[str, object]] = {
    f"sk-{name}": {"models": [], "max_budget": 10.0, "key_alias": name, **OWNERS}
    for name in (
        "hung-whole",
        "hung-streamed",
        "late",
        "partly",
        "straggler",
        "refused",
        "twice",
        "again",
    )
}
QUESTION = "What is 6 times 7? Take all the time that you need for a careful answer."
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}]}
PROMPT = (15, 100)
"""Bounds of the estimate of the prompt's tokens."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    models = [
        model_group("base", upstream.url),
        model_group("first", upstream.url, num_retries=1),
        model_group("second", upstream.url),
        alias("second_chance", "re2", base="first"),
        alias("voted", "self_consistency(n=3)", base="single"),
        model_group("single", upstream.url, model="cerebras/single"),
        alias("late", "none", deadline_s=3.0),
    ]
    config = hooked_config(models)
    config["router_settings"]["fallbacks"] = [{"first": ["second"]}]
    with Proxy(config, tmp_path_factory.mktemp("proxy"), keys=KEYS) as running:
        yield running


def booked(proxy: Proxy, name: str, *, calls: int) -> Sequence[Entry]:
    """Return the entries of a key's inner calls, once there are as many as `calls`."""

    def entries() -> list[Entry]:
        return [e for e in proxy.entries if e.key_alias == name and e.origin == "optillm"]

    proxy.wait_until(lambda _: len(entries()) >= calls)
    proxy.settle()
    return entries()


def assert_prompt(entry: Entry) -> None:
    assert entry.status == "success"
    assert PROMPT[0] <= entry.prompt_tokens <= PROMPT[1]
    expected = entry.prompt_tokens * PRICE.prompt + entry.completion_tokens * PRICE.completion
    assert entry.cost == pytest.approx(expected)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_calls_under_way_when_the_client_hangs_up(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    name = f"hung-{'streamed' if stream else 'whole'}"
    upstream.play(Script(fault=always(HANG)))
    body = {"model": "voted", "stream": stream, **CHAT}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=2, key=f"sk-{name}")
    upstream.wait_until_idle()
    entries = booked(proxy, name, calls=3)
    assert len(entries) == 3
    for entry in entries:
        assert_prompt(entry)
        assert entry.completion_tokens == 0
        assert (entry.end_user, entry.model_group) == ("e", "single")
    assert proxy.charged(f"sk-{name}") == pytest.approx(sum(e.cost for e in entries))


def test_a_stream_that_is_closed_in_its_middle_is_booked_with_what_had_come(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=lambda *_: "word " * 1000, piece_s=0.02))
    body = {"model": "re2-base", "stream": True, **CHAT}
    headers = {"authorization": "Bearer sk-partly"}
    url = f"{proxy.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as response:
        words = 0
        for line in response.iter_lines():
            words += "word" in line
            if words == 10:
                break
    [entry] = booked(proxy, "partly", calls=1)
    assert entry.completion_tokens >= 8  # a token is about a word here
    assert proxy.charged("sk-partly") == pytest.approx(entry.cost)


def test_a_call_that_the_deadline_ends(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(fault=always(HANG)))
    answer = proxy.post("/v1/chat/completions", {"model": "late", **CHAT}, key="sk-late")
    assert answer.status_code == 504
    [entry] = booked(proxy, "late", calls=1)
    assert_prompt(entry)
    assert proxy.charged("sk-late") == pytest.approx(entry.cost)


def test_a_call_that_ends_by_itself_is_booked_once(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=lambda call, _: f"ANSWER: {call.index}"))  # each vote is needed
    for stream in (False, True):
        body = {"model": "voted", "stream": stream, **CHAT}
        assert proxy.post("/v1/chat/completions", body, key="sk-twice").status_code == 200
    cost = upstream.bill.cost(PRICE.prompt, PRICE.completion)
    entries = booked(proxy, "twice", calls=6)
    assert len(entries) == 6
    assert sum(entry.cost for entry in entries) == pytest.approx(cost)
    assert proxy.charged("sk-twice") == pytest.approx(cost)


def test_a_call_that_was_refused_or_never_sent_costs_nothing(
    proxy: Proxy, upstream: Upstream
) -> None:
    """Two calls hang and one is refused; those behind `max_parallel` were not sent."""
    upstream.play(Script(fault=lambda call: Status(500) if call.index == 1 else HANG))
    limits = {"max_parallel": 2}
    body = {"model": "self_consistency(n=5)-single", "optillm_limits": limits, **CHAT}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=2, key="sk-refused")
    upstream.wait_until_idle()
    entries = booked(proxy, "refused", calls=3)
    assert sorted(entry.status for entry in entries) == ["failure", "success", "success"]
    assert all((entry.cost > 0) == (entry.status == "success") for entry in entries)
    assert proxy.charged("sk-refused") == pytest.approx(sum(entry.cost for entry in entries))


@pytest.mark.parametrize(("failures", "model"), [(1, "first"), (2, "second")])
def test_only_the_attempt_under_way_is_booked_of_a_call_with_retries_and_fallbacks(
    proxy: Proxy, upstream: Upstream, failures: int, model: str
) -> None:
    key = copy_of("sk-again")
    upstream.play(Script(fault=lambda call: HANG if call.index == failures else Status(500)))
    body = {"model": "second_chance", **CHAT}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=failures, key=key)
    upstream.wait_until_idle()
    proxy.wait_until(lambda p: p.charged(key) > 0)
    [last] = [entry for entry in proxy.booked(key) if entry.cost]
    assert last.model_group == model
    assert_prompt(last)
    assert proxy.charged(key) == pytest.approx(last.cost)


def test_a_version_without_what_booking_needs_is_named_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cut_off.problem() is None
    monkeypatch.setattr(cut_off, "_UNKNOWN", ["dispatch_success_handlers"])
    assert "has no dispatch_success_handlers" in str(cut_off.problem())
