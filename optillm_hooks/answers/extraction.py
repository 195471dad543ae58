"""Extracting the final answer from a model's reply. Pure functions, in linear time."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Literal, NamedTuple

from optillm_hooks.answers.code_blocks import code_blocks

AnswerFormat = Literal["auto", "marked", "boxed", "choice", "number", "json", "last_line"]
"""The place in the reply from which the answer is extracted.

* marked: after the last "ANSWER:" (or "Final answer:") at the start of a line.
* boxed: in the last LaTeX \\boxed{...}; adjacent boxes are one answer.
* choice: the letter of a choice in the last line, as in "(B)", "**B**" or "option B".
* number: the last number in the text.
* json: the text if it is a JSON object or array, or the last fenced block that is one.
* last_line: the last line that is not blank.
* auto: all of these, the most reliable first.
"""

_MAX_WORDS = 3
"""Maximum number of words of a reply that is itself the answer."""

_MAX_BOX_LENGTH = 2000
_MAX_BOXES = 50
_MAX_STATEMENT_LENGTH = 500

_THINKING = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.IGNORECASE)
_MARKED = re.compile(
    r"^[ \t>*_#`-]{0,12}(?:final[ \t]+|correct[ \t]+)?answer[ \t]*[*_`]{0,3}[ \t]*"
    r"[:\uff1a][ \t*_`]*(?:\n\s{0,4})?(?:(?:\$\$|\\\[)\s*\n)?(\S[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_SAID = re.compile(
    r"\b(?:answer|correct (?:choice|option)|final result)[ \t]+(?:is|are|would be|must be|equals)\b"
    r"[ \t]*:?\s{0,4}(?:(?:\$\$|\\\[)\s*\n)?(?!\s|not\b)",
    re.IGNORECASE,
)
_STATED = re.compile(
    rf"(?:{_SAID.pattern})|\banswer[ \t*_`]*[:\uff1a][\s*_`]{{0,8}}(?=\S)", re.IGNORECASE
)
_END_OF_STATEMENT = re.compile(
    r"(?:[.?]|(?<!\d)!)(?=\s|[*_`\"')\]]*$)|,?\s+(?:because|since|as|which|so that)\s|;\s",
    re.IGNORECASE,
)
_HASHES = re.compile(
    r"^####[ \t]*([-+]?[$\u20ac\u00a3]?[ \t]*[-+]?\d[\d,./]*[ \t]*%?)[ \t]*$", re.MULTILINE
)
_ANSWER_KEY = re.compile(r'"(?:final[ _])?answer"\s*+:\s*+', re.IGNORECASE)
_MAX_ANSWER_KEYS = 16
_JSON = frozenset({"", "json", "json5", "jsonc"})
_BOX = re.compile(r"\\f?boxed\s*\{")
_UNFINISHED = re.compile(r"\\f?boxed|answer[ \t*_`]*:", re.IGNORECASE)
_BETWEEN_BOXES = re.compile(r"(?:[\s,;$.]|\\[()\[\]]|\band\b|\bor\b)*")
_CHOICE_LINE = re.compile(r"\W{0,6}([A-Z])\W{0,6}|\W{0,4}([A-Z])\)[ \t*_]+\S.*")
_CHOICE_WITH_STOP = re.compile(r"[*_ ]*([A-Z])[.:][*_ ]+\S.*")
_CHOICE_INSIDE = re.compile(
    r"(?<!\w)\(([A-H])\)|\*\*([A-H])\*\*|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)[ \t]+\(?([A-H])\b(?!')"
)
_NUMBER = re.compile(
    r"(?<![\w.,/^-])[-\u2212]?[$\u20ac\u00a3]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:/\d+)?%?(?![\w^])(?!,\d)"
)
_ASSERTED = re.compile(
    r"(?:=|\u2248|\b(?:is|are|equals?|makes?|gives?|gets?|has|have|totals?|costs?)\b)\W{0,6}"
    r"(?:(?:about|approximately|exactly|only|just)\s)?\W{0,6}",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(r"\W{0,6}(?:so|thus|hence|therefore|in total|altogether)\b", re.IGNORECASE)
_MAX_ASSERTION_LENGTH = 40
_YES_OR_NO_FIRST = re.compile(
    r"\W{0,9}(yes\b|no\b(?=[ \t]*(?:[.,:;!*)\n]|\Z|because\b|since\b)))", re.IGNORECASE
)
_YES_OR_NO_LAST = re.compile(r"\b(yes|no)\b\W*+\Z", re.IGNORECASE)
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_PLACEHOLDER = re.compile(r"\W*|<.*>|\[?(?:your )?(?:final )?answer\]?", re.IGNORECASE)


class Extracted(NamedTuple):
    """An answer and its span in the text."""

    answer: str
    start: int
    end: int

    def moved(self, by: int) -> "Extracted":
        """Return the answer with its span shifted by `by` characters."""
        return Extracted(self.answer, self.start + by, self.end + by)


Reader = Callable[[str], Extracted | None]


def without_reasoning(text: str) -> str:
    """Return `text` without its reasoning blocks (<think>...</think>).

    A block without a closing tag extends to the end. One without an opening tag, which the prompt
    already contained, begins at the start.
    """
    return "".join(text[start:end] for start, end in _visible(text)).strip()


def _visible(text: str) -> list[tuple[int, int]]:
    """Return the spans of `text` outside its reasoning blocks."""
    spans: list[tuple[int, int]] = []
    at = depth = 0
    for tag in _THINKING.finditer(text):
        if not depth:
            spans.append((at, tag.start()))
        if not tag[1]:
            depth += 1
        elif depth:
            depth -= 1
        else:
            spans.clear()
        at = tag.end()
    if not depth:
        spans.append((at, len(text)))
    return spans


def extract_answer(text: str, how: AnswerFormat = "auto", *, question: str = "") -> str | None:
    """Return the final answer of `text`, or None if it has none. See `extract`."""
    found = extract(text, how, question=question)
    return found.answer if found else None


def extract(
    text: str, how: AnswerFormat = "auto", *, question: str = "", lenient: bool = False
) -> Extracted | None:
    """Return the final answer of `text` with its span, or None if it has none.

    Reasoning blocks are skipped. "auto" returns the first of these that it finds: the text as JSON
    (if it is an object with an "answer", the value), a marked line, a box, "the answer is ...",
    GSM8K's "#### 42", a fenced JSON block, a choice in the last line, a reply of at most three
    words, and last, because it is least reliable, the last number in a last line that is an
    assertion. In the last case, numbers that `question` contains and numbers in questions are
    ignored.

    With `lenient`, "auto" also accepts the last number anywhere, or else a yes or no at the end or
    at the beginning, and shortens a statement with a choice or a leading yes or no to that letter
    or word. This suits the decoding methods, which cannot use a reply without an answer.
    """
    spans = _visible(text)
    visible = "".join(text[start:end] for start, end in spans)
    stripped = visible.strip()
    if not stripped:
        return None
    readers = _readers(how, question, lenient=lenient)
    found = next(filter(None, (read(stripped) for read in readers)), None)
    if found is None:
        return None
    start, end = found.start, found.end
    leading = len(visible) - len(visible.lstrip())
    return Extracted(
        found.answer,
        _original(spans, leading + start),
        _original(spans, leading + end - 1) + 1,
    )


def _original(spans: Sequence[tuple[int, int]], index: int) -> int:
    """Map `index` in the concatenated `spans` to the index in the original text."""
    for start, end in spans:
        if index < end - start:
            return start + index
        index -= end - start
    raise IndexError(index)


def _readers(how: AnswerFormat, question: str, *, lenient: bool) -> Sequence[Reader]:
    if how != "auto":
        return [_READERS[how]]
    if lenient:
        return _LENIENT_READERS
    return [*_AUTO_READERS, partial(_asserted_number, question=question)]


def read_json(text: str) -> dict[str, object] | list[object] | None:
    """Return `text` parsed as a JSON object or array, or else its last fenced block that is one.

    Numbers with a decimal point or an exponent are `Decimal`s, so that they compare exactly.
    """
    text = without_reasoning(text)
    values = map(_loads, (text, *(block for block, _ in _json_blocks(text))))
    return next((value for value in values if value is not None), None)


def _json_blocks(text: str) -> Iterator[tuple[str, int]]:
    """Yield the closed JSON or unlabelled blocks with their index, last block first."""
    for block in reversed(code_blocks(text)):
        if block.closed and block.language in _JSON:
            leading = len(block.content) - len(block.content.lstrip())
            yield block.content.strip(), block.start + leading


def _loads(text: str) -> dict[str, object] | list[object] | None:
    text = text.strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse)


def _whole(text: str) -> Extracted:
    return Extracted(text, 0, len(text))


def _group(found: re.Match[str]) -> Extracted:
    """Return the last group that matched in `found`, with its span."""
    at = found.lastindex or 0
    return Extracted(found[at], *found.span(at))


def _marked(text: str) -> Extracted | None:
    for line in reversed(list(_MARKED.finditer(text))):
        value = line[1]
        answer = _tidied(_boxed(value) or _said(value) or _whole(value))
        if answer:
            return answer.moved(line.start(1))
    return None


def _boxed(text: str) -> Extracted | None:
    boxes: list[tuple[int, int, Extracted]] = []
    for box in reversed(list(_BOX.finditer(text))[-_MAX_BOXES:]):
        end = _closing_brace(text, box.end())
        if end is None:
            continue
        if boxes and not _BETWEEN_BOXES.fullmatch(text[end + 1 : boxes[0][0]]):
            break
        if content := _stripped(text, box.end(), end):
            boxes.insert(0, (box.start(), end + 1, content))
    answers = dict.fromkeys(content.answer for _, _, content in boxes)
    if len(answers) > 1:
        return Extracted(", ".join(answers), boxes[0][0], boxes[-1][1])
    return boxes[-1][2] if boxes else None


def _closing_brace(text: str, at: int) -> int | None:
    depth = 1
    for index in range(at, min(len(text), at + _MAX_BOX_LENGTH)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if not depth:
                return index
    return None


def _stripped(text: str, start: int, end: int) -> Extracted | None:
    """Return `text[start:end]` stripped, or None if it is blank."""
    part = text[start:end]
    answer = part.strip()
    start += len(part) - len(part.lstrip())
    return Extracted(answer, start, start + len(answer)) if answer else None


def _said(text: str, lead: re.Pattern[str] = _SAID) -> Extracted | None:
    for found in reversed(list(lead.finditer(text))):
        said = text[found.end() : found.end() + _MAX_STATEMENT_LENGTH].partition("\n")[0]
        answer = _tidied(_boxed(said) or _whole(_statement(said)))
        if answer:
            return answer.moved(found.end())
    return None


def _statement(text: str) -> str:
    """Return `text` up to the end of its first sentence, or up to a reason such as "because"."""
    return _END_OF_STATEMENT.split(text, maxsplit=1)[0]


def _hashes(text: str) -> Extracted | None:
    found = list(_HASHES.finditer(text))
    return _tidied(_group(found[-1])) if found else None


def _whole_json(text: str) -> Extracted | None:
    value = _loads(text)
    return None if value is None else _answer_of(value, text)


def _fenced_json(text: str) -> Extracted | None:
    for block, at in _json_blocks(text):
        value = _loads(block)
        if value is not None:
            answer = _answer_of(value, block)
            return answer.moved(at) if answer else None
    return None


def _answer_of(value: dict[str, object] | list[object], text: str) -> Extracted | None:
    """Return the value of an object's "answer", or the whole JSON text if it has none."""
    if not isinstance(value, dict):
        return _whole(text)
    named = {name.lower().replace(" ", "_"): item for name, item in value.items()}
    answer = named.get("final_answer", named.get("answer"))
    if answer is None:
        return _whole(text)
    start, end = _span_of_value(answer, text)
    if not isinstance(answer, str):
        return Extracted(json.dumps(answer, default=float), start, end)
    return Extracted(answer, start, end) if answer.strip() else None


