"""Equivalence of answers: numbers, formulas, quantities, choices, JSON and plain text.

These answers are equivalent:

* numbers with the same value: 1,000 = 1000 = 1e3, 0.5 = 1/2, "seven" = 7, "3 million" = 3000000;
* formulas that are equal according to `answers.formulas`: \\frac{1}{2} = 0.5, (x+1)^2 = x^2+2x+1;
* quantities with the same number and unit. A bare number equals a quantity with this number, unless
  another answer has the number with another unit: 18 = $18, but not if 18 km is among the answers
  too. A percentage equals the same bare number if that is among the answers (50 % = 50), and
  otherwise its hundredth (50 % = 0.5);
* choices with the same letter: B = (B) = "(B) Paris". "B. Paris" is a choice only if another
  answer is a bare B, because "C. difficile" is not a choice;
* JSON with the same value: the order of keys does not matter, 1 = 1.0, and true is not 1;
* other texts that differ only in case, whitespace, quotes, emphasis, a leading article or a final
  full stop.

Why not SymPy or Math-Verify: SymPy's own parsers evaluate Python. Math-Verify limits its time by
signals, which fail outside the main thread, and compares by simplification, which is unbounded
without them. It also supports only mathematics, and considers 5 km equal to 5 m. This module agrees
with all judgements in the golden table under `tests/golden`; Math-Verify agrees with fewer, as a
test shows.
"""

import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from optillm_hooks.answers.extraction import read_json
from optillm_hooks.answers.formulas import (
    MEANINGFUL_WORDS,
    Value,
    equal,
    parse,
    plain,
    scaled,
    value_of,
)

_MAX_PARSED_LENGTH = 500
"""Maximum length of an answer that is parsed as mathematics; longer ones are text or JSON."""

_MAX_JSON_DEPTH = 100
_MAX_UNIT_WORDS = 4

_SMALL = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBER_WORDS = {word: number for number, word in enumerate(_SMALL.split())} | {
    word: 20 + 10 * place for place, word in enumerate(_TENS.split())
}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
"""Powers of ten."""

_CURRENCIES = {
    "$": "dollar", "us$": "dollar", "usd": "dollar", "\u20ac": "euro", "eur": "euro",
    "\u00a3": "gbp", "gbp": "gbp", "\u00a5": "yen", "jpy": "yen", "\u20b9": "rupee", "inr": "rupee",
}  # fmt: skip
_UNITS = _CURRENCIES | {
    "%": "%", "percent": "%", "m": "m", "meter": "m", "metre": "m", "cm": "cm", "centimeter": "cm",
    "centimetre": "cm", "mm": "mm", "millimeter": "mm", "millimetre": "mm", "km": "km",
    "kilometer": "km", "kilometre": "km", "g": "g", "gram": "g", "kg": "kg", "kilogram": "kg",
    "mg": "mg", "lb": "lb", "pound": "pound", "s": "s", "sec": "s", "second": "s", "min": "min",
    "minute": "min", "h": "h", "hr": "h", "hour": "h", "l": "l", "liter": "l", "litre": "l",
    "ml": "ml", "n": "n", "newton": "n", "j": "j", "joule": "j", "w": "w", "watt": "w", "v": "v",
    "volt": "v", "deg": "degree", "degree": "degree", "feet": "foot", "foot": "foot", "ft": "foot",
    "inch": "inch", "inche": "inch", "mile": "mile", "mi": "mile", "mph": "mile/h", "kmh": "km/h",
    "kph": "km/h", "\u00a2": "cent", "pm": "pm", "am": "am",
}  # fmt: skip
_TWO_WORDS = {"/ cent": "%", "us dollar": "dollar"}

_UNIT_LETTERS = frozenset("mgshLNJWVKCFA")
"""Single-letter units. Any other letter after a number is a variable."""

