"""The syntax tree of a formula."""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction
    places: int = 0
    """Number of digits after the decimal point."""


@dataclass(frozen=True, slots=True)
class Symbol:
    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation, a function, a relation or a collection of `args`.

    Operations are +, *, inv (1/x), ^, root (of args[0], to the degree args[1]), !, %, floor, ceil
    and binom (args[0] over args[1]). There is no minus and no division: a - b/c is
    +(a, *(-1, *(b, inv(c)))), so that long sums and products stay flat.
    Collections are set, row, matrix, determinant, union, and the four kinds of brackets.
    """

    op: str
    args: tuple["Formula", ...]


Formula = Number | Symbol | Apply

BRACKETS = frozenset({"()", "[]", "[)", "(]"})
"""Intervals and tuples, named by their brackets; the members are ordered."""

RELATIONS = frozenset({"=", "!=", "<", "<=", "in"})
COLLECTIONS = BRACKETS | RELATIONS | {"set", "row", "matrix", "determinant", "union"}
UNORDERED = frozenset({"set", "union", "=", "!="})

CONSTANTS = frozenset({"pi", "e", "i"})
_FUNCTION_NAMES = """
sin cos tan sec csc cot sinh cosh tanh arcsin arccos arctan ln log exp abs"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())


def product(*factors: Formula) -> Formula:
    """Return the product, flattened if the first factor is a product."""
    first, *rest = factors
    if isinstance(first, Apply) and first.op == "*":
        return Apply("*", (*first.args, *rest))
    return Apply("*", factors) if rest else first


def quotient(numerator: Formula, denominator: Formula) -> Formula:
    return product(numerator, Apply("inv", (denominator,)))


def negative(formula: Formula) -> Formula:
    if isinstance(formula, Number):
        return Number(-formula.value, formula.places)
    return product(Number(Fraction(-1)), formula)
