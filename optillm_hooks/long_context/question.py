"""Finds the question in a text that has a document in it too."""

import re
from typing import Final, NamedTuple

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.retrieval.chunks import CountTokens

_DELIMITER: Final = "<CONTEXT_END>"
"""OptiLLM's, between the document and the question."""

_LABEL: Final = Pattern(r"^[ \t*#>]*Query[ \t*]*:", re.MULTILINE | re.IGNORECASE)
_SENTENCE: Final = Pattern(r"(?<=[.!?])\s|(?<=[\u3002\uff01\uff1f])|\n")
_OPENED: Final = Pattern(r"^<\w{1,40} \d{1,9} ([0-9a-f]{16}>)$", re.MULTILINE)
_MAX_REGIONS: Final = 32
_QUESTION_MARKS: Final = ("?", "\uff1f", "\u061f")
_COLONS: Final = (":", "\uff1a")
_MAX_CHARACTERS_PER_TOKEN: Final = 8


class Asked(NamedTuple):
    """A text in three parts. `document` is empty if all of it is the question."""

    opening: str
    """What stands before the document, such as "Summarise this contract:"."""

    document: str
    ending: str
    """What stands after the document; the question if there is no document."""

    @property
    def question(self) -> str:
        return "\n\n".join(filter(None, (self.opening, self.ending)))


def find_question(text: str, count: CountTokens, limit: int) -> Asked:
    """Return the question of at most about `limit` tokens in `text`, and the document.

    The document is what other stages have put between the marks of `prompts.enclose`; nothing in
    there is taken for a question. Without such marks, the question is what follows OptiLLM's
    `<CONTEXT_END>` or the last line that begins with `Query:`. Without those it is the whole text
    if that is short, or else its last paragraph. The first one belongs to it too unless the last
    one is a question: a task may stand before a document or after it.
    """
    text = text.strip()
    if (framed := around_frames(text)) is not None:
        opening, document, ending = framed
        if is_short(framed.question, count, limit):
            return framed
        before = find_question(opening, count, limit // 2)
        after = find_question(ending, count, limit // 2)
        rest = (before.document, document, after.document)
        return Asked(before.question, "\n\n".join(filter(None, rest)), after.question)
    for before_mark, after_mark in _marked(text, limit * _MAX_CHARACTERS_PER_TOKEN):
        if before_mark and after_mark and is_short(after_mark, count, limit // 2):
            return Asked(*_first(before_mark, count, limit // 2), after_mark)
    if is_short(text, count, limit):
        return Asked("", "", text)
    rest_of, ending = _last(text, count, limit // 2)
    opening, document = _first(rest_of, count, limit // 2)
    if ending.endswith(_QUESTION_MARKS) and not opening.endswith(_COLONS):
        return Asked("", rest_of, ending)
    return Asked(opening, document, ending)


def around_frames(text: str) -> Asked | None:
    """Return `text` around all that is between marks of `prompts.enclose`; None if nothing is.

    A text in a frame cannot contain its mark, so the last place of the mark closes the frames.
    """
    regions = list[tuple[int, int]]()
    while len(regions) < _MAX_REGIONS:
        opened = next(_OPENED.finditer(text, regions[-1][1] if regions else 0), None)
        if opened is None:
            break
        regions.append((opened.start(), text.rfind(opened[1]) + len(opened[1])))
    if not regions:
        return None
    start, end = regions[0][0], regions[-1][1]
    return Asked(text[:start].strip(), text[start:end], text[end:].strip())


def is_short(text: str, count: CountTokens, limit: int) -> bool:
    """Return whether `text` has at most `limit` tokens."""
    return len(text) <= limit * _MAX_CHARACTERS_PER_TOKEN and count(text) <= limit


def _marked(text: str, end: int) -> list[tuple[str, str]]:
    """Return what is before and after each mark; a label counts in the last `end` characters."""
    before, delimiter, after = text.rpartition(_DELIMITER)
    found = [(before.strip(), after.strip())] if delimiter else []
    *_, last = [None, *_LABEL.finditer(text, max(0, len(text) - end))]
    if last is not None:
        found.append((text[: last.start()].strip(), text[last.end() :].strip()))
    return found


def _last(text: str, count: CountTokens, limit: int) -> tuple[str, str]:
    """Return `text` without its last paragraph, line or sentences, and those."""
    for mark in ("\n\n", "\n"):
        before, found, after = text.rpartition(mark)
        if found and is_short(after, count, limit):
            return before.rstrip(), after.strip()
    begin = max(0, len(text) - limit)
    sentence = next(_SENTENCE.finditer(text, begin), None)
    at = begin if sentence is None or sentence.end() >= len(text) else sentence.end()
    return text[:at].rstrip(), text[at:].strip()


def _first(text: str, count: CountTokens, limit: int) -> tuple[str, str]:
    """Return the first paragraph or line of `text` if it is short, and the rest."""
    for mark in ("\n\n", "\n"):
        before, found, after = text.partition(mark)
        if found and is_short(before, count, limit):
            return before.strip(), after.lstrip()
    return "", text