def _span_of_value(value: object, text: str) -> tuple[int, int]:
    """Return the span of `value` as the "answer" in the JSON object `text`, without quotes.

    If it is not among the first such keys, the span is the whole object.
    """
    for key in itertools.islice(_ANSWER_KEY.finditer(text), _MAX_ANSWER_KEYS):
        try:
            found, end = _DECODER.raw_decode(text, key.end())
        except (ValueError, RecursionError):
            continue
        if found == value:
            quote = isinstance(value, str)
            return key.end() + quote, end - quote
    return 0, len(text)


def _json(text: str) -> Extracted | None:
    texts = ((text, 0), *_json_blocks(text))
    return next((_whole(t).moved(at) for t, at in texts if _loads(t) is not None), None)


def _choice(text: str) -> Extracted | None:
    line = _last_line(text)
    found = line and _CHOICE_WITH_STOP.fullmatch(line.answer)
    return _group(found).moved(line.start) if line and found else _clear_choice(text)


def _clear_choice(text: str) -> Extracted | None:
    """Return the choice in the last line; the whole line if it may be a name ("C. difficile")."""
    line = _last_line(text)
    if line is None:
        return None
    if _CHOICE_WITH_STOP.fullmatch(line.answer):
        return _tidied(line)
    if found := _CHOICE_LINE.fullmatch(line.answer):
        return _group(found).moved(line.start)
    choices = [_group(found) for found in _CHOICE_INSIDE.finditer(line.answer)]
    return choices[-1].moved(line.start) if len({c.answer for c in choices}) == 1 else None


