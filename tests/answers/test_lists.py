"""Lists as models write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.lists import read_items

WITHOUT_BOLD = str.maketrans("", "", "*_")


@pytest.mark.parametrize(
    ("text", "items"),
    [
        pytest.param("1. a\n2. b", ["a", "b"], id="numbers"),
        pytest.param("- a\n* b\n• c", ["a", "b", "c"], id="bullets"),
        pytest.param("(1) a\n2) b\nc) d", ["a", "b", "d"], id="brackets and letters"),
        pytest.param("Hint 1: a\nHint 2: b", ["a", "b"], id="a word before the number"),
        pytest.param("Here are three:\n\n1. a\n2. b", ["a", "b"], id="words before are no item"),
        pytest.param("1. a\n\n2. b\n\nGood luck!\nBye.", ["a", "b"], id="words after are no item"),
        pytest.param("1. a\n   more of a\n2. b", ["a\nmore of a", "b"], id="an item of two lines"),
        pytest.param("1. a\nmore of a\n2. b", ["a\nmore of a", "b"], id="without an indent"),
        pytest.param("1. a\n\n   more\n2. b", ["a\nmore", "b"], id="an indented paragraph"),
        pytest.param("1. a\n   - x\n   - y\n2. b", ["a\n- x\n- y", "b"], id="a list in an item"),
        pytest.param("**1. Order:** sort\n**2.** cut", ["Order: sort", "cut"], id="bold marks"),
        pytest.param("### 1. a\ntext\n### 2. b", ["a\ntext", "b"], id="headings"),
        pytest.param("1. use a**b\n2. c", ["use a**b", "c"], id="a power is not bold"),
        pytest.param("-5 is a root\n\n3.5 is none", ["-5 is a root", "3.5 is none"], id="no marks"),
        pytest.param("one line", ["one line"], id="a single paragraph"),
        pytest.param("1.\n2. b", ["b"], id="an empty item"),
        pytest.param(" \n", [], id="nothing"),
    ],
)
def test_items(text: str, items: list[str]) -> None:
    assert read_items(text) == items


@given(
    st.lists(
        st.from_regex(r"[a-z]{2,}( [a-z]{1,9}){0,4}", fullmatch=True), min_size=1, max_size=99
    ),
    st.sampled_from(["- {1}", "{0}. {1}", "({0}) {1}", "**{0}.** {1}"]),
    st.sampled_from(["\n", "\n\n"]),
)
def test_a_written_list_reads_back(items: list[str], form: str, gap: str) -> None:
    written = gap.join(form.format(number, item) for number, item in enumerate(items, start=1))
    assert read_items(f"Intro.\n\n{written}") == items


@given(st.text(alphabet="ab1-*. _)#\n\t"))
def test_nothing_is_invented(text: str) -> None:
    bare = text.expandtabs(4).translate(WITHOUT_BOLD)
    for item in read_items(text):
        for line in item.splitlines():
            assert line.strip().translate(WITHOUT_BOLD) in bare
