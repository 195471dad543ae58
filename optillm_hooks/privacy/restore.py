"""Puts the values back in place of their pseudonyms, in a text that comes in pieces."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from optillm_hooks.privacy.pseudonyms import Pseudonyms
from optillm_hooks.privacy.tokens import ALPHABET, CODE_LENGTH, NUMBER_LENGTH, labels
from optillm_hooks.types import TokenLogprob

_MARKS: Final = r"[*`~]{0,3}"
_JOIN: Final = r"\\{0,2}[_\u2010-\u2015\uff3f \u00a0-]{0,2}"
_SEPARATOR: Final = re.compile(rf"{_MARKS}{_JOIN}{_MARKS}")
_MARKED_SEPARATOR: Final = rf"(?P<closed>{_MARKS}){_JOIN}(?P<opened>{_MARKS})"
_GROWING_NUMBER: Final = re.compile(r"\\{0,2}(?:_\d{0,3})?")

MAX_ADDED: Final = 1 << 22
"""Maximum characters of all values in one text: a model could repeat a long one endlessly."""

_LONGEST: Final = 64
"""Characters of the longest pseudonym, however a model writes it."""


class Segment(NamedTuple):
    """A part of a text: what the model wrote, and what the client gets."""

    written: str
    shown: str


def in_json(value: str) -> str:
    """Return `value` as it stands within a string of JSON."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


def _as_it_is(value: str) -> str:
    return value


class _Grammar:
    """How the pseudonyms of a conversation may be written.

    Where a word begins, any form of one is known. Within a word, only what was sent is: there a
    value may have followed a letter.
    """

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._spellings = pseudonyms.spellings
        self._in_full = pseudonyms.in_full
        names = {name for entity in pseudonyms.entities for name in labels(entity)}
        self._labels = sorted(names, key=len, reverse=True)
        codes = [code.lower() for code in pseudonyms.spellings]
        self._beginnings = {code[:length] for code in codes for length in range(CODE_LENGTH)}
        self._firsts = frozenset(text[0] for text in (*self._labels, *codes))
        any_label = "|".join(map(re.escape, self._labels))
        letters = f"[{ALPHABET.lower()}]{{{CODE_LENGTH}}}"
        self._pattern = re.compile(
            rf"(?:(?P<label>{any_label}){_MARKED_SEPARATOR}(?P<code>{letters})"
            rf"|(?<![a-z0-9])(?P<bare>{letters})(?![a-z]))(?:\\{{0,2}}_(?P<number>\d{{1,{NUMBER_LENGTH}}}))?"
        )

    def next(self, text: str, lowered: str, at: int) -> "_Match | None":
        """Return the next pseudonym in `text`, from `at` on."""
        while (found := self._pattern.search(lowered, at)) is not None:
            at = found.start() + 1
            code = found["code"] or found["bare"]
            spellings = self._spellings.get(code.upper())
            if spellings is None:
                continue
            start, end = found.start(), found.end("code" if found["code"] else "bare")
            sent = f"{(found['label'] or '').upper()}_{code.upper()}"
            if found["label"] and _is_within_word(text, start) and text[start:end] != sent:
                continue
            written = found["number"] or ""
            number = int(written or 0)
            least = 1 if len(written) == NUMBER_LENGTH else 2
            if least <= number <= len(spellings):
                value, end = spellings[number - 1], found.end()
            else:
                value = spellings[0]
            return _Match(start, end, value, found["opened"] or "", found["closed"] or "")
        return None

    def may_grow(self, text: str, lowered: str, start: int) -> bool:
        """Return whether what begins at `start` may become a pseudonym, or a longer one."""
        if lowered[start] not in self._firsts:
            return False
        tail = lowered[start:]
        if _is_within_word(text, start):
            as_sent = text[start:].partition("_")[0]
            if not (as_sent.isascii() and as_sent.isupper()):
                return False
        elif self._code_may_grow(tail, is_bare=True):
            return True
        return any(
            label.startswith(tail) or (tail.startswith(label) and self._ends_open(tail, label))
            for label in self._labels
        )

    def _ends_open(self, tail: str, label: str) -> bool:
        separator = _SEPARATOR.match(tail, len(label))
        after = tail[separator.end() if separator else len(label) :]
        return not after or self._code_may_grow(after, is_bare=False)

    def _code_may_grow(self, tail: str, *, is_bare: bool) -> bool:
        code, rest = tail[:CODE_LENGTH], tail[CODE_LENGTH:]
        if len(code) < CODE_LENGTH:
            return code in self._beginnings
        spellings = self._spellings.get(code.upper())
        if spellings is None:
            return False
        if not rest and is_bare:
            return True
        is_numbered = len(spellings) > 1 or code.upper() in self._in_full
        return is_numbered and _GROWING_NUMBER.fullmatch(rest) is not None


class _Match(NamedTuple):
    """A pseudonym in a text."""

    start: int
    end: int
    value: str
    opened: str
    closed: str
    """Emphasis that begins or ends within it."""


