"""Parsing a formula in plain text or LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from optillm_hooks.answers.formulas.tree import (
    CONSTANTS,
    FUNCTIONS,
    Apply,
    Formula,
    Number,
    Symbol,
    negative,
    product,
    quotient,
)
from optillm_hooks.answers.patterns import Pattern

MAX_LENGTH = 500
"""Maximum length of a formula; a longer text is not parsed."""

_MAX_NESTING = 25
_MAX_WORD_LENGTH = 3
"""Maximum length of a word that is parsed as a product of variables."""

_GREEK_LETTERS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau
phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"""
_SYMBOLS = frozenset({*_GREEK_LETTERS.split(), "ell", "infty", "emptyset", "varnothing"})
_ALSO = {"varnothing": "emptyset", "varphi": "phi", "inf": "infty", "infinity": "infty"}

MEANINGFUL_WORDS = FUNCTIONS | CONSTANTS | {"sqrt", "inf", "infinity"}
"""Words with a meaning in a formula even without a backslash, which are never units."""

_COMPARISONS = {
    "=": "=", "<": "<", "<=": "<=", "!=": "!=", ">": ">", ">=": ">=",
    "\\in": "in", "\\lt": "<", "\\gt": ">",
    "\\le": "<=", "\\leq": "<=", "\\ge": ">=", "\\geq": ">=", "\\ne": "!=", "\\neq": "!=",
}  # fmt: skip
_MIRRORED = {">": "<", ">=": "<="}
_ROUNDINGS = {"lfloor": ("floor", "\\rfloor"), "lceil": ("ceil", "\\rceil")}
_ENDS_FACTOR = frozenset({"\\cup", "\\pm", "\\mp", "\\rfloor", "\\rceil"})

