"""Votes: what counts as one, who wins, and laws that hold for every vote."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.voting import (
    Tally,
    contenders,
    elect,
    majority,
    majority_call,
    majority_object,
    wants_json,
)
from optillm_hooks.types import Answer, Sampling, ToolCall

ballots = st.lists(st.sampled_from(["a", "b", "1", "1.0", "x+1", "1+x", None]), min_size=1)


def calling(*calls: tuple[str, str]) -> Answer:
    return Answer(
        "",
        finish_reason="tool_calls",
        tool_calls=tuple(ToolCall(f"call-{n}", *call) for n, call in enumerate(calls)),
    )


CUT = Answer("ANSWER: 7", finish_reason="length")
TEXT = Answer("ANSWER: 42")
PARIS = calling(("weather", '{"city": "Paris", "days": 2}'))
PARIS_AGAIN = calling(("weather", '{"days": 2.0, "city": "Paris"}'))
ROME = calling(("weather", '{"city": "Rome", "days": 2}'))
BROKEN = calling(("weather", '{"city": '))
TIME = calling(("time", "{}"))


@pytest.mark.parametrize(
    ("answers", "winner", "votes"),
    [
        pytest.param(["41", "42", "42.0"], 1, [1, 2], id="equivalent answers vote together"),
        pytest.param(["41", "42"], 0, [1, 1], id="a tie goes to the earlier"),
        pytest.param([None, None, "41"], 2, [1], id="none does not vote"),
        pytest.param([None, None], 0, [], id="nobody voted"),
        pytest.param([], 0, [], id="nobody is there"),
        pytest.param(["41", "42", "41", "43"], 0, [2, 1, 1], id="41 and 42 are not alike"),
    ],
)
def test_majority(answers: list[str | None], winner: int, votes: list[int]) -> None:
    tally = majority(answers)
    assert (tally.winner, list(tally.votes.values())) == (winner, votes)


@given(ballots)
def test_majority_counts_every_vote_and_elects_a_first_member(answers: list[str | None]) -> None:
    tally = majority(answers)
    assert sum(tally.votes.values()) == len([a for a in answers if a is not None])
    if tally.votes:
        best = answers[tally.winner]
        assert best is not None
        assert tally.votes[best] == max(tally.votes.values())
        assert answers.index(best) == tally.winner


@given(ballots, st.randoms(use_true_random=False))
def test_the_order_of_the_calls_decides_nothing_but_ties(
    answers: list[str | None], rng: Any
) -> None:
    shuffled = rng.sample(answers, len(answers))
    one, other = majority(answers), majority(shuffled)
    assert sorted(one.votes.values()) == sorted(other.votes.values())
    if sorted(one.votes.values())[-2:-1] != sorted(one.votes.values())[-1:]:
        assert majority([answers[one.winner], shuffled[other.winner]]).votes.keys() <= {
            answers[one.winner]
        }


@given(ballots)
def test_a_vote_among_the_votes_of_the_winner_changes_nothing(answers: list[str | None]) -> None:
    tally = majority(answers)
    if tally.votes:
        again = majority([*answers, answers[tally.winner]])
        assert again.winner == tally.winner


@pytest.mark.parametrize(
    ("candidates", "kept"),
    [
        pytest.param([CUT, TEXT], [TEXT], id="cut-off ones yield to finished ones"),
        pytest.param([CUT, CUT], [CUT, CUT], id="unless there is none"),
        pytest.param([TEXT, PARIS, ROME], [PARIS, ROME], id="most call tools"),
        pytest.param([PARIS, TEXT, TEXT], [TEXT, TEXT], id="most do not"),
        pytest.param([PARIS, TEXT], [PARIS], id="a tie goes as the first calls"),
        pytest.param([TEXT, PARIS], [TEXT], id="a tie goes as the first talks"),
        pytest.param([], [], id="none"),
    ],
)
def test_contenders(candidates: list[Answer], kept: list[Answer]) -> None:
    assert contenders(candidates) == kept


@pytest.mark.parametrize(
    ("candidates", "winner"),
    [
        pytest.param([ROME, PARIS, PARIS_AGAIN], 1, id="arguments are compared as JSON"),
        pytest.param([TIME, PARIS, ROME], 1, id="names are voted on first"),
        pytest.param([TIME, PARIS, ROME, ROME], 2, id="then arguments among the winners"),
        pytest.param([TIME, TIME, PARIS, PARIS_AGAIN, ROME], 2, id="not arguments across names"),
        pytest.param([BROKEN, BROKEN, PARIS], 2, id="broken arguments get no vote"),
        pytest.param([BROKEN, BROKEN], 0, id="and win only if there are no others"),
        pytest.param([calling(("f", "")), calling(("f", "{}"))], 0, id="nothing is no arguments"),
        pytest.param(
            [
                TIME,
                calling(("f", "{}"), ("g", '{"x": 1}')),
                calling(("g", '{"x": 1.0}'), ("f", "{}")),
            ],
            1,
            id="parallel calls have no order",
        ),
        pytest.param(
            [calling(("f", "{}")), calling(("f", "{}"), ("f", "{}")), calling(("f", "{}"))],
            0,
            id="calling twice is not calling once",
        ),
        pytest.param(
            [
                calling(("f", '{"x": 1}'), ("f", '{"x": 2}'), ("f", '{"x": 2}')),
                calling(("f", '{"x": 1}'), ("f", '{"x": 1}'), ("f", '{"x": 2}')),
                calling(("f", '{"x": 1}'), ("f", '{"x": 2}'), ("f", '{"x": 1}')),
            ],
            1,
            id="how often each is called counts",
        ),
    ],
)
def test_majority_call(candidates: list[Answer], winner: int) -> None:
    calls = [[(call.name, call.arguments) for call in c.tool_calls] for c in candidates]
    assert majority_call(calls).winner == winner


@pytest.mark.parametrize(
    ("texts", "winner", "votes"),
    [
        pytest.param(
            ['{"a": 1}', '{"a": 2, "b": 0}', '{"b": 0.0, "a": 2.0}'],
            1,
            [1, 2],
            id="objects are compared by value",
        ),
        pytest.param(["no", '{"a": 1}'], 1, [1], id="what is no JSON does not vote"),
        pytest.param(["no", "neither"], 0, [], id="no JSON at all"),
        pytest.param(
            ['{"a": 1, "b": 9, "c": 3}', '{"a": 1, "b": 2, "c": 8}', '{"a": 7, "b": 2, "c": 3}'],
            0,
            [1, 1, 1],
            id="by fields all agree in two: the first",
        ),
        pytest.param(
            ['{"a": 9, "b": 9}', '{"a": 1, "b": 8}', '{"a": 1, "b": 2}', '{"a": 7, "b": 2}'],
            2,
            [1, 1, 1, 1],
            id="by fields one agrees in both",
        ),
        pytest.param(
            [
                '{"a": 1, "b": 1}',
                '{"a": 2, "b": 3}',
                '{"a": 2, "b": 3}',
                '{"a": 1, "b": 4}',
                '{"a": 1, "b": 5}',
            ],
            1,
            [1, 2, 1, 1],
            id="all agree in one field: the most frequent object",
        ),
        pytest.param(
            ['{"a": 1}', '{"b": 1}', '{"b": 1}'], 1, [1, 2], id="other keys: the most frequent"
        ),
        pytest.param(
            [
                '{"a": 2, "b": 2, "c": 3}',
                '{"a": 2, "b": 2, "c": 4}',
                '{"a": 1, "b": 1, "c": 1}',
                '{"a": 1, "b": 1, "c": 1}',
            ],
            0,
            [1, 1, 2],
            id="half of the voters are no majority: fields vote",
        ),
        pytest.param(["[1]", "[2]", "[2.0]"], 1, [1, 2], id="arrays are compared as a whole"),
    ],
)
def test_majority_object(texts: list[str], winner: int, votes: list[int]) -> None:
    tally = majority_object(texts)
    assert list(tally.votes.values()) == votes
    assert tally.winner == winner
    assert elect(texts, as_json=True) == tally


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 2), min_size=1), min_size=1))
def test_an_object_that_most_agree_on_always_wins(objects: list[dict[str, int]]) -> None:
    texts = [json.dumps(value) for value in objects]
    tally = majority_object(texts)
    for value in objects:
        if 2 * objects.count(value) > len(objects):
            assert objects[tally.winner] == value
    assert sum(tally.votes.values()) == len(objects)


def test_texts_are_elected_by_their_answers() -> None:
    answers = ["It is 41.\nANSWER: 41", "ANSWER: 84/2", "So 6*7 = 42"]
    assert elect(answers) == Tally(1, {"41": 1, "84/2": 2})
    assert elect(answers, "marked") == Tally(0, {"41": 1, "84/2": 1})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, True),
        ({"response_format": None}, False),
    ],
)
def test_wants_json(fields: dict[str, Any], expected: bool) -> None:
    assert wants_json(Sampling(fields=fields)) is expected