def _is_within_word(text: str, at: int) -> bool:
    """Return whether a letter or digit of English stands before `at`, and one at it."""
    before = text[at - 1] if at else ""
    return before.isascii() and before.isalnum() and text[at].isascii()


class Restorer:
    """A filter of one text. It holds back only what may be the beginning of a pseudonym.

    Args:
        pseudonyms: those of the conversation, to which calls of the model may add.
        written: returns a value as it stands in this text.
    """

    def __init__(self, pseudonyms: Pseudonyms, written: Callable[[str], str] = _as_it_is) -> None:
        self._pseudonyms = pseudonyms
        self._written = written
        self._held = ""
        self._before = ""
        """The last character before what is held."""

        self._known = self._added = 0
        self._grammar: _Grammar | None = None

    def feed(self, piece: str) -> str:
        """Return the text that can be shown now that `piece` has arrived."""
        return "".join(segment.shown for segment in self.segments(piece))

    def close(self) -> str:
        """Return the rest of the text."""
        return "".join(segment.shown for segment in self.segments("", last=True))

    def whole(self, text: str) -> str:
        """Return a whole text with its values."""
        return self.feed(text) + self.close()

    def segments(self, piece: str, *, last: bool = False) -> Sequence[Segment]:
        """Return what `feed` returns, or `close` if it is the last, with what the model wrote."""
        text = self._held + piece
        self._held = ""
        if not text:
            return []
        grammar = self._current()
        if grammar is None:
            self._before = text[-1]
            return [Segment(text, text)]
        return list(self._split(self._before + text, grammar, last=last))

    def _current(self) -> _Grammar | None:
        if len(self._pseudonyms) != self._known:
            self._known = len(self._pseudonyms)
            self._grammar = _Grammar(self._pseudonyms)
        return self._grammar

    def _split(self, text: str, grammar: _Grammar, *, last: bool) -> Iterator[Segment]:
        """Yield the segments of `text`, whose beginning is shown already, and hold the rest."""
        lowered = _lowered(text)
        at = len(self._before)
        end = len(text) if last else self._end(text, lowered, grammar)
        while (found := grammar.next(text, lowered, at)) is not None and found.start < end:
            if found.start > at:
                yield Segment(text[at : found.start], text[at : found.start])
            at = found.end
            yield Segment(text[found.start : at], self._value(found, text[found.start : at]))
        if end > at:
            yield Segment(text[at:end], text[at:end])
            at = end
        self._held, self._before = text[at:], text[max(0, at - 1) : at]

    def _value(self, found: _Match, written: str) -> str:
        """Return what a pseudonym stands for; once values have added too much, what is written."""
        value = self._written(found.value)
        self._added += len(value)
        if self._added > MAX_ADDED:
            return written
        return f"{found.opened}{value}{found.closed}"

    def _end(self, text: str, lowered: str, grammar: _Grammar) -> int:
        """Return up to where a text can be shown, whatever follows it."""
        for start in range(max(len(self._before), len(text) - _LONGEST), len(text)):
            if grammar.may_grow(text, lowered, start):
                return start
        return len(text)


def _lowered(text: str) -> str:
    """Return `text` in small letters, of the same length."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


class TokenRestorer:
    """A filter of a text's tokens: those of a pseudonym become one, of their joint probability."""

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._text = Restorer(pseudonyms)
        self._waiting: list[TokenLogprob] = []
        self._done = 0
        """Characters of the first waiting token that are dealt with."""

        self._joined: list[TokenLogprob] = []
        self._shown = ""

    def feed(self, tokens: Iterable[TokenLogprob]) -> tuple[TokenLogprob, ...]:
        """Return the tokens that can be shown now that `tokens` have arrived."""
        shown: list[TokenLogprob] = []
        for token in tokens:
            if token.token:
                self._waiting.append(token)
                shown += self._taken(self._text.segments(token.token))
        return tuple(shown)

    def close(self) -> tuple[TokenLogprob, ...]:
        """Return the rest of the tokens."""
        return tuple(self._taken(self._text.segments("", last=True)))

    def _taken(self, segments: Iterable[Segment]) -> Iterator[TokenLogprob]:
        for written, shown in segments:
            at, is_value = 0, written != shown
            self._shown += shown if is_value else ""
            while at < len(written):
                length = min(len(written) - at, self._left)
                self._shown += "" if is_value else written[at : at + length]
                at += length
                self._pass(length)
                if at == len(written) or not is_value:
                    yield from self._complete()

    @property
    def _left(self) -> int:
        return len(self._waiting[0].token) - self._done

    def _pass(self, length: int) -> None:
        self._done += length
        if not self._left:
            self._joined.append(self._waiting.pop(0))
            self._done = 0

    def _complete(self) -> Iterator[TokenLogprob]:
        """Yield what is shown as a token, if it ends where a token of the model ends."""
        if self._done:
            return
        first, *others = self._joined
        if others or first.token != self._shown:
            logprob = sum(token.logprob for token in self._joined)
            yield replace(first, token=self._shown, logprob=logprob, top=())
        else:
            yield first
        self._joined, self._shown = [], ""
