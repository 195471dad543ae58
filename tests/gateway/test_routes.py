"""Every route, streamed and not, through the clients that people use."""

from typing import Any

import anthropic
import openai
import pytest

from optillm_hooks.types import TokenLogprob
from tests.proxy import Proxy
from tests.upstream import Call, Reply, Script, Upstream, differing

MODELS = (
    "re2-base",
    "cot_reflection-base",
    "bon-base",
    "moa-base",
    "self_consistency-base",
    "re2&moa-base",
    "careful",
)
QUESTION: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}]


@pytest.mark.parametrize("model", MODELS)
def test_chat(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=differing, reasoning_tokens=2, cached_tokens=3))
    raw = client.chat.completions.with_raw_response.create(model=model, messages=QUESTION)
    answer, bill = raw.parse(), upstream.bill
    assert "42" in (answer.choices[0].message.content or "")
    assert (answer.model, answer.object) == (model, "chat.completion")
    assert [choice.finish_reason for choice in answer.choices] == ["stop"]
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        bill.prompt_tokens,
        bill.completion_tokens,
    )
    assert usage.total_tokens == bill.total_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == bill.reasoning_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == bill.cached_tokens
    report = answer.optillm  # type: ignore[attr-defined]
    assert report["calls"] == len(upstream.calls) == int(raw.headers["x-optillm-calls"])
    assert report["approach"].startswith(raw.headers["x-optillm-approach"])
    assert "way" not in str(report)


@pytest.mark.parametrize("counted", [False, True], ids=["usage not asked for", "usage asked for"])
@pytest.mark.parametrize("model", MODELS)
def test_chat_streamed(
    client: openai.OpenAI, upstream: Upstream, model: str, counted: bool
) -> None:
    upstream.play(Script(reply=differing, reasoning_tokens=2, cached_tokens=3))
    options: Any = {"stream_options": {"include_usage": True}} if counted else {}
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=QUESTION, stream=True, **options
    )
    with raw.parse() as stream:
        chunks: list[Any] = list(stream)
    bill = upstream.bill
    assert raw.headers["x-optillm-approach"]
    assert {chunk.model for chunk in chunks} == {model}
    assert len({chunk.id for chunk in chunks}) == 1
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "42" in "".join(choice.delta.content or "" for choice in choices)
    assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"]
    assert [c.finish_reason for c in choices if c.finish_reason] == ["stop"]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == (
        [(bill.prompt_tokens, bill.completion_tokens)] if counted else []
    )
    reports = [chunk.optillm for chunk in chunks if hasattr(chunk, "optillm")]
    assert [report["calls"] for report in reports] == [len(upstream.calls)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["re2|cot_reflection-base", "moa|bon-base"])
@pytest.mark.parametrize("n", [1, 2])
def test_branches_are_choices_in_their_order(
    client: openai.OpenAI, upstream: Upstream, model: str, n: int, stream: bool
) -> None:
    upstream.play(Script(reply=differing))
    if stream:
        texts = dict.fromkeys(range(2 * n), "")
        ends: dict[int, str] = {}
        reports = []
        with client.chat.completions.create(
            model=model, messages=QUESTION, n=n, stream=True
        ) as chunks:
            for chunk in chunks:
                reports += [chunk.optillm] if hasattr(chunk, "optillm") else []
                for piece in chunk.choices:
                    texts[piece.index] += piece.delta.content or ""
                    if piece.finish_reason:
                        ends[piece.index] = piece.finish_reason
        assert len(reports) == 1
        assert ends == dict.fromkeys(range(2 * n), "stop")
    else:
        answer = client.chat.completions.create(model=model, messages=QUESTION, n=n)
        texts = {choice.index: choice.message.content or "" for choice in answer.choices}
        reports = [answer.optillm]  # type: ignore[attr-defined]
    assert list(texts) == list(range(2 * n))
    assert all("42" in text for text in texts.values())
    first, second = model.removesuffix("-base").split("|")
    assert reports[0]["choices"] == [first] * n + [second] * n


