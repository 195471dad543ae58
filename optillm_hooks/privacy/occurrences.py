"""Finds values that are known to be private, wherever they stand."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.privacy.found import CUSTOM, Found, without_overlaps
from optillm_hooks.privacy.plain import PlainText

_SCRIPTS: Final = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
_WORD: Final = Pattern(rf"[^\W{_SCRIPTS}]+")
_UNSPACED: Final = Pattern(f"[{_SCRIPTS}]")
"""Letters of languages that put no spaces between words."""

_MAX_FOLDED: Final = 200
"""Maximum length of a value that is found in any case."""


class Value(NamedTuple):
    """A private value to look for."""

    text: str
    entity: str
    key: str


class _Indexed(NamedTuple):
    value: Value
    offset: int
    """Where in the value the word is by which it is found."""

    folded: str
    """The value in small letters, if it is found in any case."""


def occurrences_now(
    texts: Sequence[str], values: Sequence[tuple[str, str, str]]
) -> list[list[Found]]:
    """Return where each text has one of `values` (`Value`), in order and without overlaps."""
    index: dict[str, list[_Indexed]] = defaultdict(list)
    unspaced: list[Value] = []
    for value in (Value(PlainText.of(text).text, *kind) for text, *kind in values):
        word = _WORD.search(value.text)
        if word is None or _UNSPACED.search(value.text):
            unspaced.append(value)
            continue
        folded = value.text.casefold() if _in_any_case(value) else ""
        index[word[0].casefold()].append(_Indexed(value, word.start(), folded))
    plain = [PlainText.of(text) for text in texts]
    return [
        without_overlaps([each.in_original(found) for found in _found(each.text, index, unspaced)])
        for each in plain
    ]


def _found(
    text: str, index: Mapping[str, Sequence[_Indexed]], unspaced: Sequence[Value]
) -> Iterator[Found]:
    yield from _spaced(text, index)
    yield from _anywhere(text, unspaced)


def _in_any_case(value: Value) -> bool:
    """Return whether a value in another case is the same: several words, or an address."""
    text = value.text
    return len(text) <= _MAX_FOLDED and (value.entity == CUSTOM or " " in text or "@" in text)


def _spaced(text: str, index: Mapping[str, Sequence[_Indexed]]) -> Iterator[Found]:
    if not index:
        return
    for word in _WORD.finditer(text):
        for value, offset, folded in index.get(word[0].casefold(), ()):
            start = word.start() - offset
            end = start + len(value.text)
            if start < 0 or _is_inside_word(text, start, end):
                continue
            here = text[start:end]
            if here in (value.text, value.text.upper()) or (folded and here.casefold() == folded):
                yield Found(start, end, value.entity, value.key)


def _is_inside_word(text: str, start: int, end: int) -> bool:
    """Return whether a letter or digit stands directly before or after a word at its edges."""
    return (_joins(text[start - 1 : start]) and _joins(text[start : start + 1])) or (
        _joins(text[end : end + 1]) and _joins(text[end - 1 : end])
    )


def _joins(char: str) -> bool:
    return (char.isalnum() or char == "_") and not _UNSPACED.match(char)


def _anywhere(text: str, values: Sequence[Value]) -> Iterator[Found]:
    for value in values:
        at = text.find(value.text)
        while at >= 0:
            yield Found(at, at + len(value.text), value.entity, value.key)
            at = text.find(value.text, at + len(value.text))
