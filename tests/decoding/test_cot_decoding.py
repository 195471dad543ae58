"""CoT decoding's pure functions: how sure a model is of an answer, and which answer wins."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.equivalence import classes
from optillm_hooks.answers.extraction import extract
from optillm_hooks.decoding.cot_decoding import (
    Choice,
    CotSettings,
    Path,
    choose,
    mentions,
    read_path,
    span_confidence,
)
from optillm_hooks.types import FinishReason


def read(
    text: str,
    margins: Sequence[float],
    ends: Sequence[int],
    finish_reason: FinishReason = "stop",
    *,
    probability: float = 0.5,
    every_mention: bool = True,
) -> Path:
    found = extract(text, lenient=True)
    return read_path(
        text, margins, ends, finish_reason, found, probability, every_mention=every_mention
    )


def written(*tokens: tuple[str, float], **how: Any) -> Path:
    """Return the path of these tokens, each with its margin."""
    texts = [text for text, _ in tokens]
    ends = [len("".join(texts[: at + 1])) for at in range(len(texts))]
    return read("".join(texts), [margin for _, margin in tokens], ends, **how)


def path_of(
    text: str,
    answer: str,
    confidence: float,
    finish_reason: FinishReason = "stop",
    probability: float = 0.5,
) -> Path:
    return Path(text, answer, confidence, finish_reason, probability)


def chosen(paths: Sequence[Path], *, aggregate: bool = True, exponent: float = 0.25) -> Choice:
    settings = CotSettings(aggregate_paths=aggregate, first_token_exponent=exponent)
    return choose(paths, classes([path.answer for path in paths]), settings)


def test_confidence_is_the_mean_margin_of_the_answers_tokens_alone() -> None:
    """Tokens "so", " 4", "2", "." end at 2, 4, 5, 6; the answer is characters 3 to 5."""
    assert span_confidence([0.9, 0.5, 0.3, 0.9], [2, 4, 5, 6], 3, 5) == pytest.approx(0.4)


def test_of_a_fraction_all_tokens_count_and_not_the_denominators_alone() -> None:
    r"""The answer \frac{1}{2} is written by the seven tokens from "\frac" on: mean 0.4."""
    tokens = ["It", " is", r" \(\boxed{", r"\frac", "{", "1", "}", "{", "2", "}", r"}\).", "<end>"]
    margins = [0.9, 0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.9]
    ends = [len("".join(tokens[: at + 1])) for at in range(len(tokens) - 1)]
    path = read("".join(tokens[:-1]), margins, [*ends, ends[-1]], "stop")
    assert path.answer == r"\frac{1}{2}"
    assert path.confidence == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("texts", "margins", "winner"),
    [
        pytest.param(
            ["The answer is 1/2.", "It is \\boxed{\\frac{1}{2}}", "The answer is 3/2."],
            [0.5, 0.4, 0.8],
            0,
            id="two fractions with one denominator are two answers",
        ),
        pytest.param(
            ["\\boxed{2\\sqrt{3}}", "so \\boxed{\\sqrt{12}}", "\\boxed{5\\sqrt{3}}"],
            [0.5, 0.4, 0.8],
            0,
            id="two multiples of one root are two answers",
        ),
        pytest.param(
            ["\\boxed{x^{2}+1}", "It is $1+x^2$, so ANSWER: none", "\\boxed{1}"],
            [0.5, 0.4, 0.8],
            2,
            id="a formula is more than its last number",
        ),
        pytest.param(
            ["\\boxed{\\text{(B)}}", "The answer is option B.", "The answer is C"],
            [0.5, 0.4, 0.8],
            0,
            id="an option is its letter however it is written",
        ),
        pytest.param(
            ["The answer is 1,250 apples.", "So it is 1250", "The answer is 1,251 apples."],
            [0.5, 0.4, 0.8],
            0,
            id="a bare number is the quantity",
        ),
        pytest.param(
            ["The answer is yes, they can.", "They swim, so I think yes.", "No."],
            [0.5, 0.4, 0.8],
            0,
            id="a yes is one with its reason and without",
        ),
    ],
)
def test_the_confidence_of_equal_answers_is_added_up(
    texts: list[str], margins: list[float], winner: int
) -> None:
    """Each branch is one token; 0.5 and 0.4 of one answer beat the 0.8 of another."""
    paths = [
        read(text, [margin], [len(text)], "stop")
        for text, margin in zip(texts, margins, strict=True)
    ]
    assert chosen(paths, aggregate=True).path is paths[winner]
    assert chosen(paths, aggregate=False).path is paths[2]


def test_only_the_tokens_of_an_answer_in_words_count() -> None:
    """Yes has 0.4 + 0.3; the tokens around it, and of the sure no, are another matter."""
    paths = [
        read("Yes, because", [0.4, 0.9, 0.9], [3, 4, 12], "stop"),
        read("No.", [0.6, 1.0], [2, 3], "stop"),
        read("The answer is yes.", [0.9, 0.9, 0.3, 1.0], [10, 13, 17, 18], "stop"),
    ]
    assert [path.answer for path in paths] == ["Yes", "No", "yes"]
    assert [path.confidence for path in paths] == [0.4, 0.6, 0.3]
    assert chosen(paths, aggregate=True).path is paths[0]


def test_a_branch_without_an_answer_is_an_answer_of_its_own() -> None:
    text = "I would rather not say anything"
    path = read(text, [0.2, 0.6], [10, len(text)], "stop")
    assert path.answer == text
    assert path.confidence == pytest.approx(0.4)


def test_the_report_says_how_many_paths_agree_and_how_sure_the_winner_is() -> None:
    paths = [
        path_of("It is 5.", "5", 0.5, "stop"),
        path_of("7", "7", 0.9, "stop"),
        path_of("5.0, I say", "5.0", 0.6, "stop"),
    ]
    choice = chosen(paths, aggregate=True)
    assert choice.path is paths[2]
    assert choice.facts() == {"paths": 3, "agreeing": 2, "confidence": 0.6}
    assert chosen(paths, aggregate=False).facts() == {"paths": 3, "agreeing": 1, "confidence": 0.9}
    cut = path_of("7 it", "7", 0.9, "length")
    assert chosen([*paths, cut], aggregate=False).agreeing == 2, "a truncated path can agree"


COPIED = ("9 - 8 =", 0.9), (" 1", 0.2), (" apple. The answer is", 0.9), (" 1", 1.0), (".", 1.0)


def test_a_number_is_only_as_sure_as_where_the_model_worked_it_out() -> None:
    """The last 1 is a copy, of which any model is sure; the paper's rule measures that one."""
    assert written(*COPIED).confidence == pytest.approx(0.2)
    assert written(*COPIED, every_mention=False).confidence == pytest.approx(1.0)


