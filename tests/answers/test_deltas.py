"""Pieces of a streamed reply and the answer they make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.deltas import DeltaAccumulator, as_delta
from optillm_hooks.types import Answer, Delta, Fields, FinishReason, TokenLogprob, ToolCall

TEXT = st.text(max_size=8)
LOGPROBS = st.builds(
    TokenLogprob,
    TEXT,
    st.floats(-9, 0),
    st.lists(st.tuples(TEXT, st.floats(-9, 0)), max_size=2).map(tuple),
)
FINISH: list[FinishReason] = ["stop", "length", "tool_calls", "content_filter"]
ANSWERS = st.builds(
    Answer,
    TEXT,
    st.sampled_from(FINISH),
    TEXT,
    st.lists(st.builds(ToolCall, TEXT, TEXT, TEXT), max_size=3).map(tuple),
    st.lists(LOGPROBS, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["refusal", "annotations"]), TEXT),
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
    assert answer.fields == {**first.fields, **second.fields}


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
