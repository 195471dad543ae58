"""Showing one tagged section of a reply while it is being written."""

import re
from collections.abc import Sequence


class SectionFilter:
    """Shows the section `<shown>...</shown>` of a reply, piece by piece; outer blanks are left out.

    An opening tag within a `hidden` section (a model that thinks aloud about its format) does not
    count. Where no such section begins, the end of the reply decides: if a hidden section is still
    open, what its last opening tag of `shown` begins, or nothing; else what follows the last hidden
    section; else, with none of the tags in it, the whole reply.

    Args:
        shown: name of the section's tag.
        hidden: names of the sections that come before it.
        stops: texts that end what is shown, as the stop strings of a call do.
    """

    def __init__(self, shown: str, hidden: Sequence[str], stops: Sequence[str] = ()) -> None:
        self._hidden = frozenset(hidden)
        self._tags = re.compile(rf"<(/?)({'|'.join((shown, *hidden))})>", re.IGNORECASE)
        self._ends = (f"</{shown}>", *(stop for stop in stops if stop))
        self._shown = shown
        self._text = ""
        """What has come and may still matter: the whole reply, then the rest of the section."""

        self._inside = False
        self._ended = False
        self._begun = False

    def feed(self, piece: str, /) -> str:
        if self._ended:
            return ""
        self._text += piece
        if not self._inside:
            start = self._start() if ">" in piece else None
            if start is None:
                return ""
            self._inside = True
            self._text = self._text[start:]
        return self._take(self._held_back())

    def close(self) -> str:
        if self._ended:
            return ""
        if not self._inside:
            self._text = self._instead()
        return self._take(0).rstrip() if self._cut_at() is None else self._take(0)

    def _take(self, keep: int) -> str:
        """Return the text up to its end, or but for its last `keep` characters, and drop it."""
        end = self._cut_at()
        self._ended = end is not None
        upto = len(self._text) - keep if end is None else end
        out = self._text[:upto]
        self._text = self._text[upto:]
        if self._ended:
            out = out.rstrip()
        if not self._begun:
            out = out.lstrip()
            self._begun = bool(out)
        return out

    def _cut_at(self) -> int | None:
        lowered = self._text.lower()
        found = [lowered.find(self._ends[0].lower())]
        found += [self._text.find(stop) for stop in self._ends[1:]]
        return min((at for at in found if at >= 0), default=None)

    def _held_back(self) -> int:
        """Return how many last characters may belong to an end or to trailing blanks."""
        longest = 0
        for end in self._ends:
            for size in range(min(len(end) - 1, len(self._text)), longest, -1):
                if self._text[-size:].lower() == end[:size].lower():
                    longest = size
                    break
        body = self._text[: len(self._text) - longest]
        return longest + len(body) - len(body.rstrip())

    def _start(self) -> int | None:
        """Return where the shown section begins, or None if it has not."""
        open_tag: str | None = None
        for tag in self._tags.finditer(self._text):
            closing, name = bool(tag[1]), tag[2].lower()
            if open_tag is not None:
                open_tag = None if closing and name == open_tag else open_tag
            elif name in self._hidden:
                open_tag = None if closing else name
            elif not closing:
                return tag.end()
        return None

    def _instead(self) -> str:
        """Return what a reply without a proper shown section shows."""
        tags = list(self._tags.finditer(self._text))
        if not tags:
            return self._text
        opened = [tag for tag in tags if not tag[1] and tag[2].lower() == self._shown]
        if opened:
            return self._text[opened[-1].end() :]
        closed = [tag for tag in tags if tag[1] and tag[2].lower() in self._hidden]
        return self._text[closed[-1].end() :] if closed and tags[-1] is closed[-1] else ""