_APPROXIMATELY = re.compile(
    r"^(?:(?:about|approximately|roughly|around|nearly)\b|approx\b\.?|\\approx\b|\u2248|~)\s*",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^[A-Za-z]{1,3}'?(?:_\w|_\{\w+\})?(?:\([a-z]\))?\s*=\s*(?=[^=]+$)")
_MONEY = re.compile(
    r"([-+]?)\s*(us\$|usd\b|eur\b|gbp\b|jpy\b|inr\b|[$\u20ac\u00a3\u00a5\u20b9])\s*([-+]?)\s*(.+)",
    re.IGNORECASE,
)
_SCALED = re.compile(rf"([^A-Za-z]+?)\s*\b({'|'.join(_SCALES)})s?\b\s*(.*)", re.IGNORECASE)
_UNIT_WORD = re.compile(r"[A-Za-z\u00b5\u00a2]+(?:/[A-Za-z]+)*(?:\^\{?-?\d\}?)?|/")
_ATTACHED_UNIT = re.compile(r"(.*[\d}])\s*(%|\u00a2|[A-Za-z]{2,}(?:\^\{?\d\}?)?)")
_POWER = re.compile(r"\^\{?(-?\d)\}?$")
_LETTER = re.compile(r"(?:(?:option|choice|answer)\s+)?\(?([A-Za-z])\)?[.:]?", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])\))\s*\S.*", re.DOTALL)
_LETTER_STOP_TEXT = re.compile(r"([A-Z])[.:]\s+\S.*", re.DOTALL)
_NEXT_PART = re.compile(r"[\s,;]\(?[A-Za-z]\)")
_MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_STRONG = re.compile(r"(?<![\w)}])\*\*([^*]+)\*\*(?![\w({])")
_ARTICLE = re.compile(r"^(?:the|an?)\s+(?=\S)")
_AROUND_MARKS = re.compile(r"\s*([,:;/-])\s*")
_ENDS = " *`\"'\u201c\u201d"
_DECORATION = dict.fromkeys(map(ord, "*`\"'\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb"))


@dataclass(frozen=True, slots=True)
class Form:
    """An answer in the normalised forms in which it is compared."""

    text: str
    letter: str = ""
    """The letter of the choice it names."""

    is_choice: bool = False
    """Whether the letter must be a choice, as in "(B)" but not in "B. Paris"."""

    value: Value | None = None
    unit: str = ""
    hundredth: Value | None = None
    """The value of a percentage."""

    json: Hashable = None


