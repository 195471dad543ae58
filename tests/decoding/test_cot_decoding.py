"""CoT decoding's pure functions: how sure a model is of an answer, and which answer wins."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.equivalence import classes
from optillm_hooks.answers.extraction import extract
from optillm_hooks.decoding.cot_decoding import Choice, Path, choose, read_path, span_confidence
from optillm_hooks.types import FinishReason


def read(
    text: str, margins: Sequence[float], ends: Sequence[int], finish_reason: FinishReason
) -> Path:
    return read_path(text, margins, ends, finish_reason, extract(text, lenient=True))


def chosen(paths: Sequence[Path], *, aggregate: bool) -> Choice:
    return choose(paths, classes([path.answer for path in paths]), aggregate=aggregate)


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
        Path("It is 5.", "5", 0.5, "stop"),
        Path("7", "7", 0.9, "stop"),
        Path("5.0, I say", "5.0", 0.6, "stop"),
    ]
    choice = chosen(paths, aggregate=True)
    assert choice.path is paths[2]
    assert choice.facts() == {"paths": 3, "agreeing": 2, "confidence": 0.6}
    assert chosen(paths, aggregate=False).facts() == {"paths": 3, "agreeing": 1, "confidence": 0.9}
    cut = Path("7 it", "7", 0.9, "length")
    assert chosen([*paths, cut], aggregate=False).agreeing == 2, "a truncated path can agree"


def test_a_long_fluent_path_does_not_win_by_its_other_tokens() -> None:
    fluent = read("Well then, I say 9", [0.99, 0.99, 0.1], [5, 16, 18], "stop")
    short = read("8", [0.6], [1], "stop")
    assert chosen([fluent, short], aggregate=True).path is short


def test_empty_and_truncated_paths_lose_and_ties_go_to_the_likelier_first_token() -> None:
    first, second = Path("1", "1", 0.5, "stop"), Path("2", "2", 0.5, "stop")
    assert chosen([Path("", "", 1.0, "stop"), first, second], aggregate=True).path is first
    assert chosen([Path("3", "3", 1.0, "length"), second], aggregate=True).path is second
    assert chosen([Path("", "", 0.0, "stop")], aggregate=True).path.text == ""


@given(
    st.lists(st.tuples(st.sampled_from("123"), st.floats(0, 1)), min_size=1, max_size=9),
    st.booleans(),
)
def test_the_winner_has_the_best_answer_and_is_the_first_that_is_surest_of_it(
    votes: list[tuple[str, float]], aggregate: bool
) -> None:
    paths = [Path(answer, answer, confidence, "stop") for answer, confidence in votes]
    best = chosen(paths, aggregate=aggregate).path
    of_answer = [[c for a, c in votes if a == answer] for answer, _ in votes]
    scores = [sum(own) if aggregate else max(own) for own in of_answer]
    assert scores[paths.index(best)] == max(scores)
    assert best.confidence == max(c for a, c in votes if a == best.answer)