_CHARACTERS: dict[str, str | int | None] = {
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2217": "*", "\u2219": "*",
    "\u00f7": "/", "\u2044": "/", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
    "\u27e8": "(", "\u27e9": ")", "\u00bd": " 1/2", "\u00bc": " 1/4", "\u00be": " 3/4",
    "\u2153": " 1/3", "\u2154": " 2/3", "\u03c0": "\\pi ", "\u221e": "\\infty ",
    "\u2205": "\\emptyset ",
    "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u2208": "\\in ", "\u222a": "\\cup ",
    "\u230a": "\\lfloor ", "\u230b": "\\rfloor ", "\u2308": "\\lceil ", "\u2309": "\\rceil ",
    "\u00b1": "\\pm ", "\u2213": "\\mp ", "\u221a": " sqrt ", "\u00b0": " degrees ",
}  # fmt: skip
_GREEK_ALPHABET = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma
sigma tau upsilon varphi chi psi omega"""
_GREEK = {
    chr(code): f"\\{name} "
    for code, name in enumerate(_GREEK_ALPHABET.split(), start=0x3B1)
    if name in _SYMBOLS
}
_SUPERSCRIPTS = dict(
    zip(
        "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b\u207f",
        "0123456789+-n",
        strict=True,
    )
)
_SUBSCRIPTS = dict(
    zip(
        "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089\u2099",
        "0123456789n",
        strict=True,
    )
)
_LEVELLED = str.maketrans(_SUPERSCRIPTS | _SUBSCRIPTS)
_RAISED = Pattern(f"[{''.join(_SUPERSCRIPTS)}]+")
_LOWERED = Pattern(f"[{''.join(_SUBSCRIPTS)}]+")
_SPELLINGS = [
    (Pattern(pattern), spelling)
    for pattern, spelling in [
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])", ""),
        (r"\\!", ""),
        (r"(?<=\d)(?:\{,\}|\\,)(?=\d{3}(?!\d))", ","),
        (r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"(?:\{\})?[_^]?\{?(?<![\w.])(\d{1,4})\}?\s?C_?\{?(\d{1,4})\}?(?!\w)", r"\\binom{\1}{\2}"),
        (r"(?<![A-Za-z\\])C\((\d{1,4}),\s?(\d{1,4})\)", r"\\binom{\1}{\2}"),
        (r"(?<![A-Za-z\\])P\((\d{1,4}),\s?(\d{1,4})\)", r"(\1!/(\1-\2)!)"),
        (r"\{\s*(\w{1,4})\s*\\choose\s*(\w{1,4})\s*\}", r"\\binom{\1}{\2}"),
        (r"\u221b\s*(\d+|\([^()]*\)|[a-z])", r"\\sqrt[3]{\1}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*"),
        (r"\\(?:text[a-z]*|math(?:rm|bf|it|sf|cal|scr)|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", " degrees "),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\*\*", "^"),
        (r"\\(?:mid|[lr]?vert)(?![A-Za-z])", "|"),
        (r"(?<=\d) (?=\d{3}(?!\d| ?/))", ","),
        (r"(?:,|(?<!\s))\s++(?:and|or)\s++", ", "),
    ]
]
_LOOKS_LIKE_ONE = Pattern(
    r"[0-9+\-*/^=<>|,\\]|^(?:[A-Za-z]|pi|inf(?:inity)?)$|(?:sqrt|sin|cos|tan|ln|log|exp)\b"
)
_IMAGINARY_J = Pattern(r"\dj\b|\bj\d|(?<=[-+ ])j$")
_OTHER_LETTER = Pattern(r"[A-Za-ik-z\\]")
_CODE = Pattern(r"\d+(?: ?- ?\d+)+|\d+/\d+/\d+")
"""Scores, ranges and dates, which are not formulas."""

_TOKEN = Pattern(
    r"""\s*(?:
        (?P<number>
            \d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?
          | (?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}(?!\d))?
        )
      | (?P<begin>\\begin\{[bpvBV]?matrix\}) | (?P<end>\\end\{[bpvBV]?matrix\})
      | (?P<command>\\[A-Za-z]+)
      | (?P<word>[A-Za-z]+'*)
      | (?P<mark>\\\\|\\[{}]|<=|>=|!=|[-+*/^!%=<>,;|()\[\]{}_&])
    )""",
    re.VERBOSE,
)


class _NotAFormulaError(Exception):
    """The text is not a formula."""


def parse(text: str) -> Formula | None:
    """Return `text` parsed as a formula, or None if it is not one.

    The grammar has numbers (1,000; 1e3; 1 1/2; 0.\\overline{3}), + - * / ^ ! %, implicit products,
    functions, roots, binomial coefficients, absolute values, floors and ceilings, LaTeX for all of
    these, relations, tuples and intervals, sets, unions and matrices. Values separated by commas,
    "and" or "or" are a set, "x = 5" is 5, and a plus-minus sign gives the set of both values. `log`
    has base 10 unless another base is written.

    Single letters are variables. Two or three letters in a formula with numbers or operators are a
    product of variables; longer words are not. Scores ("3-2"), dates and version numbers are not
    formulas.
    """
    formula = parse_unsolved(text)
    return None if formula is None else solved(formula)[1]


def parse_unsolved(text: str) -> Formula | None:
    """Return `text` parsed as a formula, with "x = 5" as a relation, or None; see `parse`."""
    if len(text) > MAX_LENGTH:
        return None
    text = plain(text)
    if _IMAGINARY_J.search(text) and not _OTHER_LETTER.search(text):
        text = text.replace("j", "i")
    if not _LOOKS_LIKE_ONE.search(text) or _CODE.fullmatch(text):
        return None
    try:
        tokens = _tokens(text)
        parser = _Parser(tokens)
        formula = parser.whole()
        if parser.met_plus_minus:
            formula = _both(formula, _Parser(tokens, plus_minus="-").whole())
    except _NotAFormulaError:
        return None
    return formula


def plain(text: str) -> str:
    """Return `text` with a normalised spelling of each symbol and command."""
    text = _RAISED.sub(lambda run: f"^{{{run[0].translate(_LEVELLED)}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{run[0].translate(_LEVELLED)}}}", text)
    text = text.translate(str.maketrans(_GREEK | _CHARACTERS))
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text.strip()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    spaced: bool
    """Whether whitespace precedes it."""


_END = _Token("", "", spaced=False)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = open_brackets = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise _NotAFormulaError
        kind, start = found.lastgroup, found.start(found.lastgroup)
        piece = found[kind]
        if open_brackets and kind == "number":
            piece = piece.partition(",")[
                0
            ]  # in brackets a comma is a separator: (100,200) is a pair
        if piece in ("(", "[", "\\{") or (piece == "{" and not tokens):
            open_brackets += 1
        elif piece in (")", "]", "\\}"):
            open_brackets -= 1
        tokens.append(_Token(kind, piece, spaced=start > at))
        at = start + len(piece)
    return tokens


class _Parser:
    """Recursive descent parser; precedence from lowest: list, relation, union, sum, product, power,
    postfix, atom."""

    def __init__(self, tokens: Sequence[_Token], plus_minus: Literal["+", "-"] = "+") -> None:
        self._tokens = list(tokens)
        self._at = 0
        self._nesting = 0
        self._plus_minus = plus_minus
        self.met_plus_minus = False
        self._arithmetic = any(
            t.kind in ("number", "command") or t.text in ("+", "-", "*", "/", "^", "=", "|")
            for t in tokens
        )

    def whole(self) -> Formula:
        items = self._list()
        if self._next is not _END:
            raise _NotAFormulaError
        return items[0] if len(items) == 1 else Apply("set", tuple(items))

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at] if self._at < len(self._tokens) else _END

    def _take(self) -> str:
        if self._next is _END:
            raise _NotAFormulaError
        self._at += 1
        return self._tokens[self._at - 1].text

    def _skip(self, text: str) -> bool:
        found = self._next.text == text
        self._at += found
        return found

    def _expect(self, *texts: str) -> str:
        if self._next.text not in texts:
            raise _NotAFormulaError
        return self._take()

    def _list(self) -> list[Formula]:
        items = [self._relation()]
        while self._skip(",") or self._skip(";"):
            items.append(self._relation())
        return items

    def _relation(self) -> Formula:
        left = self._union()
        chain: list[Formula] = []
        while self._next.text in _COMPARISONS:
            relation = _COMPARISONS[self._take()]
            right = self._union()
            sides = (right, left) if relation in _MIRRORED else (left, right)
            chain.append(Apply(_MIRRORED.get(relation, relation), sides))
            left = right
        if not chain:
            return left
        return chain[0] if len(chain) == 1 else Apply("set", tuple(chain))

    def _union(self) -> Formula:
        parts = [self._sum()]
        while self._skip("\\cup"):
            parts.append(self._sum())
        return parts[0] if len(parts) == 1 else Apply("union", tuple(parts))

    def _sum(self) -> Formula:
        terms = [self._term(self._sign() or "+")]
        while sign := self._sign():
            terms.append(self._term(sign))
        return terms[0] if len(terms) == 1 else Apply("+", tuple(terms))

    def _term(self, sign: str) -> Formula:
        if self._skip("-"):
            sign = "-" if sign == "+" else "+"
        return self._product() if sign == "+" else negative(self._product())

    def _sign(self) -> str:
        """Return the next sign or ""; a plus-minus sign is resolved by `plus_minus`."""
        text = self._next.text
        if text not in ("+", "-", "\\pm", "\\mp"):
            return ""
        self._take()
        if text in ("+", "-"):
            return text
        self.met_plus_minus = True
        opposite = "-" if self._plus_minus == "+" else "+"
        return self._plus_minus if text == "\\pm" else opposite

    def _product(self) -> Formula:
        result = self._power()
        while True:
            if self._skip("*"):
                result = product(result, self._factor())
            elif self._skip("/"):
                result = quotient(result, self._factor())
            elif self._starts_factor() and self._next.kind != "number":
                result = product(result, self._power())
            else:
                return result

    def _factor(self) -> Formula:
        return negative(self._power()) if self._skip("-") else self._power()

    def _starts_factor(self) -> bool:
        token = self._next
        if token.kind == "command":
            return token.text not in _COMPARISONS and token.text not in _ENDS_FACTOR
        return token.kind in ("number", "word", "begin") or token.text in ("(", "[", "{", "\\{")

    def _power(self) -> Formula:
        base = self._postfix()
        return Apply("^", (base, self._exponent())) if self._skip("^") else base

    def _exponent(self) -> Formula:
        self._enter()
        exponent = self._factor()
        self._nesting -= 1
        return exponent

    def _postfix(self) -> Formula:
        atom = self._atom()
        return Apply(self._take(), (atom,)) if self._next.text in ("!", "%") else atom

    def _enter(self) -> None:
        self._nesting += 1
        if self._nesting > _MAX_NESTING:
            raise _NotAFormulaError

    def _atom(self) -> Formula:
        self._enter()
        token = self._next
        text = self._take()
        match token.kind:
            case "number":
                atom = self._number(text)
            case "word":
                atom = self._word(token)
            case "command":
                atom = self._command(text[1:])
            case "begin":
                atom = self._matrix("determinant" if "{v" in text else "matrix")
            case _:
                atom = self._enclosed(text)
        self._nesting -= 1
        return atom

    def _enclosed(self, opening: str) -> Formula:
        if opening == "|":
            inside = self._sum()
            self._expect("|")
            return Apply("abs", (inside,))
        if opening not in ("(", "[", "{", "\\{"):
            raise _NotAFormulaError
        if opening in ("{", "\\{"):
            closing = "}" if opening == "{" else "\\}"
            if self._skip(closing):
                return Symbol("emptyset")
            items = self._list()
            self._expect(closing)
            is_alone = len(items) == 1 and items[0] != Symbol("emptyset")
            return items[0] if is_alone else Apply("set", tuple(items))
        items = self._list()
        closing = self._expect(")", "]")
        if len(items) == 1 and opening + closing == "()":
            return items[0]
        return Apply(opening + closing, tuple(items))

    def _number(self, text: str) -> Formula:
        mantissa, _, exponent = text.replace(",", "").lower().partition("e")
        places = 0 if exponent else len(mantissa.partition(".")[2])
        value = Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0)
        if "." in mantissa and self._next.text in ("\\overline", "\\bar", "\\dot"):
            return Number(value + self._repetend() / 10**places)
        number = Number(value, places)
        if self._next.text == "_":
            raise _NotAFormulaError  # a number in another base
        if text.isdigit() and self._at_fraction():
            return Apply("+", (number, self._fraction()))
        if self._next.kind == "number":
            raise _NotAFormulaError
        return number

    def _repetend(self) -> Fraction:
        """Return the value of the repeating digits, as in LaTeX's 0.\\overline{3}."""
        self._take()
        self._expect("{")
        digits = self._take()
        self._expect("}")
        if not digits.isdecimal():
            raise _NotAFormulaError
        return Fraction(int(digits), 10 ** len(digits) - 1)

    def _at_fraction(self) -> bool:
        """Return True if the fraction of a mixed number is next: 1 1/2, or LaTeX's 1\\frac12."""
        ahead = self._tokens[self._at : self._at + 7]
        texts = "".join(token.text for token in ahead)
        if ahead and ahead[0].kind == "number":
            return ahead[0].spaced and re.match(r"\d+/\d+", texts) is not None
        return re.match(r"\\frac(\{\d+\}\{\d+\}|\d\d)", texts) is not None

    def _fraction(self) -> Formula:
        if self._skip("\\frac"):
            return quotient(self._argument(), self._argument())
        numerator, _, denominator = self._take(), self._take(), self._take()
        return quotient(Number(Fraction(numerator)), Number(Fraction(denominator)))

    def _word(self, token: _Token) -> Formula:
        name = token.text
        if name == "sqrt":
            return Apply("root", (self._atom(), Number(Fraction(2))))
        if name in FUNCTIONS:
            return self._function(name)
        if name in MEANINGFUL_WORDS:
            return Symbol(_ALSO.get(name, name))
        letters = name.rstrip("'")
        if self._next.kind == "number":
            raise _NotAFormulaError  # "Q3" and "x 5" are not products
        if len(letters) == 1:
            return self._subscripted(name)
        before = self._tokens[self._at - 2].kind if self._at > 1 else ""
        apart = (token.spaced and before in ("number", "word")) or (
            self._next.spaced and self._next.kind == "word"
        )
        if len(letters) > _MAX_WORD_LENGTH or apart or not self._arithmetic:
            raise _NotAFormulaError
        return product(*map(Symbol, letters))

    def _subscripted(self, name: str) -> Formula:
        if not self._skip("_"):
            return Symbol(name)
        if not self._skip("{"):
            return Symbol(f"{name}_{self._take()}")
        index = ""
        while not self._skip("}"):
            index += self._take()
        return Symbol(f"{name}_{index}")

    def _command(self, name: str) -> Formula:
        if name == "frac":
            return quotient(self._argument(), self._argument())
        if name == "binom":
            return Apply("binom", (self._argument(), self._argument()))
        if name in _ROUNDINGS:
            operation, closing = _ROUNDINGS[name]
            inside = self._sum()
            self._expect(closing)
            return Apply(operation, (inside,))
        if name == "sqrt":
            degree: Formula = Number(Fraction(2))
            if self._skip("["):
                degree = self._sum()
                self._expect("]")
            return Apply("root", (self._argument(), degree))
        if name in FUNCTIONS:
            return self._function(name)
        if name in CONSTANTS:
            return Symbol(name)
        if name in _SYMBOLS:
            return self._subscripted(_ALSO.get(name, name))
        raise _NotAFormulaError

    def _argument(self) -> Formula:
        """Return an argument of a LaTeX command: a group, or one digit, letter or command."""
        token = self._next
        if token.kind == "number" and token.text.isdigit():
            digits = [_Token("number", digit, spaced=False) for digit in token.text]
            self._tokens[self._at : self._at + 1] = digits
            return Number(Fraction(self._take()))
        return self._atom()

    def _function(self, name: str) -> Formula:
        base = self._argument() if name == "log" and self._skip("_") else None
        power = self._exponent() if self._skip("^") else None
        argument = self._function_argument()
        if power == Number(Fraction(-1)) and f"arc{name}" in FUNCTIONS:
            return Apply(f"arc{name}", (argument,))
        value: Formula = Apply(name, (argument,))
        if base is not None:
            value = quotient(Apply("ln", (argument,)), Apply("ln", (base,)))
        return value if power is None else Apply("^", (value, power))

    def _function_argument(self) -> Formula:
        """Return the argument of a function: a group, or factors up to the next operator."""
        if self._next.text in ("(", "{", "[", "|"):
            return self._atom()
        argument = self._power()
        while self._starts_factor() and self._next.text not in ("(", "["):
            if self._next.text.lstrip("\\") in FUNCTIONS or self._next.kind == "number":
                break
            argument = product(argument, self._power())
        return argument

    def _matrix(self, kind: str) -> Formula:
        rows: list[Formula] = []
        while self._next.kind != "end":
            cells = [self._sum()]
            while self._skip("&"):
                cells.append(self._sum())
            rows.append(Apply("row", tuple(cells)))
            if not self._skip("\\\\") and self._next.kind != "end":
                raise _NotAFormulaError
        self._take()
        return Apply(kind, tuple(rows))


