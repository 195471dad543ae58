"""memory, longcepo and compact over HTTP, on a model that refuses prompts beyond 8192 tokens."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from litellm import token_counter

from tests.documents import all_blocks
from tests.gateway.shared import hang_up
from tests.json_host import json_host
from tests.long_context.fakes import NEEDLE, QUESTION, haystack
from tests.proxy import (
    PRICE,
    Proxy,
    alias,
    copy_of,
    hooked_config,
    model_group,
    new_trace,
    traceparent,
)
from tests.upstream import Call, Script, Status, Upstream

WINDOW = 8192
DOCUMENT = haystack(16_000)
LONG = f"{DOCUMENT}\n\n{QUESTION}"
CHAT: Any = [{"role": "user", "content": LONG}]
KEYS: dict[str, dict[str, object]] = {
    "sk-anna": {"user_id": "anna", "team_id": "team"},
    "sk-ben": {"user_id": "ben", "team_id": "team"},
    "sk-poor": {"max_budget": 0.02},
}
STAGES = ("memory", "longcepo", "compact")


def too_long(call: Call) -> Status | None:
    """Refuse as vLLM does, by the count of the tokenizer that LiteLLM has for the model."""
    prompt = token_counter(model="small", text=call.text)
    if prompt + (call.body.get("max_tokens") or 1) <= WINDOW:
        return None
    return Status(
        400,
        f"This model's maximum context length is {WINDOW} tokens. However, your messages resulted "
        f"in {prompt} tokens. Please reduce the length of the messages.",
        error="context_length_exceeded",
    )


def reply(call: Call, _: int = 0) -> str:
    """Read, plan, extract and summarise honestly, and answer by what the prompt has."""
    text = call.text
    found = NEEDLE in text
    if "Note what this part says" in text:
        return json.dumps({"notes": [NEEDLE] if found else []})
    if "Summarise the part" in text:
        return json.dumps({"summary": "Entries of a ledger."})
    if "Name the sub-questions" in text:
        return json.dumps({"questions": [{"question": "Which gates are there?"}]})
    if "Extract what this part says" in text:
        return json.dumps({"relevant": found, "information": NEEDLE if found else ""})
    if "Answer it from them" in text:
        return json.dumps({"answer": "The north gate."})
    if "Summarise the messages" in text:
        return f"A ledger. {NEEDLE if found else ''}"
    return "heliotrope-71" if "heliotrope-71" in text else "I do not know."


HONEST = Script(reply=reply, fault=too_long)


def embed(_path: str, body: Any) -> tuple[int, Any]:
    """Return a vector for each text; two texts are alike if they have gates or not."""
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    data = [
        {"object": "embedding", "index": n, "embedding": [1.0, float("gate" in text)]}
        for n, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7 * len(texts), "total_tokens": 7 * len(texts)}
    return 200, {"object": "list", "model": "embedding", "data": data, "usage": usage}


@pytest.fixture(scope="module")
def embeddings() -> Iterator[str]:
    with json_host(embed) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, embeddings: str
) -> Iterator[Proxy]:
    small = {**model_group("small", upstream.url), "model_info": {"max_input_tokens": WINDOW}}
    embedding = {
        "model_name": "embedding",
        "litellm_params": {
            "model": "openai/embedding",
            "api_base": embeddings,
            "api_key": "none",
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 0.0,
        },
    }
    folder = tmp_path_factory.mktemp("proxy")
    config = hooked_config(
        [
            small,
            model_group("gpt-4o-mini", upstream.url),
            embedding,
            *(alias(f"{name}-alias", name, "small") for name in STAGES),
            alias("unbounded", "memory(max_parts=200)", "small", max_calls=420),
        ],
        optillm_settings={
            "memory": {"store": True, "embedding_model": "embedding"},
            "store": {"directory": str(folder / "kept")},
            "plan_calls": {"alias": 420},
        },
    )
    callbacks = [*config["litellm_settings"]["callbacks"], "tests.inside_proxy.holds"]
    config["litellm_settings"]["callbacks"] = callbacks
    with Proxy(config, folder, keys=KEYS) as running:
        yield running


def ask(proxy: Proxy, body: dict[str, Any], key: str | None = None, **more: Any) -> Any:
    response = proxy.post("/v1/chat/completions", body, key=key, timeout_s=300, **more)
    assert response.status_code == 200, response.text
    return response.json()


def test_half_a_million_tokens_over_a_model_that_reads_8k(proxy: Proxy, upstream: Upstream) -> None:
    """And others are answered meanwhile: the loop is held no longer than by the plain model."""
    text = f"{haystack(500_000)}\n\n{QUESTION}"
    assert token_counter(model="small", text=text) >= 500_000
    upstream.play(HONEST)
    plain = proxy.post(
        "/v1/chat/completions",
        {"model": "small", "messages": [{"role": "user", "content": text}]},
        timeout_s=300,
    )
    assert plain.status_code == 400
    begun = time.monotonic()
    longest = max(hold.cpu for hold in proxy.holds)
    upstream.play(HONEST)
    answer = ask(proxy, {"model": "unbounded", "messages": [{"role": "user", "content": text}]})
    assert answer["choices"][0]["message"]["content"] == "heliotrope-71"
    assert answer["optillm"]["degraded"] == []
    assert answer["optillm"]["depth"] == 2
    assert len(upstream.calls) == answer["optillm"]["calls"] > 90
    assert answer["usage"]["prompt_tokens"] == upstream.bill.prompt_tokens
    held = max(hold.cpu for hold in proxy.holds if hold.ended > begun)
    assert held <= longest + 0.3


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("route", ["chat", "messages", "responses"])
@pytest.mark.parametrize("name", STAGES)
def test_every_route(proxy: Proxy, upstream: Upstream, name: str, route: str, stream: bool) -> None:
    upstream.play(HONEST)
    model, asked = f"{name}-small", CHAT
    if name == "compact":
        model = "compact(threshold=0.3)-small"
        asked = [*turns(9, f"{route} {stream}"), {"role": "user", "content": QUESTION}]
    if route == "chat":
        text = _of_chat(proxy.openai(), model, asked, stream)
    elif route == "messages":
        text = _of_messages(proxy, model, asked, stream)
    else:
        text = _of_responses(proxy.openai(), model, asked, stream)
    assert text == "heliotrope-71"
    assert len(upstream.calls) == 2 or (name != "compact" and len(upstream.calls) > 3)


def _of_chat(client: openai.OpenAI, model: str, asked: Any, stream: bool) -> str:
    found: Any = client.chat.completions.create(model=model, messages=asked, stream=stream)
    if not stream:
        return str(found.choices[0].message.content)
    return "".join(c.choices[0].delta.content or "" for c in found if c.choices)


def _of_messages(proxy: Proxy, model: str, messages: Any, stream: bool) -> str:
    with anthropic.Anthropic(
        base_url=proxy.url, api_key=proxy.master_key, max_retries=0, timeout=60
    ) as client:
        asked: Any = {"model": model, "max_tokens": 500, "messages": messages}
        if stream:
            with client.messages.stream(**asked) as events:
                return "".join(events.text_stream)
        return str(client.messages.create(**asked).content[0].text)


def _of_responses(client: openai.OpenAI, model: str, asked: Any, stream: bool) -> str:
    if stream:
        with client.responses.stream(model=model, input=asked) as events:
            return "".join(e.delta for e in events if e.type == "response.output_text.delta")
    return client.responses.create(model=model, input=asked).output_text


@pytest.mark.parametrize("name", ["memory", "longcepo"])
def test_usage_and_spend_are_the_providers_bill(
    proxy: Proxy, upstream: Upstream, name: str
) -> None:
    upstream.play(HONEST)
    key = copy_of("sk-anna")
    answer = ask(proxy, {"model": f"{name}-alias", "messages": CHAT}, key)
    inner = [e for e in proxy.booked(key) if e.origin == "optillm"]
    embedded = [e for e in inner if e.model_group == "embedding"]
    bill = upstream.bill
    prompts = bill.prompt_tokens + sum(e.prompt_tokens for e in embedded)
    assert answer["usage"]["prompt_tokens"] == prompts
    assert answer["usage"]["completion_tokens"] == bill.completion_tokens
    cost = bill.cost(PRICE.prompt, PRICE.completion) + sum(e.cost for e in embedded)
    assert answer["optillm"]["cost_usd"] == pytest.approx(cost)
    assert sum(e.cost for e in inner) == pytest.approx(cost)


def test_embeddings_rank_notes_on_the_callers_account(proxy: Proxy, upstream: Upstream) -> None:
    def wordy(call: Call, choice: int) -> str:
        if "Note what this part says" not in call.text:
            return reply(call, choice)
        notes = [f"Entry {call.index}.{n}: {'so it is ' * 60}" for n in range(20)]
        return json.dumps({"notes": [*notes, NEEDLE] if NEEDLE in call.text else notes})

    upstream.play(Script(reply=wordy, fault=too_long))
    key, trace = copy_of("sk-anna"), new_trace()
    asked = {"model": "memory-small", "messages": CHAT}
    answer = ask(proxy, asked, key, headers=traceparent(trace))
    assert answer["choices"][0]["message"]["content"] == "heliotrope-71"
    assert answer["optillm"]["degraded"] == []
    embedded = [e for e in proxy.booked(trace) if e.model_group == "embedding"]
    assert embedded
    assert all(e.cost > 0 for e in embedded)
    assert answer["optillm"]["cost_usd"] == pytest.approx(
        upstream.bill.cost(PRICE.prompt, PRICE.completion) + sum(e.cost for e in embedded)
    )


def test_notes_belong_to_the_key(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(HONEST)
    short = {"model": "memory-small", "messages": [{"role": "user", "content": QUESTION}]}
    ask(proxy, {"model": "memory-small", "messages": CHAT}, "sk-anna")
    found = [
        ask(proxy, short, key)["choices"][0]["message"]["content"] for key in ("sk-anna", "sk-ben")
    ]
    assert found == ["heliotrope-71", "I do not know."]


def test_a_scope_without_an_owner_is_refused_before_any_call(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(HONEST)
    body = {"model": "memory(scope=team)-small", "messages": CHAT}
    response = proxy.post("/v1/chat/completions", body, key="sk-poor")
    assert response.status_code == 400
    assert "has no team" in response.json()["error"]["message"]
    assert not upstream.calls


def test_a_tag_may_not_name_what_keeps_notes(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(HONEST)
    text = f"<optillm_approach>memory</optillm_approach> {QUESTION}"
    answer = ask(proxy, {"model": "small", "messages": [{"role": "user", "content": text}]})
    assert "optillm" not in answer
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("name", STAGES)
def test_the_request_of_the_documentation(proxy: Proxy, upstream: Upstream, name: str) -> None:
    upstream.play(HONEST)
    shown = [b.text for b in all_blocks() if b.language == "json" and f'"model": "{name}' in b.text]
    [body] = map(json.loads, shown)
    assert ask(proxy, body)["choices"][0]["message"]["content"]


def turns(count: int, name: str) -> list[dict[str, Any]]:
    said = [
        [
            {
                "role": "user",
                "content": f"{name} {n}. {haystack(500) if n == 2 else 'x y z ' * 160}",
            },
            {"role": "assistant", "content": f"Done {n}."},
        ]
        for n in range(count)
    ]
    return [message for pair in said for message in pair]


def test_compact_with_optillms_fields_summarises_once_for_two_turns(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(HONEST)
    fields = {"compact_context_window": 6000, "compact_threshold": 0.5, "compact_keep_recent": 2}
    for calls in (2, 3):
        messages = [*turns(7, "First"), {"role": "user", "content": QUESTION}]
        answer = ask(proxy, {"model": "compact-small", "messages": messages, **fields})
        assert answer["choices"][0]["message"]["content"] == "heliotrope-71"
        assert len(upstream.calls) == calls
    last = upstream.calls[-1].messages
    assert last[-1]["content"].endswith(QUESTION)
    assert len(last) <= 4


def test_compact_runs_once_before_an_approach_of_several_calls(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(HONEST)
    messages = [*turns(9, "Second"), {"role": "user", "content": QUESTION}]
    body = {"model": "compact(threshold=0.3)&self_consistency(n=3)-small", "messages": messages}
    answer = ask(proxy, body)
    assert "heliotrope-71" in answer["choices"][0]["message"]["content"]
    summaries = [call for call in upstream.calls if "Summarise the messages" in call.text]
    assert len(summaries) == 1


def test_a_client_that_leaves_ends_the_reading(proxy: Proxy, upstream: Upstream) -> None:
    slow = Script(reply=reply, fault=too_long, latency_s=30)
    upstream.play(slow)
    body = {"model": "memory-small", "messages": CHAT}
    hang_up(proxy, upstream, "/v1/chat/completions", body, done=0)
    upstream.wait_until_idle()
    assert {call.outcome for call in upstream.calls} == {"gone"}


def test_a_deadline_and_a_budget_leave_an_answer(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(HONEST)
    limits = {"max_calls": 3}
    answer = ask(proxy, {"model": "memory-small", "messages": CHAT, "optillm_limits": limits})
    assert answer["choices"][0]["message"]["content"] == "heliotrope-71"
    assert answer["optillm"]["degraded"][0].startswith("parts:")
    assert len(upstream.calls) == 3
