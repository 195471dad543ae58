"""Streaming one tagged section of a reply."""

import re
from collections.abc import Sequence

_MAX_STOP = 1000
"""Length of the beginning of a stop string that is looked for."""


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
        names = (shown, *hidden)
        self._tags = re.compile(rf"<(/?)({'|'.join(names)})>", re.IGNORECASE | re.ASCII)
        self._longest_tag = len("</>") + max(map(len, names))
        self._end = f"</{self._shown}>"
        self._closing = re.compile(self._end, re.IGNORECASE | re.ASCII)
        self._stops = [stop[:_MAX_STOP] for stop in stops if stop]
        self._before: list[str] = []
        """The reply before the section, of which `close` may need a part."""

        self._length = 0
        """Its length."""

        self._blanks: list[str] = []
        """Whitespace of the section that is shown only if text follows it."""

        self._held = ""
        """End of what came that may be the beginning of a tag or stop string."""

        self._hidden: str | None = None
        """Name of the hidden section that is open."""

        self._after = 0
        """Index after the last tag of a hidden section."""

        self._within: int | None = None
        """Index after the last opening tag of the shown section inside the open hidden one."""

        self._inside = False
        self._begun = False
        self._ended = False

    def feed(self, piece: str, /) -> str:
        if self._ended:
            return ""
        if self._inside:
            return self._take(piece)
        text = self._held + piece
        begins = self._scan(text, self._length - len(self._held))
        if begins is None:
            self._before.append(piece)
            self._length += len(piece)
            return ""
        self._enter()
        return self._take(text[begins:])

    def close(self) -> str:
        if self._ended:
            return ""
        rest = ""
        if not self._inside:
            rest = self._instead()
            self._enter()
        shown = self._take(rest)
        if self._ended:
            return shown
        self._ended = True
        return (shown + "".join(self._blanks) + self._held).rstrip()

    def _enter(self) -> None:
        self._inside, self._held = True, ""
        self._before.clear()

    def _scan(self, text: str, offset: int) -> int | None:
        """Follow the tags in `text`; return the index in it at which the shown section begins.

        `offset` is the index of `text` in the reply. The end of `text` that may be the beginning of
        a tag is held.
        """
        scanned = 0
        for tag in self._tags.finditer(text):
            scanned = tag.end()
            closing, name = bool(tag[1]), tag[2].lower()
            if name == self._shown:
                if not closing and self._hidden is None:
                    return scanned
                self._within = self._within if closing else offset + scanned
            elif self._hidden in (None, name):
                self._hidden = None if closing else name
                self._after, self._within = offset + scanned, None
        self._held = text[max(scanned, len(text) - self._longest_tag + 1) :]
        return None

    def _instead(self) -> str:
        """Return the substitute for a section that never began."""
        text = "".join(self._before)
        if self._hidden is None:
            return text[self._after :]
        return "" if self._within is None else text[self._within :]

    def _take(self, piece: str) -> str:
        """Return the text of the section that is certainly shown, now that `piece` has come."""
        text = self._held + piece
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        end = self._cut_at(text)
        self._ended = end is not None
        if end is None:
            end = len(text) - self._partial(text)
        self._held = "" if self._ended else text[end:]
        shown = text[:end].rstrip()
        self._blanks.append(text[len(shown) : end])
        if not shown:
            return ""
        before, self._blanks = self._blanks[:-1], self._blanks[-1:]
        return "".join(before) + shown

    def _cut_at(self, text: str) -> int | None:
        """Return the start of the closing tag or stop string that ends first, or None.

        If several end at the same character, the longest is used, so that the result does not
        depend on how the reply is split into deltas.
        """
        tag = self._closing.search(text)
        found = [] if tag is None else [(tag.end(), tag.start())]
        starts = [(text.find(stop), stop) for stop in self._stops]
        found += [(at + len(stop), at) for at, stop in starts if at >= 0]
        return min(found)[1] if found else None

    def _partial(self, text: str) -> int:
        """Return the length of the end of `text` that may be the beginning of a tag or stop."""
        last = text[-len(self._end) :].lower()
        return max(overlap(last, self._end), *(overlap(text, stop) for stop in self._stops), 0)


def overlap(text: str, end: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `end`."""
    sizes = range(min(len(end) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(end[:size])), 0)
