"""The section filter: what is shown of a tagged reply, however it is cut into pieces."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from optillm_hooks.answers.section_filter import SectionFilter

HIDDEN = ("thinking", "reflection")


def shown(pieces: Sequence[str], stops: Sequence[str] = ()) -> str:
    text_filter = SectionFilter("output", HIDDEN, stops)
    return "".join([*(text_filter.feed(piece) for piece in pieces), text_filter.close()])


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        pytest.param("<thinking>6*7</thinking><output>42</output>", "42", id="as asked"),
        pytest.param(
            "<thinking>a</thinking>\n<reflection>b</reflection>\n<output>\n42\n</output>\n",
            "42",
            id="outer blanks are left out",
        ),
        pytest.param("<output>  4\n\n2  </output>", "4\n\n2", id="inner blanks stay"),
        pytest.param("<output>42</output> more", "42", id="what follows the section is not shown"),
        pytest.param("<output>1</output><output>2</output>", "1", id="the first section counts"),
        pytest.param("<output>42", "42", id="closing tag missing, as in a cut reply"),
        pytest.param("<output>42</outp", "42</outp", id="closing tag cut"),
        pytest.param("<OUTPUT>42</Output>", "42", id="tags in another case"),
        pytest.param("<output></output>", "", id="empty section"),
        pytest.param(
            "<output>if a < b > c: <b>x</b></output>", "if a < b > c: <b>x</b>", id="html"
        ),
        pytest.param("Sure! <output>42</output>", "42", id="words before the first tag"),
        pytest.param(
            "<thinking>in <output> I put 41</output></thinking><output>42</output>",
            "42",
            id="an output tag inside the thinking does not count",
        ),
        pytest.param(
            "<thinking>then <reflection>hm</reflection> so</thinking><output>42</output>",
            "42",
            id="reflection inside the thinking",
        ),
        pytest.param(
            "<reflection>use <output></reflection>\n<output>42</output>", "42", id="in a reflection"
        ),
        pytest.param(
            "</thinking><output>42</output>", "42", id="thinking was opened by the template"
        ),
        pytest.param("just 42", "just 42", id="no tags: the whole reply"),
        pytest.param("", "", id="nothing"),
        pytest.param("a <b>bold</b> claim", "a <b>bold</b> claim", id="other tags only"),
        pytest.param("<thinking>6*7</thinking>\n42 ", "42", id="no output tag: after the thinking"),
        pytest.param(
            "<thinking>a</thinking><reflection>b</reflection>42", "42", id="after the last of both"
        ),
        pytest.param("<thinking>6*7 is", "", id="cut off inside the thinking"),
        pytest.param("<thinking>a</thinking><reflection>b", "", id="cut off inside the reflection"),
        pytest.param(
            "<thinking>a <reflection>b</reflection> c", "", id="cut off in the outer of two"
        ),
        pytest.param(
            "<thinking>6*7\n<output>42</output>", "42", id="thinking never closed, answer given"
        ),
        pytest.param(
            "<thinking>say <output>41</output>? no\n<output>42</output>",
            "42",
            id="thinking never closed: the last answer counts",
        ),
        pytest.param(
            "<thinking>in <output> I put 41</thinking>42",
            "42",
            id="an output tag inside the thinking, and none after it",
        ),
        pytest.param("42</output>", "42", id="only a closing tag: what is before it"),
        pytest.param(
            "<thinking>a</thinking>42</output>", "42", id="opening tag missing after the thinking"
        ),
        pytest.param("<output>\u0130stanbul</output>", "\u0130stanbul", id="a letter that grows"),
    ],
)
def test_what_is_shown(reply: str, text: str) -> None:
    assert shown([reply]) == text
    assert shown(list(reply)) == text


@pytest.mark.parametrize(
    ("reply", "stops", "text"),
    [
        pytest.param("<output>4 END 2</output>", ["END"], "4", id="stop inside the section"),
        pytest.param("<thinking>END</thinking><output>42</output>", ["END"], "42", id="not before"),
        pytest.param("<output>42</output>", ["</out"], "42", id="stop that begins the tag"),
        pytest.param("<output>4end2</output>", ["END"], "4end2", id="stops mind their case"),
        pytest.param("<output>4 EN 2</output>", ["END"], "4 EN 2", id="half a stop is text"),
        pytest.param("<output>a\nb</output>", ["\n"], "a", id="a line's end"),
        pytest.param("<output>\na\nb</output>", ["\n"], "a", id="not the line's end of our form"),
        pytest.param("<output>a;b,c</output>", [",", ";"], "a", id="the first of several"),
        pytest.param("<output>xab</output>", ["ab", "b"], "x", id="ending together: the longer"),
        pytest.param("<output>xabc</output>", ["abc", "b"], "xa", id="the first that is complete"),
        pytest.param("plain END text", ["END"], "plain", id="also without tags"),
        pytest.param("<output>42</output>", ["", "END"], "42", id="an empty stop is none"),
    ],
)
def test_stop_strings_end_what_is_shown(reply: str, stops: list[str], text: str) -> None:
    assert shown([reply], stops) == text
    assert shown(list(reply), stops) == text


def test_the_section_is_shown_while_it_is_written() -> None:
    text_filter = SectionFilter("output", HIDDEN, ["END"])
    pieces = ["<thinking>6*7</thin", "king><out", "put>\nIt", " is ", "E", "ve", "n</", "b", "> ."]
    assert [text_filter.feed(piece) for piece in pieces] == [
        "", "", "It", " is", "", " Eve", "n", "</b", "> .",
    ]  # fmt: skip
    assert text_filter.feed("</output> not this") == ""
    assert (text_filter.feed("nor this"), text_filter.close()) == ("", "")


PARTS = st.sampled_from(
    [
        "<thinking>", "</thinking>", "<reflection>", "</reflection>", "<output>", "</output>",
        "<Output>", "<out", "</", "<", ">", "END", "EN", "stop", "sto", "top", " ", "\n", "a", "42",
        "\u0130", "\u212a", "\u017f", "é",
    ]
)  # fmt: skip
STOPS = st.lists(st.sampled_from(["END", "stop", "top", "\n", "a", "42\n", "E"]), max_size=3)


@st.composite
def cut_replies(draw: st.DrawFn) -> tuple[str, list[str]]:
    reply = "".join(draw(st.lists(PARTS, max_size=14)))
    cuts = sorted(draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    edges = [0, *cuts, len(reply)]
    return reply, [reply[a:b] for a, b in pairwise(edges)]


@given(cut_replies(), STOPS)
@example(("<output>xstop", ["<output>xsto", "p"]), ["stop", "top"])
def test_cutting_into_pieces_changes_nothing(cut: tuple[str, list[str]], stops: list[str]) -> None:
    reply, pieces = cut
    assert shown(pieces, stops) == shown([reply], stops) == shown(list(reply), stops)


@given(cut_replies(), STOPS)
def test_what_is_shown_is_a_trimmed_part_of_the_reply_without_its_stops(
    cut: tuple[str, list[str]], stops: list[str]
) -> None:
    reply, pieces = cut
    text = shown(pieces, stops)
    assert text in reply
    assert text == text.strip()
    assert not any(stop in text for stop in stops)


@given(st.text(alphabet="abc <>/\n", max_size=30), st.text(alphabet="abc <>/\n", max_size=30))
def test_a_reply_in_the_form_that_was_asked_for_shows_its_output(thoughts: str, out: str) -> None:
    reply = f"<thinking>\n{thoughts}\n</thinking>\n<output>\n{out}\n</output>"
    assert shown([reply]) == out.strip()
