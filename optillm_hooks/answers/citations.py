"""Citations of a report: only numbers and addresses of sources that were read are shown."""

import re
import unicodedata
from collections.abc import Collection, Mapping
from html import unescape
from typing import NamedTuple
from urllib.parse import urlsplit

from optillm_hooks.answers.patterns import Pattern

_BACKTICKS = Pattern(r"`+")
_SLASHES = r"[/\\][\t\r\n]{0,9}[/\\]"
_HEAD = r"(?:https?|ftp):[/\\]|(?<![a-z])(?:t?tps?|ps?|s)?:[\t\r\n]{0,9}//|www\."
"""How an address begins, also one whose first letters stand in the line before it."""

_BEFORE = r"(?:[,\"'=(<]|:[ \t\r\n>])[ \t\r\n>]{0,9}"
_AFTER_BEFORE = rf"(?:https?|ftp):|{_SLASHES}"
"""In attributes and targets of links, browsers need no slashes, or no scheme."""

_REST = r"[^\s<>\"'`\[\]\u3011\u3001\u3002\uff0c]{0,2000}"
_START = Pattern(
    rf"!?\[|\u3010|`+|&|<?(?:{_HEAD})|(?P<before>{_BEFORE})(?:{_AFTER_BEFORE})(?=[^\s>)])",
    re.IGNORECASE,
)
_MAY_START = Pattern(
    r"(?:!|<?(?:h(?:t(?:t(?:ps?)?)?)?:?|f(?:tp?)?:?|w{1,3})|<?(?<![a-z])t{0,2}p?s?:?[\t\r\n]{0,9}/?"
    r"|(?:[,\"'=(<]|:[ \t\r\n>])[ \t\r\n>]{0,9}"
    r"(?:(?:h(?:t(?:t(?:ps?)?)?)?|f(?:tp?)?):?|[/\\][\t\r\n]{0,9}[/\\]?)?)$",
    re.IGNORECASE,
)
_ENTITY = Pattern(
    r"&(?:#(?:x[0-9a-f]{1,8}|[0-9]{1,9});?|(?:sol|bsol|colon|tab|newline|period);)", re.IGNORECASE
)
_OPEN_ENTITY = Pattern(r"&[#a-z0-9]{0,12}", re.IGNORECASE)
_LINK = Pattern(rf"(?:(?:https?|ftp):[/\\]{{0,9}}|{_SLASHES}|{_HEAD}){_REST}", re.IGNORECASE)
_LINKS = Pattern(
    rf"(?P<before>{_BEFORE})(?P<target>(?:{_AFTER_BEFORE})(?=[^\s>)]){_REST})|(?:{_HEAD}){_REST}",
    re.IGNORECASE,
)
_NUMBERS = Pattern(
    r"[\[\u3010][ \t]{0,3}\^?(?P<numbers>\d{1,3}"
    r"(?:[ \t]{0,3}[,;\u3001\uff0c\u2013-][ \t]{0,3}\^?\d{1,3}){0,40})[ \t]{0,3}[\]\u3011]"
)
_NUMBER = Pattern(r"\d{1,3}|[\u2013-]")
_ADDRESS = Pattern(
    r"(?:(?:https?|ftp)://|www\.)[^\s<>\"'`\[\]\u3011\u3001\u3002\uff0c]{0,2000}", re.IGNORECASE
)
_AFTER_ADDRESS = ".,;:!?*_)'\""
_LONGEST_START = 40
_LABEL, _TARGET = 300, 2100
"""Maximum characters of a link's text, and of its address."""

_MAX_RANGE = 50
_MAX_LINE = 400
"""Maximum characters of a heading, or of an entry in a list of sources."""

_MARKER = 10
"""Characters in which the number of an entry begins, after a bullet or a number."""

_ENTRY = Pattern(r"(?:(?:[-+*]|\d{1,3}[.)])[ \t]{1,4})?\[\d{1,3}\]")
_TRACKING = ("utm_", "fbclid", "gclid")
_MARKUP = str.maketrans("", "", "[]()<>`*_|\\")
_OF_ADDRESSES = frozenset("/\\:.@?&=%#-")


class Cited(NamedTuple):
    """A source as the list at the end of a report shows it."""

    title: str
    url: str


