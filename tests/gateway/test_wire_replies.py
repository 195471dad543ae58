"""Whatever a provider answers in its own format, an alias gives what the plain model gives."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Final

import litellm
import pytest
from litellm.utils import custom_llm_setup
from openai.lib.streaming._deltas import accumulate_delta

from optillm_hooks.gateway import provider
from tests.wire import Wire, WireReply, anthropic_reply, gemini_reply, openai_reply, tools

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("litellm_in_this_loop")]

ASKED: Final = [{"role": "user", "content": "6 * 7?"}]
THOUGHT: Final = {"type": "thinking", "thinking": "6 * 7", "signature": "c2ln"}
CITED: Final = {
    "type": "url_citation",
    "url_citation": {"url": "http://a.test", "title": "a", "start_index": 0, "end_index": 2},
}
SIGNED_CALL: Final = {
    **tools(("1", "f", "{}"))[0],
    "extra_content": {"google": {"thought_signature": "c2ln"}},
}
FILTERED: Final = {"hate": {"filtered": True, "severity": "high"}}

CASES: dict[str, tuple[str, WireReply]] = {
    "text": ("openai", openai_reply({"content": "42"})),
    "refusal": ("openai", openai_reply({"content": None, "refusal": "I can't help"})),
    "refusal, content empty": ("openai", openai_reply({"content": "", "refusal": "I can't help"})),
    "refusal of another host": ("together_ai", openai_reply({"content": None, "refusal": "No."})),
    "filtered, null": ("openai", openai_reply({"content": None}, "content_filter")),
    "filtered, empty": ("openai", openai_reply({"content": ""}, "content_filter")),
    "filtered, partial": ("openai", openai_reply({"content": "The"}, "content_filter")),
    "filtered, with results": (
        "openai",
        openai_reply(
            {"content": ""}, "content_filter", choice={"content_filter_results": FILTERED}
        ),
    ),
    "answer, with filter results": (
        "openai",
        openai_reply({"content": "42"}, choice={"content_filter_results": {"hate": {}}}),
    ),
    "empty": ("openai", openai_reply({"content": ""})),
    "null": ("openai", openai_reply({"content": None})),
    "white space": ("openai", openai_reply({"content": " \n"})),
    "nothing but a finish reason": ("openai", openai_reply({"content": None}, deltas=[])),
    "used up by reasoning": (
        "deepseek",
        openai_reply({"content": None, "reasoning_content": "Hm, 6 * 7"}, "length"),
    ),
    "used up by hidden reasoning": (
        "openai",
        openai_reply(
            {"content": ""},
            "length",
            usage={
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "total_tokens": 12,
                "completion_tokens_details": {"reasoning_tokens": 5},
            },
        ),
    ),
    "used up in `reasoning`": (
        "groq",
        openai_reply(
            {"content": None, "reasoning": "Hm, 6 * 7"}, "length", service_tier="on_demand"
        ),
    ),
    "cut": ("openai", openai_reply({"content": "It is"}, "length")),
    "reasoning": (
        "deepseek",
        openai_reply(
            {"content": "42", "reasoning_content": "6 * 7"},
            deltas=[{"reasoning_content": "6 * "}, {"reasoning_content": "7"}, {"content": "42"}],
        ),
    ),
    "reasoning and text in one chunk": (
        "deepseek",
        openai_reply({"content": "42", "reasoning_content": "6 * 7"}),
    ),
    "`reasoning`": ("openrouter", openai_reply({"content": "42", "reasoning": "6 * 7"})),
    "`reasoning` and its details": (
        "openrouter",
        openai_reply(
            {
                "content": "42",
                "reasoning": "6 * 7",
                "reasoning_details": [{"type": "reasoning.text", "text": "6 * 7", "index": 0}],
            }
        ),
    ),
    "think tags": ("together_ai", openai_reply({"content": "<think>6 * 7</think>\n\n42"})),
    "a tool call": (
        "openai",
        openai_reply(
            {"content": None, "tool_calls": tools(("1", "f", '{"a": 1}'))},
            "tool_calls",
            [
                {"tool_calls": tools(("1", "f", ""))},
                {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
            ],
        ),
    ),
    "parallel tool calls": (
        "openai",
        openai_reply(
            {"content": None, "tool_calls": tools(("1", "f", '{"a": 1}'), ("2", "g", "{}"))},
            "tool_calls",
        ),
    ),
    "text and a tool call": (
        "openai",
        openai_reply({"content": "I look.", "tool_calls": tools(("1", "f", "{}"))}, "tool_calls"),
    ),
    "reasoning, text and tool calls": (
        "deepseek",
        openai_reply(
            {
                "content": "I look.",
                "reasoning_content": "Hm.",
                "tool_calls": tools(("1", "f", "{}"), ("2", "f", '{"a": 2}')),
            },
            "tool_calls",
        ),
    ),
    "a tool call with a signature": (
        "openai",
        openai_reply({"content": None, "tool_calls": [SIGNED_CALL]}, "tool_calls"),
    ),
    "parallel tool calls, the first with a signature": (
        "openai",
        openai_reply(
            {
                "content": None,
                "tool_calls": [SIGNED_CALL, tools(("1", "f", "{}"), ("2", "g", "{}"))[1]],
            },
            "tool_calls",
        ),
    ),
    "a tool call without arguments": (
        "openai",
        openai_reply({"content": None, "tool_calls": tools(("1", "f", ""))}, "tool_calls"),
    ),
    "a tool call with null arguments": (
        "openai",
        openai_reply({"content": None, "tool_calls": tools(("1", "f", None))}, "tool_calls"),
    ),
    "a tool call that ends with stop": (
        "together_ai",
        openai_reply({"content": None, "tool_calls": tools(("1", "f", "{}"))}, "stop"),
    ),
    "no tool calls, as a list": ("mistral", openai_reply({"content": "42", "tool_calls": []})),
    "no tool calls, as null": (
        "groq",
        openai_reply({"content": "42", "tool_calls": None}, service_tier="on_demand"),
    ),
    "a function call": (
        "openai",
        openai_reply(
            {"content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
            "function_call",
            [
                {"function_call": {"name": "f", "arguments": ""}},
                {"function_call": {"arguments": '{"a": '}},
                {"function_call": {"arguments": "1}"}},
            ],
        ),
    ),
    "a custom tool call": (
        "openai",
        openai_reply(
            {
                "content": None,
                "tool_calls": [
                    {"index": 0, "id": "1", "type": "custom", "custom": {"name": "f", "input": "x"}}
                ],
            },
            "tool_calls",
        ),
    ),
    "annotations": (
        "openai",
        openai_reply(
            {"content": "42", "annotations": [CITED]},
            deltas=[{"content": "42"}, {"annotations": [CITED]}],
        ),
    ),
    "audio": (
        "openai",
        openai_reply(
            {
                "content": None,
                "audio": {"id": "a", "data": "AAAA", "expires_at": 9, "transcript": "42"},
            },
            deltas=[
                {"audio": {"id": "a", "transcript": "4"}},
                {"audio": {"data": "AAAA"}},
                {"audio": {"transcript": "2"}},
                {"audio": {"expires_at": 9}},
            ],
        ),
    ),
    "images": (
        "openrouter",
        openai_reply(
            {
                "content": "",
                "images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,A"}}],
            }
        ),
    ),
    "no finish reason": ("openai", openai_reply({"content": "42"}, None)),
    "finish reason eos": ("together_ai", openai_reply({"content": "42"}, "eos")),
    "finish reason error": ("openrouter", openai_reply({"content": "42"}, "error")),
    "finish reason unknown": ("openai", openai_reply({"content": "42"}, "model_length_x")),
    "finish reason of an overloaded host": (
        "deepseek",
        openai_reply({"content": "42"}, "insufficient_system_resource"),
    ),
    "usage without details": (
        "openai",
        openai_reply(
            {"content": "42"},
            usage={
                "prompt_tokens": 7,
                "completion_tokens": 5,
                "total_tokens": 12,
                "prompt_tokens_details": None,
                "completion_tokens_details": None,
            },
        ),
    ),
    "usage with null counts": (
        "together_ai",
        openai_reply(
            {"content": "42"},
            usage={"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
        ),
    ),
    "logprobs null": (
        "openai",
        openai_reply({"content": "42"}, choice={"logprobs": {"content": None, "refusal": None}}),
    ),
    "unknown fields": (
        "openai",
        openai_reply({"content": "42", "padding": "x"}, choice={"matched_stop": 7}),
    ),
    "fields of the whole reply": (
        "openai",
        openai_reply({"content": "42"}, system_fingerprint="fp", service_tier="default"),
    ),
    "content in parts": (
        "mistral",
        openai_reply(
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "6 * 7"}]},
                    {"type": "text", "text": "42"},
                ]
            },
            deltas=[
                {
                    "content": [
                        {"type": "thinking", "thinking": [{"type": "text", "text": "6 * 7"}]}
                    ]
                },
                {"content": [{"type": "text", "text": "42"}]},
            ],
        ),
    ),
    "claude: text": (
        "anthropic",
        anthropic_reply([{"type": "text", "text": "42"}], "end_turn"),
    ),
    "claude: thinking": (
        "anthropic",
        anthropic_reply([THOUGHT, {"type": "text", "text": "42"}], "end_turn"),
    ),
    "claude: redacted thinking": (
        "anthropic",
        anthropic_reply(
            [{"type": "redacted_thinking", "data": "eA=="}, {"type": "text", "text": "42"}],
            "end_turn",
        ),
    ),
    "claude: thinking and tools": (
        "anthropic",
        anthropic_reply(
            [
                THOUGHT,
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "2", "name": "g", "input": {}},
            ],
            "tool_use",
        ),
    ),
    "claude: used up by thinking": ("anthropic", anthropic_reply([THOUGHT], "max_tokens")),
    "claude: nothing": ("anthropic", anthropic_reply([], "end_turn")),
    "claude: refusal": ("anthropic", anthropic_reply([], "refusal")),
    "claude: refusal in mid-sentence": (
        "anthropic",
        anthropic_reply([{"type": "text", "text": "First"}], "refusal"),
    ),
    "claude: stop sequence": (
        "anthropic",
        anthropic_reply([{"type": "text", "text": "42"}], "stop_sequence"),
    ),
    "claude: pause": (
        "anthropic",
        anthropic_reply([{"type": "text", "text": "I search."}], "pause_turn"),
    ),
    "claude: context used up": (
        "anthropic",
        anthropic_reply([{"type": "text", "text": "4"}], "model_context_window_exceeded"),
    ),
    "gemini: text": ("gemini", gemini_reply([{"text": "42"}], "STOP")),
    "gemini: thought": (
        "gemini",
        gemini_reply([{"text": "6 * 7", "thought": True}, {"text": "42"}], "STOP"),
    ),
    "gemini: a function call": (
        "gemini",
        gemini_reply([{"functionCall": {"name": "f", "args": {"a": 1}}}], "STOP"),
    ),
    "gemini: a function call with a signature": (
        "gemini",
        gemini_reply(
            [
                {"functionCall": {"name": "f", "args": {"a": 1}}, "thoughtSignature": "c2ln"},
                {"functionCall": {"name": "g", "args": {}}},
            ],
            "STOP",
        ),
    ),
    "gemini: no parts": ("gemini", gemini_reply([], "STOP")),
    "gemini: no content": ("gemini", gemini_reply(None, "STOP")),
    "gemini: used up by thinking": ("gemini", gemini_reply(None, "MAX_TOKENS")),
    "gemini: safety": ("gemini", gemini_reply(None, "SAFETY")),
    "gemini: recitation": ("gemini", gemini_reply(None, "RECITATION")),
    "gemini: prohibited": ("gemini", gemini_reply(None, "PROHIBITED_CONTENT")),
    "gemini: malformed call": ("gemini", gemini_reply(None, "MALFORMED_FUNCTION_CALL")),
    "gemini: other": ("gemini", gemini_reply(None, "OTHER")),
}


def _chunks(*choices: Mapping[str, Any] | None, **last: Any) -> list[Any]:
    """Return the events of a stream, of one chunk for each choice; None: a chunk without any."""
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events: list[Any] = [
        {**head, "choices": [] if choice is None else [{"index": 0, **choice}]}
        for choice in choices
    ]
    return [*events, {**head, "choices": [], **last}, "[DONE]"] if last else [*events, "[DONE]"]


def _delta(finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"delta": delta, "finish_reason": finish_reason}


USAGE: Final = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
STREAMS: Final[dict[str, tuple[str, list[Any]]]] = {
    "a chunk without choices first": (
        "openai",
        _chunks(None, _delta(role="assistant", content=""), _delta(content="42"), _delta("stop")),
    ),
    "a role in every chunk": (
        "together_ai",
        _chunks(
            _delta(role="assistant", content="4"),
            _delta(role="assistant", content="2"),
            _delta("stop", role="assistant", content=""),
        ),
    ),
    "text in the last chunk": (
        "mistral",
        _chunks(_delta(content="4"), _delta("stop", content="2")),
    ),
    "usage in the last chunk": (
        "deepseek",
        [
            *_chunks(_delta(content="42"))[:-1],
            _chunks(_delta("stop", content=""))[0] | {"usage": USAGE},
            "[DONE]",
        ],
    ),
    "usage in every chunk": (
        "openai",
        [
            event | {"usage": USAGE} if isinstance(event, dict) else event
            for event in _chunks(_delta(content="4"), _delta(content="2"), _delta("stop"))
        ],
    ),
    "finish reasons that are empty": (
        "openai",
        _chunks(_delta("", content="4"), _delta("", content="2"), _delta("stop"), usage=USAGE),
    ),
    "two finish reasons": (
        "openai",
        _chunks(_delta(content="42"), _delta("stop"), _delta("stop"), usage=USAGE),
    ),
    "no end": ("openai", _chunks(_delta(role="assistant"), _delta(content="42"))[:-1]),
    "null deltas": (
        "openai",
        _chunks(_delta(role="assistant", content=None), _delta(content="42"), _delta("stop")),
    ),
    "a tool call in one chunk with its end": (
        "openai",
        _chunks(_delta("tool_calls", tool_calls=tools(("1", "f", "{}")))),
    ),
    "an id in every chunk of a tool call": (
        "together_ai",
        _chunks(
            _delta(tool_calls=tools(("1", "f", '{"a"'))),
            _delta(tool_calls=[{"index": 0, "id": "1", "function": {"arguments": ": 1}"}}]),
            _delta("tool_calls"),
        ),
    ),
    "two tool calls in turn": (
        "openai",
        _chunks(
            _delta(tool_calls=tools(("1", "f", "{}"))),
            _delta(tool_calls=[tools(("1", "f", ""), ("2", "g", '{"a": '))[1]]),
            _delta(tool_calls=[{"index": 1, "function": {"arguments": "1}"}}]),
            _delta("tool_calls"),
        ),
    ),
    "two pieces of tool calls in one chunk": (
        "openai",
        _chunks(
            _delta(tool_calls=tools(("1", "f", ""), ("2", "g", ""))),
            _delta(
                tool_calls=[
                    {"index": 0, "function": {"arguments": "{}"}},
                    {"index": 1, "function": {"arguments": "{}"}},
                ]
            ),
            _delta("tool_calls"),
        ),
    ),
    "text and a tool call in one chunk": (
        "openai",
        _chunks(
            _delta(content="I look.", tool_calls=tools(("1", "f", "{}"))), _delta("tool_calls")
        ),
    ),
    "reasoning only": (
        "deepseek",
        _chunks(_delta(reasoning_content="6 * "), _delta(reasoning_content="7"), _delta("stop")),
    ),
    "reasoning again after text": (
        "deepseek",
        _chunks(
            _delta(reasoning_content="Hm."),
            _delta(content="4"),
            _delta(reasoning_content="So."),
            _delta(content="2"),
            _delta("stop"),
        ),
    ),
    "filter results before and after": (
        "openai",
        _chunks(
            None,
            _delta(content="4"),
            {**_delta("content_filter"), "content_filter_results": FILTERED},
        ),
    ),
}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with Wire() as running:
        yield running


@pytest.fixture
def router(
    request: pytest.FixtureRequest, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> Iterator[litellm.Router]:
    """A router of the host in the test's parameters, and of aliases over it."""
    handler = {"provider": "optillm", "custom_handler": provider}
    monkeypatch.setattr(litellm, "custom_provider_map", [handler])
    custom_llm_setup()
    name = request.getfixturevalue("name")
    if name in STREAMS:
        host, events = STREAMS[name]
        wire.play(WireReply({}, events))
    else:
        host, reply = CASES[name]
        wire.play(reply)
    made = litellm.Router(
        model_list=[
            _deployment("plain", f"{host}/m", wire.url),
            _deployment("reread", "optillm/re2/plain"),
            _deployment("voted", "optillm/majority_voting(n=3)/plain"),
        ],
        num_retries=0,
    )
    provider.use(made)
    yield made
    provider.use(None)


