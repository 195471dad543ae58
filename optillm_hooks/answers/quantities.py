"""Quantities: a value with its unit, as people write it. Pure functions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from optillm_hooks.answers.formulas import (
    MEANINGFUL_WORDS,
    Apply,
    Value,
    equal,
    in_order_of_names,
    multiple,
    parse,
    parse_unsolved,
    plain,
    scaled,
    solution,
    value_of,
)
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.units import (
    CURRENCIES,
    LETTERS,
    NO_UNIT,
    Unit,
    is_known,
    unit_of,
)
from optillm_hooks.answers.words import SCALES, as_formula, number_in_words

_MAX_UNIT_WORDS = 4
_MAX_NUMBER_WORDS = 8

_ABOUT = Pattern(
    r"^(?:(?:about|approximately|roughly|around|nearly|almost|exactly|precisely|only|just|"
    r"a total of|etwa|ungefähr|rund|genau|environ|exactement|aproximadamente|unos|"
    r"alrededor de|circa|aproximadamente|cerca de|exatamente|esattamente)\b|approx\b\.?|ca\.|"
    r"\\approx\b|\u2248|~|约|大约|約)\s*",
    re.IGNORECASE,
)
_NAME = Pattern(
    r"^(\\?[A-Za-z]{1,7}'{0,2}(?:_\w|_\{\w+\})?(?:\([A-Za-z]\))?|d[a-z]/d[a-z]|\([a-z](?:,\s*[a-z]){1,3}\)|"
    r"\\frac\{d[a-z]\}\{d[a-z]\})\s*(?:=|\\approx|\u2248)\s*"
    r"(?=[^=<>]+$)"
)
_SAME_NAMES = {"f(x)": "y", "y(x)": "y"}
_MORE_OR_LESS = [
    (Pattern(pattern, re.IGNORECASE), interval)
    for pattern, interval in [
        (
            r"(?:less|fewer|smaller|lower) than (.+)|below (.+)|under (.+)|<(?!=)\s*(.+)",
            "({low},{})",
        ),
        (
            r"(?:more|greater|larger|higher) than (.+)|above (.+)|over (.+)|>(?!=)\s*(.+)",
            "({},{high})",
        ),
        (
            r"at most (.+)|(?:no|not) (?:more|greater) than (.+)|up to (.+)"
            r"|(?:<=|\u2264|\\leq?\b)\s*(.+)",
            "({low},{}]",
        ),
        (
            r"at least (.+)|(?:no|not) (?:less|fewer) than (.+)|(?:>=|\u2265|\\geq?\b)\s*(.+)",
            "[{},{high})",
        ),
    ]
]
_SET_BUILDER = Pattern(
    r"\\?\{\s*+([a-z])(?:\s*+\\in\s*+(?:\\mathbb\s*+\{?R\}?|\u211d)|)\s*+[:|]\s*+(.+?)\\?\}"
)
_IN_REALS = Pattern(r"\b[a-z]\s*\\in\s*(?:\\mathbb\s*\{?R\}?|\u211d)$")

_CURRENCY = "|".join(re.escape(sign) for sign in sorted(CURRENCIES, key=len, reverse=True))
_MONEY = Pattern(rf"([-+]?)\s*+({_CURRENCY})\s*+([-+]?)\s*+(?=[\d.])(.+)", re.IGNORECASE)
_SHORT_SCALES = {
    "k": 10**3, "K": 10**3, "m": 10**6, "M": 10**6, "mn": 10**6, "mm": 10**6, "b": 10**9,
    "B": 10**9, "bn": 10**9, "t": 10**12, "T": 10**12, "tn": 10**12,
}  # fmt: skip
_SHORT = Pattern(rf"([\d.,]+)\s?({'|'.join(_SHORT_SCALES)})\b\.?(.*)")
_ATTACHED_SHORT = Pattern(r"([\d.,]+)(k|M|B|bn|mn)\b(.*)")
_SCALED = Pattern(
    rf"([^A-Za-z]*[^A-Za-z\s])\s*+\b({'|'.join(SCALES)})s?\b\s*+(?:of\b\s*+)?(.*)", re.IGNORECASE
)
_LETTER = r"[^\W\d_]"
_UNIT_WORD = Pattern(
    rf"(?:{_LETTER}|[\u00b0\u00a2%$\u20ac\u00a3\u00a5\u20b9\u20a9])+\.?(?:[/*]{_LETTER}+)*(?:\^\{{?-?\d\}}?)?"
    rf"(?:/{_LETTER}+(?:\^\{{?-?\d\}}?)?)?|/"
)
_ATTACHED_UNIT = Pattern(
    rf"(.*[\d}}])\s*(%|\u00a2|[$\u20ac\u00a3\u00a5\u20b9]|{_LETTER}{{2,}}(?:[/]{_LETTER}+)?(?:\^\{{?-?\d\}}?)?)"
)
_ATTACHED_CHINESE = Pattern(r"(.*\d)\s*([\u3040-ヿ一-鿿가-\ud7af]+)")
_FEET = Pattern(r"(\d+)\s*['\u2019\u2032]\s*(?:(\d+)\s*(?:\"|''|\u201d|\u2033)?)?")
_PART = Pattern(rf"(\d+(?:\.\d+)?)\s*+({_LETTER}+)\.?\s*+(?:,\s*+)?(?:(?:and|et|und|y|e)\s++)?")
_DIGITS = Pattern(r"[\d\\]")

_GLOSS = Pattern(r"(.*\S)\s*\(([^()]*(?:\([^()]*\)[^()]*)?)\)", re.DOTALL)
_EQUALS = Pattern(
    r"(?:(?:(?<!\s)\s++)?(?:\\approx(?![A-Za-z])|\\simeq|\u2248|\u2243|~=|(?<![<>!])=)"
    r"|(?:(?<!\s)\s*+,)?(?<!\s)\s++or\s++|(?:(?<!\s)\s++)?,\s++i\.e\.,?\s++)\s*+"
)
_NUMBER = Pattern(r"[-+]?[\d.,/]+\s*%?")
_GLOSS_LEAD = Pattern(
    r"^(?:or|i\.e\.,?|that is,?|=|about|approximately|approx\.?|roughly|\\approx|\u2248|~|also|"
    r"exactly|in decimal:?|equivalently)\s*",
    re.IGNORECASE,
)
_TWO_FORMS = Pattern(r"([^,]++(?=,)|(?=[^,]+\Z)[^,]*?[^,\s](?=\s+or\s)),?\s++or\s++([^,]+)")
_MAX_CHAIN = 4
_INTEGRATION_CONSTANT = Pattern(r"\+\s*c$")
_LONE_LETTER = Pattern(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")
_NUMBER_NAMES = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety zero"""
_PLAIN_NUMBER_WORDS = frozenset(_NUMBER_NAMES.split())

