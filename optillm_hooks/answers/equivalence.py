"""Equivalence of answers: numbers, formulas, quantities, dates, choices, JSON and plain text.

These answers are equivalent:

* numbers with the same value: 1,000 = 1000 = 1e3, 0.5 = 1/2, "seven" = 7, "3 million" = 3000000,
  1.234,56 = 1,234.56; a decimal is also the fraction that it rounds: 0.67 = 2/3. "1,5" may be a
  decimal or a pair: it is what another answer says it is. The digits of all scripts are the same;
* formulas that are equal according to `answers.formulas`: \\frac{1}{2} = 0.5, (x+1)^2 = x^2+2x+1,
  x <= 2 = (-\\infty, 2];
* an answer with and without its variable: x = 5 is 5, but not y = 5, and 5 is neither if both are
  among the answers;
* quantities with the same amount: 2.5 h = 2 h 30 min, 1 km = 1000 m. A bare number equals a
  quantity with this number, unless another answer has the number with another unit: 18 = $18, but
  not if 18 km is among the answers too. A percentage equals the same bare number if that is among
  the answers (50 % = 50), and otherwise its hundredth (50 % = 0.5);
* dates and times of day in any notation. 3/5/2024 and 2:30 may each be two: they are what another
  answer says they are;
* choices with the same letter: B = (B) = "(B) Paris". "B. Paris" is a choice only if another
  answer is a bare B, because "C. difficile" is not a choice;
* yes and no, true and false, in several languages, with or without a reason;
* JSON with the same value: the order of keys does not matter, 1 = 1.0, and true is not 1;
* other texts that differ only in case, whitespace, quotes, emphasis, a leading article or a final
  full stop. Chemical formulas differ in case: Co is not CO.

Why not SymPy or Math-Verify: SymPy's own parsers evaluate Python. Math-Verify limits its time by
signals, which fail outside the main thread, and compares by simplification, which is unbounded
without them. It also supports only mathematics, and considers 5 km equal to 5 m. This module agrees
with all judgements in the golden table under `tests/golden`; Math-Verify agrees with fewer, as a
test shows.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import lru_cache

from optillm_hooks.answers.dates import dates_in, time_of
from optillm_hooks.answers.extraction import read_json
from optillm_hooks.answers.formulas import Value, equal, plain
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.quantities import Quantity, numerals, read_quantity
from optillm_hooks.answers.units import Unit, may_mean
from optillm_hooks.answers.words import is_nonexistent, ordinal, unaccented, yes_or_no

_MAX_PARSED_LENGTH = 500
"""Maximum length of an answer that is parsed as mathematics; longer ones are text or JSON."""

_MAX_TEXT = 10_000
"""Maximum length of a text that is compared as a whole; of a longer one, length and ends are."""

_MAX_COMPARED = 1_200_000
"""Maximum length of the formulas that are compared in pairs, in total: 64 of 500 characters.
Further answers are compared by their spelling only."""

_MAX_JSON_DEPTH = 100

_LETTER = Pattern(r"(?:(?:option|choice|answer):?\s+)?[(\[]?([A-Za-z])[)\]]?[.:]?", re.IGNORECASE)
_LETTER_AND_TEXT = Pattern(r"(?:\(([A-Za-z])\)|([A-Za-z])\))\s*\S.*", re.DOTALL)
_LETTER_STOP_TEXT = Pattern(r"([A-Z])(?:[.:]| [-\u2013])\s+\S.*", re.DOTALL)
_NEXT_PART = Pattern(r"[\s,;]\(?[A-Za-z]\)")
_MATH = Pattern(
    r"\$\$?([^$]+)\$\$?|(?<!\\)\\\(((?:[^\\]++|\\[^()])++)\\\)"
    r"|(?<!\\)\\\[((?:[^\\]++|\\[^\[\]])++)\\\]"
)
_STRONG = Pattern(r"(?<![\w)}])\*\*([^*]+)\*\*(?![\w({])")
_ARTICLE = Pattern(r"^(?:the|an?)\s+(?=\S)")
_AROUND_MARKS = Pattern(r" ?([,:;/-]) ?")
_AND = Pattern(r" ?& ?")
_INITIALS = Pattern(r"\b(?:[a-z]\.\s?){2,}")
_TITLES = Pattern(r"\b(dr|mr|mrs|ms|st|prof|jr|sr|mt|vs)\.(?=\s)")
_NAME_WITH_ACCENTS = Pattern(r"\b[A-Z\u00c0-\u00de]\w*[\u00c0-\u00ff]\w*")
_UMLAUTS = frozenset("\u00e4\u00f6\u00fc\u00c4\u00d6\u00dc")
_LETTERS_AND_HYPHEN = Pattern(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_ENDS = " *`\"'\u201c\u201d"
_DECORATION = dict.fromkeys(map(ord, "*`\"'\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb"))
_ARABIC_SEPARATORS = {0x066B: ".", 0x066C: ","}
_LEADING_ZERO = Pattern(r"(?<!\d)(?=\d++[/:])0+(?=\d)|(?<=[/])0+(?=\d)")
_SEVERAL_LETTERS = Pattern(r"[A-H]{2,6}")

_BASE = Pattern(
    r"(?:0b(?P<bits>[01]+)|0x(?P<hex>[0-9a-f]+)|0o(?P<octal>[0-7]+)"
    r"|\(?(?P<digits>[0-9a-f]+)\)?_\{?\s*+(?P<base>\d{1,2})\s*+\}?"
    r"|(?P<spelled>[0-9a-f]+)\s*+(?:\(\s*+)?(?:in\s++)?"
    r"(?:base[ -]?(?P<spoken>\d{1,2})|(?P<named>binary|hex(?:adecimal)?|octal))\)?)",
    re.IGNORECASE,
)
_PREFIXES = {"bits": 2, "octal": 8, "hex": 16}
_BASES = {"binary": 2, "hex": 16, "hexadecimal": 16, "octal": 8}

_ELEMENT_SYMBOLS = """
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb
Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu"""
_ELEMENTS = frozenset(_ELEMENT_SYMBOLS.split())
_SYMBOL = Pattern(r"[A-Z][a-z]?")
_CHEMICAL = Pattern(r"(?:[A-Z][a-z]?\d*|\((?:[A-Z][a-z]?\d*)+\)\d*){1,20}\d?[+-]?")
_TYPESETTING = Pattern(r"\\(?:text|mathrm|ce|rm|mathsf)\b|[\s_${}]")


@dataclass(frozen=True, slots=True)
class Form:
    """An answer in the normalised forms in which it is compared."""

    text: str
    letter: str = ""
    """The letter of the choice it names."""

    is_choice: bool = False
    """Whether the letter must be a choice, as in "(B)" but not in "B. Paris"."""

    quantity: Quantity | None = None
    alternatives: tuple[Value, ...] = ()
    """Values of which it is one: "1,5" is 1.5 or the pair of 1 and 5."""

    key: Hashable = None
    """What it is if it is of a kind that is compared as a whole: JSON, a date, a yes."""

    maybe: frozenset[Hashable] = field(default_factory=frozenset)
    """Keys of which it may have one."""

    chemical: str = ""
    """The chemical formula that it may be."""

    def shared(self) -> set[Hashable]:
        """Return what it has in common with some form that it may be the same as."""
        keys: list[Hashable] = [("key", key) for key in (self.key, *self.maybe) if key is not None]
        letters = [("letter", self.letter)] if self.letter else []
        return {*keys, *letters, ("text", self.text)}

    def has_value(self) -> bool:
        return self.quantity is not None or bool(self.alternatives)


class AnswerClasses:
    """Equivalence classes of answers that are added one by one.

    A new answer is compared with the others once, when it is added: with those that have the same
    key, text or letter, and as long as `_MAX_COMPARED` allows, with those that have a value.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        """The answers with their numbers, from 0."""

        self._forms: list[Form] = []
        self._parents: list[int] = []
        """Union-find forest over the answers in order; a root is the first answer of its tree."""

        self._sharing: dict[Hashable, list[int]] = {}
        """The answers that have a key, text or letter."""

        self._with_values: list[int] = []
        self._compared = 0
        """Length of the formulas that were compared in pairs."""

        self._vague: list[tuple[int, int]] = []
        """Pairs of a vague answer, such as a bare number, and an exact one that it may mean."""

        self._other_values: list[tuple[int, int]] = []
        """Pairs of a bare number and the percentage or angle whose value it is."""

        self._names: Mapping[str, str] = {}
        """Cached result of `names`; empty after an answer was added."""

    def add(self, answer: str) -> None:
        """Add an answer."""
        if answer in self._numbers:
            return
        form, at = form_of(answer), len(self._parents)
        self._parents.append(at)
        for other in sorted(self._candidates(form)):
            its = self._forms[other]
            apart = _root(self._parents, other) != _root(self._parents, at)
            if apart and _same(its, form):
                _join(self._parents, other, at)
            self._compare_vaguely(other, its, at, form)
            self._compare_vaguely(at, form, other, its)
        for key in form.shared():
            self._sharing.setdefault(key, []).append(at)
        if form.has_value():
            self._with_values.append(at)
        self._forms.append(form)
        self._numbers[answer] = at
        self._names = {}

    def _candidates(self, form: Form) -> set[int]:
        """Return the answers that may be equivalent to one of this form."""
        found = {at for key in form.shared() for at in self._sharing.get(key, ())}
        if form.has_value():
            for at in self._with_values:
                self._compared += min(len(form.text), len(self._forms[at].text)) + 1
                if self._compared > _MAX_COMPARED:
                    break
                found.add(at)
        return found

    def _compare_vaguely(self, vague_at: int, vague: Form, at: int, exact: Form) -> None:
        if _may_mean(vague, exact):
            self._vague.append((vague_at, at))
        bare, quantity = vague.quantity, exact.quantity
        if bare is None or quantity is None or bare.unit or not quantity.unit:
            return
        if any(equal(bare.value, value) for value in quantity.other_values):
            self._other_values.append((vague_at, at))

    def names(self) -> Mapping[str, str]:
        """Return the representative of each answer: the first equivalent answer.

        The classes do not depend on the order in which answers were added. A percentage joins its
        hundredth, unless a bare number joins it.
        """
        if not self._names:
            answers, parents = list(self._numbers), list(self._parents)
            meant: set[int] = set()
            for _ in range(2):  # "18" joins "x = 18" once that has joined "$18"
                for vague, exact in self._sure_pairs(parents):
                    _join(parents, vague, exact)
                    meant.add(_root(self._parents, exact))
            for bare, quantity in self._other_values:
                if _root(self._parents, quantity) not in meant:
                    _join(parents, bare, quantity)
            self._names = {name: answers[_root(parents, at)] for at, name in enumerate(answers)}
        return self._names

    def _sure_pairs(self, parents: Sequence[int]) -> list[tuple[int, int]]:
        """Return the vague answers with what they mean among the other answers.

        A vague answer joins the exact one that it may mean if there is only one, unless answers
        that differ would meet in it, as 1 and 1000 in 1 kg = 1000 g.
        """
        meanings: dict[int, dict[int, int]] = {}
        for vague, exact in self._vague:
            meanings.setdefault(_root(parents, vague), {})[_root(parents, exact)] = exact
        sure = {one: others for one, others in meanings.items() if len(others) == 1}
        numbers = Counter(
            other for one in sure for other in sure[one] if one != other and self._is_number(one)
        )
        return [
            (one, exact)
            for one, others in sure.items()
            for other, exact in others.items()
            if numbers[other] < 2 or not self._is_number(one)
        ]

    def _is_number(self, at: int) -> bool:
        quantity = self._forms[at].quantity
        return quantity is not None and not quantity.unit


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
    first = {answer: at for at, answer in reversed(list(enumerate(answers)))}
    return [None if answer is None else first[names[answer]] for answer in answers]


