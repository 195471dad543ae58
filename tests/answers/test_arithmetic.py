"""Claims of arithmetic: which are found in a text, and which of them are true."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.answers.arithmetic import checked_claims


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("12 * 34 = 408", [True]),
        ("So 12 \u00d7 34 = 407.", [False]),
        ("1,200 + 300 = 1,500 dollars and $5 + $3 = $8.", [True, True]),
        ("17 - 5 = 12 apples, 12 + 1 = 14 pears", [True, False]),
        ("2 + 2 * 3 = 8, 2^10 = 1024, 5 x 3 = 15", [True, True, True]),
        ("(3 + 4 = 7)", [True]),
        ("1/3 = 0.333, 2/3 = 0.67, 2/3 = 0.5", [True, True, False]),
        ("2 + 3 = 5 * 2 = 10", [True]),
        ("x = 3 + 4 = 7", [True]),
        ("10 / 4 = 2", [False]),
        ("10 / 3 = 3 remainder 1", []),
        ("17 / 5 = 3 R 2", []),
        ("x + 3 + 4 = 12", []),
        ("2x + 3 = 7", []),
        ("(12 + 3) * 4 + 2 = 62", []),
        ("0,5 + 2 = 2,5", []),
        ("100 - 20% = 80", []),
        ("2^3^2 = 512", []),
        ("1/0 = 3, 2^9999 = 1", []),
        ("3 + 4 == 8 and `a`\n```\n3 + 4 = 8\n```\n", []),
        ("3 + 4 = 7x and 3 + 4 = 7 * y", []),
        ("", []),
    ],
)
def test_claims(text: str, claims: list[bool]) -> None:
    assert checked_claims(text) == claims


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from("+-*"), st.integers(-2, 2))
def test_a_claim_is_true_if_python_says_so(a: int, b: int, sign: str, off: int) -> None:
    value = {"+": a + b, "-": a - b, "*": a * b}[sign] + off
    if value >= 0:
        assert checked_claims(f"Now {a} {sign} {b} = {value}.") == [off == 0]


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 8))
def test_a_quotient_may_be_rounded(a: int, b: int, places: int) -> None:
    shown = f"{float(Fraction(a, b)):.{places}f}"
    assert checked_claims(f"{a} / {b} = {shown}") == [True]