def address_key(url: str) -> str:
    """Return what all spellings of an address have in common; "" if it is none."""
    if "://" not in url[:12]:
        url = f"https://{url}"
    try:
        parts = urlsplit(url.strip())
        host, port = (parts.hostname or "").removeprefix("www."), parts.port
    except ValueError:
        return ""
    if not host or "@" in parts.netloc or parts.scheme.lower() not in ("http", "https"):
        return ""
    query = "&".join(p for p in parts.query.split("&") if p and not p.startswith(_TRACKING))
    place = host if port in (None, 80, 443) else f"{host}:{port}"
    return f"{place}{parts.path.rstrip('/')}{'?' if query else ''}{query}"


def addresses(text: str) -> list[str]:
    """Return the web addresses in `text`, in order."""
    return [_trimmed(found) for found in _ADDRESS.findall(text)]


def _trimmed(url: str) -> str:
    """Return an address without the punctuation of the sentence around it."""
    opened, closed = url.count("("), url.count(")")
    end = len(url)
    while end and url[end - 1] in _AFTER_ADDRESS:
        if url[end - 1] == ")":
            if closed <= opened:
                break
            closed -= 1
        end -= 1
    return url[:end]


def _closing(text: str, start: int) -> int:
    """Return the index of the parenthesis that closes the one before `start` in its line, or -1."""
    depth = 1
    for at in range(start, min(len(text), start + _TARGET)):
        if text[at] == "\n":
            break
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return at
    return -1


