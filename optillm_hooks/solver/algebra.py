"""Computer algebra with SymPy in a worker process, by JSON requests.

A request is a list of steps; each is one of `OPERATIONS`, applied to expressions in the small
grammar below. Our parser builds SymPy's nodes one by one from a fixed list of functions and never
passes text to SymPy, because SymPy's own parser evaluates Python.

    relation   := sum [("=" | "==" | "!=" | "<" | "<=" | ">" | ">=") sum]
    sum        := product {("+" | "-") product}
    product    := unary {("*" | "/" | "%") unary}
    unary      := ("+" | "-") unary | power
    power      := postfix [("^" | "**") unary]
    postfix    := primary {"!"}
    primary    := number | name | name "(" relation {"," relation} ")" | "(" relation ")"
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_STEPS: Final = 16
MAX_CHARACTERS: Final = 4000
MAX_NESTED: Final = 60
MAX_BITS: Final = 100_000
"""Maximum size, in bits, of the value of a power."""

MAX_COUNT: Final = 10_000
"""Maximum argument of functions whose values have about as many digits."""

MAX_SHOWN: Final = 4000
"""Maximum length of one result, in characters; the rest is truncated."""

FUNCTIONS: Final[Mapping[str, tuple[str, int, int]]] = {
    "sqrt": ("sqrt", 1, 1),
    "cbrt": ("cbrt", 1, 1),
    "root": ("root", 2, 2),
    "abs": ("Abs", 1, 1),
    "sign": ("sign", 1, 1),
    "floor": ("floor", 1, 1),
    "ceiling": ("ceiling", 1, 1),
    "exp": ("exp", 1, 1),
    "log": ("log", 1, 2),
    "ln": ("log", 1, 1),
    "sin": ("sin", 1, 1),
    "cos": ("cos", 1, 1),
    "tan": ("tan", 1, 1),
    "cot": ("cot", 1, 1),
    "sec": ("sec", 1, 1),
    "csc": ("csc", 1, 1),
    "asin": ("asin", 1, 1),
    "acos": ("acos", 1, 1),
    "atan": ("atan", 1, 1),
    "atan2": ("atan2", 2, 2),
    "sinh": ("sinh", 1, 1),
    "cosh": ("cosh", 1, 1),
    "tanh": ("tanh", 1, 1),
    "asinh": ("asinh", 1, 1),
    "acosh": ("acosh", 1, 1),
    "atanh": ("atanh", 1, 1),
    "re": ("re", 1, 1),
    "im": ("im", 1, 1),
    "conjugate": ("conjugate", 1, 1),
    "factorial": ("factorial", 1, 1),
    "binomial": ("binomial", 2, 2),
    "gamma": ("gamma", 1, 1),
    "fibonacci": ("fibonacci", 1, 1),
    "erf": ("erf", 1, 1),
    "gcd": ("gcd", 2, 2),
    "lcm": ("lcm", 2, 2),
    "mod": ("Mod", 2, 2),
    "min": ("Min", 1, 8),
    "max": ("Max", 1, 8),
}
"""By name in the grammar: SymPy's name, minimum and maximum number of arguments."""

_GROWING: Final = frozenset({"factorial", "binomial", "gamma", "fibonacci"})
_CONSTANTS: Final = {"pi": "pi", "E": "E", "e": "E", "I": "I", "oo": "oo", "infinity": "oo"}
_RELATIONS: Final = {
    "=": "Eq",
    "==": "Eq",
    "!=": "Ne",
    "<": "Lt",
    "<=": "Le",
    ">": "Gt",
    ">=": "Ge",
}
_ASSUMPTIONS: Final = frozenset({"real", "positive", "nonnegative", "negative", "integer"})
_FIELDS: Final = frozenset(
    {
        "operation",
        "expression",
        "expressions",
        "variable",
        "variables",
        "assume",
        "lower",
        "upper",
        "point",
        "direction",
        "order",
        "digits",
    }
)
_TOKEN: Final = re.compile(
    r"(?P<blank>\s+)"
    r"|(?P<number>\d{1,1000}(?:\.\d{1,1000})?(?:[eE][+-]?\d{1,3}(?![A-Za-z0-9_]))?)"
    r"|(?P<name>[A-Za-z][A-Za-z0-9_]{0,39})"
    r"|(?P<sign>\*\*|==|!=|<=|>=|[-+*/%^!=<>(),])",
    re.ASCII,
)
_END: Final = ""


class RequestError(ValueError):
    """The request cannot be executed; the message gives the reason."""