@pytest.mark.parametrize("model", MODELS)
def test_messages(claude: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=differing))
    raw = claude.messages.with_raw_response.create(
        model=model,
        max_tokens=500,
        system="Be brief.",
        messages=[{"role": "user", "content": "6 * 7?"}],
    )
    answer, bill = raw.parse(), upstream.bill
    assert "42" in "".join(block.text for block in answer.content if block.type == "text")
    assert (answer.model, answer.stop_reason) == (model, "end_turn")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        bill.prompt_tokens,
        bill.completion_tokens,
    )
    assert raw.headers["x-optillm-approach"]
    assert all("Be brief." in call.text for call in upstream.calls)


@pytest.mark.parametrize("model", MODELS)
def test_messages_streamed(claude: anthropic.Anthropic, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=differing))
    with claude.messages.stream(
        model=model, max_tokens=500, messages=[{"role": "user", "content": "6 * 7?"}]
    ) as stream:
        text = stream.get_final_text()
        answer = stream.get_final_message()
    bill = upstream.bill
    assert "42" in text
    assert (answer.model, answer.stop_reason) == (model, "end_turn")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        bill.prompt_tokens,
        bill.completion_tokens,
    )


@pytest.mark.parametrize("model", MODELS)
def test_responses(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=differing))
    raw = client.responses.with_raw_response.create(
        model=model, input="6 * 7?", instructions="Be brief."
    )
    answer, bill = raw.parse(), upstream.bill
    assert "42" in answer.output_text
    assert (answer.model, answer.status) == (model, "completed")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (
        bill.prompt_tokens,
        bill.completion_tokens,
    )
    assert raw.headers["x-optillm-approach"]
    assert all("Be brief." in call.text for call in upstream.calls)


@pytest.mark.parametrize("model", MODELS)
def test_responses_streamed(client: openai.OpenAI, upstream: Upstream, model: str) -> None:
    upstream.play(Script(reply=differing))
    with client.responses.create(model=model, input="6 * 7?", stream=True) as stream:
        events = list(stream)
    bill = upstream.bill
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert "42" in text
    [done] = [event.response for event in events if event.type == "response.completed"]
    assert done.model == model
    assert done.usage is not None
    assert (done.usage.input_tokens, done.usage.output_tokens) == (
        bill.prompt_tokens,
        bill.completion_tokens,
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_completions(client: openai.OpenAI, upstream: Upstream, model: str, stream: bool) -> None:
    upstream.play(Script(reply=differing))
    if stream:
        with client.completions.create(model=model, prompt="6 * 7?", stream=True) as chunks:
            seen = list(chunks)
        text = "".join(choice.text or "" for chunk in seen for choice in chunk.choices)
        assert {chunk.model for chunk in seen} == {model}
    else:
        answer = client.completions.create(model=model, prompt="6 * 7?")
        text, bill = answer.choices[0].text, upstream.bill
        assert answer.model == model
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
            bill.prompt_tokens,
            bill.completion_tokens,
        )
    assert "42" in text
    assert all(call.messages[-1]["role"] == "user" for call in upstream.calls)


def test_the_models_that_are_listed_are_the_configured_ones(client: openai.OpenAI) -> None:
    assert {"base", "careful"} <= {model.id for model in client.models.list()}


def listed_models(proxy: Proxy, route: str, name: str) -> dict[str, dict[str, Any]]:
    """Return what a route of LiteLLM's lists, by the field `name` of each entry."""
    master = {"authorization": f"Bearer {proxy.master_key}"}
    answer = proxy.http.get(f"{proxy.url}{route}", headers=master, timeout=60)
    return {each[name]: each for each in answer.json()["data"]}