def test_a_surely_copied_answer_loses_to_one_that_was_surely_worked_out() -> None:
    right = written(("9 + 8 =", 0.9), (" 17", 0.8), (" apples. The answer is", 0.9), (" 17", 0.9))
    assert chosen([written(*COPIED), right]).path is right


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("3 + 4 = 7, so 7", "7", [8, 14]),
        ("17 - 7.5, 1/7, 7/2, 7th, 0.7, 1,7 and -7", "7", []),
        ("7. First, (7)", "7", [0, 11]),
        ("1,250 of 250", "250", [9]),
        ("12 pens are 12", "12 pens", [0]),
        ("(a+b)*2 is not a+b", "(a+b)*2", [0]),
        ("A shop has no lamps", "A", []),
        ("", "7", []),
    ],
)
def test_mentions_are_whole_numbers(text: str, answer: str, found: list[int]) -> None:
    assert mentions(text, answer) == [(start, start + len(answer)) for start in found]


margins = st.lists(st.tuples(st.text("12 =.a", max_size=3), st.floats(0, 1)), max_size=12)


@given(margins)
def test_more_mentions_never_make_surer_and_it_stays_a_margin(
    tokens: list[tuple[str, float]],
) -> None:
    every, final = written(*tokens), written(*tokens, every_mention=False)
    assert every.answer == final.answer
    assert 0 <= every.confidence <= final.confidence <= 1