def _short(text: str) -> Extracted | None:
    asks = text.endswith("?") or text.startswith("I ")
    is_short = "\n" not in text and len(text.split()) <= _MAX_WORDS
    return _tidied(_whole(text)) if is_short and not asks and not _UNFINISHED.search(text) else None


def _number(text: str) -> Extracted | None:
    numbers = list(_NUMBER.finditer(text))
    return Extracted(numbers[-1][0], *numbers[-1].span()) if numbers else None


def _asserted_number(text: str, question: str) -> Extracted | None:
    line = _last_line(text)
    if line is None or line.answer.endswith("?"):
        return None
    last = _number(line.answer)
    asked = {number.strip("$%\u20ac\u00a3") for number in _NUMBER.findall(question)}
    if last is None or last.answer.strip("$%\u20ac\u00a3") in asked:
        return None
    before = line.answer[max(0, last.start - _MAX_ASSERTION_LENGTH) : last.start]
    asserted = any(found.end() == len(before) for found in _ASSERTED.finditer(before))
    return last.moved(line.start) if asserted or _CONCLUDES.match(line.answer) else None


def _last_word_number(text: str) -> Extracted | None:
    """Return the number that the last line asserts, if no word follows it: 8 in "It is 8."."""
    number = _asserted_number(text, question="")
    return number if number and not re.search(r"\w", text[number.end :]) else None