def load() -> Any:
    """Import and return SymPy."""
    # If these are installed, SymPy imports them, which takes seconds.
    sys.modules.update(dict.fromkeys(("numpy", "scipy")))  # type: ignore[arg-type]
    import sympy

    return sympy


def answer(request: Mapping[str, object]) -> dict[str, object]:
    """Return `{"results": [...]}` for a request `{"text": steps in JSON}`, or `{"error": ...}`.

    Each result has the step's `operation` and either `result` and `decimal` or `error`.
    """
    try:
        steps = read_steps(str(request["text"]))
    except RequestError as exc:
        return {"error": str(exc)}
    sympy = load()
    return {"results": [_outcome(step, sympy) for step in steps]}


def read_steps(text: str) -> list[dict[str, object]]:
    """Return the steps of a request: a JSON list of objects, or one object.

    Raises:
        RequestError: it is neither, or has unknown operations or fields.
    """
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RequestError(f"the request is not JSON: {exc}") from None
    steps = given if isinstance(given, list) else [given]
    if not 1 <= len(steps) <= MAX_STEPS:
        raise RequestError(f"a request has 1 to {MAX_STEPS} steps, not {len(steps)}")
    for step in steps:
        if not isinstance(step, dict):
            raise RequestError("every step must be a JSON object")
        if unknown := step.keys() - _FIELDS:
            raise RequestError(f"unknown field {min(unknown)[:40]!r}; known: {sorted(_FIELDS)}")
        if step.get("operation") not in OPERATIONS:
            raise RequestError(
                f"unknown operation {str(step.get('operation'))[:40]!r}; known: "
                f"{sorted(OPERATIONS)}"
            )
    return steps


def _outcome(step: Mapping[str, object], sympy: Any) -> dict[str, str]:
    operation = str(step["operation"])
    try:
        query = _query(step, sympy)
        result = OPERATIONS[operation](query)
        return {
            "operation": operation,
            "result": _clip(_show(result)),
            "decimal": _clip(_decimal(result, query)),
        }
    except MemoryError:
        raise
    except Exception as exc:  # SymPy raises all kinds of exceptions on failure
        kind = "" if isinstance(exc, RequestError) else f"{type(exc).__name__}: "
        return {"operation": operation, "error": f"{kind}{exc}"[:400]}


@dataclass(frozen=True, slots=True)
class Query:
    """One parsed step."""

    sympy: Any
    expressions: list[Any]
    variables: list[Any]
    lower: Any
    upper: Any
    point: Any
    direction: str
    order: int
    digits: int

    @property
    def expression(self) -> Any:
        """The only expression."""
        if len(self.expressions) != 1:
            raise RequestError("this operation takes one expression")
        return self.expressions[0]

    @property
    def variable(self) -> Any:
        """The variable that the step names, or else the only free symbol."""
        names = self.variables or sorted(self.expression.free_symbols, key=str)
        if len(names) != 1:
            raise RequestError("this operation needs one variable: say which")
        return names[0]

    @property
    def unknowns(self) -> list[Any]:
        free = {symbol for e in self.expressions for symbol in e.free_symbols}
        return self.variables or sorted(free, key=str)


def _query(step: Mapping[str, object], sympy: Any) -> Query:
    names = _texts(step, "variable", "variables")
    assume = step.get("assume", {})
    if not isinstance(assume, dict):
        raise RequestError('"assume" maps variables to what they are, like {"x": "positive"}')
    symbols: dict[str, Any] = {}
    for name in [*names, *map(str, assume)]:
        symbols[name] = _symbol(name, str(assume.get(name, "")), sympy)

    def read(text: str) -> Any:
        return Reader(text, sympy, symbols).read()

    def read_field(name: str) -> Any:
        return read(str(step[name])) if name in step else None

    direction = str(step.get("direction", "+-"))
    if direction not in ("+", "-", "+-"):
        raise RequestError('"direction" is "+", "-" or "+-"')
    return Query(
        sympy=sympy,
        expressions=[read(text) for text in _texts(step, "expression", "expressions")],
        variables=[symbols[name] for name in names],
        lower=read_field("lower"),
        upper=read_field("upper"),
        point=read_field("point"),
        direction=direction,
        order=_count(step, "order", default=0, maximum=20),
        digits=_count(step, "digits", default=15, maximum=1000),
    )


