"""Values of formulas, and testing them for equality.

Scalars with exact rational values are equal if these are. Scalars without, because of roots,
constants or variables, are equal if they agree at fixed points: the polynomial identity test of
Schwartz (1980) and Zippel (1979), in floating point. Except for rounding its error is one-sided,
and negligible for answers of a few hundred characters. Each formula is evaluated once, so
comparisons are cheap.
"""

import cmath
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from optillm_hooks.answers.formulas.tree import (
    COLLECTIONS,
    CONSTANTS,
    UNORDERED,
    Apply,
    Formula,
    Number,
    Symbol,
    product,
)

_MAX_BITS = 4096
"""Maximum size of an exact value; a larger one is floating point, or None on overflow."""

_MAX_EXACT_FACTORIAL = 170
_POSITIVE, _NEGATIVE = 4, 2
"""Number of points with positive variables, and with negative variables."""

_HUNDREDTH = Fraction(1, 100)
_RELATIVE, _ABSOLUTE = 1e-9, 1e-13


@dataclass(frozen=True, slots=True)
class Scalar:
    formula: Formula
    exact: Fraction | None
    """The value, if it is rational and not too large."""

    at: tuple[complex | None, ...]
    """The value at each point, positive points first; None where it is undefined."""

    is_constant: bool
    has_abs: bool


@dataclass(frozen=True, slots=True)
class Group:
    kind: str
    members: tuple["Value", ...]
    """In order for ordered kinds, otherwise sorted."""


Value = Scalar | Group


def value_of(formula: Formula) -> Value:
    """Return the value of `formula`, ready to be compared."""
    if isinstance(formula, Apply) and formula.op in COLLECTIONS:
        members = [value_of(member) for member in formula.args]
        if formula.op == "[]" and _are_rows(members):
            rows = tuple(Group("row", row.members) for row in members if isinstance(row, Group))
            return Group("matrix", rows)
        if formula.op in UNORDERED:
            members.sort(key=_place)
        return Group(formula.op, tuple(members))
    names = _names(formula)
    is_constant = names <= CONSTANTS
    points = range(1 if is_constant else _POSITIVE + _NEGATIVE)
    at = tuple(_value_at(formula, point) for point in points)
    if is_constant:
        at *= _POSITIVE + _NEGATIVE
    return Scalar(formula, _exact(formula), at, is_constant, _has_abs(formula))


def scaled(value: Value, factor: Fraction) -> Value:
    """Return `factor` times `value`; a collection is unchanged."""
    if isinstance(value, Group):
        return value
    if isinstance(value.formula, Number):
        places = value.formula.places
        if places and factor == _HUNDREDTH:
            places += 2
        elif factor != 1:
            places = 0
        return value_of(Number(value.formula.value * factor, places))
    return value_of(product(value.formula, Number(factor)))


def multiple(value: Value, factor: Formula) -> Value:
    """Return `factor` times `value`; a collection is unchanged."""
    return value if isinstance(value, Group) else value_of(product(value.formula, factor))


def equal(a: Value, b: Value) -> bool:
    """Return True if the two are the same value, set, interval, relation or matrix.

    A decimal with at least three significant digits also equals a constant without a finite decimal
    expansion if it is that constant rounded or truncated: 0.333 is 1/3 and 3.14 is pi, but 3.99 is
    not 4. With two digits, both after the decimal point, it must be rounded: 0.67 is 2/3. Equations
    are equal if their sides differ by the same expression up to a constant factor.
    """
    if isinstance(a, Group) or isinstance(b, Group):
        if not (isinstance(a, Group) and isinstance(b, Group)) or a.kind != b.kind:
            return False
        if len(a.members) == len(b.members) and all(map(equal, a.members, b.members)):
            return True
        return a.kind == "=" and _same_equation(a, b)
    if a.exact is not None and b.exact is not None:
        return a.exact == b.exact or _is_rounded(a, b) or _is_rounded(b, a)
    return a.formula == b.formula or _agree(a, b) or _is_rounded(a, b) or _is_rounded(b, a)


def _are_rows(members: Sequence[Value]) -> bool:
    """Return whether `members` are the rows of a matrix that is written as lists."""
    rows = [m for m in members if isinstance(m, Group) and m.kind == "[]"]
    return len(rows) == len(members) > 0 and len({len(row.members) for row in rows}) == 1


def _same_equation(a: Group, b: Group) -> bool:
    """Return whether the difference of the sides of `a` is a constant times that of `b`."""
    one, other = _difference(a), _difference(b)
    if not one or not other or any(abs(u) < _ABSOLUTE for u in (*one, *other)):
        return False
    ratios = [u / v for u, v in zip(one, other, strict=True)]
    return all(abs(ratio - ratios[0]) <= _RELATIVE * abs(ratios[0]) for ratio in ratios)


def _difference(equation: Group) -> list[complex]:
    """Return the difference of the sides of `equation` at each positive point, or nothing."""
    sides = [side.at[:_POSITIVE] for side in equation.members if isinstance(side, Scalar)]
    if len(sides) != 2 or all(s.is_constant for s in equation.members if isinstance(s, Scalar)):
        return []
    pairs = zip(*sides, strict=True)
    return [u - v for u, v in pairs if u is not None and v is not None]


def _agree(a: Scalar, b: Scalar) -> bool:
    """Return True if the two have the same value at each point.

    Variables are positive, as is usual in answers (log(ab) is log a + log b). With absolute values,
    whose result depends on the sign, negative points are tested too.
    """
    points = _POSITIVE + (_NEGATIVE if a.has_abs or b.has_abs else 0)
    return all(
        u is not None
        and v is not None
        and abs(u - v) <= _RELATIVE * max(abs(u), abs(v)) + _ABSOLUTE
        for u, v in zip(a.at[:points], b.at[:points], strict=True)
    )