def equivalent(one: str, other: str) -> bool:
    """Return True if the two answers are equivalent when there are no other answers."""
    return classes([one, other]) == [0, 0]


def equivalent_pairs(ones: Sequence[str | None], others: Sequence[str | None]) -> list[bool]:
    """Return for each two answers at one place whether they are equivalent; None is to nothing."""
    return [
        one is not None and other is not None and equivalent(one, other)
        for one, other in zip(ones, others, strict=True)
    ]


def form_of(answer: str) -> Form:
    """Return `answer` in the normalised forms in which it is compared."""
    answer = _in_ascii_digits(answer.strip())
    return _long_form(answer) if len(answer) > _MAX_PARSED_LENGTH else _parsed_form(answer)


@lru_cache(maxsize=256)  # an approach compares its samples' answers several times
def _parsed_form(answer: str) -> Form:
    text = plain(numerals(_MATH.sub(_inside, _STRONG.sub(_inside, answer))))
    bare = text.strip(_ENDS).removesuffix(".") if text.count(".") < 2 else text.strip(_ENDS)
    if whole := _whole(bare):
        key, maybe = whole
        return Form(_LEADING_ZERO.sub("", _plain_text(text)), key=key, maybe=maybe)
    letter, is_choice = _letter_of(text.translate(_DECORATION).strip())
    digits, base = _in_base(bare)
    if base and not digits.isdigit():
        return Form(_plain_text(text), key=("base", base, digits))
    quantity, alternatives = read_quantity(digits or bare)
    if base and quantity:
        quantity = replace(quantity, unit=Unit(((f"base {base}", 1),)))
    if quantity is None and (key := _json_key(answer)) is not None:
        return Form(answer, key=key)
    if _SEVERAL_LETTERS.fullmatch(bare) and list(bare) == sorted(set(bare)):
        letters, _ = read_quantity(", ".join(bare))
        alternatives = (letters.value,) if letters else ()
    chemical = _chemical(answer)
    plain_text = _plain_text(chemical or text)
    return Form(plain_text, letter, is_choice, quantity, alternatives, chemical=chemical)


