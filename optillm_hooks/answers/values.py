"""The grammar of values: what a final answer can be, and where it begins and ends.

A value is always whole: a number with its unit, an expression or an equation with all of its terms,
a date, a time, a ratio or a range. No number is taken out of a larger expression. The only part
that is, is the end of a chain of equations whose other members say how it was calculated or name
it: 42 in "6 * 7 = 42" and "n = 42", but not 1 in "y = 2x + 1".

The texts are short (a sentence), so regular expressions with limited nesting suffice.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.phrases import words


class Extracted(NamedTuple):
    """An answer and its span in the text."""

    answer: str
    start: int
    end: int

    def moved(self, by: int) -> "Extracted":
        """Return the answer with its span shifted by `by` characters."""
        return Extracted(self.answer, self.start + by, self.end + by)

    def is_verbatim(self) -> bool:
        """Return True if the answer is what stands in its span."""
        return len(self.answer) == self.end - self.start


def part(text: str, start: int, end: int) -> Extracted:
    """Return `text[start:end]` without the whitespace around it."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return Extracted(piece.strip(), start, start + len(piece.strip()))


LETTERS = "A-Za-zÀ-ÖØ-öø-ɏͰ-ϿЀ-ӿ"
"""Letters of alphabets, for a class of a regular expression; superscripts are none."""

# Numbers.
_CURRENCY = r"(?:(?:US|R|A|C|HK|NT|S)?\\?\$|[€£¥₹₩₽]|(?:USD|EUR|GBP|CHF|JPY|INR|Rs\.?)(?=[ \d]))"
_EXPONENT = r"(?:[eE][-+−]?\d{1,3}(?![\w]))?"
_PLAIN_NUMBER = (
    r"(?:0[xX][0-9A-Fa-f]+(?!\w)|0[bB][01]+(?!\w)|0[oO][0-7]+(?!\w)"
    r"|\d{1,3}(?:[ \u00a0\u202f\u2009]\d{3})+(?![\d/])(?:[.,]\d+)?"
    r"|\d+(?:(?:[.,'’_]|\{,\}|\\,)\d+)*+(?:\.\.\.|…)?"
    r"|[.]\d+)"
)
_NUMBER = rf"(?:{_PLAIN_NUMBER}{_EXPONENT}[½⅓⅔¼¾⅕⅛]?|[½⅓⅔¼¾⅕⅛])"

# Expressions.
_FUNCTION = (
    r"(?:arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|sec|csc|cot|log|ln|lg|exp|sqrt|gcd|lcm|max|min|mod"
    r"|pi)"
)
_WORD_IN_GROUP = rf"(?:{_FUNCTION}|and|or|inf|infinity|if|for|all|any|not|mod|deg|rad)(?![A-Za-z])"


def _group(opening: str, closing: str) -> str:
    """Return a pattern of mathematics in brackets, nested up to three levels."""
    inner = rf"(?:(?!\s?[A-Za-z]{{3}})[^{opening}{closing}\n]|{_WORD_IN_GROUP})"
    pattern = f"[{opening}]{inner}*+[{closing}]"
    for _ in range(2):
        pattern = rf"[{opening}](?:{inner}|{pattern})*+[{closing}]"
    return pattern