class AnswerClasses:
    """Equivalence classes of answers that are added one by one.

    A new answer is compared with the others once, when it is added. A repeated spelling is free.
    """

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}
        self._parents: list[int] = []
        """Union-find forest over the answers in order; a root is the first answer of its tree."""

        self._numbers: list[tuple[int, int]] = []
        """Pairs of a bare number and a quantity with the same number."""

        self._hundredths: list[tuple[int, int]] = []
        """Pairs of a bare number and the percentage whose value it is."""

        self._names: Mapping[str, str] = {}
        """Cached result of `names`; empty after an answer was added."""

    def add(self, answer: str) -> None:
        """Add an answer."""
        if answer in self._forms:
            return
        form, at = form_of(answer), len(self._parents)
        self._parents.append(at)
        for other, its in enumerate(self._forms.values()):
            apart = _root(self._parents, other) != _root(self._parents, at)
            if apart and _same(its, form):
                _join(self._parents, other, at)
            if form.unit and not its.unit:
                self._compare_numbers(other, its, at, form)
            if its.unit and not form.unit:
                self._compare_numbers(at, form, other, its)
        self._forms[answer] = form
        self._names = {}

    def _compare_numbers(self, bare_at: int, bare: Form, at: int, quantity: Form) -> None:
        if bare.value is None or quantity.value is None:
            return
        if equal(bare.value, quantity.value):
            self._numbers.append((bare_at, at))
        if quantity.hundredth is not None and equal(bare.value, quantity.hundredth):
            self._hundredths.append((bare_at, at))

    def names(self) -> Mapping[str, str]:
        """Return the representative of each answer: the first equivalent answer.

        The classes do not depend on the order in which answers were added.
        """
        if not self._names:
            answers, parents = list(self._forms), list(self._parents)
            for one, other in self._dependent_pairs():
                _join(parents, one, other)
            self._names = {name: answers[_root(parents, at)] for at, name in enumerate(answers)}
        return self._names

    def _dependent_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs whose equivalence depends on the other answers.

        A bare number joins the quantity with this number if there is only one. A percentage without
        such a bare number joins its hundredth.
        """
        quantities: dict[int, set[int]] = {}
        for bare, quantity in self._numbers:
            units = quantities.setdefault(_root(self._parents, bare), set())
            units.add(_root(self._parents, quantity))
        pairs = [(bare, units.pop()) for bare, units in quantities.items() if len(units) == 1]
        joined = {quantity for _, quantity in pairs}
        hundredths = [
            (bare, percentage)
            for bare, percentage in self._hundredths
            if _root(self._parents, percentage) not in joined
        ]
        return [*pairs, *hundredths]


def _root(parents: Sequence[int], at: int) -> int:
    while parents[at] != at:
        at = parents[at]
    return at


def _join(parents: list[int], one: int, other: int) -> None:
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low


def classes(answers: Sequence[str | None]) -> list[int | None]:
    """Return the index of the first equivalent answer for each answer; None stays None.

    The classes do not depend on the order of the answers.
    """
    found = AnswerClasses()
    for answer in answers:
        if answer is not None:
            found.add(answer)
    names = found.names()
    return [None if answer is None else answers.index(names[answer]) for answer in answers]


def equivalent(one: str, other: str) -> bool:
    """Return True if the two answers are equivalent when there are no other answers."""
    return classes([one, other]) == [0, 0]


def form_of(answer: str) -> Form:
    """Return `answer` in the normalised forms in which it is compared."""
    answer = answer.strip()
    if len(answer) > _MAX_PARSED_LENGTH:
        return Form(_plain_text(answer), json=_json_key(answer))
    text = plain(_MATH.sub(_inside, _STRONG.sub(_inside, answer)))
    quantity = _quantity(text.strip(_ENDS).removesuffix("."))
    if quantity is None and (key := _json_key(answer)) is not None:
        return Form(answer, json=key)
    letter, is_choice = _letter_of(text.translate(_DECORATION).strip())
    value, unit = quantity or (None, "")
    hundredth = scaled(value, Fraction(1, 100)) if value is not None and unit == "%" else None
    return Form(_plain_text(text), letter, is_choice, value, unit, hundredth)


def _inside(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if isinstance(group, str))


def _same(a: Form, b: Form) -> bool:
    if a.json is not None or b.json is not None:
        return a.json == b.json
    if a.value is not None and b.value is not None:
        if a.unit == b.unit and equal(a.value, b.value):
            return True
    elif a.text == b.text:
        return True
    return a.letter != "" and a.letter == b.letter and (a.is_choice or b.is_choice)


def _letter_of(text: str) -> tuple[str, bool]:
    """Return the letter of the choice in `text`, or "", and True if it must be a choice."""
    found = _LETTER.fullmatch(text)
    if found is None and (with_text := _LETTER_AND_TEXT.fullmatch(text)):
        found = None if _NEXT_PART.search(text, 3) else with_text
    if found is not None:
        return (found[1] or found[2]).lower(), True
    unsure = _LETTER_STOP_TEXT.fullmatch(text)
    return (unsure[1].lower() if unsure else ""), False


def _quantity(text: str) -> tuple[Value, str] | None:
    """Return the value and the unit ("" if none) of `text`, or None if it has no value."""
    text = _NAMED.sub("", _APPROXIMATELY.sub("", re.sub(r"\s*\^\s*", "^", text)))
    currency: list[str] = []
    if money := _MONEY.fullmatch(text):
        currency = [_CURRENCIES[money[2].lower()]]
        text = (money[1] or money[3]) + money[4]
    text = _in_digits(text)
    if found := _SCALED.fullmatch(text):
        value = _value(found[1])
        if value is not None:
            value = scaled(value, Fraction(10 ** _SCALES[found[2].lower()]))
        return None if value is None else (value, _unit([*currency, *found[3].split()]))
    number, words = _split_unit(text)
    value = _value(number)
    if value is None and words:
        value, words = _value(text), []
    return None if value is None else (value, _unit([*currency, *words]))


def _value(text: str) -> Value | None:
    formula = parse(text)
    return None if formula is None else value_of(formula)


def _in_digits(text: str) -> str:
    """Return `text` with a leading number word ("seven", "twenty-one") in digits."""
    word, _, rest = text.partition(" ")
    tens, _, ones = word.lower().partition("-")
    if tens not in _NUMBER_WORDS or (ones and ones not in _NUMBER_WORDS):
        return text
    return f"{_NUMBER_WORDS[tens] + _NUMBER_WORDS.get(ones, 0)} {rest}".rstrip()


def _split_unit(text: str) -> tuple[str, list[str]]:
    """Return `text` without the unit at its end, and the words of the unit."""
    attached = _ATTACHED_UNIT.fullmatch(text)
    if attached and _POWER.sub("", attached[2]).lower().rstrip("s") in _UNITS:
        return attached[1], [attached[2]]
    words = text.split()
    start = len(words)
    while start > max(1, len(words) - _MAX_UNIT_WORDS) and _is_unit_word(words[start - 1]):
        start -= 1
    number = " ".join(words[:start])
    return (number, words[start:]) if re.search(r"[\d\\]", number) else (text, [])


def _is_unit_word(word: str) -> bool:
    letters = _POWER.sub("", word)
    known = len(letters) > 1 or letters in _UNIT_LETTERS or letters == "/"
    return known and word not in MEANINGFUL_WORDS and _UNIT_WORD.fullmatch(word) is not None


def _unit(words: Sequence[str]) -> str:
    """Return the normalised spelling of the unit in `words`."""
    parts: list[str] = []
    power = ""
    for word in " ".join(words).lower().replace("/", " / ").split():
        if word in ("square", "sq", "cubic"):
            power = "^3" if word == "cubic" else "^2"
        elif word in ("squared", "cubed") and parts:
            parts[-1] += "^3" if word == "cubed" else "^2"
        else:
            parts.append("/" if word == "per" else _unit_word(word) + power)
            power = ""
    unit = " ".join(parts)
    return _TWO_WORDS.get(unit, unit)


def _unit_word(word: str) -> str:
    power = _POWER.search(word)
    name = _POWER.sub("", word)
    singular = name[:-1] if len(name) > 2 and name.endswith("s") else name
    name = _UNITS.get(name, _UNITS.get(singular, singular))
    return f"{name}^{power[1]}" if power else name


def _json_key(text: str) -> Hashable:
    """Return the comparison key of the JSON in `text`, or None if not an object or array."""
    if text[:1] not in ("{", "["):
        return None
    value = read_json(text)
    return None if value is None else json_key(value)


def json_key(value: object, depth: int = 0) -> Hashable:
    """Return a hashable key that is equal for equal JSON values; the order of keys is ignored.

    Numbers are compared by value and differ from booleans. Values nested more than 100 levels deep
    are all equal.
    """
    if depth > _MAX_JSON_DEPTH:
        return "deeper"
    match value:
        case dict():
            return "object", frozenset((k, json_key(v, depth + 1)) for k, v in value.items())
        case list():
            return "array", tuple(json_key(item, depth + 1) for item in value)
        case bool() | None:
            return "word", value
        case int() | float() | Decimal():
            return "number", value
        case _:
            return "string", value.strip() if isinstance(value, str) else value


def _plain_text(text: str) -> str:
    """Return `text` normalised: without case, decoration and insignificant punctuation."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_DECORATION)
    text = _AROUND_MARKS.sub(r"\1", " ".join(text.split()))
    return _ARTICLE.sub("", text.strip(" _.,;:!")).strip()
