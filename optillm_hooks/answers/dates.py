"""Dates and times of day. Pure functions."""

from collections.abc import Iterator, Mapping
from typing import Final

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.words import unaccented

Date = tuple[int | None, int, int | None]
"""Year, month, day; None where it is not said."""

Time = tuple[int, int, int]
"""Hour, minute, second."""

_MONTH_NAMES = """
january januar janvier enero gennaio janeiro jan
february februar fevrier febrero febbraio fevereiro feb
march marz mars marzo marco mar maerz
april avril abril aprile apr
may mai mayo maggio maio
june juni juin junio giugno junho jun
july juli juillet julio luglio julho jul
august aout agosto aug
september septembre septiembre settembre setembro sep sept
october oktober octobre octubre ottobre outubro oct okt
november novembre noviembre novembro nov
december dezember decembre diciembre dicembre dezembro dec dez"""
_MONTHS: Final[Mapping[str, int]] = {
    name: at
    for at, names in enumerate(_MONTH_NAMES.strip().split("\n"), start=1)
    for name in names.split()
}
_WEEKDAY = Pattern(r"^(?:mon|tues?|wednes|thurs?|fri|satur|sun|tue|wed|thu|sat)(?:day)?\.?,?\s+")
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|er|\.)?"
_MONTH = r"(?P<month>[a-z]{3,10})\.?"
_YEAR = r"(?P<year>\d{4})"
_DATES = [
    Pattern(pattern)
    for pattern in (
        rf"{_MONTH} (?:the )?{_DAY}(?:,? (?:of )?{_YEAR})?",
        rf"(?:the |le |el |il )?{_DAY} (?:of |de )?{_MONTH}(?:,? (?:de |of )?{_YEAR})?",
        rf"{_MONTH},? (?:de |of )?{_YEAR}",
    )
]
_HYPHENATED = Pattern(r"^(\d{1,2})-([a-z]{3,9})-(\d{4})$")
_ISO = Pattern(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})|(\d{4})年(\d{1,2})月(\d{1,2})日")
_DOTTED = Pattern(r"(\d{1,2})\.\s?(\d{1,2})\.\s?(\d{4})")
_SLASHED = Pattern(r"(\d{1,2})[/-](\d{1,2})[/-](\d{4})")

_HALF = r"(?P<half>a\.?\s?m\.?|p\.?\s?m\.?)"
_ZONE = r"(?:\s+(?:uhr|hours|hrs|o'clock))?"
_TIMES = [
    Pattern(pattern)
    for pattern in (
        rf"(?P<hour>\d{{1,2}})[:.](?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?\s*{_HALF}",
        rf"(?P<hour>\d{{1,2}})\s*{_HALF}",
        r"(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?" + _ZONE,
        r"(?P<hour>\d{1,2})\s?(?P<h>[h時时点])(?P<minute>[0-5]\d)分?",
        r"(?P<hour>\d{1,2})(?:[:.](?P<minute>[0-5]\d))?\s+(?:uhr|o'clock)",
    )
]


def dates_in(text: str) -> list[Date]:
    """Return the dates that `text` may be: none, one, or two for 3/5/2024."""
    text = unaccented(" ".join(text.lower().split()).strip(" ."))
    text = _WEEKDAY.sub("", _HYPHENATED.sub(r"\1 \2 \3", text))
    return [date for date in _dates(text) if _exists(date)]


def _dates(text: str) -> Iterator[Date]:
    if found := _ISO.fullmatch(text):
        year, month, day = (int(part) for part in found.groups() if part is not None)
        yield year, month, day
    elif found := _DOTTED.fullmatch(text):
        yield int(found[3]), int(found[2]), int(found[1])
    elif found := _SLASHED.fullmatch(text):
        yield int(found[3]), int(found[1]), int(found[2])
        if found[1] != found[2]:
            yield int(found[3]), int(found[2]), int(found[1])
    for pattern in _DATES:
        if (found := pattern.fullmatch(text)) and found["month"] in _MONTHS:
            parts = found.groupdict()
            year_, day_ = (int(parts[p]) if parts.get(p) else None for p in ("year", "day"))
            yield year_, _MONTHS[found["month"]], day_
            return


def _exists(date: Date) -> bool:
    _, month, day = date
    return 1 <= month <= 12 and (day is None or 1 <= day <= 31)


def time_of(text: str) -> tuple[Time, bool] | None:
    """Return the time of day that `text` is, and whether it says which half of the day it is in.

    14:30 does; 2:30 does not. The same text may be a ratio, a duration or a score.
    """
    text = " ".join(text.lower().replace("\u2019", "'").split()).strip()
    for pattern in _TIMES:
        if found := pattern.fullmatch(text):
            return _time(found.groupdict())
    return None


def _time(parts: Mapping[str, str | None]) -> tuple[Time, bool] | None:
    hour, minute, second = (int(parts.get(p) or 0) for p in ("hour", "minute", "second"))
    half = (parts.get("half") or "")[:1]
    if half and not 1 <= hour <= 12:
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    is_24_hours = hour > 12 or str(parts["hour"]).startswith("0") or parts.get("h")
    sure = bool(half or is_24_hours)
    return ((hour, minute, second), sure) if hour <= 24 else None