_BRACES = r"\{(?:[^{}\n]|\{(?:[^{}\n]|\{[^{}\n]*+\})*+\})*+\}"
_BRACKETS = "|".join(
    # An interval may close with the other kind of bracket.
    [_group(r"(\[", r")\]"), _group(r"{", "}"), _group("⟨", "⟩"), r"\\\{[^{}\n]*+\\\}"]
)
_LETTER = (
    rf"(?<![{LETTERS}])(?!(?:[IAaOoeyuEé]|à)\s+[{LETTERS}]{{2}})[A-Za-z](?![{LETTERS}\d_]"
    rf"|['’][a-z]{{1,2}}(?![{LETTERS}]))"
)
_SYMBOL = r"[πθ∞∅φλμσωαβγδεΔΩτρ√∛]"
_LATEX = rf"\\(?!\()(?:[A-Za-z]+|[{{}}|])(?:\[[^\]\n]{{0,20}}\])?(?:\s?{_BRACES})*+"
_ATOM = (
    rf"(?:{_CURRENCY}\s?[-−]?{_NUMBER}(?:[MBKk](?![A-Za-z]))?"
    rf"|{_NUMBER}(?:[A-Za-zµ]{{1,3}}(?![{LETTERS}]))?(?:\d{{2}}(?!\d))?"
    rf"|{_LATEX}|(?<![A-Za-z]){_FUNCTION}(?![A-Za-z])\s?"
    rf"|(?<![{LETTERS}\d_])[A-Za-z]{{2,3}}(?=[\^_(])"
    rf"|(?<![{LETTERS}\d_])[A-Za-z]{{1,2}}[₀-₉\d]+[A-Za-z₀-₉\d]*|{_LETTER}['′]*|{_SYMBOL}"
    rf"|{_BRACKETS}|\|(?=[^\s|])[^|\n]{{1,40}}\|)"
)
_POSTFIX = (
    rf"(?:[⁰¹²³⁴-⁹⁻⁺ⁿˣ₀-₉]+|\^(?:{_BRACES}|\((?:[^()\n]){{1,40}}\)|[-−]?\w+|\\circ)|_(?:{_BRACES}"
    rf"|\w+)"
    r"|(?<=[A-Za-z\])}])!|!(?=\s?[-+=/*×·^)!])|\s?%|\s?‰|\s?°(?:\s?[CF](?![A-Za-z]))?|[′″])"
)
_SIGN = r"(?:[-+−–±√]|\\pm\s?)?(?:[\"“'‘](?=\d))?"
_RELATION = (
    r"(?:[<>!:]=|[=<>≈≃≅≤≥≠≡∈⊂⊆~]|\\(?:approx|leq?|geq?|neq?|in|equiv|sim|simeq|lt|gt)(?![A-Za-z]))"
)
_JOIN = (
    rf"(?:\s*(?:{_RELATION}|[+*·×÷∪∩±∓^−/&→⋅]|->|\\(?:times|cdot|div|pm|mp|cup|cap"
    rf"|to)(?![A-Za-z]))\s*"
    r"|[-–—‑:]|\s[-–:]\s|\*\*(?=[\d(])"
    r"|(?<=\d)\s(?=\d{1,3}[/⁄]\d)|\s(?=[πθ√∞]))"
)

# Numbers with words.
_MONTH = (
    r"(?:Jan(?:uary|uar)?|Feb(?:ruary|ruar)?|Mar(?:ch)?|M[äa]rz|Apr(?:il)?|May|Mai|June?|Juni"
    r"|July?|Juli"
    r"|Aug(?:ust)?|Sept?(?:ember)?|O[ck]t(?:ober)?|Nov(?:ember)?|De[cz](?:ember)?"
    r"|janvier|f[ée]vrier|mars|avril|juin|juillet|ao[ûu]t|septembre|octobre|novembre|d[ée]cembre"
    r"|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|diciembre"
    r"|gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre"
    r"|janeiro|fevereiro|março|maio|junho|julho|setembro|outubro|novembro|dezembro)\.?(?!\w)"
)
_WEEKDAY = (
    r"(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
    r"|(?:Mon|Diens|Donners|Frei|Sams|Sonn)tag|Mittwoch"
    r"|lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche"
    r"|lunes|martes|miércoles|jueves|viernes|sábado|domingo)(?!\w)"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th|\.|er|º)?(?!\d)"