def _deployment(name: str, model: str, url: str | None = None) -> dict[str, Any]:
    given = {} if url is None else {"api_base": url, "api_key": "key"}
    return {"model_name": name, "litellm_params": {"model": model, **given}}


def said(response: Any) -> list[dict[str, Any]]:
    """Return the choices as a client sees them, without ids that LiteLLM makes up."""
    choices: list[dict[str, Any]] = response.model_dump(exclude_none=True)["choices"]
    for choice in choices:
        message = choice["message"]
        if "reasoning" in message:  # of Groq's, LiteLLM makes a `reasoning_content` in streams only
            message.setdefault("reasoning_content", message["reasoning"])
        # LiteLLM gives Claude's blocks twice.
        (message.get("provider_specific_fields") or {}).pop("thinking_blocks", None)
    return [without_nulls(choice) for choice in choices]


def without_nulls(value: Any) -> Any:
    """Return `value` without fields that are null, empty, or made up by LiteLLM."""
    if isinstance(value, Mapping):
        named = {k: v for k, v in value.items() if k not in ("id", "index", "role")}
        if named.get("type") in ("function", "custom"):
            del named["type"]
        kept = {k: without_nulls(v) for k, v in named.items()}
        return {k: v for k, v in kept.items() if v not in (None, "", {}, [])}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


