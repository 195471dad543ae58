"""Streaming one tagged section of a reply."""

import re
from collections.abc import Sequence
from typing import NamedTuple


class SectionFilter:
    """Extracts the section `<shown>...</shown>` of a streamed reply, stripped of whitespace.

    An opening tag inside a `hidden` section (a model that thinks aloud about its format) is
    ignored. If the section never begins, `close` returns a substitute: if a hidden section is still
    open, the text after the last opening tag of `shown` inside it, or nothing; otherwise the text
    after the last hidden section, or the whole reply if there is none.

    Args:
        shown: name of the section's tag.
        hidden: names of the sections that come before it.
        stops: stop strings, which also end the section.
    """

    def __init__(self, shown: str, hidden: Sequence[str], stops: Sequence[str] = ()) -> None:
        self._shown = shown.lower()
        names = "|".join((shown, *hidden))
        self._tags = re.compile(rf"<(/?)({names})>", re.IGNORECASE | re.ASCII)
        self._end = f"</{shown}>"
        self._stops = [stop for stop in stops if stop]
        self._text = ""
        """Text still needed: the whole reply, or once the section has begun, the rest of it."""

        self._inside = False
        self._ended = False
        self._begun = False

    def feed(self, piece: str, /) -> str:
        if self._ended:
            return ""
        self._text += piece
        if not self._inside:
            start = self._scan().start if ">" in piece else None
            if start is None:
                return ""
            self._inside = True
            self._text = self._text[start:]
        return self._take(to_the_end=False)

    def close(self) -> str:
        if self._ended:
            return ""
        if not self._inside:
            self._text = self._instead()
        return self._take(to_the_end=True)

    def _take(self, *, to_the_end: bool) -> str:
        """Remove and return the text that is certainly shown."""
        if not self._begun:
            self._text = self._text.lstrip()
            self._begun = bool(self._text)
        end = self._cut_at()
        self._ended = end is not None
        if end is None:
            end = len(self._text) - (0 if to_the_end else self._held_back())
        out, self._text = self._text[:end], self._text[end:]
        return out.rstrip() if self._ended or to_the_end else out

    def _cut_at(self) -> int | None:
        """Return the start of the closing tag or stop string that ends first, or None.

        If several end at the same character, the longest is used, so that the result does not
        depend on how the reply is split into deltas.
        """
        tag = re.search(self._end, self._text, re.IGNORECASE | re.ASCII)
        found = [] if tag is None else [(tag.end(), tag.start())]
        starts = [(self._text.find(stop), stop) for stop in self._stops]
        found += [(at + len(stop), at) for at, stop in starts if at >= 0]
        return min(found)[1] if found else None

    def _held_back(self) -> int:
        """Return the length of the suffix to hold back: a partial tag or stop, or whitespace."""
        longest = max(
            overlap(self._text.lower(), self._end.lower()),
            *(overlap(self._text, stop) for stop in self._stops),
            0,
        )
        body = self._text[: len(self._text) - longest]
        return longest + len(body) - len(body.rstrip())

    def _scan(self) -> "_Seen":
        """Return the state of the sections after the tags seen so far."""
        hidden: str | None = None
        after, within = 0, None
        for tag in self._tags.finditer(self._text):
            closing, name = bool(tag[1]), tag[2].lower()
            if name == self._shown:
                if not closing and hidden is None:
                    return _Seen(tag.end(), None, after, None)
                within = within if closing else tag.end()
            elif hidden in (None, name):
                hidden = None if closing else name
                after, within = tag.end(), None
        return _Seen(None, hidden, after, within)

    def _instead(self) -> str:
        """Return the substitute for a section that never began."""
        seen = self._scan()
        if seen.hidden is None:
            return self._text[seen.after :]
        return "" if seen.within is None else self._text[seen.within :]


class _Seen(NamedTuple):
    start: int | None
    """Index at which the shown section begins."""

    hidden: str | None
    """Name of the hidden section that is open."""

    after: int
    """Index after the last tag of a hidden section."""

    within: int | None
    """Index after the last opening tag of the shown section inside the open hidden one."""


def overlap(text: str, end: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `end`."""
    sizes = range(min(len(end) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(end[:size])), 0)