_DATE = (
    rf"(?:{_WEEKDAY},?\s)?(?:{_DAY}\s(?:of\s|de\s|di\s)?{_MONTH}(?:,?\s(?:de\s"
    rf"|del\s)?\d{{4}}(?!\d))?"
    rf"|{_MONTH}\s{_DAY}(?:,?\s\d{{4}}(?!\d))?|{_MONTH},?\s(?:of\s|de\s)?\d{{4}}(?!\d))"
    r"|\d{4}\s?年(?:\s?\d{1,2}\s?月)?(?:\s?\d{1,2}\s?日)?|\d{1,2}\s?月\s?\d{1,2}\s?日"
    rf"|{_WEEKDAY}(?:,?\s\d{{1,2}}:\d{{2}})?"
)
_TIME = (
    r"\d{1,2}(?:[:.]\d{2}){0,2}\s?(?:[aApP]\.\s?[mM]\.|[aApP][mM](?![A-Za-z])|Uhr(?!\w)|o['’]clock)"
    r"|\d{1,2}\s?[時时点]\s?(?:\d{1,2}\s?分)?"
)
_SCALE = (
    r"(?:hundred|thousand|million|billion|trillion|Millionen?|Milliarden?|millions?|millones"
    r"|milhões|milioni)"
)
_KNOWN_UNIT = (
    rf"(?:(?:square|cubic|sq\.?|cu\.?)\s)?(?:percent(?:age\spoints)?|per\scent|dollars?|cents?"
    rf"|euros?|pounds?|pence|Prozent|pour\scent"
    rf"|por\sciento|degrees?(?:\sCelsius|\sFahrenheit)?"
    r"|h(?:ou)?rs?|hours?|min(?:ute)?s?|sec(?:ond)?s?|days?|weeks?|months?|years?|h|s|m|g|l|L|N|J"
    r"|W|V|A|K|C|F|Hz|Pa|mol|M"
    r"|km|cm|mm|nm|kg|mg|lbs?|oz|ml|mL|ft|feet|foot|inch(?:es)?|in(?=\W*$)|yd|mi|mph|kph|k?Wh|kW"
    r"|MW|kJ|eV|keV|MeV|GeV|kPa|atm|kN|dB|rpm"
    rf"|Stunden?|Minuten?|Sekunden?|Tage?|heures?|minutes?|secondes?|jours?|horas?|minutos?"
    rf"|segundos?|d[ií]as?|ore|minuti|giorni|dias?)(?![{LETTERS}])"
)
_STOP = words(
    lambda language: " ".join(
        (
            language.because,
            language.conjunction,
            language.copula,
            language.verbs,
            language.therefore,
            language.filler,
            language.negation,
            language.common,
            language.yes_no,
        )
    )
) + (
    r"|more|less|fewer|left|remain(?:s|ing|ed)?|stays?|fits?|lives?|works?|goes|go|comes?|sits?"
    r"|walks?|plays?|times|plus|minus|than|on|by|with|from|per|each|every|total"
    r"|among"
    r"|out|too|here|there|can|will|would|may|does|do|did|were|was|i|we|you|they|he|she|this|these"
    r"|those|divided|multiplied|modulo|mod|mal|fois|veces|volte|vezes|mehr|weniger|übrig|pro|par|"
    r"por|per|de|di|des|du|d|von|con|sur|im|in|den|dem|every|both|larger|smaller|greater|bigger"
    r"|higher|lower|longer|shorter|away|inclusive|correct|right|wrong|after|before|between|until|zwischen|entre|tra|fra"
    r"|now"
    r"|then|not|no|yes|option|answer|units?(?=\sof)|en|y|à|dans|uit|van"
)
_A_NOUN = rf"(?!(?:{_STOP})(?!\w))[{LETTERS}][{LETTERS}]+(?:-[{LETTERS}]+)*"
_NOUN = rf"{_A_NOUN}(?:\s{_A_NOUN}){{0,2}}"
_PER = (
    rf"(?:\s?[/·*⋅]\s?{_KNOWN_UNIT}(?:\^?-?[23²³]|⁻[¹²])?"
    r"|\s(?:per|pro|par|por|al|a|an|each)\s[^\W\d_]+)"
)
_POWER = r"(?:\^\{?-?\d\}?|[²³]|⁻[¹²³]|-\d(?!\d))?"
_CJK_UNIT = (
    r"\s?(?:[元円圆日年月時时分秒個个人本枚只名歳岁次頭头匹台件倍度米]|公里|千米|厘米|公斤|千克|小时|時間"
    r"|分钟|分間|美元|欧元|个月|개|명|원|시간|분)"
)
_UNIT = (
    rf"(?:\s{_SCALE}(?!\w))?(?:\s?{_CURRENCY}(?!\d)|\s?{_KNOWN_UNIT}{_POWER}{_PER}*+"
    rf"|{_CJK_UNIT}|\s?°(?:\s?[CF](?![A-Za-z]))?|\s?%|(?<![%‰°′″])(?<!°.)(?<!° .)\s(?:square\s"
    rf"|cubic\s"
    rf"|US\s)?{_NOUN}{_POWER})?"
)
_AMOUNT = rf"{_NUMBER}\s?{_KNOWN_UNIT}"
_COMPOUND = (
    rf"{_AMOUNT}(?:(?:,?\s(?:and|und|et|y|e)\s|,?\s){_AMOUNT})+"
    rf"|\d+\s?(?:'|′|ft\.?)\s?\d+\s?(?:\"|″|in\.?)"
)
_PROPORTION = (
    rf"(?:between|from|zwischen|entre|de|tra|fra|von)\s{_CURRENCY}?{_NUMBER}\s?(?:and|to|und|bis"
    rf"|et|y|e|à|a)\s{_CURRENCY}?{_NUMBER}"
    r"|(?<![\d.,])\d+(?:[.,]\d+)?\s(?:out\sof|to|bis|zu|von|sur|auf|à|a|su|over|of\sthe"
    r"|of)\s\d[\d.,]*(?<=\d)|(?:one|1)\sin\s\d+"
)


