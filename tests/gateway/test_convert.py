"""OpenAI and LiteLLM objects to our types and back, with nothing lost."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litellm.types.utils import ModelResponse, ModelResponseStream

from optillm_hooks.answers.deltas import DeltaAccumulator, as_delta
from optillm_hooks.errors import ProviderFailed, RequestRejected
from optillm_hooks.gateway.convert import (
    read_completions,
    read_delta,
    read_finish_reason,
    read_sampling,
    read_usage,
    write_chunk,
    write_response,
    write_sampling,
    write_usage,
)
from optillm_hooks.messages import read_chat, write_chat
from optillm_hooks.types import (
    Answer,
    Completion,
    Delta,
    FinishReason,
    Json,
    Message,
    Sampling,
    TokenLogprob,
    ToolCall,
    Usage,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*`ReadOnly`:UserWarning")  # LiteLLM's own types

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be terse.", "cache_control": {"type": "ephemeral"}},
    {"role": "developer", "content": [{"type": "text", "text": "x"}]},
    {
        "role": "user",
        "name": "u",
        "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:,x", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}},
            {"type": "file", "file": {"file_id": "f"}},
        ],
    },
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
    {"role": "tool", "content": "a result", "tool_call_id": "1"},
    {"role": "function", "content": "old form", "name": "f"},
    {"role": "assistant", "content": "", "refusal": None},
    {"role": "user", "content": []},
]


def test_a_conversation_survives_the_way_there_and_back() -> None:
    assert write_chat(read_chat(CHAT)) == CHAT


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
messages = st.builds(
    lambda role, content, others: {**others, "role": role, "content": content},
    st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
    st.none()
    | st.text(max_size=9)
    | st.lists(st.dictionaries(st.text(max_size=4), json_values), max_size=3),
    st.dictionaries(st.text(max_size=9), json_values, max_size=3),
)


@given(st.lists(messages, min_size=1, max_size=4))
def test_any_valid_conversation_does(chat: list[dict[str, Any]]) -> None:
    assert write_chat(read_chat(chat)) == chat


@pytest.mark.parametrize(
    ("bad", "param", "message"),
    [
        pytest.param(None, "messages", "at least one", id="none"),
        pytest.param([], "messages", "at least one", id="empty"),
        pytest.param("hi", "messages", "must be a list", id="a text"),
        pytest.param({"role": "user"}, "messages", "must be a list", id="an object"),
        pytest.param(["hi"], "messages[0]", "must be an object", id="texts"),
        pytest.param([{"content": "x"}], "messages[0].role", "must be one of", id="no role"),
        pytest.param(
            [{"role": "robot"}], "messages[0].role", "must be one of assistant", id="role"
        ),
        pytest.param(
            [{"role": ["user"]}], "messages[0].role", "must be one of", id="a list as role"
        ),
        pytest.param([{"role": {}}], "messages[0].role", "must be one of", id="an object as role"),
        pytest.param(
            [{"role": "user", "content": 5}], "messages[0].content", "string or", id="number"
        ),
        pytest.param(
            [{"role": "user", "content": {"text": "x"}}],
            "messages[0].content",
            "string or",
            id="object",
        ),
        pytest.param(
            [CHAT[0], {"role": "user", "content": ["x"]}],
            "messages[1].content",
            "list of content parts",
            id="a list of texts",
        ),
    ],
)
def test_a_bad_conversation_is_refused_and_says_where(
    bad: object, param: str, message: str
) -> None:
    with pytest.raises(RequestRejected, match=message) as caught:
        read_chat(bad)
    assert caught.value.param == param


FIELDS: dict[str, Json] = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
    "logit_bias": {"5": 1},
    "top_k": 40,
    "user": "u",
    "a_providers_own": {"x": 1},
}


def test_every_field_of_a_request_has_its_place() -> None:
    own = {"temperature": 0.0, "top_p": 0.9, "max_tokens": 5, "stop": ["a", "b"], "seed": 0}
    sampling = read_sampling({**own, **FIELDS})
    assert sampling == Sampling(
        temperature=0.0, top_p=0.9, max_tokens=5, stop=("a", "b"), seed=0, fields=FIELDS
    )
    assert write_sampling(sampling) == {**own, **FIELDS}


@pytest.mark.parametrize(
    ("params", "sampling"),
    [
        pytest.param({}, Sampling(), id="nothing"),
        pytest.param({"stop": "END"}, Sampling(stop=("END",)), id="one stop as a text"),
        pytest.param({"stop": []}, Sampling(stop=()), id="no stops"),
        pytest.param({"max_completion_tokens": 7}, Sampling(max_tokens=7), id="the new name"),
        pytest.param(
            {"max_completion_tokens": 7, "max_tokens": 5}, Sampling(max_tokens=7), id="both names"
        ),
        pytest.param({"temperature": None, "top_k": None}, Sampling(), id="null is nothing"),
        pytest.param(
            {"n": 3, "stream": True, "stream_options": {}, "model": "x", "messages": []},
            Sampling(),
            id="what is not sampling",
        ),
        pytest.param(
            {"api_key": "k", "api_base": "http://x", "base_url": "http://x", "metadata": {"a": 1}},
            Sampling(),
            id="where a call goes is for the router to say",
        ),
    ],
)
def test_fields_of_sampling(params: dict[str, Any], sampling: Sampling) -> None:
    assert read_sampling(params) == sampling


@pytest.mark.parametrize(
    "field",
    [
        *("base_model", "cache", "custom_llm_provider", "fallbacks", "guardrails", "headers"),
        *("input_cost_per_token", "litellm_call_id", "litellm_made_up", "mock_response"),
        *("mock_testing_fallbacks", "model_info", "num_retries", "specific_deployment", "timeout"),
        *("allowed_openai_params", "default_headers", "_private"),
    ],
)
def test_a_field_by_which_litellm_is_steered_does_not_reach_the_inner_calls(field: str) -> None:
    assert read_sampling({field: "x", "top_k": 3}) == Sampling(fields={"top_k": 3})


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": [1]}, "top_p"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "-1"}, "max_completion_tokens"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": float("inf")}, "top_p"),
        ({"seed": "s"}, "seed"),
        ({"seed": [1]}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stop": ["a", 1]}, "stop"),
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_is_the_callers_fault(params: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestRejected, match=f"^{field} must be") as caught:
        read_sampling(params)
    assert caught.value.param == field


def test_only_one_name_of_the_token_limit_is_sent() -> None:
    sent = write_sampling(read_sampling({"max_completion_tokens": 7, "max_tokens": 5}))
    assert sent == {"max_tokens": 7}


@pytest.mark.parametrize("name", ["max_output_tokens", "max_new_tokens", "num_predict"])
def test_a_provider_s_name_of_the_token_limit_cannot_raise_that_of_a_call(name: str) -> None:
    sampling = read_sampling({name: 5000})
    assert sampling == Sampling(max_tokens=5000)
    assert write_sampling(replace(sampling, max_tokens=9)) == {"max_tokens": 9}
    assert write_sampling(read_sampling({"max_tokens": 7, name: 5000})) == {"max_tokens": 7}


def test_the_number_of_choices_of_a_call_is_not_for_the_client_to_say() -> None:
    assert read_sampling({"n": 50}) == Sampling()


def test_fields_in_extra_body_do_not_override_those_of_a_call() -> None:
    nested = {
        "max_tokens": 5000,
        "temperature": 0.3,
        "n": 1,
        "model": "other",
        "messages": [],
        "top_k": 5,
    }
    read = read_sampling({"extra_body": nested})
    assert read == Sampling(max_tokens=5000, temperature=0.3, fields={"extra_body": {"top_k": 5}})
    assert read_sampling({"max_tokens": 7, "extra_body": {"max_tokens": 5000}}) == Sampling(
        max_tokens=7
    )
    with pytest.raises(RequestRejected, match=r"^max_tokens must be"):
        read_sampling({"extra_body": {"max_tokens": "many"}})


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [-1, 0])
def test_no_limit_of_tokens_is_sent_as_it_came_unless_a_call_has_a_limit(
    name: str, value: int
) -> None:
    sampling = read_sampling({name: value})
    assert sampling.max_tokens is None
    assert write_sampling(sampling) == {name: value}
    assert write_sampling(replace(sampling, max_tokens=9)) == {"max_tokens": 9}


def test_no_stop_is_sent_as_nothing() -> None:
    assert write_sampling(Sampling(stop=())) == {}


@pytest.mark.parametrize(
    ("reason", "read"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool_calls"),
        ("content_filter", "content_filter"),
        ("function_call", "function_call"),
        ("eos", "stop"),
        (None, "stop"),
    ],
)
def test_finish_reasons(reason: str | None, read: FinishReason) -> None:
    assert read_finish_reason(reason) == read


def response(*choices: dict[str, Any], **fields: Any) -> ModelResponse:
    return ModelResponse(choices=list(choices), **fields)


def choice(index: int = 0, reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {"index": index, "finish_reason": reason, "message": {"role": "assistant", **message}}


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 7,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def test_choices_are_read_and_the_first_carries_the_usage() -> None:
    found = read_completions(
        response(choice(content="a"), choice(1, "length", content="b"), usage=USAGE), 0.5
    )
    assert [(c.text, c.finish_reason) for c in found] == [("a", "stop"), ("b", "length")]
    assert found[0].usage == Usage(
        calls=1,
        prompt_tokens=9,
        completion_tokens=7,
        reasoning_tokens=3,
        cached_tokens=4,
        cost_usd=0.5,
    )
    assert found[1].usage == Usage()


def test_a_reply_without_usage_is_one_call_of_unknown_length() -> None:
    assert read_usage(None, 0.0) == Usage(calls=1)
    [found] = read_completions(response(choice(content="a")), 0.0)
    assert found.usage.calls == 1


def test_content_of_a_reply_is_kept() -> None:
    [found] = read_completions(
        response(
            choice(
                reason="tool_calls",
                content=None,
                tool_calls=[CALL],
                reasoning_content="hm",
                annotations=[{"type": "url_citation"}],
            )
        ),
        0.0,
    )
    assert (found.text, found.reasoning, found.finish_reason) == ("", "hm", "tool_calls")
    assert found.tool_calls == (ToolCall("1", "f", '{"a": 1}'),)
    assert found.fields["annotations"] == [{"type": "url_citation"}]
    assert not found.empty


@pytest.mark.parametrize("content", [None, ""])
def test_a_reply_without_content_is_empty(content: str | None) -> None:
    [found] = read_completions(response(choice(content=content)), 0.0)
    assert found.empty


FINISH: list[FinishReason] = ["stop", "length", "tool_calls", "content_filter"]
WORDS = st.text(min_size=1, max_size=6)
LOGPROBS = st.builds(
    TokenLogprob,
    WORDS,
    st.floats(-9, 0),
    st.lists(st.tuples(WORDS, st.floats(-9, 0)), max_size=2).map(tuple),
)
THOUGHT: Json = {"type": "thinking", "thinking": "hm", "signature": "s"}
ANSWERS = st.builds(
    Answer,
    WORDS,
    st.sampled_from(FINISH),
    st.text(max_size=6),
    st.lists(st.builds(ToolCall, WORDS, WORDS, WORDS), max_size=2).map(tuple),
    st.lists(LOGPROBS, max_size=2).map(tuple),
    st.sampled_from([{}, {"refusal": "no"}, {"thinking_blocks": [THOUGHT]}]),
)


def answer_of(found: Completion) -> Answer:
    fields = {k: v for k, v in found.fields.items() if k != "provider_specific_fields"}
    return Answer(
        found.text, found.finish_reason, found.reasoning, found.tool_calls, found.logprobs, fields
    )


@settings(max_examples=40)
@given(st.lists(ANSWERS, min_size=1, max_size=3))
def test_answers_survive_the_way_there_and_back(answers: list[Answer]) -> None:
    usage = Usage(
        calls=5, prompt_tokens=9, completion_tokens=7, reasoning_tokens=3, cached_tokens=4
    )
    written = write_response(ModelResponse(), answers, usage, "moa-base")
    assert written.model == "moa-base"
    assert [c.index for c in written.choices] == list(range(len(answers)))
    found = read_completions(written, 0.0)
    assert [answer_of(completion) for completion in found] == answers
    assert found[0].usage == Usage(
        calls=1, prompt_tokens=9, completion_tokens=7, reasoning_tokens=3, cached_tokens=4
    )


def test_an_answer_without_text_is_null_only_beside_tool_calls() -> None:
    answers = [
        Answer("", "length"),
        Answer("", "tool_calls", tool_calls=(ToolCall("1", "f", "{}"),)),
    ]
    written = write_response(ModelResponse(), answers, Usage(), "m")
    assert [c.message.content for c in written.choices] == ["", None]


ABSURD = [-1, -(10**30), 2**40, 10**400, 1.5, float("nan"), float("inf"), True, "7", [7]]


class Told:
    """An object with what a provider reports, as it is."""

    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


@pytest.mark.parametrize("value", ABSURD, ids=lambda v: str(v)[:8])
def test_a_usage_with_an_absurd_number_is_none(value: object) -> None:
    good = {"prompt_tokens": 9, "completion_tokens": 7}
    details = Told(reasoning_tokens=value, cached_tokens=value)
    for told in (
        {**good, "prompt_tokens": value},
        {**good, "completion_tokens": value},
        {**good, "completion_tokens_details": details},
        {**good, "prompt_tokens_details": details},
    ):
        assert read_usage(Told(**told), 0.5) == Usage(calls=1)


@pytest.mark.parametrize("cost", [-0.5, float("nan"), float("inf"), True], ids=str)
def test_a_usage_with_an_absurd_price_is_none(cost: float) -> None:
    assert read_usage(Told(prompt_tokens=9, completion_tokens=7), cost) == Usage(calls=1)


def test_usage_is_written_whole() -> None:
    usage = Usage(
        calls=2, prompt_tokens=9, completion_tokens=7, reasoning_tokens=3, cached_tokens=4
    )
    written = write_usage(usage).model_dump()
    assert (written["prompt_tokens"], written["completion_tokens"], written["total_tokens"]) == (
        9,
        7,
        16,
    )
    assert written["prompt_tokens_details"]["cached_tokens"] == 4
    assert written["completion_tokens_details"]["reasoning_tokens"] == 3


@settings(max_examples=40)
@given(ANSWERS)
def test_a_streamed_answer_survives_the_way_there_and_back(answer: Answer) -> None:
    chunk = write_chunk({0: as_delta(answer)}, stream_id="chatcmpl-1", model="moa-base", role=True)
    assert (chunk.id, chunk.model, chunk.choices[0].delta.role) == (
        "chatcmpl-1",
        "moa-base",
        "assistant",
    )
    piece = read_delta(chunk, 0.0)
    shown = DeltaAccumulator()
    shown.add(piece)
    assert piece.finish_reason == answer.finish_reason
    found = shown.answer(answer.finish_reason)
    assert (found.text, found.reasoning) == (answer.text, answer.reasoning)
    assert (found.tool_calls, found.logprobs) == (answer.tool_calls, answer.logprobs)
    assert {k: v for k, v in found.fields.items() if k in answer.fields} == answer.fields


def test_a_chunk_may_carry_several_choices() -> None:
    chunk = write_chunk(
        {1: Delta(finish_reason="stop"), 0: Delta(text="a")}, stream_id="x", model="m"
    )
    assert [(c.index, c.delta.content, c.finish_reason) for c in chunk.choices] == [
        (0, "a", None),
        (1, None, "stop"),
    ]


def test_a_chunk_of_usage_alone_is_read() -> None:
    chunk = ModelResponseStream(choices=[], usage=USAGE)
    piece = read_delta(chunk, 0.25)
    assert piece.usage is not None
    assert (piece.usage.total_tokens, piece.usage.cost_usd, piece.text) == (16, 0.25, "")


def test_the_text_of_a_message_is_that_of_its_text_parts() -> None:
    assert [message.text for message in read_chat(CHAT)][2:4] == ["What is it?", ""]
    assert Message("user", "x").text == "x"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_content", 5),
        ("reasoning_content", ["hm"]),
        ("tool_calls", "x"),
        ("tool_calls", {"a": 1}),
        ("tool_calls", ["x"]),
        ("function_call", "x"),
    ],
)
def test_a_field_of_another_type_is_the_providers_failure(field: str, value: Json) -> None:
    chunk = ModelResponseStream(
        choices=[{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]
    )
    setattr(chunk.choices[0].delta, field, value)
    response = ModelResponse(choices=[{"message": {"role": "assistant", "content": "a"}}])
    setattr(response.choices[0].message, field, value)
    for read in (lambda: read_delta(chunk, 0.0), lambda: read_completions(response, 0.0)):
        with pytest.raises(ProviderFailed, match=field):
            read()


def test_halves_of_surrogate_pairs_are_replaced_since_they_cannot_be_sent() -> None:
    delta = {"content": "a\ud800", "reasoning_content": "\udfff"}
    piece = read_delta(ModelResponseStream(choices=[{"index": 0, "delta": delta}]), 0.0)
    assert (piece.text, piece.reasoning) == ("a?", "?")
