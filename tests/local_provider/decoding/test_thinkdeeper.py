import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from optillm_hooks.decoding.autothink import AutoThinkSettings, complexity, thinking_settings
from optillm_hooks.decoding.thinkdeeper import ThinkingBudget, ThinkSettings
from optillm_hooks.errors import RequestRejected
from optillm_hooks.local_provider.decoding.thinkdeeper import Thinking
from optillm_hooks.local_provider.engine_request import SamplingParams
from optillm_hooks.local_provider.uncertainty import Uncertainty

END = 0


def encode(text: str) -> Sequence[int]:
    return list(text.encode())


def token_bytes(token: int) -> bytes:
    return bytes([token])


def write(settings: ThinkSettings, room: int, model: str, *, then_ends: bool = True) -> str:
    """Return what is written when the model draws the bytes of `model`, END as '$'."""
    branch = Thinking(SamplingParams(), settings, room, encode, token_bytes)
    text = b""
    branch_draws = [END if char == "$" else ord(char) for char in " " + model]
    for token in branch_draws:
        for written in branch.emit(token, Uncertainty(), end=token == END):
            if written == END:
                assert then_ends
                return text.decode()
            text += token_bytes(written)
    return text.decode()


def test_thinking_opens_with_the_marker_and_the_prefill() -> None:
    text = write(ThinkSettings(prefill="Let me see."), 1000, "x")
    assert text == "<think>\nLet me see.x"


def test_the_budget_ends_thinking_with_exactly_the_markers_text() -> None:
    settings = ThinkSettings(max_thinking_tokens=30)
    text = write(settings, 1000, "a" * 40 + "$")
    thought, answer = text.removeprefix("<think>\n").split("\n</think>\n\n")
    assert set(thought) == {"a"}
    assert len(thought) + len("\n</think>\n\n") == 30
    assert answer == "a" * (40 - len(thought))


def test_an_early_end_is_replaced_by_words_that_go_on() -> None:
    settings = ThinkSettings(min_thinking_tokens=40, thought_switch_tokens=("Wait,", "But"))
    text = write(settings, 1000, "ab$cd$")
    assert text == "<think>\nab\nWait,cd\nBut"


def test_words_that_would_exceed_the_budget_are_not_written() -> None:
    """16 tokens, 18 of the words and 11 of the marker are more than 40; 30 are not."""
    settings = ThinkSettings(
        min_thinking_tokens=40,
        max_thinking_tokens=40,
        thought_switch_tokens=("On second thought,",),
    )
    assert write(settings, 1000, "a" * 15 + "$42$") == f"<think>\n{'a' * 15}\n</think>\n\n42"
    assert "On second" in write(settings, 1000, "a" * 5 + "$42$")


def test_an_end_without_the_marker_gets_it_and_the_answer_follows() -> None:
    settings = ThinkSettings(min_thinking_tokens=0)
    assert write(settings, 1000, "ab$42$") == "<think>\nab\n</think>\n\n42"


def test_the_models_own_marker_is_found_whatever_its_tokens() -> None:
    settings = ThinkSettings(min_thinking_tokens=0)
    assert write(settings, 1000, "ab</think>7$") == "<think>\nab</think>7"


def test_too_many_changes_of_direction_end_the_thinking() -> None:
    settings = ThinkSettings(
        max_thoughts=2, thought_switch_tokens=("Wait,",), min_thinking_tokens=0
    )
    text = write(settings, 1000, "Wait,aWait,b$")
    assert text == "<think>\nWait,aWait,\n</think>\n\nb"


@given(
    room=st.integers(1, 10_000),
    most=st.none() | st.integers(0, 20_000),
    least=st.none() | st.integers(0, 20_000),
    effort=st.sampled_from(["low", "medium", "high"]),
)
def test_the_answer_always_keeps_a_part_of_the_reply(
    room: int, most: int | None, least: int | None, effort: str
) -> None:
    settings = ThinkSettings.model_validate(
        {
            "max_thinking_tokens": most,
            "min_thinking_tokens": least,
            "reasoning_effort": effort,
        }
    )
    budget = ThinkingBudget(settings, room)
    assert 0 <= budget.min_tokens <= budget.max_tokens
    assert room - budget.max_tokens >= min(64, room // 2)


@pytest.mark.parametrize(
    ("effort", "least", "most", "thoughts"),
    [("low", 32, 330, 64), ("medium", 100, 660, 256), ("high", 100, 900, 512)],
)
def test_efforts_are_shares_of_the_reply(effort: str, least: int, most: int, thoughts: int) -> None:
    budget = ThinkingBudget(ThinkSettings.model_validate({"reasoning_effort": effort}), 1000)
    assert (budget.min_tokens, budget.max_tokens, budget.max_thoughts) == (least, most, thoughts)


@pytest.mark.parametrize("room", [512, 4096, 32_768])
def test_a_greeting_is_not_made_to_think_long(room: int) -> None:
    for settings in (ThinkSettings(), thinking_settings("Hi", AutoThinkSettings(), room)):
        assert ThinkingBudget(settings, room).min_tokens <= 32


DIFFICULTY: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "questions_by_difficulty.json").read_text()
)
"""Easy and hard questions in eight languages."""