def _on_a_line(pattern: str) -> Pattern:
    """Return `pattern`, a value does not extend over a line break."""
    return Pattern(pattern.replace(r"\s", r"[ \t\u00a0\u202f]"))


_DELIMITED = Pattern(
    r"(?P<math>\$\$(?P<m1>[^$]+)\$\$|\$(?=[^\s$])(?P<m2>(?:\\\$|[^$\n])*+)(?<=\S)\$(?!\d)"
    r"|(?<!\\)\\\((?P<m3>(?:[^\\]++|\\[^()])++)\\\)"
    r"|(?<!\\)\\\[(?P<m4>(?:[^\\]++|\\[^\[\]])++)\\\])"
    r"|(?P<code>`++)(?P<inside>[^`\n]++)(?P=code)",
)
_DATES = _on_a_line(f"{_DATE}|{_TIME}")
_WORDS = _on_a_line(f"{_PROPORTION}|{_COMPOUND}")
_UNIT_AFTER = _on_a_line(_UNIT)
_SIGN_AT, _ATOM_AT, _POSTFIX_AT, _JOIN_AT = map(_on_a_line, (_SIGN, _ATOM, _POSTFIX, _JOIN))
_START = Pattern(rf"(?<![{LETTERS}\d@#])(?<![{LETTERS}\d]_)[^\s*]")
"""Where a value can begin."""

_HAS_DIGIT = Pattern(r"[\d½⅓⅔¼¾πθ∞∅]|\\[A-Za-z]")
_ONLY_A_NAME = Pattern(
    r"\W*(?:[A-Za-z]|[A-Za-z]{1,2}[\d₀-₉][A-Za-z\d₀-₉]*+|\([A-Za-z]\)|\\[A-Za-z]+)\W*"
)

# Chains of equations.
_EQUALS = Pattern(r"(?<![<>!:=])=(?!=)|\\equiv(?![A-Za-z])|≡")
_ABOUT_EQUAL = Pattern(r"\\(?:approx|simeq|sim)(?:eq)?(?![A-Za-z])|[≈≃≅]")
_ORDER = Pattern(r"[<>≤≥≠∈→⊂⊆]|\\(?:leq?|geq?|neq?|in|lt|gt|to|subset\w*)(?![A-Za-z])|!=")
_NAMES = Pattern(r"\\(?:text|mathrm|mathbf|operatorname)\{[^{}]*\}|\\[A-Za-z]+|[A-Za-zθαβγλμ]+")
_NOT_VARIABLES = Pattern(
    rf"\\(?:[dtc]?frac|sqrt|pi|cdot|times|div|left|right|text.*|mathrm.*|mathbf.*|operatorname.*|"
    rf"binom|pm|infty|circ|degree|quad|qquad|ldots|dots|cdots|langle|rangle|begin|end|overline|"
    rf"d?displaystyle|{_FUNCTION})|{_FUNCTION}|e|i|pi|"
    r"cm|km|mm|m|kg|g|s|h|min|ml|L|N|J|W|V|Hz|Pa|mol|USD|EUR|USD|st|nd|rd|th|pmatrix|bmatrix"
    r"|matrix|"
    r"mph|ft|in|lb|AM|PM|am|pm|a|p|C|F|K|[A-Za-z]{4,}"
)
_SUM_OF_NAMES = Pattern(r"\s*[a-zA-Z](?:\s*\+\s*[a-zA-Z])+\s*")
_NAME = Pattern(
    r"\s*(?:[^\W\d_]{1,20}['′]*|\([a-z](?:,\s*[a-z])+\)|\\[A-Za-z]+|\\(?:text|mathrm"
    r"|mathbf)\{[^{}]*\}|\|[A-Za-z]+\|)"
    r"(?:_(?:\{[^{}]*\}|\w+)|[₀-₉]+)?(?:\^\{?[-*\w]+\}?)?\s*"
)
_OPERATOR = Pattern(
    r"\s*(?:\\(?:int|iint|oint|sum|prod|lim|det|binom|max|min|gcd|Pr|mathbb)(?![A-Za-z])|[∫∑∏]|\|)"
)
_APPLIED = Pattern(
    r"\s*(?:[^\W\d_]{1,8}['′]*|\\[A-Za-z]+)\s*(?:\((?P<argument>[^=]*)\)|\\theta|[θαβxA-Z])\s*"
)