_NUMERALS = [
    (Pattern(pattern), spelling)
    for pattern, spelling in [
        (r"(?<![\d.,])(\d{1,3}(?:[ \u00a0\u202f'\u2019]\d{3}){1,9}),(\d{1,2})(?![\d,])", r"\1.\2"),
        (r"(?<=\d)['\u2019](?=\d{3}(?!\d))", ""),
        (r"(?<=\d)_(?=\d{3}(?!\d))", ""),
        (r"^(.{1,40}) or (?:more|greater|above)$", r"at least \1"),
        (r"^(.{1,40}) or (?:less|fewer|below)$", r"at most \1"),
    ]
]
_DOTTED = Pattern(
    r"(?<![\d.,])\d{1,3}(?:\.\d{3})+,\d+(?![\d.,])|(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,])"
)
_INDIAN = Pattern(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
_COMMA_DECIMAL = Pattern(r"(?<![\d.,\w])(\d+),(\d{1,2}|\d{4,})(?![\d.,])")
_COMMA_NUMBER = Pattern(r"[-+]?\d+,(?:\d{1,2}|\d{4,})")
_BRACKETS = Pattern(r"[\[\](){}|\\]")


@dataclass(frozen=True)
class Quantity:
    """A value with a unit."""

    value: Value
    """In its own unit."""

    unit: Unit = NO_UNIT
    name: str = ""
    """The variable that has this value, if the text says so."""

    equation: Value | None = None
    """The whole equation, if the value depends on variables."""

    number: bool = True
    """Whether the value is the number as it is written; that of "2 h 15 min" is not."""

    @cached_property
    def amount(self) -> Value:
        """The value in base units."""
        return scaled(self.value, self.unit.size)

    @cached_property
    def other_values(self) -> tuple[Value, ...]:
        """Values that the same quantity has as a bare number: 0.5 for 50 %, pi/2 for 90 degrees."""
        if self.unit == _PERCENT:
            return (scaled(self.value, Fraction(1, 100)),)
        if self.unit == _DEGREE:
            return (multiple(self.value, _RADIANS),) if _RADIANS else ()
        return (self.value,) if self.unit == _RADIAN else ()


_PERCENT, _DEGREE, _RADIAN = unit_of(["%"]), unit_of(["degrees"]), unit_of(["rad"])
_RADIANS = parse(r"\pi/180")


def read_quantity(text: str) -> tuple[Quantity | None, tuple[Value, ...]]:
    """Return the quantity that `text` is, or None, and the values that it may have.

    "1,5" is a decimal or a pair. "x = 3, y = 4" may also be (3, 4), and "1, 2, 3" a list.
    """
    text = _ABOUT.sub("", re.sub(r"(?:(?<!\s)\s++)?\^\s*+", "^", text.strip()))
    if _COMMA_NUMBER.fullmatch(text):
        pair, decimal = _value(text), _value(text.replace(",", "."))
        values = tuple(value for value in (pair, decimal) if value is not None)
        if not text.lstrip("+-").startswith("0,"):
            return None, values
        return (None if decimal is None else Quantity(decimal)), ()
    explained = _explained(text)
    if explained is None and _contradicts(text):
        return None, ()
    quantity = explained or _quantity(text)
    return quantity, () if explained else tuple(_ordered(text))


def _ordered(text: str) -> Iterator[Value]:
    """Yield the tuples and lists that `text` may be if it gives their members without brackets."""
    if "," not in text or (formula := parse_unsolved(text)) is None:
        return
    if isinstance(formula, Apply) and formula.op == "set" and not text.lstrip("\\").startswith("{"):
        values = in_order_of_names(formula.args)
        if values is not None or len(formula.args) > 2:
            for brackets in ("()", "[]") if values is None else ("()",):
                yield value_of(Apply(brackets, tuple(values or formula.args)))


def numerals(text: str) -> str:
    """Return `text` with numbers in words or in the notation of other countries in digits."""
    for pattern, spelling in _NUMERALS:
        text = pattern.sub(spelling, text)
    if (two := _TWO_FORMS.fullmatch(text)) and _are_one(two[1], two[2]):
        text = two[1]
    text = _DOTTED.sub(lambda found: found[0].replace(".", "").replace(",", "."), text)
    if not _BRACKETS.search(text):
        text = _INDIAN.sub(lambda found: found[0].replace(",", ""), text)
    return _in_digits(text)


def _are_one(text: str, other: str) -> bool:
    one, two = _quantity(plain(text)), _quantity(plain(_GLOSS_LEAD.sub("", other)))
    return one is not None and two is not None and not one.name and _agree(one, two)


def _explained(text: str) -> Quantity | None:
    """Return the quantity if `text` says it twice, as in "1/6 (about 0.167)" and "7/2 = 3.5"."""
    if (glossed := _GLOSS.fullmatch(text)) and not text.startswith("("):
        main, gloss = _quantity(glossed[1]), _GLOSS_LEAD.sub("", glossed[2].strip())
        other = _quantity(_ABOUT.sub("", gloss))
        return main if main and other and _agree(main, other) else None
    parts = _EQUALS.split(text)
    if not 2 <= len(parts) <= _MAX_CHAIN:
        return None
    if len(parts) > 2 and (named := _NAME.match(f"{parts[0]} = 1")):
        rest = _explained(" = ".join(parts[1:]))
        return Quantity(rest.value, rest.unit, named[1]) if rest else None
    read = [_quantity(_ABOUT.sub("", part)) for part in parts]
    main = read[0]
    agree = main is not None and all(other and _agree(main, other) for other in read[1:])
    return main if agree else None


def _contradicts(text: str) -> bool:
    """Return whether `text` has another number in brackets, as in "5 (or 6)"."""
    glossed = _GLOSS.fullmatch(text)
    if glossed is None or not _DIGITS.search(glossed[1]) or not text[glossed.end(1)].isspace():
        return False
    return _NUMBER.fullmatch(_GLOSS_LEAD.sub("", glossed[2].strip())) is not None


def _agree(main: Quantity, other: Quantity) -> bool:
    """Return whether `other` says the same as `main`, in another form."""
    if main.unit and other.unit and main.unit.dimension == other.unit.dimension:
        return equal(main.amount, other.amount)
    if main.unit and other.unit:
        return False
    bare, exact = (other, main) if main.unit else (main, other)
    return equal(bare.value, exact.value) or any(
        equal(bare.value, value) for value in exact.other_values
    )


def _quantity(text: str) -> Quantity | None:
    text = text.strip()
    if formula := as_formula(text):
        value = _value(formula)
        return None if value is None else Quantity(value)
    if builder := _SET_BUILDER.fullmatch(text):
        text = _IN_REALS.sub("", builder[2].rstrip())
    for pattern, interval in _MORE_OR_LESS:
        if found := pattern.fullmatch(text):
            return _bounded(next(part for part in found.groups() if part), interval)
    name = ""
    if named := _NAME.match(text):
        name, text = named[1], text[named.end() :]
        name = _SAME_NAMES.get(name, name)
    return _formula(text, name) if name else _compound(text) or _formula(text)


def _bounded(text: str, interval: str) -> Quantity | None:
    bound = _formula(text)
    if bound is None or bound.name:
        return None
    number = _split_unit(_in_digits(text))[0]
    value = _value(interval.format(number, low="-\\infty", high="\\infty"))
    return None if value is None else Quantity(value, bound.unit)


def _compound(text: str) -> Quantity | None:
    """Return the sum of quantities in falling units of one dimension, as in "2 h 15 min"."""
    parts: list[tuple[str, Unit]] = []
    if feet := _FEET.fullmatch(text):
        parts = [(feet[1], unit_of(["ft"])), (feet[2] or "0", unit_of(["inch"]))]
    else:
        parts = list(_parts(text))
    if len(parts) < 2 or len({unit.dimension for _, unit in parts}) != 1:
        return None
    sizes = [unit.size for _, unit in parts]
    if sizes != sorted(sizes, reverse=True) or len(set(sizes)) < len(sizes):
        return None
    total = sum((Fraction(number) * unit.size for number, unit in parts), Fraction(0))
    value = _value(f"{total.numerator}/{total.denominator}")
    unit = Unit(parts[0][1].dimension)
    return None if value is None else Quantity(value, unit, number=False)


def _parts(text: str) -> Iterator[tuple[str, Unit]]:
    at = 0
    while found := _PART.match(text, at):
        if not (is_known(found[2]) or found[2] in ("ft", "in")):
            return
        yield found[1], unit_of(["inch" if found[2] == "in" else found[2]])
        at = found.end()
        if at == len(text):
            return
    yield "0", Unit((("rest", 1),))


def _formula(text: str, name: str = "") -> Quantity | None:
    currency: list[str] = []
    if money := _MONEY.fullmatch(text):
        currency = [CURRENCIES[money[2].lower()]]
        text = (money[1] or money[3]) + money[4]
    text = _in_digits(text)
    if set(_LONE_LETTER.findall(text)) == {"x", "c"}:
        text = _INTEGRATION_CONSTANT.sub("+ C", text)
    if short := (_SHORT.fullmatch(text) if currency else _ATTACHED_SHORT.fullmatch(text)):
        return _times(short[1], _SHORT_SCALES[short[2]], [*currency, *short[3].split()], name)
    if found := _SCALED.fullmatch(text):
        return _times(found[1], SCALES[found[2].lower()], [*currency, *found[3].split()], name)
    number, words = _split_unit(text)
    if currency or words:
        number = _COMMA_DECIMAL.sub(r"\1.\2", number)
    quantity = _named(number, name)
    if quantity is None and words:
        quantity, words = _named(text, name), []
    if quantity is None:
        return None
    unit = unit_of([*currency, *words]) if currency or words else NO_UNIT
    return Quantity(quantity.value, unit, quantity.name, quantity.equation)


def _times(number: str, factor: int, words: list[str], name: str) -> Quantity | None:
    value = _value(number.strip())
    if value is None:
        return None
    return Quantity(scaled(value, Fraction(factor)), unit_of(words) if words else NO_UNIT, name)


def _named(text: str, name: str) -> Quantity | None:
    formula = parse_unsolved(text)
    if formula is None:
        return None
    variable, values = solution(formula)
    whole = parse_unsolved(f"{name} = {text}") if name else formula
    value = value_of(values)
    has_equation = whole is not None and getattr(whole, "op", "") == "="
    return Quantity(
        value,
        NO_UNIT,
        name or _SAME_NAMES.get(variable, variable),
        value_of(whole) if has_equation and whole is not None else None,
    )


def _value(text: str) -> Value | None:
    formula = parse(text)
    return None if formula is None else value_of(formula)


def _in_digits(text: str) -> str:
    """Return `text` with the number in words at its beginning in digits."""
    if _DIGITS.search(text):
        return text
    words = text.split()
    if (whole := number_in_words(text)) is not None:
        return whole
    for count in range(min(len(words) - 1, _MAX_NUMBER_WORDS), 0, -1):
        number = number_in_words(" ".join(words[:count]))
        rest = words[count:]
        if number is not None and (is_known(rest[0]) or _starts_number(words, count)):
            return " ".join([number, *rest])
    return text


def _starts_number(words: list[str], count: int) -> bool:
    """Return whether the first `count` of `words` are a number before any noun, in English."""
    first = words[0].lower().partition("-")[0]
    return first in _PLAIN_NUMBER_WORDS or (first == "a" and count > 1)


def _split_unit(text: str) -> tuple[str, list[str]]:
    """Return `text` without the unit at its end, and the words of the unit."""
    if chinese := _ATTACHED_CHINESE.fullmatch(text):
        return chinese[1], [chinese[2]]
    attached = _ATTACHED_UNIT.fullmatch(text)
    if attached and all(is_known(name) for name in attached[2].split("/")):
        return attached[1], [attached[2]]
    words = text.split()
    start = len(words)
    while start > max(1, len(words) - _MAX_UNIT_WORDS) and _is_unit_word(words[start - 1]):
        start -= 1
    number = " ".join(words[:start])
    return (number, words[start:]) if _DIGITS.search(number) else (text, [])


def _is_unit_word(word: str) -> bool:
    letters = re.sub(r"\^\{?-?\d\}?$", "", word)
    known = len(letters) > 1 or letters in LETTERS or letters in "/%$\u20ac\u00a3\u00a5\u20b9\u00b0"
    return known and word not in MEANINGFUL_WORDS and _UNIT_WORD.fullmatch(word) is not None
