"""Sections of a report: the text below each of its headings."""

import re
from collections.abc import Sequence

from optillm_hooks.answers.patterns import Pattern

_HEADING = Pattern(r"^[ ]{0,3}#{1,6}[ \t]+(?P<title>[^\n]*)$", re.MULTILINE)
_NAME = Pattern(r"[^\W\d_]\w*")


def split_by_headings(text: str, headings: Sequence[str]) -> list[str]:
    """Return the text of each of `headings` in a markdown text; "" for one that it lacks.

    What stands below another heading belongs to the section before it, or else to the first.
    """
    places = {_name(heading): at for at, heading in reversed(list(enumerate(headings)))}
    found: list[list[str]] = [[] for _ in headings]
    here, start = 0, 0
    for heading in _HEADING.finditer(text):
        at = places.get(_name(heading["title"]))
        if at is None:
            continue
        found[here].append(text[start : heading.start()].strip())
        here, start = at, heading.end()
    if found:
        found[here].append(text[start:].strip())
    return ["\n\n".join(filter(None, parts)) for parts in found]


def _name(heading: str) -> str:
    """Return the words of a heading, without its number and marks."""
    return " ".join(_NAME.findall(heading[:500].casefold()))