def _has_variables(text: str) -> bool:
    return any(not _NOT_VARIABLES.fullmatch(name) for name in _NAMES.findall(text))


_SIDE_CONDITION = Pattern(
    r"(?:,\s*+|(?<!\s)\s++)?\\q?quad\s*+[a-z]\s*+\\(?:neq?|in|geq?|leq?)(?![A-Za-z]).*\Z", re.DOTALL
)


def settled(text: str) -> Extracted:
    """Return the value of a formula: the end of a chain of equations, or else the whole formula.

    An approximation after an exact value is left out.
    """
    start, end = 0, len(text)
    if condition := _SIDE_CONDITION.search(text):
        return settled(text[: condition.start()])
    if about := list(_ABOUT_EQUAL.finditer(text)):
        before = text[: about[0].start()]
        exact = _EQUALS.split(before)[-1]
        if _NAME.fullmatch(exact) or _APPLIED.fullmatch(exact) or _has_variables(exact):
            return part(text, about[-1].end(), end)
        if re.search(r"\d\s?[-+*/×·÷]\s?\d", exact) and "\\" not in exact:
            return part(text, about[-1].end(), end)
        end = about[0].start()
    in_order = any(_depth(text, sign.start()) == 0 for sign in _ORDER.finditer(text, 0, end))
    if in_order or "," in _outside_brackets(text[:end]):
        return part(text, start, end)
    signs = [sign for sign in _EQUALS.finditer(text, 0, end) if _depth(text, sign.start()) == 0]
    if not signs:
        return part(text, start, end)
    last = text[signs[-1].end() : end]
    first = text[: signs[0].start()]
    middle = [text[a.end() : b.start()] for a, b in pairwise(signs)]
    if _has_variables(last) or not last.strip():
        return part(text, start, end)
    calculated = not _has_variables(first) or any(not _has_variables(m) for m in middle)
    applied = _APPLIED.fullmatch(first) or _OPERATOR.match(first)
    if calculated or _SUM_OF_NAMES.fullmatch(first) or _NAME.fullmatch(first) or applied:
        return part(text, signs[-1].end(), end)
    return part(text, start, end)


def _depth(text: str, at: int) -> int:
    before = text[:at]
    return before.count("{") + before.count("(") - before.count("}") - before.count(")")


_IN_BRACKETS = Pattern(
    r"\\?[({\[⟨][^(){}\[\]⟨⟩]*\\?[)}\]⟩]"
    r"|\\langle(?:[^\\\n]++|\\(?!langle|rangle))*+\\rangle"
)


def _outside_brackets(text: str) -> str:
    """Return the text that is in no brackets and in no number."""
    text = re.sub(r"\\[,;:! ]|(?<=\d)(?:,|\{,\})(?=\d{2,3})", "", text)
    for _ in range(3):
        text = _IN_BRACKETS.sub("", text)
    return text


class Value(NamedTuple):
    """A value in a sentence."""

    found: Extracted
    start: int
    """Where its notation begins, with delimiters."""

    end: int
    kind: str
    """math, code, date, words or run: the alternative of the grammar."""

    is_equation: bool = False