def _texts(step: Mapping[str, object], one: str, many: str) -> list[str]:
    given = step.get(many, step.get(one, []))
    texts = given if isinstance(given, list) else [given]
    if not all(isinstance(text, str | int) for text in texts):
        raise RequestError(f'"{many}" must be strings')
    return [str(text) for text in texts]


def _count(step: Mapping[str, object], name: str, *, default: int, maximum: int) -> int:
    value = step.get(name, default)
    if not isinstance(value, int) or not 0 <= value <= maximum:
        raise RequestError(f'"{name}" must be a whole number from 0 to {maximum}')
    return value


def _symbol(name: str, assumed: str, sympy: Any) -> Any:
    found = _TOKEN.fullmatch(name)
    if found is None or found.lastgroup != "name" or "__" in name:
        raise RequestError(f"not a name for a variable: {name[:40]!r}")
    words = assumed.replace(",", " ").split()
    if unknown := set(words) - _ASSUMPTIONS:
        raise RequestError(f"unknown assumption {min(unknown)[:40]!r}: {sorted(_ASSUMPTIONS)}")
    return sympy.Symbol(name, **dict.fromkeys(words, True))


class Reader:
    """Recursive-descent parser of one expression into SymPy's nodes."""

    def __init__(self, text: str, sympy: Any, symbols: Mapping[str, Any]) -> None:
        if len(text) > MAX_CHARACTERS:
            raise RequestError(f"an expression has more than {MAX_CHARACTERS} characters")
        self._sympy = sympy
        self._symbols = dict(symbols)
        self._tokens = [*_tokens(text), ("end", _END)]
        self._at = 0
        self._depth = 0

    def read(self) -> Any:
        """Return the whole text as one expression or relation."""
        expression = self._relation()
        if self._sign() != _END:
            raise RequestError(f"unexpected {self._sign()!r} after a complete expression")
        return expression

    def _sign(self) -> str:
        return self._tokens[self._at][1]

    def _take(self, *signs: str) -> str | None:
        """Consume and return the next token if it is one of `signs`."""
        kind, text = self._tokens[self._at]
        if kind != "sign" or text not in signs:
            return None
        self._at += 1
        return text

    def _expect(self, sign: str) -> None:
        if self._take(sign) is None:
            raise RequestError(f"expected {sign!r}, found {self._sign() or 'the end'!r}")

    def _relation(self) -> Any:
        self._depth += 1
        if self._depth > MAX_NESTED:
            raise RequestError(f"an expression is nested more than {MAX_NESTED} deep")
        left = self._sum()
        if sign := self._take(*_RELATIONS):
            left = getattr(self._sympy, _RELATIONS[sign])(left, self._sum())
        self._depth -= 1
        return left

    def _sum(self) -> Any:
        total = self._product()
        while sign := self._take("+", "-"):
            term = self._product()
            total = total + term if sign == "+" else total - term
        return total

    def _product(self) -> Any:
        total = self._unary()
        while sign := self._take("*", "/", "%"):
            factor = self._unary()
            if sign == "*":
                total = total * factor
            elif factor.is_zero:
                raise RequestError("division by zero")
            else:
                total = total / factor if sign == "/" else self._sympy.Mod(total, factor)
        return total

    def _unary(self) -> Any:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Any:
        base = self._postfix()
        if not self._take("^", "**"):
            return base
        self._depth += 1
        if self._depth > MAX_NESTED:
            raise RequestError(f"an expression is nested more than {MAX_NESTED} deep")
        exponent = self._unary()
        self._depth -= 1
        return self._raised(base, exponent)

    def _raised(self, base: Any, exponent: Any) -> Any:
        if base.is_Rational and exponent.is_Rational:
            bits = max(abs(base.p), base.q).bit_length() - 1
            if bits * abs(exponent) > MAX_BITS:
                raise RequestError("a power is too large to be written out")
        return base**exponent

    def _postfix(self) -> Any:
        value = self._primary()
        while self._take("!"):
            value = self._call("factorial", [value])
        return value

    def _primary(self) -> Any:
        kind, text = self._tokens[self._at]
        self._at += 1
        if kind == "number":
            return self._sympy.Rational(text)
        if kind == "name":
            return self._named(text)
        if text == "(":
            inner = self._relation()
            self._expect(")")
            return inner
        raise RequestError(f"expected a number, a name or '(', found {text or 'the end'!r}")

    def _named(self, name: str) -> Any:
        if self._take("("):
            arguments = [self._relation()]
            while self._take(","):
                arguments.append(self._relation())
            self._expect(")")
            return self._call(name.lower(), arguments)
        if name not in self._symbols and name in _CONSTANTS:
            return getattr(self._sympy, _CONSTANTS[name])
        if name not in self._symbols:
            self._symbols[name] = _symbol(name, "", self._sympy)
        return self._symbols[name]

    def _call(self, name: str, arguments: Sequence[Any]) -> Any:
        if name not in FUNCTIONS:
            raise RequestError(f"unknown function {name!r}; known: {', '.join(FUNCTIONS)}")
        function, minimum, maximum = FUNCTIONS[name]
        if not minimum <= len(arguments) <= maximum:
            raise RequestError(
                f"{name} takes {minimum} to {maximum} arguments, not {len(arguments)}"
            )
        if name in _GROWING and any(a.is_Rational and abs(a) > MAX_COUNT for a in arguments):
            raise RequestError(f"an argument of {name} is above {MAX_COUNT}")
        return getattr(self._sympy, function)(*arguments)


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise RequestError(f"unreadable text: {text[at : at + 20]!r}")
        at = found.end()
        if found.lastgroup not in (None, "blank"):
            tokens.append((str(found.lastgroup), found[0]))
    return tokens