def _last_line(text: str) -> Extracted | None:
    end = len(text.rstrip())
    return _stripped(text, text.rfind("\n", 0, end) + 1, end)


def _tidied(found: Extracted) -> Extracted | None:
    """Return `found` without emphasis, math delimiters and full stop; None for a placeholder."""
    text = found.answer
    start, end = _tidy_span(text)
    if _PLACEHOLDER.fullmatch(text, start, end):
        return None
    if not _is_verbatim(found):
        return found._replace(answer=text[start:end])
    return Extracted(text[start:end], found.start + start, found.start + end)


def _tidy_span(text: str) -> tuple[int, int]:
    start, end = 0, len(text)
    before = (-1, -1)
    while before != (start, end):
        before = start, end
        while start < end and _is_decoration(text[start]):
            start += 1
        while start < end and _is_decoration(text[end - 1]):
            end -= 1
        if text.endswith(".", start, end) and not text.endswith("..", start, end):
            end -= 1
        for opening, closing in _DELIMITERS:
            first, last = start + len(opening), end - len(closing)
            enclosed = text.startswith(opening, start) and text.endswith(closing, first, end)
            if enclosed and opening not in text[first:last]:
                start, end = first, last
    return start, end


def _is_decoration(character: str) -> bool:
    return character in "*`" or character.isspace()


def _is_verbatim(found: Extracted) -> bool:
    return len(found.answer) == found.end - found.start


def _narrowed(text: str, read: Reader) -> Extracted | None:
    """Return the answer that `read` finds, shortened to the letter of a choice or a yes or no."""
    found = read(text)
    if found is None or not _is_verbatim(found):
        return found
    first = _YES_OR_NO_FIRST.match(found.answer)
    word = _clear_choice(found.answer) or (_group(first) if first else None)
    return word.moved(found.start) if word else found


def _short_or_yes_or_no(text: str) -> Extracted | None:
    short = _short(text)
    return short and (_yes_or_no(text) or short)


def _yes_or_no(text: str) -> Extracted | None:
    """Return the yes or no at the end of `text`, or else at its beginning."""
    found = _YES_OR_NO_LAST.search(text) or _YES_OR_NO_FIRST.match(text)
    return _group(found) if found else None


_READERS: Mapping[AnswerFormat, Reader] = {
    "marked": _marked,
    "boxed": _boxed,
    "choice": _choice,
    "number": _number,
    "json": _json,
    "last_line": _last_line,
}
_AUTO_READERS: Sequence[Reader] = (
    _whole_json,
    _marked,
    _boxed,
    _said,
    _hashes,
    _fenced_json,
    _clear_choice,
    _short,
)
_LENIENT_READERS: Sequence[Reader] = (
    _whole_json,
    partial(_narrowed, read=_marked),
    _boxed,
    partial(_narrowed, read=partial(_said, lead=_STATED)),
    _hashes,
    _fenced_json,
    _clear_choice,
    _last_word_number,
    _short_or_yes_or_no,
    _number,
    _yes_or_no,
)