class CitationFilter:
    """Shows a streamed report with its citations checked, and then the list of its sources.

    A number that is no source's is removed, alone or in a group. The others are numbered anew, in
    the order of their first appearance. Addresses are removed too, except those of the sources and
    those in `known`; of a link, the text stays. Nothing in code is a number of a source. A list of
    sources that the report itself ends with is left out.

    Args:
        sources: the sources that may be cited, by number.
        heading: that of the list of sources.
        known: other addresses that may be shown.
    """

    def __init__(
        self, sources: Mapping[int, Cited], heading: str, known: Collection[str] = ()
    ) -> None:
        self._sources = sources
        self._heading = heading
        urls = [*known, *(source.url for source in sources.values())]
        self._known = {key: url for url in urls if (key := address_key(url))}
        self._shown: dict[int, int] = {}
        self._held = ""
        self._last = ""
        """The character before what is held."""

        self._blanks = ""
        """Blanks that are shown only if no removed citation follows them."""

        self._at_line_start = True
        self._fenced = False
        self._in_brackets = False
        self._end = _WithoutList()

    @property
    def cited(self) -> list[int]:
        """The numbers of the sources cited so far, in the order of their new numbers."""
        return list(self._shown)

    def feed(self, piece: str, /) -> str:
        self._held += piece
        return self._end.feed(self._advance(at_end=False))

    def close(self) -> str:
        rest = self._advance(at_end=True) + self._blanks
        self._blanks = ""
        return self._end.feed(rest) + self._end.close() + self._list()

    def _list(self) -> str:
        lines = [
            f"[{shown}] {_plain(self._sources[number].title)}: {self._sources[number].url}"
            for number, shown in self._shown.items()
        ]
        heading = self._without_addresses(self._heading)
        return "\n\n## {}\n\n{}".format(heading, "  \n".join(lines)) if lines else ""

    def _advance(self, *, at_end: bool) -> str:
        text, at, out = self._last + self._held, len(self._last), list[str]()
        while at < len(text):
            found = _START.search(text, at)
            if found is None:
                stop = len(text) if at_end else _safe_end(text, at)
                out.append(self._plain_text(text[at:stop]))
                at = stop
                break
            out.append(self._plain_text(text[at : found.start()]))
            at = found.start()
            taken = self._construct(text, at, found, at_end)
            if taken is None:
                break
            shown, at = taken
            if not shown:
                self._blanks = ""
                # What is around it in brackets must not become a number.
                shown = "?" if self._in_brackets else ""
            out.append(self._plain_text(shown))
        self._held, self._last = text[at:], text[max(0, at - 1) : at]
        return "".join(out)

    def _plain_text(self, text: str) -> str:
        """Return `text` after the blanks before it, without those at its end, which are held."""
        if "]" in text or "\n" in text:
            self._in_brackets = False
        kept = text.rstrip(" \t")
        if kept:
            shown, self._blanks = self._blanks + kept, text[len(kept) :]
            self._at_line_start = kept.endswith("\n")
            return shown
        self._blanks += text
        return ""

    def _construct(
        self, text: str, at: int, found: re.Match[str], at_end: bool
    ) -> tuple[str, int] | None:
        """Return what is shown of the construct at `at`, and where it ends; None to wait for more.

        What is shown is "" for something that is removed.
        """
        start = found[0]
        if start[0] == "`":
            return self._code(text, at, start, at_end)
        if start[-1] in "[\u3010":
            return self._bracket(text, at, start, at_end)
        if start[0] == "&":
            return _entity(text, at, at_end)
        return self._address(text, at, found["before"] or "", at_end)

    def _code(self, text: str, at: int, run: str, at_end: bool) -> tuple[str, int] | None:
        end = at + len(run)
        if end == len(text) and not at_end:
            return None
        if len(run) >= 3 and (self._fenced or self._at_line_start):
            self._fenced = not self._fenced
            return run, end
        if self._fenced:
            return run, end
        runs = _BACKTICKS.finditer(text, end, end + _LABEL)
        close = next((found.start() for found in runs if len(found[0]) == len(run)), -1)
        if close >= 0 and close + len(run) == len(text) and not at_end:
            return None  # more backticks may follow: then it closes nothing
        line = text.find("\n", end, end + _LABEL)
        if close < 0 or 0 <= line < close:
            waits = line < 0 and len(text) < end + _LABEL and not at_end
            return None if waits else (run, end)
        return f"{run}{self._without_addresses(text[end:close])}{run}", close + len(run)

    def _bracket(self, text: str, at: int, start: str, at_end: bool) -> tuple[str, int] | None:
        if self._fenced:
            return start, at + len(start)
        opened = at + len(start) - 1
        numbers = _NUMBERS.match(text, opened)
        close = text.find("\u3011" if start == "\u3010" else "]", opened + 1, opened + _LABEL)
        line = text.find("\n", opened, opened + _LABEL)
        inner = text.find("[", opened + 1, opened + _LABEL)
        if close < 0 or 0 <= line < close or 0 <= inner < close:
            waits = line < 0 and inner < 0 and len(text) < opened + _LABEL and not at_end
            return None if waits else self._literal(start, opened)
        after = close + 1
        if after == len(text) and not at_end:
            return None
        if text[after : after + 1] == "(" and start != "\u3010":
            return self._link(text, at, opened, close, at_end)
        if numbers is None:
            return self._literal(start, opened)
        return self._renumbered(numbers["numbers"]), numbers.end()

    def _literal(self, start: str, opened: int) -> tuple[str, int]:
        """Return a bracket that begins neither numbers nor a link."""
        self._in_brackets = True
        return start, opened + 1

    def _link(
        self, text: str, at: int, opened: int, close: int, at_end: bool
    ) -> tuple[str, int] | None:
        label, target = self._without_addresses(text[opened + 1 : close]), close + 2
        numbers = _NUMBERS.match(text, opened)
        end = _closing(text, target)
        if end < 0:
            ends = text.find("\n", target, target + _TARGET) >= 0
            waits = not (ends or at_end) and len(text) < target + _TARGET
            if waits or numbers is None:
                return None if waits else self._literal(text[at : opened + 1], opened)
            return self._renumbered(numbers["numbers"]), numbers.end()
        address = text[target:end].strip().split(maxsplit=1)
        url = address[0].strip("<>") if address else ""
        shown = url if url.startswith("#") else self._shown_as(url)
        if shown:
            return f"{text[at : opened + 1]}{label}]({shown})", end + 1
        return self._renumbered(numbers["numbers"]) if numbers else label, end + 1

    def _address(self, text: str, at: int, before: str, at_end: bool) -> tuple[str, int] | None:
        """Return the address after `before`, which leads to it in HTML or Markdown."""
        in_angles = not before and text[at] == "<"
        first = at + len(before) + in_angles
        found = _LINK.match(text, first)
        if found is None:
            return text[at : first + 1], first + 1
        end = found.end()
        if end == len(text) and not at_end and len(found[0]) < _TARGET - 100:
            return None
        url = _trimmed(found[0])
        shown = self._shown_as(url)
        if shown:
            return f"{text[at:first]}{shown}", first + len(url)
        closed = in_angles and text[end : end + 1] == ">"
        return before.rstrip(" \t"), end + 1 if closed else first + len(url)

    def _without_addresses(self, text: str) -> str:
        def shown(found: re.Match[str]) -> str:
            before = found["before"] or ""
            return before + self._shown_as(_trimmed(found["target"] or found[0]))

        return _ENTITY.sub(_harmless, _LINKS.sub(shown, text))

    def _shown_as(self, url: str) -> str:
        """Return the address as it is shown; "" if it is not."""
        known = self._known.get(address_key(_trimmed(url)), "")
        return known if "://" in known or not known else f"https://{known}"

    def _renumbered(self, numbers: str) -> str:
        shown: list[int] = []
        for number in _expanded(numbers):
            if number in self._sources:
                new = self._shown.setdefault(number, len(self._shown) + 1)
                if new not in shown:
                    shown.append(new)
        return f"[{', '.join(map(str, shown))}]" if shown else ""


