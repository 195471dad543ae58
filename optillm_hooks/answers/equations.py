"""The equation or the arithmetic that a short request asks for, such as "Solve x^2 = 4".

Only a request that has nothing else is read: in any other, as in "How many solutions does it
have?", the answer is not a solution.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final, NamedTuple

from optillm_hooks.answers.equivalence import classes
from optillm_hooks.answers.formulas import (
    equal,
    in_order_of_names,
    parse,
    parse_unsolved,
    solution,
    value_of,
)
from optillm_hooks.answers.formulas.tree import (
    COLLECTIONS,
    CONSTANTS,
    FUNCTIONS,
    Apply,
    Formula,
    Number,
    Symbol,
)
from optillm_hooks.answers.patterns import Pattern

MAX_CHARACTERS: Final = 300
"""Maximum length of a request that is read."""

_ASKING: Final = """
solve for find what is are the value values of and a all solution solutions root roots real
equation equations system variable unknown unknowns please if then calculate compute evaluate
determine how much does equal work out give me answer result
was ist sind berechne berechnen löse lösen die der das gleichung gleichungssystem nach auf bitte
wie viel ergibt bestimme wert von
combien font fait quel quelle est la le les valeur résous résoudre l'équation calcule calculer
cuánto es resuelve resolver ecuación calcula el valor de quanto é resolva equação risolvi equazione
сколько будет реши решите уравнение найди найдите вычисли вычислите чему равно
解方程 求 解 计算 等于 多少 是 请 方程 計算 方程式を解け を計算せよ"""
_WORDS: Final = frozenset(_ASKING.split())
"""Words around a formula that ask for nothing but its value or its solutions."""

_DELIMITERS = Pattern(r"=?[ \t]?[?\uff1f]|=$|\\[()\[\]]|\$|[\u3002:;\"]|[.,](?!\d)")
_FORMULA_WORD = Pattern(
    r"(?=.*[0-9=+*/^()\\\u00d7\u00f7\u2212\u221a-])[^\s\u0370-\u1fff\u2e80-\uffff]+|[b-hj-zB-HJ-Z]"
)
_LETTERS = Pattern(r"\\?[A-Za-z]{3,}")
_KNOWN: Final = FUNCTIONS | {"sqrt"}
_PERIODIC: Final = FUNCTIONS - {"exp", "ln", "log", "abs"}
"""An equation with them has solutions without number."""

_ANY_SIGN: Final = re.compile(r"[-+*^!\u00d7\u00f7\u221a\u2212]|\\|/.*/")


class Posed(NamedTuple):
    """What a request asks for: the value of an expression, or the solutions of equations.

    The formulas are written as `solver.algebra` reads them.
    """

    formulas: list[str]
    variables: list[str]
    """Those of equations; none if there is an expression."""


def read_posed(request: str) -> Posed | None:
    """Return what a request asks for if it is the value of one expression, or solutions.

    Equations have to be as many as their variables.
    """
    if len(request) > MAX_CHARACTERS:
        return None
    texts, others = [], list[str]()
    for part in _DELIMITERS.sub("\n", request.strip()).split("\n"):
        for is_formula, run in groupby(part.split(), key=_belongs_to_formula):
            if is_formula:
                texts.append(" ".join(run))
            else:
                others += run
    if any(word.casefold() not in _WORDS for word in others):
        return None
    texts = [text for text in texts if len(text) > 1 or not text.isalpha()]  # "for x"
    formulas = [parse_unsolved(text) for text in texts]
    equations = [f for f in formulas if isinstance(f, Apply) and f.op == "="]
    if not formulas or None in formulas:
        return None
    if len(equations) == len(formulas):
        names = sorted({name for equation in equations for name in _names(equation)})
        if len(names) != len(equations) or any(map(_is_periodic, equations)):
            return None
        return _posed(equations, names)
    [only, *more] = formulas
    if more or only is None or _names(only) or not _ANY_SIGN.search(texts[0]):
        return None
    return _posed([only], [])


def count_solved(
    final: str, variables: Sequence[str], solutions: Sequence[Mapping[str, str]]
) -> list[int] | None:
    """Return how many of `solutions` a final answer gives, and how many other values.

    None if it cannot be read. A value that is given twice counts once.

    Args:
        final: a final answer.
        variables: those of the equations, in the order of their names; none for an expression.
        solutions: the values of the variables; of an expression, its value under "".
    """
    names = variables or [""]
    wanted = [[parse(each[name]) for name in names] for each in solutions]
    given = _given(final, len(names))
    if not given:
        same = len(solutions) == len(names) == 1 and classes([final, solutions[0][names[0]]])
        return [1, 0] if same and same[0] == same[1] else None
    found = {at for values in given for at, each in enumerate(wanted) if _are_equal(values, each)}
    wrong = sum(not any(_are_equal(values, each) for each in wanted) for values in given)
    return [len(found), wrong]


def _given(final: str, count: int) -> list[list[Formula]]:
    """Return the solutions that a final answer gives, each with the values of `count` variables."""
    formula = parse_unsolved(final)
    if formula is None:
        return []
    if count == 1:
        _, value = solution(formula)
        if isinstance(value, Apply) and value.op in ("set", "[]", "()"):
            return [[each] for each in value.args]
        return [[value]]
    if not isinstance(formula, Apply):
        return []
    values = in_order_of_names(formula.args) if formula.op == "set" else None
    if values is None and formula.op in ("()", "[]"):
        values = formula.args
    if values is not None and len(values) == count:
        return [[*values]]
    tuples = [each.args for each in formula.args if isinstance(each, Apply) and each.op == "()"]
    return [[*each] for each in tuples if len(each) == count]


def _are_equal(values: Sequence[Formula], wanted: Sequence[Formula | None]) -> bool:
    return all(
        other is not None and equal(value_of(value), value_of(other))
        for value, other in zip(values, wanted, strict=True)
    )


def _belongs_to_formula(word: str) -> bool:
    if _FORMULA_WORD.fullmatch(word) is None:
        return False
    letters = _LETTERS.findall(word)
    return all(found.startswith("\\") or found in _KNOWN for found in letters)


def _posed(formulas: Sequence[Formula], variables: list[str]) -> Posed | None:
    try:
        return Posed([_written(formula) for formula in formulas], variables)
    except _NotWritten:
        return None


def _names(formula: Formula) -> set[str]:
    match formula:
        case Symbol(name):
            return set() if name in CONSTANTS else {name}
        case Apply(_, args):
            return {name for each in args for name in _names(each)}
        case _:
            return set()


def _is_periodic(formula: Formula) -> bool:
    if not isinstance(formula, Apply):
        return False
    return formula.op in _PERIODIC or any(map(_is_periodic, formula.args))


class _NotWritten(Exception):
    """A formula has a part that SymPy is not given."""


_CALLS: Final = {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "ln": "log", "ceil": "ceiling",
    "binom": "binomial", "root": "root", "floor": "floor",
}  # fmt: skip


def _written(formula: Formula) -> str:
    """Return `formula` in the grammar of `solver.algebra`.

    Raises:
        _NotWritten: it has no such form.
    """
    match formula:
        case Number(value):
            return f"({value.numerator}/{value.denominator})"
        case Symbol(name):
            return _symbol(name)
        case Apply("=", (left, right)):
            return f"{_written(left)} = {_written(right)}"
        case Apply(op, args) if op not in COLLECTIONS:
            return _applied(op, [_written(each) for each in args])
    raise _NotWritten


def _symbol(name: str) -> str:
    if name in CONSTANTS:
        return {"e": "E", "i": "I"}.get(name, name)
    if name.isascii() and name.isalpha() and name not in ("E", "I", "oo", "infty"):
        return name
    raise _NotWritten


def _applied(op: str, args: list[str]) -> str:
    match op:
        case "+" | "*" | "^":
            return f"({op.join(args)})"
        case "inv":
            return f"(1/{args[0]})"
        case "!":
            return f"({args[0]}!)"
        case "%":
            return f"({args[0]}/100)"
        case "log" if len(args) == 1:
            return f"log({args[0]}, 10)"
        case _ if op in FUNCTIONS or op in _CALLS:
            return f"{_CALLS.get(op, op)}({', '.join(args)})"
    raise _NotWritten
