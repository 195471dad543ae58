"""Reading answers: a golden table, laws, and texts that are made to hurt."""

import json
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.extraction import (
    AnswerFormat,
    extract_answer,
    read_json,
    stated_answer,
    without_reasoning,
)

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "golden" / "extraction.json").read_text(encoding="utf-8")
)
SHORT = st.text(alphabet="abcXY 0123456789.,:*$\\{}()[]\n<>/-#\"'`", max_size=60)
FORMATS: tuple[AnswerFormat, ...] = get_args(AnswerFormat)


@pytest.mark.parametrize("case", GOLDEN, ids=[case["id"] for case in GOLDEN])
def test_golden_answers(case: dict[str, Any]) -> None:
    how = case.get("how", "auto")
    assert extract_answer(case["text"], how, question=case.get("question", "")) == case["expected"]


def test_a_number_restated_from_the_question_is_no_answer() -> None:
    reply = "The bag holds apples. So the number is 12"
    assert extract_answer(reply) == "12"
    assert extract_answer(reply, question="A bag with 12 apples loses 5.") is None
    assert extract_answer(f"{reply}\nANSWER: 12", question="Is it 12 or 5?") == "12"


def test_a_line_that_begins_with_the_article_votes_for_no_choice() -> None:
    assert extract_answer("A good question.\nA better answer cannot be had by anyone") is None


@given(SHORT, SHORT.filter(lambda t: "<" not in t), st.sampled_from(["think", "Thinking"]))
def test_what_stands_in_a_reasoning_block_changes_nothing(
    before: str, hidden: str, tag: str
) -> None:
    if "<" not in before:
        assert without_reasoning(f"{before}<{tag}>{hidden}</{tag}>") == before.strip()
        assert without_reasoning(f"{before}<{tag}>{hidden}") == before.strip()
        assert without_reasoning(f"{hidden}</{tag}>{before}") == before.strip()


@given(st.integers(-(10**9), 10**9), SHORT)
def test_a_marked_answer_is_found_after_any_text(number: int, before: str) -> None:
    if "<" not in before and not before.lstrip().startswith(("{", "[")):
        assert extract_answer(f"{before}\nANSWER: {number}") == str(number)


@given(SHORT, st.sampled_from(FORMATS))
def test_an_answer_is_never_blank(text: str, how: AnswerFormat) -> None:
    answer = extract_answer(text, how)
    assert answer is None or answer.strip()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ).filter(lambda value: isinstance(value, dict | list))
)
def test_json_is_read_as_it_was_written(value: object) -> None:
    written = json.dumps(value)
    assert read_json(written) == value
    if "```" not in written:
        assert read_json(f"Here it is:\n```json\n{written}\n```\nDone.") == value


HOSTILE = {
    "unclosed thoughts": "<think>" * 30_000,
    "unclosed boxes": "\\boxed{" * 30_000,
    "a nest of braces": "{" * 200_000,
    "a nest of brackets": "[" * 200_000,
    "a deep object": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "many marks": "ANSWER:\n" * 25_000,
    "many fences": "```\n" * 50_000,
    "fences of one kind": "```json\n" * 25_000,
    "many leads": "the answer is " * 15_000,
    "a gap after a lead": "the answer is" + " " * 200_000 + "1",
    "blank lines": "\n" * 200_000 + "x",
    "many stars": "*" * 200_000,
    "many commas": "1," * 100_000,
    "one long number": "1" * 200_000,
    "many dollars": "$" * 200_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_reading_takes_time_in_proportion_to_the_length(text: str) -> None:
    """200,000 characters take some tens of milliseconds; quadratic time would be minutes."""
    started = time.process_time()
    for how in FORMATS:
        extract_answer(text, how)
    read_json(text)
    stated_answer(text)
    assert time.process_time() - started < 5
