"""Claims of arithmetic in a text, such as "12 * 34 = 408", checked with exact fractions."""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from itertools import pairwise
from operator import add, mul, sub, truediv
from typing import Final

from optillm_hooks.answers.patterns import Pattern

MAX_CLAIMS: Final = 200
_MAX_EXPONENT: Final = 64
_MAX_SIGNS: Final = 40

_NUMBER = Pattern(r"(?:\d{1,3}(?:,\d{3}){1,6}(?!\d)|\d{1,24})(?:\.\d{1,24})?")
_SIGN = Pattern(
    r"[ \t]{0,3}(?P<sign>\*\*|[-+*/^\u00d7\u00f7\u00b7\u2212]|[xX](?=[ \t\d]))[ \t]{0,3}"
)
_EQUALS = Pattern(r"[ \t]{0,3}=(?!=)[ \t]{0,3}")
_SIGNS: Final = {
    "\u00d7": "*", "\u00b7": "*", "x": "*", "X": "*", "\u00f7": "/", "\u2212": "-", "**": "^",
}  # fmt: skip
_CURRENCIES: Final = "$\u20ac\u00a3"
_TOUCHES_BEFORE: Final = ".,_\\'"
_CONTINUES_BEFORE: Final = "+-*/^\u00d7\u00f7\u00b7\u2212)]{}<>%!"
_CONTINUES_AFTER: Final = "+-*/^\u00d7\u00f7\u00b7\u2212([{%!_\\<>"
_REMAINDER = Pattern(r"[ \t]{0,3}(?:r(?:\d|[ .]|em)|mod\b|\(mod|R)")


def checked_claims(text: str) -> list[bool]:
    """Return for each claim of arithmetic in `text` whether it is true, at most `MAX_CLAIMS`.

    A claim has numbers and signs on the left of an equals sign, and one number on the right. A
    decimal may be rounded. What is a part of a longer formula is not a claim, nor is code.
    """
    outside = "\n".join(text.split("```")[::2])
    claims: list[bool] = []
    at = 0
    while len(claims) < MAX_CLAIMS and (found := _NUMBER.search(outside, at)):
        start, at = found.start(), found.end()
        terms, end = _terms(outside, start)
        at = max(at, end)
        if len(terms) > 1 and not _continues_before(outside, start):
            claims += _claim(outside, terms, end)
    return claims


def _terms(text: str, at: int) -> tuple[list[str], int]:
    """Return numbers and signs in turn from `at` on, and where they end."""
    terms: list[str] = []
    end = at
    while (number := _term(text, at)) is not None:
        value, end = number
        terms.append(value)
        if (sign := _SIGN.match(text, end)) is None:
            break
        at = sign.end()
        if _term(text, at) is None:
            return terms, at  # the formula goes on with something else
        terms.append(_SIGNS.get(sign["sign"], sign["sign"]))
    return terms, end


def _term(text: str, at: int) -> tuple[str, int] | None:
    at += text[at : at + 1] in tuple(_CURRENCIES)
    found = _NUMBER.match(text, at)
    return None if found is None else (found[0].replace(",", ""), found.end())


def _continues_before(text: str, start: int) -> bool:
    before = text[max(0, start - 4) : start].rstrip(_CURRENCIES)
    touching, nearest = before[-1:], before.rstrip(" \t")[-1:]
    if touching.isalnum() or (touching and touching in _TOUCHES_BEFORE):
        return True
    return nearest != "" and nearest in _CONTINUES_BEFORE


def _claim(text: str, terms: list[str], end: int) -> Iterator[bool]:
    """Yield whether the claim whose left side ends at `end` is true, if it is one."""
    equals = _EQUALS.match(text, end)
    right = None if equals is None else _term(text, equals.end())
    if right is None:
        return
    stated, after = right
    following = text[after : after + 8]
    nearest = following.lstrip(" \t")[:1]
    is_decimal_elsewhere = following[:1] in (",", ".") and following[1:2].isdigit()
    if is_decimal_elsewhere or (nearest and nearest in _CONTINUES_AFTER) or following[:1].isalpha():
        return
    if _SIGN.match(text, after) or _REMAINDER.match(text, after) or _EQUALS.match(text, after):
        return
    value = _value(terms)
    if value is not None:
        yield _is_stated(value, stated)


def _is_stated(value: Fraction, stated: str) -> bool:
    """Return whether `stated` is `value`, rounded or truncated if it has decimals."""
    places = len(stated.partition(".")[2])
    gap = abs(value - Fraction(stated))
    return gap == 0 or (places > 0 and gap < Fraction(1, 10**places))


def _value(terms: list[str]) -> Fraction | None:
    """Return the value of numbers and signs in turn; None if it is not clear or too large."""
    numbers, signs = [Fraction(number) for number in terms[::2]], terms[1::2]
    if len(signs) > _MAX_SIGNS or ("^", "^") in pairwise(signs):
        return None
    try:
        for tier in ("^", "*/", "+-"):
            numbers, signs = _applied(numbers, signs, tier)
    except (ZeroDivisionError, OverflowError):
        return None
    return numbers[0]


def _applied(
    numbers: list[Fraction], signs: list[str], tier: str
) -> tuple[list[Fraction], list[str]]:
    """Return numbers and signs after the signs of one tier have been applied, from the left."""
    done, left = numbers[:1], list[str]()
    for sign, number in zip(signs, numbers[1:], strict=True):
        if sign in tier:
            done[-1] = _OPERATIONS[sign](done[-1], number)
        else:
            done.append(number)
            left.append(sign)
    return done, left


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > _MAX_EXPONENT:
        raise OverflowError
    return Fraction(base ** int(exponent))


_OPERATIONS: Final[Mapping[str, Callable[[Fraction, Fraction], Fraction]]] = {
    "^": _power, "*": mul, "/": truediv, "+": add, "-": sub,
}  # fmt: skip