def _long_form(answer: str) -> Form:
    if (key := _json_key(answer)) is not None:
        return Form(answer, key=key)
    if len(answer) > _MAX_TEXT:
        ends = answer[: _MAX_TEXT // 2], answer[-_MAX_TEXT // 2 :]
        return Form("", key=("long", len(answer), *ends))
    return Form(_plain_text(answer))


def _inside(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if isinstance(group, str))


def _same(a: Form, b: Form) -> bool:
    if a.key is not None or b.key is not None:
        return a.key == b.key
    if a.maybe or b.maybe:
        return a.text == b.text
    if a.quantity is not None and b.quantity is not None:
        if _same_quantity(a.quantity, b.quantity):
            return True
    elif a.text == b.text and a.chemical == b.chemical:
        return True
    return a.letter != "" and a.letter == b.letter and (a.is_choice or b.is_choice)


def _same_quantity(a: Quantity, b: Quantity) -> bool:
    if a.equation is not None and b.equation is not None and equal(a.equation, b.equation):
        return True
    return a.name == b.name and _same_amount(a, b)


def _same_amount(a: Quantity, b: Quantity) -> bool:
    if a.unit == b.unit:
        return equal(a.value, b.value)
    return a.unit.dimension == b.unit.dimension and equal(a.amount, b.amount)


def _may_mean(vague: Form, exact: Form) -> bool:
    if exact.key is not None:
        return exact.key in vague.maybe
    if exact.quantity is None:
        return exact.chemical != "" and not vague.chemical and vague.text == exact.text
    if any(equal(value, exact.quantity.value) for value in vague.alternatives):
        return not exact.quantity.unit
    bare, quantity = vague.quantity, exact.quantity
    if bare is None or (bare.name and quantity.name and bare.name != quantity.name):
        return False
    if quantity.name and not bare.name and _same_amount(bare, quantity):
        return True
    if not may_mean(bare.unit, quantity.unit):
        return False
    return quantity.number and equal(bare.value, quantity.value)


def _whole(text: str) -> tuple[Hashable, frozenset[Hashable]] | None:
    """Return the key of `text` and the keys that it may have, if it is of a kind that has one."""
    keys: list[Hashable]
    if dates := dates_in(text):
        keys = [("date", date) for date in dates]
        return (keys[0], frozenset()) if len(keys) == 1 else (None, frozenset(keys))
    if time := time_of(text):
        (hour, *rest), is_sure = time
        keys = [("time", (later, *rest)) for later in ((hour,) if is_sure else (hour, hour + 12))]
        return (keys[0], frozenset()) if is_sure else (None, frozenset(keys))
    if answer := yes_or_no(text):
        key = ("answer", answer[0])
        return (key, frozenset()) if answer[1] else (None, frozenset({key}))
    if rank := ordinal(text):
        return ("rank", rank), frozenset()
    if text.lower() == "n/a":
        return ("answer", "n/a"), frozenset()
    return (("answer", "does not exist"), frozenset()) if is_nonexistent(text) else None


def _in_base(text: str) -> tuple[str, int]:
    """Return the digits of a number in another base than ten, and the base; "" and 0 if it is none.

    A number with decimal digits only also equals them without the base, as if that were a unit.
    """
    found = _BASE.fullmatch(text)
    if found is None:
        return "", 0
    parts = found.groupdict()
    digits = next(
        parts[name] for name in ("bits", "octal", "hex", "digits", "spelled") if parts[name]
    )
    base = next((size for name, size in _PREFIXES.items() if parts[name]), 0)
    base = base or int(
        parts["base"] or parts["spoken"] or _BASES.get((parts["named"] or "").lower(), 0)
    )
    allowed = "0123456789abcdef"[:base]
    return (digits.lower(), base) if base > 1 and set(digits.lower()) <= set(allowed) else ("", 0)


def _chemical(text: str) -> str:
    """Return the chemical formula that `text` may be, in one spelling, or ""."""
    bare = unicodedata.normalize("NFKC", _TYPESETTING.sub("", text.strip(_ENDS + ".")))
    bare = bare.replace("^", "").replace("\u2212", "-")
    if not _CHEMICAL.fullmatch(bare) or yes_or_no(bare):
        return ""
    return bare if set(_SYMBOL.findall(bare)) <= _ELEMENTS else ""


def _letter_of(text: str) -> tuple[str, bool]:
    """Return the letter of the choice in `text`, or "", and True if it must be a choice."""
    found = _LETTER.fullmatch(text)
    if found is None and (with_text := _LETTER_AND_TEXT.fullmatch(text)):
        found = None if _NEXT_PART.search(text, 3) else with_text
    if found is not None:
        return (found[1] or found[2]).lower(), True
    unsure = _LETTER_STOP_TEXT.fullmatch(text)
    return (unsure[1].lower() if unsure else ""), False


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


def _in_ascii_digits(text: str) -> str:
    """Return `text` with the digits of other scripts in those of ASCII."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(c, c)) for c in text.translate(_ARABIC_SEPARATORS))


def _plain_text(text: str) -> str:
    """Return `text` normalised: without case, decoration and insignificant punctuation."""
    text = unicodedata.normalize("NFKC", text)
    text = _NAME_WITH_ACCENTS.sub(_without_accents, text).casefold().translate(_DECORATION)
    text = _AND.sub(", ", " ".join(text.split()))
    text = _AROUND_MARKS.sub(r"\1", text)
    text = _TITLES.sub(r"\1", _INITIALS.sub(_without_stops, text)).replace(" %", "%")
    text = _LETTERS_AND_HYPHEN.sub(" ", text)
    return _ARTICLE.sub("", text.strip(" _.,;:!")).strip()


def _without_stops(found: re.Match[str]) -> str:
    letters = found[0].replace(".", "").replace(" ", "")
    return f"{letters} " if found[0].endswith(" ") else letters


def _without_accents(found: re.Match[str]) -> str:
    """Return a name without accents, which are often left out; umlauts make other words."""
    return found[0] if _UMLAUTS & set(found[0]) else unaccented(found[0])