def test_clients_see_what_an_aliass_base_can_do_and_no_price(proxy: Proxy) -> None:
    infos = listed_models(proxy, "/v1/model/info", "model_name")
    groups = listed_models(proxy, "/model_group/info", "model_group")
    openais = listed_models(proxy, "/v1/models", "id")
    both = [(infos["voted"]["model_info"], infos["gpt-4o-mini"]["model_info"])]
    both.append((groups["voted"], groups["gpt-4o-mini"]))
    for alias, base in both:
        skills = ("supports_vision", "supports_function_calling")
        for field in ("mode", "max_input_tokens", "max_output_tokens", *skills):
            assert alias[field] == base[field]
            assert alias[field]
        assert alias.get("input_cost_per_token") is None
        assert base["input_cost_per_token"] > 0
    fields = ("mode", "max_input_tokens", "max_output_tokens")
    assert [openais["voted"][f] for f in fields] == [openais["gpt-4o-mini"][f] for f in fields]
    asked = {"model": "voted", "input_tokens": 9, "output_tokens": 9}
    assert proxy.post("/cost/estimate", asked).json()["cost_per_request"] == 0  # docs/limits.md


WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", MODELS)
def test_tool_calls_come_through(
    client: openai.OpenAI, upstream: Upstream, model: str, stream: bool
) -> None:
    call = Reply(None, tool_calls=(("weather", '{"city": "Oslo"}'),))
    upstream.play(Script(reply=lambda *_: call))
    asked: Any = {"model": model, "messages": QUESTION, "tools": [WEATHER]}
    if stream:
        with client.chat.completions.stream(**asked) as pieces:
            choice: Any = pieces.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    [tool] = choice.message.tool_calls
    assert (tool.function.name, tool.function.arguments) == ("weather", '{"city": "Oslo"}')


@pytest.mark.parametrize("model", MODELS)
def test_a_conversation_with_images_and_tool_results_reaches_every_call(
    client: openai.OpenAI, upstream: Upstream, model: str
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    tool_call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    conversation: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [tool_call]},
        {"role": "tool", "tool_call_id": "c1", "content": "21 degrees"},
        {"role": "user", "content": "So?"},
    ]
    upstream.play(Script(reply=differing))
    client.chat.completions.create(model=model, messages=conversation)
    for made in upstream.calls:
        assert [m["role"] for m in made.messages[:4]] == ["system", "user", "assistant", "tool"]
        assert image in made.messages[1]["content"]
        assert made.messages[2]["tool_calls"] == [tool_call]
        assert made.messages[3]["tool_call_id"] == "c1"
        assert "So?" in made.text


def test_logprobs_and_reasoning_of_a_single_call_come_through(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    scored = TokenLogprob("42", -0.25, (("42", -0.25), ("41", -2.0)))
    upstream.play(Script(reply=lambda *_: Reply("42", reasoning="Hm.", logprobs=(scored,))))
    answer = client.chat.completions.create(
        model="re2-base", messages=QUESTION, logprobs=True, top_logprobs=2
    )
    [choice] = answer.choices
    assert choice.logprobs is not None
    [token] = choice.logprobs.content or []
    assert (token.token, token.logprob) == ("42", -0.25)
    assert [other.token for other in token.top_logprobs] == ["42", "41"]
    assert choice.message.reasoning_content == "Hm."  # type: ignore[attr-defined]


def test_the_first_piece_comes_before_the_last_is_made(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    upstream.play(Script(reply=lambda *_: "word " * 20, piece_s=0.1))
    with client.chat.completions.create(model="re2-base", messages=QUESTION, stream=True) as chunks:
        for chunk in chunks:
            if chunk.choices and chunk.choices[0].delta.content:
                assert upstream.alive
                break


def test_every_choice_of_a_streamed_text_completion_has_its_text_and_finish_reason(
    client: openai.OpenAI, upstream: Upstream
) -> None:
    def reply(call: Call, _: int) -> Reply:
        return Reply("six times seven", finish_reason="length" if call.index else "stop")

    upstream.play(Script(reply=reply))
    options: Any = {"stream_options": {"include_usage": True}}
    with client.completions.create(
        model="re2-base", prompt="6 * 7?", n=2, stream=True, **options
    ) as stream:
        chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.usage is None]
    for index in (0, 1):
        assert "".join(c.text for c in choices if c.index == index) == "six times seven"
    ends = [(c.index, c.finish_reason) for c in choices if c.finish_reason]
    assert {index for index, _ in ends} == {0, 1}
    assert sorted(reason for _, reason in ends) == ["length", "stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.total_tokens == upstream.bill.total_tokens


UNSERVED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/embeddings", {"input": "hi"}),
    ("/v1/embeddings", {"input": "hi", "encoding_format": "base64"}),
    ("/v1/images/generations", {"prompt": "x"}),
    ("/v1/audio/speech", {"input": "x", "voice": "alloy"}),
    ("/v1/moderations", {"input": "x"}),
    ("/v1/rerank", {"query": "x", "documents": ["a"]}),
    ("/v1beta/models/{model}:generateContent", {"contents": []}),
    ("/v1beta/models/{model}:streamGenerateContent", {"contents": []}),
    ("/v1/ocr", {"document": {"type": "document_url", "document_url": "http://x"}}),
    ("/v1/videos", {"prompt": "x"}),
    ("/v1/responses/compact", {"input": "x"}),
    ("/v1/interactions", {"input": "x"}),
]


@pytest.mark.parametrize(("path", "body"), UNSERVED)
@pytest.mark.parametrize("model", ["careful", "re2-base"])
def test_a_route_without_chat_completions_says_so(
    proxy: Proxy, upstream: Upstream, path: str, body: dict[str, Any], model: str
) -> None:
    upstream.play(Script())
    answer = proxy.post(path.format(model=model), {"model": model, **body})
    assert answer.status_code in (400, 404), answer.text
    if answer.status_code == 400:
        assert "call its base model on this route" in answer.json()["error"]["message"]
    assert upstream.calls == []


def test_openais_client_gets_a_bad_request_for_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="only answers on /v1/chat/completions"):
        client.embeddings.create(model="careful", input="hi")


