"""A private value in a text."""

from typing import Final, NamedTuple

PERSON: Final = "PERSON"
EMAIL: Final = "EMAIL"
PHONE: Final = "PHONE"
CARD: Final = "CARD"
IBAN: Final = "IBAN"
KEY: Final = "KEY"
IP: Final = "IP"
MAC: Final = "MAC"
CUSTOM: Final = "CUSTOM"
"""What the operator or the caller lists."""

USER: Final = "USER"
"""The id of an end user."""

BUILT_IN: Final = (PERSON, EMAIL, PHONE, CARD, IBAN, KEY, IP, MAC)
"""The entities that are found without another detector."""


class Found(NamedTuple):
    """A private value in a text."""

    start: int
    end: int
    entity: str
    """Its kind, in capital letters."""

    key: str
    """The same for all spellings of the value."""


def without_overlaps(found: list[Found]) -> list[Found]:
    """Return `found` in order; those that overlap become one, of the kind of the longest."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda f: (f.start, -f.end)):
        if not kept or each.start >= kept[-1].end:
            kept.append(each)
        elif each.end > kept[-1].end:
            last = kept[-1]
            longest = max(last, each, key=lambda f: f.end - f.start)
            kept[-1] = Found(last.start, each.end, longest.entity, f"{last.key} {each.key}")
    return kept