def value_at(text: str, at: int) -> Value | None:
    """Return the whole value that begins at `at`, or None.

    A mere name, such as "x" or "v2", is no value.
    """
    if not _START.match(text, at):
        return None
    if found := _DELIMITED.match(text, at):
        return _in_delimiters(found)
    if found := _DATES.match(text, at):
        return Value(part(text, at, found.end()), at, found.end(), "date")
    if found := _WORDS.match(text, at):
        end = _after_unit(text, found.end())
        return Value(part(text, at, end), at, end, "words")
    return _expression(text, at)


def _after_unit(text: str, at: int) -> int:
    found = _UNIT_AFTER.match(text, at)
    return found.end() if found else at


def _in_delimiters(found: re.Match[str]) -> Value | None:
    start, end = found.span()
    if found["code"]:
        return Value(part(found.string, *found.span("inside")), start, end, "code")
    name = next(n for n in ("m1", "m2", "m3", "m4") if found[n] is not None)
    inner = settled(found[name]).moved(found.start(name))
    if not inner.answer:
        return None
    after = _after_unit(found.string, end)
    unit = found.string[end:after].strip()
    if unit and "$" not in unit:
        end = after
        inner = Extracted(f"{inner.answer} {unit}", inner.start, end)
    return Value(inner, start, end, "math", bool(_EQUALS.search(found[name])))


def _expression(text: str, at: int) -> Value | None:
    end = _end_of_run(text, at)
    run = text[at:end]
    is_formula = _HAS_DIGIT.search(run) or re.search(r"[=<>≤≥∈+*^]", run)
    if not is_formula or _ONLY_A_NAME.fullmatch(run):
        return None
    inner = settled(run).moved(at)
    is_equation = bool(_EQUALS.search(run))
    after = _after_unit(text, end)
    if after > end and not _has_variables(inner.answer):
        return Value(part(text, inner.start, after), at, after, "run", is_equation)
    return Value(inner, at, end, "run", is_equation)


def _end_of_run(text: str, at: int) -> int:
    """Return the end of the operands and operators that follow each other from `at` on."""
    end = _end_of_operand(text, at)
    while end > at and (join := _JOIN_AT.match(text, end)):
        after = _end_of_operand(text, join.end())
        if after == join.end():
            break
        end = after
    return end


def _end_of_operand(text: str, at: int) -> int:
    sign = _SIGN_AT.match(text, at)
    first = _ATOM_AT.match(text, sign.end() if sign else at)
    if first is None:
        return at
    end = first.end()
    while more := _POSTFIX_AT.match(text, end) or _ATOM_AT.match(text, end):
        end = more.end()
    return end


@lru_cache(maxsize=64)
def values(text: str) -> Sequence[Value]:
    """Return the whole values in `text`, in order."""
    found: list[Value] = []
    at = 0
    while start := _START.search(text, at):
        item = value_at(text, start.start())
        if item:
            found.append(item)
        at = item.end if item else max(_end_of_run(text, start.start()), start.end())
    return found


_LOCAL_NUMBER = Pattern(
    r"(?<![\d.,])(?:(?P<whole>[1-9]\d{0,2}(?:[.\u00a0\u202f ]\d{3}){1,6}+)(?:,(?P<part>\d++))?+"
    r"|(?P<units>\d++),(?P<decimals>\d++))(?![.,]*+\d)"
)


_DECIMAL_POINT = Pattern(r"[^.,\d]*\d{1,3}\.\d{2}[1-9][^.,\d€]*(?<!Euro)(?<!euros)")
"""A number with three decimals, as mathematics is written in every language."""


def in_decimal_points(answer: str) -> str:
    """Return `answer`, written with decimal commas, with decimal points: 1.234,5 is 1234.5."""
    if re.search(r"[\\()\[\]{}]|\d[-:]\d|\d, ", answer) or _DECIMAL_POINT.fullmatch(answer):
        return answer
    return _LOCAL_NUMBER.sub(_in_points, answer)


def _in_points(found: re.Match[str]) -> str:
    if found["whole"]:
        digits = re.sub(r"\D", "", found["whole"])
        return f"{digits}.{found['part']}" if found["part"] else digits
    return f"{found['units']}.{found['decimals']}"