UNSEEN: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parents[2] / "golden" / "questions_of_others.json").read_text()
)
"""The same, by somebody who did not know the words that are counted; no rule was changed since."""


def share_in_order(easy: list[str], hard: list[str]) -> float:
    """Return the share of pairs of which the hard question has the higher score."""
    pairs = [(complexity(one), complexity(other)) for one in easy for other in hard]
    return sum((one < other) + 0.5 * (one == other) for one, other in pairs) / len(pairs)


@pytest.mark.parametrize("language", DIFFICULTY)
def test_hard_questions_of_a_language_score_higher_than_easy_ones(language: str) -> None:
    questions = DIFFICULTY[language]
    assert share_in_order(questions["easy"], questions["hard"]) >= 0.95


@pytest.mark.parametrize("language", UNSEEN)
def test_so_do_questions_that_the_rules_were_not_made_for(language: str) -> None:
    assert share_in_order(UNSEEN[language]["easy"], UNSEEN[language]["hard"]) >= 0.9


def test_easy_and_hard_questions_are_told_apart_across_languages() -> None:
    easy, hard = (
        [question for each in DIFFICULTY.values() for question in each[kind]]
        for kind in ("easy", "hard")
    )
    assert share_in_order(easy, hard) >= 0.95


def test_a_harder_question_thinks_longer() -> None:
    easy = "What is the capital of France?"
    hard = "Prove that if 3 < x < 5 then x*x - 8*x + 15 < 0, and compute at least 2 such values."
    assert 0 <= complexity(easy) < complexity(hard) <= 1
    budgets = [
        thinking_settings(q, AutoThinkSettings(), 1000).max_thinking_tokens for q in (easy, hard)
    ]
    assert budgets[0] is not None
    assert budgets[1] is not None
    assert 100 <= budgets[0] < budgets[1] <= 600
    greeting, task = (thinking_settings(q, AutoThinkSettings(), 32_768) for q in ("Hi", hard))
    assert greeting.min_thinking_tokens == 0
    assert (task.min_thinking_tokens or 0) > 100


def test_a_command_of_latex_is_a_sign_of_a_harder_question() -> None:
    assert complexity(r"\frac a b") > complexity("frac a b")


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[list[bytes], set[int]]:
    """A vocabulary of all bytes and of some longer pieces, with several end tokens of no text."""
    pieces = st.sampled_from([b"</think>", b"</", b"think", b">\n", b"\n\n", b"<think>", b"Wait,"])
    longer = draw(st.lists(pieces, unique=True))
    ends = draw(st.integers(1, 3))
    tokens = [bytes([i]) for i in range(128)] + longer + [b""] * ends
    return tokens, set(range(len(tokens) - ends, len(tokens)))


@trying(max_examples=40)
@given(
    vocabulary=vocabularies(),
    drawn=st.lists(st.integers(0, 200), min_size=300, max_size=300),
    room=st.integers(2, 250),
    least=st.integers(0, 250),
    thoughts=st.integers(1, 4),
    prefill=st.text("ab .,\n", max_size=120),
)
def test_on_any_tokenizer_it_ends_in_time_with_the_marker_as_it_is(
    vocabulary: tuple[list[bytes], set[int]],
    drawn: list[int],
    room: int,
    least: int,
    thoughts: int,
    prefill: str,
) -> None:
    """The engine's loop in small: a reply ends at its room, or at an end token that is written."""
    tokens, ends = vocabulary

    def encode_greedily(text: str) -> Sequence[int]:
        rest, ids = text.encode(), list[int]()
        while rest:
            found = max(
                (i for i, piece in enumerate(tokens) if piece and rest.startswith(piece)),
                key=lambda i: len(tokens[i]),
            )
            ids.append(found)
            rest = rest[len(tokens[found]) :]
        return ids

    settings = ThinkSettings(min_thinking_tokens=least, max_thoughts=thoughts, prefill=prefill)
    opening = len(encode_greedily(f"<think>\n{prefill}"))
    ending = len(encode_greedily("\n</think>\n\n"))
    fits = opening + 1 + ending < room
    if prefill and not fits:
        with pytest.raises(RequestRejected, match="prefill leaves no room"):
            Thinking(SamplingParams(), settings, room, encode_greedily, tokens.__getitem__)
        return
    branch = Thinking(SamplingParams(), settings, room, encode_greedily, tokens.__getitem__)
    written: list[int] = []
    for draw in drawn:
        token = draw % len(tokens)
        new = list(branch.emit(token, Uncertainty(), end=token in ends))
        assert new, "something is written for each token that is drawn"
        written += new
        if len(written) >= room or written[-1] in ends:
            break
    assert len(written) >= room or written[-1] in ends, "it comes to an end"
    text = b"".join(tokens[i] for i in written)
    facts = branch.facts()
    if len(written) >= opening:
        assert text.startswith(f"<think>\n{prefill}".encode())
    if written[-1] in ends:
        assert b"</think>" in text, "an answer only comes behind the marker"
    budget = ThinkingBudget(settings, max(room - opening, 0))
    assert isinstance(facts["thinking"], int)
    assert facts["thinking"] + ending <= max(budget.max_tokens, 1 + ending), "the budget holds"
    if fits:
        thought = b"".join(tokens[i] for i in written[: room - 1])
        assert b"</think>" in thought, "the answer has room for a token at least"