def test_openais_client_gets_a_bad_request_for_a_file(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="only answers on /v1/chat/completions"):
        client.audio.transcriptions.create(model="careful", file=("a.wav", b"RIFF"))


def test_a_health_check_of_an_alias_checks_its_plan_and_calls_no_model(
    proxy: Proxy, upstream: Upstream
) -> None:
    upstream.play(Script())
    master = {"authorization": f"Bearer {proxy.master_key}"}
    health = proxy.http.get(f"{proxy.url}/health", headers=master, timeout=60).json()
    healthy, unhealthy = (
        {found["model"] for found in health[f"{kind}_endpoints"]}
        for kind in ("healthy", "unhealthy")
    )
    called = [call.body["model"] for call in upstream.calls]
    assert {"optillm/self_consistency(n=3)/base", "optillm/re2/base"} <= healthy
    assert {"optillm/re2(/base", "optillm/re2/no-such-model", "optillm/bon(n=0)/base"} <= unhealthy
    assert "optillm/*" not in healthy | unhealthy
    assert {"base", "gpt-4o-mini"} <= set(called)
    assert len(called) == len(set(called))


def test_no_client_can_pass_for_a_health_check(proxy: Proxy, upstream: Upstream) -> None:
    upstream.play(Script())
    body = {"tags": ["litellm-internal-health-check"]}
    answer = proxy.openai().chat.completions.create(
        model="careful",
        messages=[{"role": "user", "content": "?"}],
        extra_body={"metadata": body, "litellm_metadata": body},
    )
    assert answer.choices[0].message.content
    assert upstream.calls


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asked", ["messages", "input"])
@pytest.mark.parametrize("model", ["reread", "re2-single"])
def test_litellms_route_for_cursor_runs_the_plan(
    proxy: Proxy, upstream: Upstream, model: str, asked: str, stream: bool
) -> None:
    """Cursor sends the responses API's `input` there in its agent mode, otherwise `messages`."""
    upstream.play(Script())
    body = {"model": model, asked: [{"role": "user", "content": "6 * 7?"}], "stream": stream}
    answer = proxy.post("/cursor/chat/completions", body)
    assert answer.status_code == 200, answer.text
    assert "42" in answer.text
    assert [call.text.count("6 * 7?") for call in upstream.calls] == [2]
