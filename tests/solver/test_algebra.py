"""The parser of algebraic expressions: it agrees with arithmetic and accepts nothing else."""

import math
from fractions import Fraction

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.solver.algebra import FUNCTIONS, Reader, RequestError, read_steps

NUMBERS = st.integers(0, 99).map(lambda n: (str(n), Fraction(n)))


def combine(
    inner: st.SearchStrategy[tuple[str, Fraction]],
) -> st.SearchStrategy[tuple[str, Fraction]]:
    plus = st.tuples(inner, inner).map(lambda t: (f"({t[0][0]} + {t[1][0]})", t[0][1] + t[1][1]))
    less = st.tuples(inner, inner).map(lambda t: (f"({t[0][0]}-{t[1][0]})", t[0][1] - t[1][1]))
    times = st.tuples(inner, inner).map(lambda t: (f"({t[0][0]} *{t[1][0]})", t[0][1] * t[1][1]))
    minus = inner.map(lambda t: (f"(-{t[0]})", -t[1]))
    square = inner.map(lambda t: (f"({t[0]})^2", t[1] ** 2))
    return plus | less | times | minus | square


def read(text: str) -> object:
    return Reader(text, sympy, {}).read()


@given(st.recursive(NUMBERS, combine, max_leaves=12))
def test_arithmetic_is_exact(case: tuple[str, Fraction]) -> None:
    text, value = case
    assert read(text) == sympy.Rational(value.numerator, value.denominator)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = read(text)
    except RequestError:
        return
    assert isinstance(found, sympy.Basic)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("2 + 3 * 4", 14, id="products before sums"),
        pytest.param("10 - 4 - 3", 3, id="differences from the left"),
        pytest.param("24 / 4 / 2", 3, id="quotients from the left"),
        pytest.param("2 ^ 3 ^ 2", 512, id="powers from the right"),
        pytest.param("-2 ^ 2", -4, id="a power before its sign"),
        pytest.param("2 ** -1 * 4", 2, id="a negative exponent"),
        pytest.param("3! ^ 2", 36, id="a factorial before a power"),
        pytest.param("17 % 5", 2, id="a remainder"),
        pytest.param("1.25 * 8", 10, id="decimals are exact"),
        pytest.param("2.5e-1 * 4", 1, id="an exponent of ten"),
        pytest.param("- - 3", 3, id="two signs"),
        pytest.param("Max(1, 5, 3) + ABS(-2)", 7, id="functions in any letters"),
        pytest.param("log(8, 2)", 3, id="a logarithm to a base"),
        pytest.param("sqrt(16) + E^0", 5, id="a root and a constant"),
    ],
)
def test_values(text: str, expected: int) -> None:
    assert read(text) == expected


def test_names_are_constants_unless_declared() -> None:
    e = sympy.Symbol("e")
    assert read("e") == sympy.E
    assert Reader("e", sympy, {"e": e}).read() == e


def test_a_relation_is_a_relation() -> None:
    x = sympy.Symbol("x")
    assert read("x^2 = 4") == sympy.Eq(x**2, 4)
    assert read("x < 4") == (x < 4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_takes_the_arguments_it_says(name: str) -> None:
    _, fewest, most = FUNCTIONS[name]
    for count in range(fewest, most + 1):
        assert isinstance(read(f"{name}({', '.join(['2'] * count)})"), sympy.Basic)
    with pytest.raises(RequestError, match=f"{name} takes"):
        read(f"{name}({', '.join(['2'] * (most + 1))})")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("9^9^9^9", "too large", id="a tower"),
        pytest.param("(1/7)^1000000", "too large", id="a small number"),
        pytest.param("3^(-10^6)", "too large", id="a negative exponent"),
        pytest.param("factorial(10^7)", "above 10000", id="a factorial"),
        pytest.param("2x", "unexpected 'x'", id="an implied product"),
        pytest.param("system(x)", "unknown function 'system'", id="a foreign function"),
        pytest.param("x.y", "unreadable text: '.y'", id="an attribute"),
        pytest.param("x__y", "not a name", id="a name of Python's own"),
        pytest.param("'x'", "unreadable", id="a string"),
        pytest.param("[x]", "unreadable", id="a list"),
        pytest.param("(x", "expected ')'", id="an open parenthesis"),
        pytest.param("1/0", "division by zero", id="division by zero"),
        pytest.param("", "expected a number", id="nothing"),
        pytest.param("(" * 100 + "1" + ")" * 100, "nested", id="deep parentheses"),
        pytest.param("2^" * 100 + "1", "nested", id="deep powers"),
        pytest.param("1 +" * 2000 + "1", "characters", id="too long"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("(", r"\(").replace(")", r"\)")):
        read(text)


def test_the_limit_of_a_power_is_where_it_says() -> None:
    assert isinstance(read("2^99999"), sympy.Integer)
    assert math.log2(int(str(read("2^10000")))) == 10_000


def test_steps_may_stand_alone() -> None:
    assert read_steps('{"operation": "evaluate", "expression": "1"}') == [
        {"operation": "evaluate", "expression": "1"}
    ]