def _solve(query: Query) -> Any:
    alone = (
        len(query.expressions) == 1
    )  # SymPy solves more kinds of single equations than of systems
    relations = query.expression if alone else query.expressions
    found = query.sympy.solve(relations, query.unknowns, dict=True)
    return "no solution found" if found == [] else found


def _integrate(query: Query) -> Any:
    if query.lower is None or query.upper is None:
        return query.sympy.integrate(query.expression, query.variable)
    bounds = (query.variable, query.lower, query.upper)
    exact = query.sympy.integrate(query.expression, bounds)
    if exact.free_symbols:
        return exact
    numeric = query.sympy.Integral(query.expression, bounds).evalf()
    if abs(query.sympy.N(exact) - numeric) > 1e-6 * (1 + abs(numeric)):
        return f"{exact}, which is unconfirmed: numerical integration gives {numeric}"
    return exact


def _limit(query: Query) -> Any:
    point = query.sympy.S.Zero if query.point is None else query.point
    return query.sympy.limit(query.expression, query.variable, point, query.direction)


def _series(query: Query) -> Any:
    point = query.sympy.S.Zero if query.point is None else query.point
    return query.sympy.series(query.expression, query.variable, point, query.order or 6)


def _range(query: Query) -> tuple[Any, Any, Any]:
    if query.lower is None or query.upper is None:
        raise RequestError('this operation needs "lower" and "upper"')
    return query.variable, query.lower, query.upper


def _factor_integer(query: Query) -> Any:
    if not query.expression.is_Integer:
        raise RequestError("this operation takes a whole number")
    factors = query.sympy.factorint(query.expression)
    return " * ".join(f"{p}^{k}" if k > 1 else str(p) for p, k in factors.items())


OPERATIONS: Final[Mapping[str, Callable[[Query], Any]]] = {
    "evaluate": lambda q: q.expression.doit(),
    "simplify": lambda q: q.sympy.simplify(q.expression),
    "expand": lambda q: q.sympy.expand(q.expression),
    "factor": lambda q: q.sympy.factor(q.expression),
    "cancel": lambda q: q.sympy.cancel(q.expression),
    "apart": lambda q: q.sympy.apart(q.expression),
    "solve": _solve,
    "diff": lambda q: q.sympy.diff(q.expression, q.variable, q.order or 1),
    "integrate": _integrate,
    "limit": _limit,
    "series": _series,
    "sum": lambda q: q.sympy.summation(q.expression, _range(q)),
    "product": lambda q: q.sympy.product(q.expression, _range(q)),
    "factor_integer": _factor_integer,
}


def _show(result: Any) -> str:
    match result:
        case list():
            return "; ".join(_show(item) for item in result)
        case dict():
            return ", ".join(f"{name} = {value}" for name, value in result.items())
        case _:
            return str(result)


def _decimal(result: Any, query: Query) -> str:
    """Return the numbers of `result` as decimals, or "" if there is nothing to add."""
    match result:
        case list():
            return "; ".join(filter(None, (_decimal(item, query) for item in result)))
        case dict():
            shown = {name: _decimal(value, query) for name, value in result.items()}
            return ", ".join(f"{name} = {value}" for name, value in shown.items() if value)
        case query.sympy.Expr() if result.is_number and not result.is_Integer:
            return str(query.sympy.N(result, query.digits))
        case _:
            return ""


def _clip(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} ..."