def _is_rounded(decimal: Scalar, other: Scalar) -> bool:
    """Return True if `decimal` is the constant `other` rounded or truncated; see `equal`."""
    written, value, approximate = decimal.formula, other.at[0], decimal.at[0]
    if not isinstance(written, Number) or not written.places or not other.is_constant:
        return False
    if value is None or approximate is None or abs(value.imag) > _ABSOLUTE:
        return False
    unit = 10.0**-written.places
    excess = abs(value.real) - abs(approximate.real)
    if not -0.5 * unit <= excess < unit or value.real * approximate.real < 0:
        return False
    significant = len(str(abs(written.value) * 10**written.places).lstrip("0"))
    if significant < (2 if written.places > 1 else 3):
        return False
    if significant == 2 and excess >= 0.5 * unit:
        return False
    return other.exact is None or not _terminates(other.exact)


def _terminates(value: Fraction) -> bool:
    """Return True for a finite decimal expansion: the denominator has only factors 2 and 5."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _place(value: Value) -> tuple[float, float, str]:
    """Return a sort key for `value`, the same for equal values except for rounding."""
    if isinstance(value, Group):
        return (math.inf, 0.0, value.kind + "".join(str(_place(m)) for m in value.members))
    at = value.at[0]
    if at is None:
        return (math.inf, 0.0, str(value.formula))
    return (round(at.real, 6), round(at.imag, 6), "")


def _names(formula: Formula) -> set[str]:
    match formula:
        case Symbol(name):
            return {name}
        case Apply(_, args):
            return {name for arg in args for name in _names(arg)}
    return set()


def _has_abs(formula: Formula) -> bool:
    return isinstance(formula, Apply) and (formula.op == "abs" or any(map(_has_abs, formula.args)))


def _exact(formula: Formula) -> Fraction | None:
    match formula:
        case Number(value):
            return value
        case Apply(op, args) if op in _EXACT:
            values = [value for value in map(_exact, args) if value is not None]
            result = _EXACT[op](values) if len(values) == len(args) else None
            return result if result is not None and _bits(result) <= _MAX_BITS else None
    return None


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _exact_power(values: Sequence[Fraction]) -> Fraction | None:
    base, exponent = values
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    if _bits(base) * abs(exponent.numerator) > _MAX_BITS:
        return None
    return Fraction(base**exponent.numerator)


def _exact_factorial(values: Sequence[Fraction]) -> Fraction | None:
    [n] = values
    if n.denominator != 1 or not 0 <= n <= _MAX_EXACT_FACTORIAL:
        return None
    return Fraction(math.factorial(n.numerator))


def _exact_binomial(values: Sequence[Fraction]) -> Fraction | None:
    n, k = values
    if n.denominator != 1 or k.denominator != 1 or not 0 <= n <= _MAX_EXACT_FACTORIAL or k < 0:
        return None
    return Fraction(math.comb(n.numerator, k.numerator))


def _binomial(n: complex, k: complex) -> complex:
    below = math.gamma(k.real + 1) * math.gamma(n.real - k.real + 1)
    return math.gamma(n.real + 1) / below


_EXACT: dict[str, Callable[[Sequence[Fraction]], Fraction | None]] = {
    "+": lambda values: sum(values, Fraction(0)),
    "*": lambda values: math.prod(values, start=Fraction(1)),
    "inv": lambda values: 1 / values[0] if values[0] else None,
    "^": _exact_power,
    "!": _exact_factorial,
    "%": lambda values: values[0] / 100,
    "abs": lambda values: abs(values[0]),
    "binom": _exact_binomial,
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
}


def _value_at(formula: Formula, point: int) -> complex | None:
    try:
        value = _value(formula, point)
    except (ArithmeticError, ValueError):
        return None
    return value if cmath.isfinite(value) else None


def _value(formula: Formula, point: int) -> complex:
    match formula:
        case Number(value):
            return complex(float(value))
        case Symbol(name):
            return _CONSTANTS[name] if name in _CONSTANTS else _coordinate(name, point)
        case Apply(op, args) if op not in COLLECTIONS:
            return complex(_INEXACT[op](*[_value(arg, point) for arg in args]))
    raise ValueError(f"no value: {formula}")


def _coordinate(name: str, point: int) -> complex:
    """Return a fixed value of magnitude 0.5 to 1.5 for the variable `name`."""
    size = 0.5 + zlib.crc32(f"{point}:{name}:{point}".encode()) / 2**32
    return complex(size if point < _POSITIVE else -size)


_CONSTANTS: dict[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j}
_INEXACT: dict[str, Callable[..., complex]] = {
    "+": lambda *values: sum(values, 0j),
    "*": lambda *values: math.prod(values, start=1 + 0j),
    "inv": lambda value: 1 / value,
    "^": lambda base, exponent: base**exponent,
    "root": lambda base, degree: base ** (1 / degree),
    "!": lambda n: math.gamma(n.real + 1),
    "%": lambda value: value / 100,
    "abs": abs,
    "binom": _binomial,
    "floor": lambda value: complex(math.floor(value.real)),
    "ceil": lambda value: complex(math.ceil(value.real)),
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan,
    "ln": cmath.log, "log": cmath.log10, "exp": cmath.exp,
    "sec": lambda angle: 1 / cmath.cos(angle),
    "csc": lambda angle: 1 / cmath.sin(angle),
    "cot": lambda angle: 1 / cmath.tan(angle),
}  # fmt: skip
