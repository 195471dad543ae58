import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.decoding.cot_decoding import (
    Path,
    Span,
    answer_span,
    choose,
    comparable,
    read_path,
    span_confidence,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("3 + 4 = 7.", "7"),
        ("It costs 1,250.50, I think.", "1,250.50"),
        ("In 1999, \\boxed{12} of 40", "12"),
        ("the result is -3", "-3"),
        ("version v2 has none", None),
        ("no number at all", None),
    ],
    ids=["last number", "decimals", "box before number", "negative", "part of a word", "none"],
)
def test_the_answer_is_the_last_box_or_number(text: str, answer: str | None) -> None:
    span = answer_span(text)
    assert (None if span is None else text[span.start : span.end]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is Paris.", "Paris"),
        ("So the answer is: New York\nIt is large.", "New York"),
        ("Answer: Paris because it is the capital", "Paris"),
        ("The answer is Rome. No: the answer is Paris.", "Paris"),
        ("**Answer:** (B)", "B"),
        ("The correct answer is **B**. It beats C.", "B"),
        ("The answer is B. Paris", "B"),
        ("The answer is option B, of 4", "B"),
        ("The answer is yes, they can.", "yes"),
        ("The answer is no more", "no more"),
        ("The answer is 1,250 apples. I counted 3 times.", "1,250"),
        ("The answer is not known", None),
        ("The answer is \\boxed{yes}.", "yes"),
        ("Yes, because they can swim.", "Yes"),
        ("They can swim, so yes.", "yes"),
        ("No, wait: yes!", "yes"),
        ("**No**\n\nThey cannot.", "No"),
        ("<think>Can they?</think>\n\nNo, they cannot.", "No"),
        ("No one knows", None),
        ("Yesterday it rained", None),
        ("Yes, it has 4.", "4"),
    ],
)
def test_the_answer_is_what_is_stated_to_be_it_or_a_yes_or_no(
    text: str, answer: str | None
) -> None:
    span = answer_span(text)
    assert (None if span is None else text[span.start : span.end]) == answer


@given(
    before=st.text("yes no 7.,:?!\n(B)*`"),
    words=st.lists(st.text("bcdfgz", min_size=1, max_size=5), min_size=1, max_size=4),
    lead=st.sampled_from(["The answer is ", "ANSWER: ", "the correct answer would be\n"]),
    after=st.sampled_from(["", ".", ". It is 3.", " because of 3", "; 3", "!\n\nYes."]),
)
def test_a_stated_answer_is_found_in_any_text_and_equals_itself_in_other_letters(
    before: str, words: list[str], lead: str, after: str
) -> None:
    answer = " ".join(words)
    text = f"{before}\n{lead}{answer}{after}"
    span = answer_span(text)
    assert span is not None
    assert text[span.start : span.end] == answer
    assert comparable("  ".join(words).upper()) == comparable(answer)


@pytest.mark.parametrize(
    ("one", "other"), [("1,000.0", "1000"), ("5.0", "5"), ("$7", "7"), ("Paris ", "paris")]
)
def test_equal_answers_compare_equal(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


def test_confidence_is_the_mean_margin_of_the_answers_tokens_alone() -> None:
    """Tokens "so", " 4", "2", "." end at 2, 4, 5, 6; the answer is characters 3 to 5."""
    assert span_confidence([0.9, 0.5, 0.3, 0.9], [2, 4, 5, 6], Span(3, 5)) == pytest.approx(0.4)


def test_answers_in_words_add_up_and_only_their_own_tokens_count() -> None:
    """Yes has 0.4 + 0.3; the tokens around it, and of the sure no, are another matter."""
    paths = [
        read_path("Yes, because", [0.4, 0.9, 0.9], [3, 4, 12], "stop"),
        read_path("No.", [0.6, 1.0], [2, 3], "stop"),
        read_path("The answer is yes.", [0.9, 0.9, 0.3, 1.0], [10, 13, 17, 18], "stop"),
    ]
    assert [path.answer for path in paths] == ["yes", "no", "yes"]
    assert [path.confidence for path in paths] == [0.4, 0.6, 0.3]
    assert choose(paths, aggregate=True) is paths[0]


def test_equal_answers_in_different_words_add_up() -> None:
    """0.5 + 0.6 for 5 beats 0.9 for 7, though no two texts are the same."""
    paths = [
        Path("It is 5.", "5", 0.5, "stop"),
        Path("7", "7", 0.9, "stop"),
        Path("5, I say", "5", 0.6, "stop"),
    ]
    assert choose(paths, aggregate=True).text == "5, I say"
    assert choose(paths, aggregate=False).text == "7"


def test_a_long_fluent_path_does_not_win_by_its_other_tokens() -> None:
    fluent = read_path("Well then, 9", [0.99, 0.99, 0.1], [5, 10, 12], "stop")
    short = read_path("8", [0.6], [1], "stop")
    assert choose([fluent, short], aggregate=True) is short


def test_empty_and_truncated_paths_lose_and_ties_go_to_the_likelier_first_token() -> None:
    first, second = Path("1", "1", 0.5, "stop"), Path("2", "2", 0.5, "stop")
    assert choose([Path("", "", 1.0, "stop"), first, second], aggregate=True) is first
    assert choose([Path("3", "3", 1.0, "length"), second], aggregate=True) is second
    assert choose([Path("", "", 0.0, "stop")], aggregate=True).text == ""