def _both(plus: Formula, minus: Formula) -> Formula:
    """Return the set of both values of a plus-minus sign."""
    members: list[Formula] = []
    for reading in (plus, minus):
        is_set = isinstance(reading, Apply) and reading.op == "set"
        readings = reading.args if isinstance(reading, Apply) and is_set else (reading,)
        members += [member for member in readings if member not in members]
    return Apply("set", tuple(members))


def solved(formula: Formula) -> tuple[str, Formula]:
    """Return the values and the variable if `formula` only assigns them: x and 5 for x = 5.

    Otherwise the name is empty and the formula is unchanged.
    """
    is_set = isinstance(formula, Apply) and formula.op == "set"
    relations = formula.args if isinstance(formula, Apply) and is_set else (formula,)
    variables: set[str] = set()
    values: list[Formula] = []
    last: Formula | None = None
    for relation in relations:
        if not (isinstance(relation, Apply) and relation.op in ("=", "in")):
            return "", formula
        variable, value = relation.args
        if variable == last and values:
            values[-1] = last = value  # the next step of x = 2 + 3 = 5
            continue
        if relation.op == "=" and _is_variable(value) and not _is_variable(variable):
            variable, value = value, variable
        if not (isinstance(variable, Symbol) and _is_variable(variable)):
            return "", formula
        variables.add(variable.name)
        values.append(value)
        last = value
    if len(variables) > 1:
        return "", formula
    name = variables.pop()
    return name, values[0] if len(values) == 1 else Apply("set", tuple(values))


def _is_variable(formula: Formula) -> bool:
    return isinstance(formula, Symbol) and formula.name not in CONSTANTS