class _WithoutList:
    """Shows a streamed text without the heading and the numbered list of sources at its end."""

    def __init__(self) -> None:
        self._line = ""
        """The beginning of a line that may be a heading or an entry of the list."""

        self._in_text = False
        """Whether the line has begun, and is neither."""

        self._held: list[str] = []
        """Whole lines that may belong to the list: blank ones, headings, and entries."""

        self._has_entry = False

    def feed(self, piece: str) -> str:
        """Return what can be shown now that `piece` has arrived."""
        out: list[str] = []
        for part in _lines(piece):
            if self._in_text:
                out.append(part)
                self._in_text = not part.endswith("\n")
                continue
            self._line += part
            ended = part.endswith("\n")
            if not ended and _may_be_listed(self._line):
                continue
            line, self._line = self._line, ""
            if ended and self._belongs(line):
                self._held.append(line)
            else:
                out += [*self._held, line]
                self._held, self._has_entry, self._in_text = [], False, not ended
        return "".join(out)

    def close(self) -> str:
        """Return the rest, unless it is a list."""
        if self._line.strip() and not self._belongs(self._line):
            self._has_entry = False
        kept = "" if self._has_entry else "".join([*self._held, self._line])
        self._held, self._line = [], ""
        return kept

    def _belongs(self, line: str) -> bool:
        """Return whether `line` may belong to a list; an entry does, below a heading."""
        shown = line.strip()
        if _is_entry(shown) and any(map(str.strip, self._held)):
            self._has_entry = True
            return True
        return not shown or _is_heading(shown)


def _lines(text: str) -> list[str]:
    """Return the lines of `text` with their ends; only a line feed ends one."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _may_be_listed(begun: str) -> bool:
    """Return whether a line that has begun so may be blank, a heading or an entry."""
    shown = begun.lstrip()
    if not shown or shown[0] in "#[" or shown.startswith("**"):
        return len(shown) <= _MAX_LINE
    return shown[0] in "-+*0123456789" and (len(shown) < _MARKER or "[" in shown[:_MARKER])


def _is_heading(line: str) -> bool:
    is_bold = line.startswith("**") and line.rstrip(":").endswith("**")
    return len(line) <= _MAX_LINE and (line.startswith("#") or is_bold)


def _is_entry(line: str) -> bool:
    return len(line) <= _MAX_LINE and _ENTRY.match(line) is not None


def checked(
    report: str, sources: Mapping[int, Cited], heading: str, known: Collection[str] = ()
) -> str:
    """Return a whole report as `CitationFilter` shows it."""
    shown = CitationFilter(sources, heading, known)
    return shown.feed(report) + shown.close()


def _expanded(numbers: str) -> list[int]:
    """Return the numbers in a group such as "1, 3-5"."""
    found: list[int] = []
    ranged = False
    for token in _NUMBER.findall(numbers):
        if not token.isdecimal():
            ranged = bool(found)
            continue
        number = int(token)
        if ranged and found[-1] < number <= found[-1] + _MAX_RANGE:
            found += range(found[-1] + 1, number)
        found.append(number)
        ranged = False
    return found


def _safe_end(text: str, at: int) -> int:
    """Return the end of what can be shown of a text that may go on: no beginning of an address."""
    found = _MAY_START.search(text, max(at, len(text) - _LONGEST_START))
    return len(text) if found is None else found.start()


def _entity(text: str, at: int, at_end: bool) -> tuple[str, int] | None:
    """Return what is shown of a character that is written as an entity, which may hide one of an
    address; None to wait for more."""
    found = _ENTITY.match(text, at)
    end = at + 1 if found is None else found.end()
    waits = end == len(text) if found else _OPEN_ENTITY.fullmatch(text, at)
    if waits and not at_end:
        return None
    return ("&" if found is None else _harmless(found)), end


def _harmless(entity: re.Match[str]) -> str:
    """Return an entity that is no character of an address; "" for another."""
    character = unescape(entity[0])
    hides = character.isalnum() or character.isspace() or character in _OF_ADDRESSES
    return "" if hides else entity[0]


def _plain(title: str) -> str:
    """Return a title in one line, without what would be markup."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" else " " for c in title[:300])
    return _ADDRESS.sub("", " ".join(shown.translate(_MARKUP).split()))[:150].strip() or "-"
