"""Solutions as people write them: assignments, and inequalities of one variable as intervals."""

from collections.abc import Sequence

from optillm_hooks.answers.formulas.comparing import Scalar, value_of
from optillm_hooks.answers.formulas.reading import solved
from optillm_hooks.answers.formulas.tree import Apply, Formula, Symbol, negative

_INFINITY = Symbol("infty")
_LESS = frozenset({"<", "<="})


def solution(formula: Formula) -> tuple[str, Formula]:
    """Return the variable that `formula` is about, or "", and its values.

    "x = 5" is 5, and "2 < x <= 3" is the interval (2, 3]. Two inequalities that have no value in
    common, as in "x < 1 or x > 2", are a union of intervals.
    """
    name, values = solved(formula)
    return (name, values) if name else _interval(formula) or ("", formula)


def in_order_of_names(relations: Sequence[Formula]) -> tuple[Formula, ...] | None:
    """Return the values of `relations` in the order of their variables: 3, 4 for y = 4, x = 3."""
    values: dict[str, Formula] = {}
    for relation in relations:
        if not (isinstance(relation, Apply) and relation.op == "="):
            return None
        name, value = relation.args
        if not isinstance(name, Symbol) or name.name in values:
            return None
        values[name.name] = value
    return tuple(values[name] for name in sorted(values))


def _interval(formula: Formula) -> tuple[str, Formula] | None:
    is_set = isinstance(formula, Apply) and formula.op == "set"
    parts = formula.args if isinstance(formula, Apply) and is_set else (formula,)
    lower: tuple[Formula, str] | None = None
    upper: tuple[Formula, str] | None = None
    names: set[str] = set()
    for part in parts:
        if not (isinstance(part, Apply) and part.op in _LESS):
            return None
        small, large = part.args
        if isinstance(large, Symbol) and _bound(small) is not None and lower is None:
            lower, name = (small, "[" if part.op == "<=" else "("), large.name
        elif isinstance(small, Symbol) and _bound(large) is not None and upper is None:
            upper, name = (large, "]" if part.op == "<=" else ")"), small.name
        else:
            return None
        names.add(name)
    if len(names) != 1:
        return None
    left = lower or (negative(_INFINITY), "(")
    right = upper or (_INFINITY, ")")
    if lower and upper and (_bound(lower[0]) or 0.0) >= (_bound(upper[0]) or 0.0):
        below = Apply("(" + right[1], (negative(_INFINITY), right[0]))
        return names.pop(), Apply("union", (below, Apply(left[1] + ")", (left[0], _INFINITY))))
    return names.pop(), Apply(left[1] + right[1], (left[0], right[0]))


def _bound(formula: Formula) -> float | None:
    """Return the real value of `formula` if it is a constant."""
    value = value_of(formula)
    if not isinstance(value, Scalar) or not value.is_constant or value.at[0] is None:
        return None
    return value.at[0].real if not value.at[0].imag else None
