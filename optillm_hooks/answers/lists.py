"""Parsing lists in a model's Markdown. Pure functions."""

import re

_MARK = re.compile(
    r"""^[ ]*
        (?:\#{1,6}[ ]+)?
        (?P<bold>\*\*|__)?
        (?:[-*+\u2022\u2013\u2014]|\(?(?:[A-Z][a-z]+[ ])?\d{1,3}[.):]|\(?[a-z]\))
        (?P<closed>\*\*|__)?
        (?:[ ]+|$)""",
    re.VERBOSE,
)

_MAX_LENGTH = 100_000


def read_items(text: str) -> list[str]:
    """Return the items of the list in `text`, without their markers.

    An item starts with a bullet, a number ("2.", "(2)", "Hint 2:") or a letter ("b)"), and includes
    the lines below it and nested lists. Text before the first item, and unindented text after a
    blank line, is not part of an item. In a text without list markers, each paragraph is an item.
    Of a text longer than 100,000 characters, the beginning is read.
    """
    text = text[:_MAX_LENGTH].expandtabs(4)
    items: list[list[str]] = []
    outer = 0
    after_blank = outside = False
    for line in text.splitlines():
        mark = _MARK.match(line)
        indent = len(line) - len(line.lstrip())
        if mark and (not items or indent <= outer):
            outer, outside = indent, False
            items.append([_unbold(mark, line[mark.end() :])])
        elif items and line.strip():
            outside = outside or (after_blank and indent == 0)
            if not outside:
                items[-1].append(line.strip())
        after_blank = not line.strip()
    if not items:
        items = [[part] for part in re.split(r"\n\s*\n", text)]
    return [item for item in ("\n".join(lines).strip() for lines in items) if item]


def _unbold(mark: re.Match[str], rest: str) -> str:
    """Return `rest` without the closing bold marker if the opening one precedes the list marker."""
    left_open = mark["bold"] if not mark["closed"] else None
    return (rest.replace(left_open, "", 1) if left_open else rest).strip()
