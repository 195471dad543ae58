"""Verifies answers to puzzles that ask for an expression of given numbers with a given value.

The verifiers of reasoning-gym evaluate a reply as Python, so that a model could run any program,
and that of puzzle24 accepts any four numbers.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from operator import add, mul, sub, truediv
from typing import Final

_LONGEST: Final = 1000
"""Characters of an expression; more could nest too deeply."""

_SIGNS: Final = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})  # noqa: RUF001
_OPERATIONS: Final[Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: add, ast.Sub: sub, ast.Mult: mul, ast.Div: truediv,
}  # fmt: skip


def solves(expression: str, numbers: Sequence[int], value: int) -> bool:
    """Return whether an expression uses each of `numbers` once and nothing else, and is `value`."""
    if len(expression) > _LONGEST:
        return False
    used = list[int]()
    try:
        tree = ast.parse(expression.translate(_SIGNS).strip(), mode="eval")
        found = _value(tree.body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    return found == value and sorted(used) == sorted(numbers)


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """Return the exact value of an expression, and add its numbers to `used`.

    Raises:
        ValueError: it has something else than whole numbers, parentheses and + - * /.
    """
    match node:
        case ast.Constant(value=number) if type(number) is int:
            used.append(number)
            return Fraction(number)
        case ast.BinOp(left, sign, right) if (apply := _OPERATIONS.get(type(sign))) is not None:
            return apply(_value(left, used), _value(right, used))
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand, used)
        case _:
            raise ValueError(ast.dump(node))