async def assembled(chunks: AsyncIterator[Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the message that a client makes of a stream, by OpenAI's SDK, and finish reasons."""
    message: dict[Any, Any] = {}
    thinking: list[dict[str, Any]] = []
    finish: list[str] = []
    async for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta.model_dump(exclude_none=True)
            for call in delta.get("tool_calls", []):
                call.pop("type", None)  # LiteLLM repeats it in each chunk
            # LiteLLM gives Claude's blocks twice.
            (delta.get("provider_specific_fields") or {}).pop("thinking_blocks", None)
            for block in delta.pop("thinking_blocks", []):
                if block.get("signature") and not block.get("thinking"):
                    thinking[-1]["signature"] = block["signature"]
                else:
                    thinking.append(block)
            message = accumulate_delta(message, delta)
            finish += [choice.finish_reason] if choice.finish_reason else []
    return without_nulls({**message, "thinking_blocks": thinking}), finish


@pytest.mark.parametrize("name", CASES)
async def test_a_reply_is_the_plain_models(router: litellm.Router, wire: Wire, name: str) -> None:
    plain, reread, voted = [
        said(await router.acompletion(model=model, messages=ASKED))
        for model in ("plain", "reread", "voted")
    ]
    assert reread == plain
    assert voted == plain
    assert len(wire.calls) <= 1 + 1 + 3, name


@pytest.mark.parametrize("name", CASES)
async def test_a_streamed_reply_is_the_plain_models(
    router: litellm.Router, wire: Wire, name: str
) -> None:
    plain, reread, voted = [
        await assembled(await router.acompletion(model=model, messages=ASKED, stream=True))
        for model in ("plain", "reread", "voted")
    ]
    assert reread == plain
    [whole] = said(await router.acompletion(model="plain", messages=ASKED))
    assert voted == (whole.get("message", {}), [whole["finish_reason"]])
    assert len(wire.calls) <= 1 + 1 + 3 + 1, name


@pytest.mark.parametrize("name", STREAMS)  # which the router's fixture plays
async def test_a_stream_is_passed_on(router: litellm.Router, wire: Wire, name: str) -> None:
    plain, reread = [
        await assembled(await router.acompletion(model=model, messages=ASKED, stream=True))
        for model in ("plain", "reread")
    ]
    assert reread == plain
    assert len(wire.calls) == 2, name
