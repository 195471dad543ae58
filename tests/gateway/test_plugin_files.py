"""Plugin files of OptiLLM in the real proxy: loaded, run and billed as they are."""

import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.gateway.shared import hang_up
from tests.plugin_files.written import BROKEN, GOOD, write
from tests.proxy import Proxy, alias, hooked_config, model_group
from tests.upstream import HANG, Call, Reply, Script, Upstream, always

ANSWERS = ("41", "42", "42", "43")
MESSAGES: list[Any] = [{"role": "user", "content": "6 * 7?"}]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Proxy]:
    plugins = write(tmp_path_factory.mktemp("plugins"), {**GOOD, **BROKEN})
    models = [
        model_group("base", upstream.url),
        model_group(
            "claude", upstream.url.removesuffix("/v1"), model="anthropic/claude-sonnet-4-5"
        ),
        alias("voted", "votes(k=3)"),
    ]
    config = hooked_config(models, optillm_settings={"plugins_dir": str(plugins)})
    with Proxy(config, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with proxy.openai() as made:
        yield made


def in_turn(call: Call, choice: int) -> Reply:
    return Reply(ANSWERS[(call.index + choice) % len(ANSWERS)])


def test_the_proxy_starts_and_says_what_is_wrong_with_each_broken_file(proxy: Proxy) -> None:
    lines = [line for line in proxy.log.splitlines() if "optillm: plugin " in line]
    # g_twice takes the slug of lists.py, which is read after it.
    wrong = [*(name for name in BROKEN if name != "g_twice.py"), "lists.py"]
    assert len(lines) == len(wrong)
    for name in wrong:
        assert any(name in line and "ERROR" in line for line in lines)
    assert "voted" in proxy.http.get(f"{proxy.url}/v1/models", headers=key(proxy)).text


def key(proxy: Proxy) -> dict[str, str]:
    return {"authorization": f"Bearer {proxy.master_key}"}


@pytest.mark.parametrize("model", ["voted", "votes-base"])
def test_a_plugin_answers_by_alias_and_by_prefix(
    client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    upstream.play(Script(reply=in_turn))
    body: dict[str, Any] = {} if model == "voted" else {"k": 3}
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        temperature=0.3,
        extra_body=body,
    )
    assert answer.choices[0].message.content == "42"
    report = (answer.model_extra or {})["optillm"]
    assert (report["approach"], report["calls"]) == (
        "votes(k=3)" if model == "voted" else "votes", len(upstream.calls)
    )  # fmt: skip
    assert answer.usage
    assert answer.usage.completion_tokens == sum(
        c.told.completion_tokens for c in upstream.calls if c.told
    )
    assert {call.body["temperature"] for call in upstream.calls} == {0.3}
    assert all("k" not in call.body for call in upstream.calls)


def test_any_field_of_optillm_reaches_the_plugin_and_no_provider(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.play(
        Script(reply=lambda call, _: "BEST CANDIDATE: 3" if call.body.get("max_tokens") else "x")
    )
    answer = client.chat.completions.create(
        model="selects-base",
        messages=MESSAGES,
        extra_body={"num_candidates": 3, "comparison_mode": "batch", "spl_learning": True},
    )
    assert answer.choices[0].message.content == "x"
    judged = upstream.calls[-1]
    assert judged.text.count("=== Candidate") == 3
    for call in upstream.calls:
        assert not {"num_candidates", "comparison_mode", "spl_learning"} & set(call.body)


@pytest.mark.parametrize("name", ["in_its_own_loop", "legacy", "passes", "votes"])
def test_a_stream_has_the_whole_answer(
    client: openai.OpenAI, upstream: Upstream, name: str
) -> None:
    upstream.play(Script(reply=lambda *_: "well\n42"))
    chunks: Any = client.chat.completions.create(
        model=f"{name}-base",
        messages=MESSAGES,
        stream=True,
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ("well\n42 / well\n42" if name == "in_its_own_loop" else "well\n42")


def test_a_plugin_over_claude_on_the_messages_route(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=lambda *_: "well\n42"))
    with anthropic.Anthropic(base_url=proxy.url, api_key=proxy.master_key) as claude:
        message = claude.messages.create(
            model="votes-claude",
            max_tokens=99,
            messages=MESSAGES,
            system="Be brief.",
        )
    assert [b.text for b in message.content if b.type == "text"] == ["well\n42"]
    assert all(c.to_anthropic and c.messages[0]["role"] == "system" for c in upstream.calls)


def test_a_plugin_on_the_responses_route(client: openai.OpenAI, upstream: Upstream) -> None:
    upstream.play(Script(reply=lambda *_: "well\n42"))
    response = client.responses.create(model="legacy-base", input="6 * 7?")
    assert response.output_text == "well\n42"


def test_parameters_cannot_send_a_call_elsewhere(client: openai.OpenAI, upstream: Upstream) -> None:
    """The plugin hands its whole `request_config` to the client, as many do."""
    upstream.play(Script(reply=lambda *_: "here"))
    answer = client.chat.completions.create(
        model="passes-base",
        messages=MESSAGES,
        extra_body={
            "optillm_params": {
                "passes": {
                    "api_base": "http://127.0.0.1:9/v1", "api_key": "sk-other",
                    "fallbacks": ["other"], "mock_response": "mocked", "top_k": 3,
                    "extra_body": {"model": "dearer", "min_p": 0.1},
                }
            }
        },
    )  # fmt: skip
    assert answer.choices[0].message.content == "here"
    [call] = upstream.calls
    assert (call.body["model"], call.body["top_k"]) == ("base", 3)
    assert call.headers["authorization"] == "Bearer upstream-key"


def test_a_client_that_goes_away_ends_a_plugin_that_catches_everything(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script(reply=in_turn, fault=always(HANG)))
    body = {"model": "stubborn-base", "messages": MESSAGES}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=0)
    upstream.wait_until_idle()
    made = len(upstream.calls)
    upstream.play(Script(reply=in_turn))
    time.sleep(0.2)
    assert not upstream.calls, f"it goes on after {made} calls"


def test_a_deadline_ends_a_plugin_with_a_status(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script(reply=in_turn, fault=always(HANG)))
    body = {
        "model": "stubborn-base",
        "messages": MESSAGES,
        "optillm_limits": {"deadline_s": 0.3},
    }
    answer = proxy.post("/v1/chat/completions", body)
    assert answer.status_code == 504, answer.text
