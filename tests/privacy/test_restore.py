"""Values come back wherever a model writes their pseudonyms, however its reply is cut."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optillm_hooks.answers.deltas import DeltaAccumulator, as_delta, parts
from optillm_hooks.privacy import restore
from optillm_hooks.privacy.answer_filter import AnswerFilter
from optillm_hooks.privacy.pseudonyms import Pseudonyms
from optillm_hooks.privacy.restore import Restorer, TokenRestorer, in_json
from optillm_hooks.types import Answer, Delta, Fields, Json, TokenLogprob, ToolCall
from tests.growth import growth

NAME, SHORT, MAIL, KEY = "Zoé O'Neill", "Zoé", "zoe@example.org", 'a"b\nc\\d'


def pseudonyms() -> Pseudonyms:
    made = Pseudonyms(b"salt")
    made.pseudonym(NAME, "PERSON", "zoé o'neill")
    made.pseudonym(MAIL, "EMAIL", MAIL)
    made.pseudonym(SHORT, "PERSON", "zoé o'neill")
    made.pseudonym(KEY, "KEY", KEY)
    return made


MADE = pseudonyms()
PERSON, EMAIL, SECRET = MADE.spellings
TOKEN = f"PERSON_{PERSON}"


def restored(text: str) -> str:
    return Restorer(MADE).whole(text)


def in_pieces(text: str, cuts: Sequence[int]) -> str:
    restorer = Restorer(MADE)
    ends = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [restorer.feed(text[a:b]) for a, b in pairwise(ends)]
    return "".join((*pieces, restorer.close()))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (f"{TOKEN}.", f"{NAME}."),
        (f"{TOKEN}_2", SHORT),
        (f"{TOKEN}\\_2", SHORT),
        (f"{TOKEN}_3", f"{NAME}_3"),
        (f"{TOKEN}_2024", f"{NAME}_2024"),
        (TOKEN.lower(), NAME),
        (f"Person_{PERSON.title()}'s", f"{NAME}'s"),
        (f"{TOKEN}s", f"{NAME}s"),
        (f"PERSON\\_{PERSON}", NAME),
        (f"**{TOKEN}**", f"**{NAME}**"),
        (f"**PERSON**_{PERSON}!", f"**{NAME}**!"),
        (f"PERSON_**{PERSON}**", f"**{NAME}**"),
        (f"PERSON {PERSON}", NAME),
        (f"PERSON-{PERSON}", NAME),
        (f"PERSON{PERSON}", NAME),
        (f"<{TOKEN}> [{TOKEN}] «{TOKEN}»", f"<{NAME}> [{NAME}] «{NAME}»"),
        (f"Persona_{PERSON}, personne_{PERSON}", f"{NAME}, {NAME}"),
        (f"人物_{PERSON}は", f"{NAME}は"),
        (f"联系{TOKEN}吧", f"联系{NAME}吧"),
        (f"the value {PERSON} alone", f"the value {NAME} alone"),
        (f"user_{TOKEN}", f"user_{NAME}"),
        (f"mailto:EMAIL_{EMAIL}?x", f"mailto:{MAIL}?x"),
        (f"{TOKEN}{TOKEN}_2x{TOKEN}", f"{NAME}{SHORT}x{NAME}"),
        (f"xe-mail_{EMAIL}", f"xe-{MAIL}"),
        (f"xperson_{PERSON}", f"xperson_{NAME}"),
        (f"X{PERSON}", f"X{PERSON}"),
        (f"{PERSON}ton", f"{PERSON}ton"),
        ("PERSON_BCDFGH PERSON_", "PERSON_BCDFGH PERSON_"),
    ],
)
def test_pseudonyms_are_known_however_they_are_written(written: str, shown: str) -> None:
    assert restored(written) == shown


PIECES = st.sampled_from(
    [
        TOKEN, f"{TOKEN}_2", PERSON, PERSON[:4], f"EMAIL_{EMAIL}", f"KEY_{SECRET}", "PERSON",
        "person", "Pers", "人", "人物", "_", "\\", "*", "**", "`", "-", " ", "2", "s", "x", "e",
        "K", "mail", "E", "x", "İ", "\n", "_2", "23", ".", "the ", "EMAIL ", EMAIL.lower(),
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join), st.lists(st.integers(0, 200), max_size=12))
@settings(max_examples=600, deadline=None)
def test_any_cut_of_a_text_gives_what_the_whole_gives(text: str, cuts: list[int]) -> None:
    assert in_pieces(text, cuts) == restored(text)
    assert in_pieces(text, range(len(text))) == restored(text)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_a_text_without_pseudonyms_stays(text: str) -> None:
    assert restored(text) == text


def test_nothing_is_held_back_that_cannot_become_a_pseudonym() -> None:
    restorer = Restorer(MADE)
    assert restorer.feed("Hello") == "Hello"
    assert restorer.feed(" Per") == " "
    assert restorer.feed("haps") == "Perhaps"
    assert restorer.feed(f" EMAIL_{EMAIL}") == f" {MAIL}"  # nothing that follows can change it
    assert restorer.feed(f" PERSON_{PERSON}") == " "  # it has another spelling, `_2`
    assert restorer.feed(",") == f"{NAME},"


def test_without_values_pieces_pass_as_they_come() -> None:
    restorer = Restorer(Pseudonyms(b""))
    assert [restorer.feed(piece) for piece in ("PERS", "ON_")] == ["PERS", "ON_"]


def test_a_value_that_a_call_of_the_stream_adds_is_known_too() -> None:
    made = pseudonyms()
    restorer = Restorer(made)
    restorer.feed("Hi ")
    token = made.pseudonym("Bob", "PERSON", "bob")
    assert restorer.whole(token) == "Bob"


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_tokens_of_a_pseudonym_become_one_with_their_joint_probability(size: int) -> None:
    text = f"Hi {TOKEN}, {TOKEN}_2 ok"
    tokens = [
        TokenLogprob(text[at : at + size], -0.5, (("x", -1.0),)) for at in range(0, len(text), size)
    ]
    restorer = TokenRestorer(MADE)
    shown = [*restorer.feed(tokens), *restorer.close()]
    assert "".join(token.token for token in shown) == f"Hi {NAME}, {SHORT} ok"
    assert sum(token.logprob for token in shown) == sum(token.logprob for token in tokens)
    assert all(token.top == () for token in shown if NAME in token.token)


def test_a_long_value_cannot_be_repeated_endlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "MAX_ADDED", 3 * len(MAIL))
    text = f"EMAIL_{EMAIL} " * 5
    assert restored(text) == f"{MAIL} " * 3 + f"EMAIL_{EMAIL} " * 2
    assert in_pieces(text, range(len(text))) == restored(text)


@pytest.mark.parametrize(
    "unit", ["PERSON_", TOKEN, f"{TOKEN}_2 ", f"{PERSON[:5]} ", "e-mail ", "**"]
)
def test_values_are_put_back_in_linear_time(unit: str) -> None:
    assert growth(restored, lambda length: (unit * length)[:length]).is_linear


# ------------------------------------------------------------------------------ whole answers


def shown(answer: Answer, cut: int, *, is_json: bool = False) -> Answer:
    """Return an answer that is streamed in pieces of `cut` characters."""
    each, got = AnswerFilter(MADE, is_json=is_json), DeltaAccumulator()

    def split(text: str) -> list[str]:
        return [text[at : at + cut] for at in range(0, len(text), cut)]

    pieces = [Delta(reasoning=part) for part in split(answer.reasoning)]
    pieces += [Delta(text=part) for part in split(answer.text)]
    for part in as_delta(answer).tool_calls:
        name = "custom" if "custom" in part else "function"
        field = "input" if name == "custom" else "arguments"
        called = part[name]
        assert isinstance(called, dict)
        written = str(called[field])
        pieces.append(Delta(tool_calls=({**part, name: {**called, field: ""}},)))
        pieces += [
            Delta(tool_calls=({"index": part["index"], name: {field: text}},))
            for text in split(written)
        ]
    refusal = answer.fields.get("refusal")
    pieces += [Delta(fields={"refusal": part}) for part in split(str(refusal or ""))]
    for piece in pieces:
        got.add(each.feed(piece))
    got.add(each.close())
    return got.answer("stop")


CALLS = (
    ToolCall("1", "send", json.dumps({"to": f"EMAIL_{EMAIL}", "body": f"KEY_{SECRET}"})),
    ToolCall("2", f"ask_{TOKEN}", "{}"),
    ToolCall("3", "run", f"echo KEY_{SECRET}", "custom"),
)


@pytest.mark.parametrize("cut", [1, 2, 5, 1000])
def test_values_come_back_in_every_part_of_an_answer(cut: int) -> None:
    refusal: Fields = {"refusal": f"I won't tell {TOKEN}"}
    answer = Answer(f"Dear {TOKEN}", "stop", f"hm, {TOKEN}", CALLS, fields=refusal)
    got = shown(answer, cut)
    assert (got.text, got.reasoning) == (f"Dear {NAME}", f"hm, {NAME}")
    assert json.loads(got.tool_calls[0].arguments) == {"to": MAIL, "body": KEY}
    assert got.tool_calls[1].name == f"ask_{NAME}"
    assert got.tool_calls[2].arguments == f"echo {KEY}"
    assert got.fields["refusal"] == f"I won't tell {NAME}"
    assert AnswerFilter(MADE, is_json=False).whole(answer) == got


@pytest.mark.parametrize("cut", [1, 1000])
def test_in_an_answer_of_json_a_value_is_written_as_json(cut: int) -> None:
    got = shown(Answer(json.dumps({"key": f"KEY_{SECRET}"})), cut, is_json=True)
    assert json.loads(got.text) == {"key": KEY}


def test_what_is_held_of_one_call_comes_before_the_next_one() -> None:
    each = AnswerFilter(MADE, is_json=False)
    first: Fields = {"index": 0, "id": "1", "function": {"name": "f", "arguments": '"PERS'}}
    second: Fields = {"index": 1, "id": "2", "function": {"name": "g", "arguments": "{}"}}
    each.feed(Delta(tool_calls=(first,)))
    parts = each.feed(Delta(tool_calls=(second,))).tool_calls
    assert [part["index"] for part in parts] == [0, 1]
    assert parts[0]["function"] == {"arguments": "PERS"}


def test_what_is_held_of_the_text_comes_before_a_tool_call() -> None:
    each = AnswerFilter(MADE, is_json=False)
    assert each.feed(Delta(reasoning="PERS")).reasoning == ""
    assert each.feed(Delta(text="Wait, pers")) == Delta(reasoning="PERS", text="Wait, ")
    call: Fields = {"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}
    assert each.feed(Delta(tool_calls=(call,))).text == "pers"


def test_a_piece_of_a_thought_shows_the_restored_reasoning_beside_the_signed_block() -> None:
    blocks: Json = [{"type": "thinking", "thinking": f"ask {TOKEN},", "signature": ""}]
    piece = Delta(reasoning=f"ask {TOKEN},", fields={"thinking_blocks": blocks})
    [shown] = parts(AnswerFilter(MADE, is_json=False).feed(piece))
    assert (shown.reasoning, shown.fields["thinking_blocks"]) == (f"ask {NAME},", blocks)


HOSTILE: list[Fields] = [
    {"index": None, "function": {"name": "f", "arguments": TOKEN}},
    {"index": [1], "function": {"name": "f", "arguments": TOKEN}},
    {"index": -3, "function": {"name": None, "arguments": TOKEN}},
    {"function": {"arguments": {"a": [TOKEN, 1]}}},
    {"index": 1, "custom": {"input": TOKEN}},
]


@pytest.mark.parametrize("part", HOSTILE, ids=str)
def test_pieces_of_calls_that_no_api_describes_are_restored_too(part: Fields) -> None:
    each = AnswerFilter(MADE, is_json=False)
    shown = repr((each.feed(Delta(tool_calls=(part,))), each.close()))
    assert "O'Neill" in shown
    assert TOKEN not in shown


@pytest.mark.parametrize("part", [{"index": 0}, {"index": 0, "function": None}, {"function": "x"}])
def test_pieces_of_calls_without_content_pass(part: Fields) -> None:
    assert AnswerFilter(MADE, is_json=False).feed(Delta(tool_calls=(part,))).tool_calls == (part,)


def test_annotations_are_restored_and_signed_thoughts_are_not() -> None:
    blocks: Json = [{"type": "thinking", "thinking": f"It is {TOKEN}", "signature": "s"}]
    notes: Json = [{"type": "url_citation", "url_citation": {"title": TOKEN, "url": "u"}}]
    answer = Answer("x", fields={"thinking_blocks": blocks, "annotations": notes})
    got = AnswerFilter(MADE, is_json=False).whole(answer)
    assert got.fields["thinking_blocks"] == blocks
    assert got.fields["annotations"] == [
        {"type": "url_citation", "url_citation": {"title": NAME, "url": "u"}}
    ]


def test_a_value_in_json_is_escaped() -> None:
    assert json.loads(f'"{in_json(KEY)}"') == KEY
