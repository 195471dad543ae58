"""Words that are answers: numbers in words, yes and no, and phrases with a mathematical meaning.

Pure functions. Number words of English in full, and of German, French, Spanish, Italian and
Portuguese up to 99; Chinese and Japanese numerals.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Final

from optillm_hooks.answers.patterns import Pattern

_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL: Final[Mapping[str, int]] = {word: at for at, word in enumerate(_ONES.split())} | {
    word: 20 + 10 * at for at, word in enumerate(_TENS.split())
}
SCALES: Final[Mapping[str, int]] = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "lakh": 10**5, "crore": 10**7, "dozen": 12,
}  # fmt: skip

_ORDINALS: Final[Mapping[str, str]] = {
    "first": "1", "second": "2", "third": "3", "fourth": "4", "fifth": "5", "sixth": "6",
    "seventh": "7", "eighth": "8", "ninth": "9", "tenth": "10", "eleventh": "11", "twelfth": "12",
}  # fmt: skip
_PARTS: Final[Mapping[str, int]] = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12, "hundredth": 100,
}  # fmt: skip
_OWN_NAMES: Final = {"a dozen": "12", "half a dozen": "6", "half": "1/2"}
_PART = Pattern(r"(an?|one|\w+)[ -](?:an? )?(" + "|".join(_PARTS) + r")s?")
_ORDINAL = Pattern(
    r"(?:the )?(?:(\d+)(?:st|nd|rd|th)|(" + "|".join(_ORDINALS) + r"))(?: (?:place|one))?"
)
_ENGLISH = Pattern(r"[a-z]++(?:[ -][a-z]++)*+")

_GERMAN = """
null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn
fünfzehn sechzehn siebzehn achtzehn neunzehn"""
_GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig"
_FRENCH = """
zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize
dix-sept dix-huit dix-neuf"""
_SPANISH = """
cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince
dieciséis diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro
veinticinco veintiséis veintisiete veintiocho veintinueve"""
_SPANISH_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa"
_ITALIAN = """
zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici
quindici sedici diciassette diciotto diciannove"""
_ITALIAN_TENS = "venti trenta quaranta cinquanta sessanta settanta ottanta novanta"
_PORTUGUESE = """
zero um dois três quatro cinco seis sete oito nove dez onze doze treze quatorze quinze dezesseis
dezessete dezoito dezenove"""
_PORTUGUESE_TENS = "vinte trinta quarenta cinquenta sessenta setenta oitenta noventa"


def _tens(words: str, ones: list[str], joint: str, first: int = 20) -> dict[str, int]:
    """Return the numbers of a language that writes tens, `joint` and ones, in this order."""
    found: dict[str, int] = {}
    for at, word in enumerate(words.split()):
        tens = first + 10 * at
        found[word] = tens
        found |= {f"{word}{joint}{ones[one]}": tens + one for one in range(1, 10)}
    return found


def _german() -> dict[str, int]:
    ones = _GERMAN.split()
    found = {word: at for at, word in enumerate(ones) if at} | {"eins": 1}
    for at, tens in enumerate(_GERMAN_TENS.split()):
        found[tens] = 20 + 10 * at
        found |= {f"{ones[one]}und{tens}": 20 + 10 * at + one for one in range(1, 10)}
    return found | {"hundert": 100, "einhundert": 100, "tausend": 1000}


def _french() -> dict[str, int]:
    ones = _FRENCH.split()
    found = {word: at for at, word in enumerate(ones)}
    for tens, word in {20: "vingt", 30: "trente", 40: "quarante", 50: "cinquante",
                       60: "soixante", 80: "quatre-vingt"}.items():  # fmt: skip
        found[word] = tens
        top = 20 if tens in (60, 80) else 10
        found |= {f"{word}-{ones[one]}": tens + one for one in range(1, top)}
        found |= {f"{word}-et-{ones[one]}": tens + one for one in (1, 11) if one < top}
    return found | {"quatre-vingts": 80, "cent": 100, "mille": 1000}


def _italian() -> dict[str, int]:
    ones = _ITALIAN.split()
    found = {word: at for at, word in enumerate(ones)} | _tens(_ITALIAN_TENS, ones, "")
    for at, word in enumerate(_ITALIAN_TENS.split()):
        tens = 20 + 10 * at
        found |= {word[:-1] + ones[one]: tens + one for one in (1, 8)}
        found[f"{word}tré"] = tens + 3
    return found | {"cento": 100, "mille": 1000}


def _other_languages() -> dict[str, int]:
    spanish, portuguese = _SPANISH.split(), _PORTUGUESE.split()
    found = {word: at for at, word in enumerate(spanish)}
    found |= _tens(_SPANISH_TENS, spanish, " y ", 30) | {"cien": 100, "mil": 1000}
    found |= {word: at for at, word in enumerate(portuguese)}
    found |= _tens(_PORTUGUESE_TENS, portuguese, " e ") | {"cem": 100}
    found |= _german() | _french() | _italian()
    return found | {unaccented(word): number for word, number in found.items()}


def unaccented(text: str) -> str:
    """Return `text` without accents; ß becomes ss."""
    letters = unicodedata.normalize("NFD", text.replace("ß", "ss"))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


_FOREIGN: Final[Mapping[str, int]] = _other_languages()

_DIGITS = {digit: at for at, digit in enumerate("零一二三四五六七八九")} | {"两": 2, "\u3007": 0}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_CHINESE = Pattern(f"[{''.join([*_DIGITS, *_PLACES, *_MYRIADS])}]{{1,20}}")

_ANSWERS: Final[Mapping[str, str]] = {
    word: answer
    for answer, words in {
        "yes": "yes yeah yep ja oui sí sì sim 是 是的 对 はい да jawohl",
        "no": "no nope nein non não 不 不是 否 いいえ нет",
        "true": "true wahr vrai verdadero vero verdadeiro 正确 真 正しい",
        "false": "false falsch faux falso 错误 假 誤り 間違い",
    }.items()
    for word in words.split()
}
_REASON = Pattern(
    r"(?:(?:because|since|as|it|that|this|they|there|these|those|he|she|we|you|the|weil|denn|da|es|"
    r"car|parce|c'est|porque|perché|è|is|are|both|all|in|for|so)\b|[因它不こそ]).*",
    re.DOTALL,
)
_HEDGED = Pattern(r"([^\W\d_]+)\s*[(,.;:!\u2014\u2013\uff0c\u3002\u3001-]+\s*(\S.*)", re.DOTALL)

_PHRASES: Final[Mapping[str, str]] = {
    phrase: formula
    for formula, phrases in {
        r"\emptyset": "no solution|no solutions|there is no solution|there are no solutions|"
        "no solution exists|no solutions exist|has no solution|empty set|null set|keine lösung|"
        "aucune solution|sin solución|nessuna soluzione|sem solução|无解|解なし",
        r"\infty": "infinity|positive infinity|plus infinity|+infinity",
        r"-\infty": "negative infinity|minus infinity",
        r"(-\infty,\infty)": "all real numbers|all reals|all real x|every real number|real numbers|"
        "any real number|set of all real numbers|\\mathbb{r}|\\mathbb r|\u211d",
    }.items()
    for phrase in phrases.split("|")
}
_NONEXISTENT_PHRASES = (
    "does not exist|dne|doesn't exist|it does not exist|limit does not exist|existiert nicht|"
    "n'existe pas|no existe|non esiste|não existe|不存在|存在しない"
)
_NONEXISTENT = frozenset(_NONEXISTENT_PHRASES.split("|"))


def number_in_words(text: str) -> str | None:
    """Return the number that `text` is in words, in digits ("3/4" for a fraction), or None."""
    text = " ".join(text.lower().split())
    value: int | None
    if _CHINESE.fullmatch(text):
        value = _chinese(text)
    elif text in _SMALL:
        value = _SMALL[text]
    else:
        value = _english(text)
        if value is None:
            value = _FOREIGN.get(text)
    if value is not None:
        return str(value)
    if text in _OWN_NAMES:
        return _OWN_NAMES[text]
    whole, _, fraction = text.rpartition(" and ")
    if fraction and (count := _english(whole)) is not None:
        part_text = number_in_words(fraction)
        return f"{count} {part_text}" if part_text and "/" in part_text else None
    part = _PART.fullmatch(text)
    if part is None:
        return None
    count = 1 if part[1] in ("a", "an", "one") else _SMALL.get(part[1])
    return None if count is None else f"{count}/{_PARTS[part[2]]}"


def _english(text: str) -> int | None:
    """Return the value of an English number such as "one hundred and twenty-three", or None."""
    if not _ENGLISH.fullmatch(text) or text.endswith(" and"):
        return None
    total = group = 0
    last = 10**15
    for place, word in enumerate(text.replace("-", " ").split()):
        if word == "and" and place:
            continue
        if word == "a" and not place and " " in text:
            group = 1
        elif word in _SMALL:
            if 0 < group % 100 < 20 or (group % 10 == 0 and group % 100 and _SMALL[word] > 9):
                return None
            group += _SMALL[word]
        elif word == "hundred":
            group = max(group, 1) * 100
        elif word in SCALES and word not in ("lakh", "crore", "dozen") and SCALES[word] < last:
            last = SCALES[word]
            total, group = total + max(group, 1) * last, 0
        else:
            return None
    return total + group


def _chinese(text: str) -> int:
    total = section = digit = 0
    if not any(sign in _PLACES or sign in _MYRIADS for sign in text):
        return int("".join(str(_DIGITS[sign]) for sign in text))
    for sign in text:
        if sign in _DIGITS:
            digit = _DIGITS[sign]
        elif sign in _PLACES:
            section, digit = section + (digit or 1) * _PLACES[sign], 0
        else:
            total, section, digit = total + (section + digit) * _MYRIADS[sign], 0, 0
    return total + section + digit


def ordinal(text: str) -> str | None:
    """Return the rank that `text` names ("1st", "first place") in digits, or None."""
    found = _ORDINAL.fullmatch(" ".join(text.lower().split()))
    return None if found is None else found[1] or _ORDINALS[found[2]]


def yes_or_no(text: str) -> tuple[str, bool] | None:
    """Return "yes", "no", "true" or "false" if `text` says so, and whether it must mean that.

    "Yes, because it does" must. "No, 5" may begin with a no, or not.
    """
    text = " ".join(text.lower().split()).strip(" .!\u3002")
    if text in _ANSWERS:
        return _ANSWERS[text], True
    found = _HEDGED.fullmatch(text)
    if found is None or found[1] not in _ANSWERS:
        return None
    return _ANSWERS[found[1]], _REASON.match(found[2]) is not None


def as_formula(text: str) -> str | None:
    """Return the formula for a phrase such as "no solution", or None."""
    text = " ".join(text.lower().split()).strip(" .!")
    return _PHRASES.get(text.removeprefix("the ").removeprefix("an "))


def is_nonexistent(text: str) -> bool:
    """Return whether `text` says that something, such as a limit, does not exist."""
    text = " ".join(text.lower().replace("\u2019", "'").split()).strip(" .!")
    return text.removeprefix("the ") in _NONEXISTENT
