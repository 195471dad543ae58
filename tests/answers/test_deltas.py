"""Pieces of a streamed reply and the answer they make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.deltas import DeltaAccumulator, as_delta, parts
from optillm_hooks.types import (
    Answer,
    Delta,
    Fields,
    FinishReason,
    Json,
    TokenLogprob,
    ToolCall,
    ToolCallType,
)

TEXT = st.text(max_size=8)
LOGPROBS = st.builds(
    TokenLogprob,
    TEXT,
    st.floats(-9, 0),
    st.lists(st.tuples(TEXT, st.floats(-9, 0)), max_size=2).map(tuple),
)
FINISH: list[FinishReason] = ["stop", "length", "tool_calls", "content_filter", "function_call"]
ANSWERS = st.builds(
    Answer,
    TEXT,
    st.sampled_from(FINISH),
    TEXT,
    st.lists(
        st.builds(ToolCall, TEXT, TEXT, TEXT, st.sampled_from(["function", "custom"])), max_size=3
    ).map(tuple),
    st.lists(LOGPROBS, max_size=3).map(tuple),
    st.dictionaries(st.just("annotations"), st.lists(TEXT, min_size=1)),
)


def joined(*pieces: Delta, finish_reason: FinishReason = "stop") -> Answer:
    shown = DeltaAccumulator()
    for piece in pieces:
        shown.add(piece)
    return shown.answer(finish_reason)


@given(ANSWERS)
def test_an_answer_as_one_piece_is_the_answer(answer: Answer) -> None:
    piece = as_delta(answer)
    assert piece.usage is None
    assert piece.finish_reason == answer.finish_reason
    assert joined(piece, finish_reason=answer.finish_reason) == answer


@given(ANSWERS, ANSWERS)
def test_pieces_are_joined_in_order(first: Answer, second: Answer) -> None:
    answer = joined(as_delta(first), as_delta(second))
    assert answer.text == first.text + second.text
    assert answer.reasoning == first.reasoning + second.reasoning
    assert answer.logprobs == first.logprobs + second.logprobs
    annotations = [*first.fields.get("annotations", []), *second.fields.get("annotations", [])]  # type: ignore[misc] # lists
    assert answer.fields.get("annotations", []) == annotations


@given(ANSWERS)
def test_parts_are_the_answer_with_one_kind_of_content_each(answer: Answer) -> None:
    found = list(parts(as_delta(answer)))
    assert joined(*found, finish_reason=answer.finish_reason) == answer
    assert [part.finish_reason for part in found] == [None] * (len(found) - 1) + [
        answer.finish_reason
    ]
    for part in found:
        kinds = [bool(part.reasoning), bool(part.text or part.logprobs), *part.tool_calls]
        assert sum(map(bool, kinds)) <= 1


def test_thinking_comes_by_blocks_and_each_signature_by_itself() -> None:
    blocks: list[Json] = [
        {"type": "thinking", "thinking": "a", "signature": "s1"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "thinking", "thinking": "b", "signature": "s2"},
    ]
    answer = Answer("4", "stop", "ab", fields={"thinking_blocks": blocks, "annotations": [1]})
    found = list(parts(as_delta(answer)))
    assert [part.reasoning for part in found] == ["a", "", "", "b", "", "", ""]
    assert [part.text for part in found] == ["", "", "", "", "", "4", ""]
    assert found[0].fields == {
        "thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": ""}],
        "annotations": [1],
    }
    assert found[1].fields == {
        "thinking_blocks": [{"type": "thinking", "thinking": "", "signature": "s1"}]
    }
    assert found[2].fields == {"thinking_blocks": [blocks[1]]}


def test_reasoning_without_its_text_in_blocks_comes_first() -> None:
    blocks: list[Json] = [{"type": "thinking", "thinking": "", "signature": "s"}]
    found = list(parts(Delta(text="4", reasoning="a", fields={"thinking_blocks": blocks})))
    assert found == [
        Delta(reasoning="a"),
        Delta(fields={"thinking_blocks": blocks}),
        Delta(text="4"),
    ]


def test_fields_in_pieces_are_joined() -> None:
    answer = joined(
        Delta(fields={"audio": {"id": "1", "transcript": "a", "data": "x"}}),
        Delta(fields={"audio": {"id": "1", "transcript": "b", "expires_at": 5}}),
        Delta(fields={"provider_specific_fields": {"refusal": "I "}}),
        Delta(fields={"provider_specific_fields": {"refusal": "can't"}}),
    )
    assert answer.fields == {
        "audio": {"id": "1", "transcript": "ab", "data": "x", "expires_at": 5},
        "provider_specific_fields": {"refusal": "I can't"},
    }


@pytest.mark.parametrize("kind", ["custom", "function_call"])
def test_other_kinds_of_tool_calls_stay_what_they_are(kind: ToolCallType) -> None:
    answer = Answer("", tool_calls=(ToolCall("", "f", "{}", kind),))
    assert joined(*parts(as_delta(answer))) == answer


def tool(index: int | None, **parts: str | None) -> Delta:
    function: Fields = {k: v for k, v in parts.items() if k != "id"}
    place: Fields = {} if index is None else {"index": index}
    return Delta(tool_calls=({**place, "id": parts.get("id"), "function": dict(function)},))


@pytest.mark.parametrize(
    ("pieces", "calls"),
    [
        pytest.param(
            [
                tool(0, id="1", name="f", arguments=""),
                tool(0, arguments='{"a"'),
                tool(0, arguments=":1}"),
            ],
            [ToolCall("1", "f", '{"a":1}')],
            id="arguments in pieces",
        ),
        pytest.param(
            [
                tool(1, id="2", name="g", arguments="{"),
                tool(0, id="1", name="f", arguments="["),
                tool(1, arguments="}"),
                tool(0, arguments="]"),
            ],
            [ToolCall("1", "f", "[]"), ToolCall("2", "g", "{}")],
            id="interleaved, in the order of their index",
        ),
        pytest.param(
            [tool(None, id="1", name="f", arguments="{}")],
            [ToolCall("1", "f", "{}")],
            id="no index",
        ),
        pytest.param(
            [tool(0, id="1", name="f", arguments="{"), tool(0, id="1", name="f", arguments="}")],
            [ToolCall("1", "f", "{}")],
            id="id and name repeated with each piece",
        ),
        pytest.param(
            [tool(0, id="1", name="get_", arguments=""), tool(0, name="weather", arguments="{}")],
            [ToolCall("1", "get_weather", "{}")],
            id="a name in pieces",
        ),
        pytest.param(
            [tool(0, id="1", name="f", arguments="1"), tool(0, arguments="1")],
            [ToolCall("1", "f", "11")],
            id="equal pieces of arguments are both kept",
        ),
        pytest.param(
            [
                tool(0, id="1", name="f", arguments="{"),
                tool(0, arguments="}"),
                tool(0, id="2", name="f", arguments="["),
                tool(0, arguments="]"),
                tool(1, id="3", name="g", arguments="{}"),
            ],
            [ToolCall("1", "f", "{}"), ToolCall("2", "f", "[]"), ToolCall("3", "g", "{}")],
            id="several calls of one index",
        ),
    ],
)
def test_tool_calls_in_pieces(pieces: list[Delta], calls: list[ToolCall]) -> None:
    assert joined(*pieces).tool_calls == tuple(calls)


def test_arguments_that_are_an_object_become_json() -> None:
    piece = Delta(tool_calls=({"index": 0, "function": {"name": "f", "arguments": {"a": 1}}},))
    assert joined(piece).tool_calls == (ToolCall("", "f", '{"a": 1}'),)


def test_nothing_makes_an_empty_answer() -> None:
    assert joined(finish_reason="length") == Answer("", "length")
    assert joined().empty