@given(margins, st.integers(0, 30), st.integers(1, 9))
def test_the_tokens_of_a_span_are_those_that_overlap_it(
    tokens: list[tuple[str, float]], start: int, length: int
) -> None:
    """A token that writes nothing, such as an end token, counts inside the span alone."""
    ends = [len("".join(text for text, _ in tokens[: at + 1])) for at in range(len(tokens))]
    spans = zip([0, *ends], ends, [margin for _, margin in tokens], strict=False)
    inside = [m for begin, end, m in spans if begin < start + length and end > start]
    found = span_confidence([margin for _, margin in tokens], ends, start, start + length)
    assert found == pytest.approx(sum(inside) / len(inside) if inside else 0.0)


def test_branches_from_unlikely_first_tokens_count_less() -> None:
    """0.9 * 0.5 ** 0.25 = 0.76 against 2 * 0.9 * 0.001 ** 0.25 = 0.32."""
    likely = path_of("8", "8", 0.9, probability=0.5)
    odd = [path_of(text, "9", 0.9, probability=0.001) for text in ("9", "It is 9")]
    assert chosen([likely, *odd]).path is likely
    assert chosen([likely, *odd], exponent=0.0).path is odd[0], "the paper's rule"
    assert chosen([odd[0], likely], aggregate=False).path is likely
    surer = path_of("8.0", "8", 1.0, probability=0.001)
    assert chosen([surer, likely]).path is likely, "of its branches the one that counts most"


def test_many_unlikely_branches_still_outvote_a_likely_one() -> None:
    likely = path_of("8", "8", 0.9, probability=0.5)
    odd = [path_of("9", "9", 0.9, probability=0.02)] * 3
    assert chosen([likely, *odd]).path is odd[0]


def test_a_long_fluent_path_does_not_win_by_its_other_tokens() -> None:
    fluent = read("Well then, I say 9", [0.99, 0.99, 0.1], [5, 16, 18], "stop")
    short = read("8", [0.6], [1], "stop")
    assert chosen([fluent, short], aggregate=True).path is short


def test_empty_and_truncated_paths_lose_and_ties_go_to_the_likelier_first_token() -> None:
    first, second = path_of("1", "1", 0.5, "stop"), path_of("2", "2", 0.5, "stop")
    assert chosen([path_of("", "", 1.0, "stop"), first, second], aggregate=True).path is first
    assert chosen([path_of("3", "3", 1.0, "length"), second], aggregate=True).path is second
    assert chosen([path_of("", "", 0.0, "stop")], aggregate=True).path.text == ""


@given(
    st.lists(
        st.tuples(st.sampled_from("123"), st.floats(0, 1), st.floats(0.001, 1)),
        min_size=1,
        max_size=9,
    ),
    st.booleans(),
    st.sampled_from([0.0, 0.25, 1.0]),
)
def test_the_winner_has_the_best_answer_and_is_the_first_that_counts_most_of_it(
    votes: list[tuple[str, float, float]], aggregate: bool, exponent: float
) -> None:
    paths = [path_of(answer, answer, c, probability=p) for answer, c, p in votes]
    best = chosen(paths, aggregate=aggregate, exponent=exponent).path
    counts = [c * p**exponent for _, c, p in votes]
    own = [
        [count for count, (other, *_) in zip(counts, votes, strict=True) if other == answer]
        for answer, *_ in votes
    ]
    scores = [sum(of) if aggregate else max(of) for of in own]
    at = paths.index(best)
    assert scores[at] == max(scores)
    assert counts[at] == max(own[at])
