"""Finds private values by their form: checksums, formats of providers, numbering plans.

They take no dates and no plain numbers: a number of a telephone without a country code needs the
separators of its country, or a word before it that says what it is.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.privacy.found import (
    CARD,
    EMAIL,
    IBAN,
    IP,
    KEY,
    MAC,
    PERSON,
    PHONE,
    Found,
    without_overlaps,
)
from optillm_hooks.privacy.keys import PREFIXES
from optillm_hooks.privacy.names import names
from optillm_hooks.privacy.plain import PlainText
from optillm_hooks.privacy.tokens import CODE

Finder = Callable[[str], Iterator[Found]]

_LETTERS: Final = "A-Za-zÀ-ɏЀ-ӿ"
"""Letters of addresses. Those of languages without spaces may stand directly beside one."""

_WORD: Final = rf"{_LETTERS}0-9"
_EMAIL = Pattern(
    rf"[{_WORD}][{_WORD}_.+%&'-]{{0,63}}(?:@|%40)"
    rf"(?:[{_WORD}](?:[{_WORD}_-]{{0,61}}[{_WORD}])?\.){{1,6}}[{_LETTERS}]{{2,24}}"
)
_CARD = Pattern(
    rf"(?<![{_WORD}.,+-])(?:[2-6]\d(?:(?:[ ]{{1,2}}|-)?\d){{10,16}}\d"
    rf"|[2-6]\d{{3}}(?P<between>[._+/*]|\*\*[ ]\*\*)\d{{4}}(?:(?P=between)\d{{4}}){{2}})"
    rf"(?![{_WORD}]|[.,-]\d)"
)
_CARD_ISSUERS = Pattern(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|35\d{14}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}"
)
_IBAN = Pattern(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ ._/-]?[A-Za-z0-9]){11,30}")
_IP4 = Pattern(rf"(?<![{_WORD}.])(?<![vV] )\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?![{_WORD}]|[.-]\d)")
_IP6 = Pattern(
    rf"(?<![{_WORD}:.])(?=[0-9A-Fa-f:]{{0,38}}:)[0-9A-Fa-f:]{{3,39}}(?:%\w{{1,15}})?(?![{_WORD}:])"
)
_MAC = Pattern(
    rf"(?<![{_WORD}:.-])(?:[0-9A-Fa-f]{{2}}(?:(?::[0-9A-Fa-f]{{2}}){{5}}|(?:-[0-9A-Fa-f]{{2}}){{5}})"
    rf"|[0-9A-Fa-f]{{4}}(?:\.[0-9A-Fa-f]{{4}}){{2}})(?![{_WORD}:-]|\.[0-9A-Fa-f])"
)
_NO_ADDRESSES: Final = frozenset({"127.0.0.1", "0.0.0.0", "255.255.255.255", "::1", "::"})  # noqa: S104
"""Addresses that say nothing about anybody."""

_KEY = Pattern(rf"(?<![\w-])(?:{'|'.join(PREFIXES)})")
_PEM = Pattern(
    r"-----BEGIN ([A-Z ]{0,20})PRIVATE KEY-----(?:[\w+/=\s\\,:]|-(?!-)){1,8000}+"
    r"-----END \1PRIVATE KEY-----"
)
_SECRET = Pattern(
    r"(?<![A-Za-z])(?:api[-_ ]?key|apikey|access[-_ ]?key|secret(?:[-_ ](?:access[-_ ])?key)?"
    r"|client[-_ ]secret|(?:access|auth|bearer|refresh|session)[-_ ]?token|token|bearer"
    r"|pass(?:word|wd|phrase|wort)|pwd|kennwort|contraseña|senha|mot de passe"
    r"|пароль|密码|パスワード)"
    r"(?:[\"']?\s{0,3}(?::|=|\uff1a|=>)\s{0,3}[\"']?|[ ])"
    r"(?P<value>(?=[!-~]{0,40}[\d!#$%&*+=?@^~])[!#-&*+\--;=?-~]{6,512})",
    re.IGNORECASE,
)
"""A secret that is named: the value has a digit or a sign, so that it is no word."""

_PHONE = Pattern(
    rf"(?<![{_WORD}.,/+-])(?:\+|\(|00)?\(?\d(?:[ \u00a0().\u2010-\u2013/-]{{0,3}}\d){{5,14}}"
    rf"(?![{_WORD}]|[.,-]\d)"
)
_PHONE_CUE = Pattern(
    r"(?:phone|mobile|cell|\btel|call|fax|whatsapp|handy|telefon|mobil|rufnummer|tél|portable"
    r"|móvil|celular|cellulare|телефон|тел"
    r"|电话|手机|電話|携帯|전화|휴대)"
    r"[^\d\n]{0,24}\Z",
    re.IGNORECASE,
)
"""A word before a number that makes it one of a telephone."""

_CUE_LENGTH: Final = 40
_AS_WRITTEN = Pattern(r"\(?0\d.*|\(\d{2,5}\).*|\d{3}([-.])\d{3}\1\d{4}|\d{2,5}[/-]\d.*", re.DOTALL)
"""Numbers without a country code that no other number looks like."""


def find(text: str, entities: Sequence[str], regions: Sequence[str]) -> list[Found]:
    """Return the private values of `entities` in `text`; they may overlap.

    Args:
        text: the text.
        entities: names of kinds; those that are unknown here are left out.
        regions: countries (ISO 3166, two letters) whose telephone numbers are known without their
            country code.
    """
    finders: Mapping[str, Finder] = {
        EMAIL: _emails,
        CARD: _cards,
        IBAN: _ibans,
        KEY: _keys,
        IP: _addresses,
        MAC: _macs,
        PHONE: lambda text: _phones(text, regions),
        PERSON: names,
    }
    plain = PlainText.of(text)
    return [
        plain.in_original(found)
        for name in entities
        if name in finders
        for found in finders[name](plain.text)
    ]


def _emails(text: str) -> Iterator[Found]:
    if "@" in text or "%40" in text:
        for at in _EMAIL.finditer(text):
            yield Found(at.start(), at.end(), EMAIL, at[0].replace("%40", "@").casefold())


def _cards(text: str) -> Iterator[Found]:
    from stdnum import luhn

    for at in _CARD.finditer(text):
        digits = _digits(at[0])
        if _CARD_ISSUERS.fullmatch(digits) and luhn.is_valid(digits):
            yield Found(at.start(), at.end(), CARD, digits)


def _ibans(text: str) -> Iterator[Found]:
    from stdnum import iban

    for at in _IBAN.finditer(text):
        for end in range(at.end(), at.start() + 14, -1):  # words may follow it
            if text[end - 1].isalnum() and not text[end : end + 1].isalnum():
                number = text[at.start() : end]
                if iban.is_valid(number):
                    yield Found(at.start(), end, IBAN, iban.compact(number))
                    break


def _keys(text: str) -> Iterator[Found]:
    for pattern in (_KEY, _PEM):
        for at in pattern.finditer(text):
            yield Found(at.start(), at.end(), KEY, at[0])
    for at in _SECRET.finditer(text):
        value = at["value"].rstrip(".,;")
        start = at.start("value")
        if len(value) >= 6:
            yield Found(start, start + len(value), KEY, value)


def _addresses(text: str) -> Iterator[Found]:
    for pattern in (_IP4, _IP6):
        for at in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(at[0])
            except ValueError:
                continue
            is_word = address.version == 6 and not any(map(str.isdigit, at[0]))
            if not is_word and str(address) not in _NO_ADDRESSES:
                yield Found(at.start(), at.end(), IP, str(address))


def _macs(text: str) -> Iterator[Found]:
    for at in _MAC.finditer(text):
        key = "".join(filter(str.isalnum, at[0])).lower()
        yield Found(at.start(), at.end(), MAC, key)


def _phones(text: str, regions: Sequence[str]) -> Iterator[Found]:
    for at in _PHONE.finditer(text):
        number = at[0].rstrip(" \u00a0(.-/")
        before = text[max(0, at.start() - _CUE_LENGTH) : at.start()]
        has_cue = _PHONE_CUE.search(before) is not None
        if (key := _telephone(number, regions, has_cue=has_cue)) is not None:
            yield Found(at.start(), at.start() + len(number), PHONE, key)


def _telephone(number: str, regions: Sequence[str], *, has_cue: bool) -> str | None:
    """Return a telephone number as `+COUNTRY NATIONAL`; None if it is none."""
    from phonenumbers import (
        Leniency,
        NumberParseException,
        PhoneNumberMatcher,
        is_valid_number,
        national_significant_number,
        parse,
    )

    def _key_of(parsed: Any) -> str:
        return f"+{parsed.country_code} {national_significant_number(parsed)}"

    if number.startswith(("+", "00")):
        try:
            parsed = parse(f"+{number.lstrip('+0')}")
        except NumberParseException:
            return None
        is_written = number[0] == "+" or has_cue or not number.isdigit()
        is_one = is_written and is_valid_number(parsed)
        return _key_of(parsed) if is_one else None
    if not (has_cue or _AS_WRITTEN.fullmatch(number)):
        return None
    leniency = Leniency.VALID if has_cue else Leniency.EXACT_GROUPING
    for region in regions:
        for match in PhoneNumberMatcher(number, region, leniency=leniency):
            if match.start == 0 and match.end == len(number):
                return _key_of(match.number)
    return None


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def scan_now(
    texts: Sequence[str], entities: Sequence[str], regions: Sequence[str]
) -> tuple[list[list[Found]], list[str]]:
    """Return what `find` finds in each text without overlaps, and all words that could be codes."""
    found = [without_overlaps(find(text, entities, regions)) for text in texts]
    codes = {at[0].upper() for text in texts for at in CODE.finditer(text)}
    return found, sorted(codes)
