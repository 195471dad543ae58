"""The harness itself, on a stock proxy: keys, ledger, spend, no network."""

from pathlib import Path

import pytest

from tests.proxy import PRICE, Proxy, copy_of, model_group, plain_config, whole_lines
from tests.upstream import Script, Upstream

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def proxy(stock: Proxy) -> Proxy:
    return stock


def ask(
    proxy: Proxy,
    model: str = "base",
    key: str | None = None,
    **fields: object,
) -> int:
    body = {"model": model, "messages": HI, **fields}
    return proxy.post("/v1/chat/completions", body, key=key).status_code


def test_the_master_key_is_answered(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    with proxy.openai() as client:
        answer = client.chat.completions.create(model="base", messages=HI)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "6 * 7 is 42.\nANSWER: 42"
    assert [call.headers["authorization"] for call in upstream.calls] == ["Bearer upstream-key"]


@pytest.mark.parametrize(
    ("key", "model", "statuses"),
    [
        ("sk-stranger", "base", [401]),
        ("sk-base-only", "base", [200]),
        ("sk-base-only", "other", [403]),
        ("sk-slow", "base", [200, 429]),
    ],
    ids=["unknown key", "its model", "another model", "requests per minute"],
)
def test_virtual_keys_are_held_to_their_rights(
    proxy: Proxy, upstream: Upstream, key: str, model: str, statuses: list[int]
) -> None:
    upstream.play(Script())
    assert [ask(proxy, model, key) for _ in statuses] == statuses
    assert len(upstream.calls) == statuses.count(200)


def test_a_spent_budget_is_refused(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    assert ask(proxy, key="sk-poor") == 200
    proxy.settle()
    refused = proxy.post("/v1/chat/completions", {"model": "base", "messages": HI}, key="sk-poor")
    assert (refused.status_code, refused.json()["error"]["type"]) == (422, "budget_exceeded")


@pytest.mark.parametrize("stream", [False, True])
def test_the_ledger_has_what_the_upstream_bills(
    proxy: Proxy, upstream: Upstream, stream: bool
) -> None:
    upstream.play(Script())
    key = copy_of("sk-all")
    for _ in range(3):
        assert ask(proxy, key=key, stream=stream) == 200
    bill = upstream.bill
    mine = proxy.booked(key)
    assert [(entry.status, entry.key_alias) for entry in mine] == [("success", "all")] * 3
    assert sum(entry.prompt_tokens for entry in mine) == bill.prompt_tokens
    assert sum(entry.cost for entry in mine) == pytest.approx(
        bill.cost(PRICE.prompt, PRICE.completion), rel=1e-12
    )


def test_a_failed_call_is_in_the_ledger_at_no_cost(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(n="refused"))
    key = copy_of("sk-all")
    assert ask(proxy, key=key, n=2) == 400
    proxy.wait_until(lambda p: bool(p.booked(key)))
    [failed] = proxy.booked(key)
    assert (failed.status, failed.key_alias, failed.cost) == ("failure", "all", 0.0)


def test_a_line_that_is_being_written_is_not_read_yet(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    seen = [whole_lines(file)]
    for piece in ("on", "e\n", "two\nth", "ree\n"):
        with file.open("a") as lines:
            lines.write(piece)
        seen.append(whole_lines(file))
    assert seen == [[], [], ["one"], ["one", "two"], ["one", "two", "three"]]


def test_the_footprint_is_that_of_a_live_process(proxy: Proxy) -> None:
    now = proxy.footprint
    assert 50e6 < now.rss_bytes < 5e9
    assert 0.1 < now.cpu_s < 500


def test_the_proxy_reaches_nothing_beyond_loopback(proxy: Proxy) -> None:
    assert proxy.blocked == []


def test_a_proxy_that_cannot_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.proxy._LITELLM", "raise SystemExit('no_such_module')")
    with (
        pytest.raises(AssertionError, match=r"the proxy ended with 1:\n.*no_such_module"),
        Proxy(plain_config([]), tmp_path, command=True),
    ):
        pass


def test_a_forked_proxy_that_ends_says_how(tmp_path: Path) -> None:
    config = plain_config([], callbacks=["no_such_module.callback"])
    with (
        pytest.raises(AssertionError, match=r"(?s)the proxy ended with \d+:\n.*no_such_module"),
        Proxy(config, tmp_path),
    ):
        pass


def test_a_second_fork_has_a_key_and_a_port_of_its_own(proxy: Proxy, tmp_path: Path) -> None:
    with Proxy(
        plain_config([model_group("only-here", "http://127.0.0.1:9/v1")]), tmp_path
    ) as second:
        url = f"{second.url}/v1/models"
        assert f"127.0.0.1:{second.port}" in second.log
        assert second.http.get(
            url, headers={"authorization": f"Bearer {proxy.master_key}"}
        ).is_error
        mine = second.http.get(url, headers={"authorization": f"Bearer {second.master_key}"})
        assert [model["id"] for model in mine.json()["data"]] == ["only-here", "mark"]
