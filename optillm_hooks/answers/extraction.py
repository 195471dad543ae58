"""Reading the final answer out of a model's text. Pure functions, linear in the text's length."""

import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Literal

AnswerFormat = Literal["auto", "marked", "boxed", "choice", "number", "json", "last_line"]
"""How an answer is found.

* marked: after "ANSWER:" (or "Final answer:") at the start of a line, the last one.
* boxed: in the last LaTeX \\boxed{...}; several side by side are read together.
* choice: the letter of a choice, as in "(B)", "**B**" or "option B", in the last line.
* number: the last number, wherever it stands.
* json: the text as a JSON object or array, or the last fenced block that is one.
* last_line: the last line that is not blank.
* auto: whichever of them is there, the surest first.
"""

_MAX_WORDS = 3
"""A whole reply of no more words than this is itself the answer."""

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
_FENCE = re.compile(r"^```[ \t]*(\w*)[^\n]*$", re.MULTILINE)
_JSON = frozenset({"", "json", "json5", "jsonc"})
_BOX = re.compile(r"\\f?boxed\s*\{")
_UNFINISHED = re.compile(r"\\f?boxed|answer[ \t*_`]*:", re.IGNORECASE)
_BETWEEN_BOXES = re.compile(r"(?:[\s,;$.]|\\[()\[\]]|\band\b|\bor\b)*")
_CHOICE_LINE = re.compile(r"\W{0,6}([A-Z])\W{0,6}|\W{0,4}([A-Z])\)[ \t*_]+\S.*")
_CHOICE_WITH_STOP = re.compile(r"[*_ ]*([A-Z])[.:][*_ ]+\S.*")
_CHOICE_INSIDE = re.compile(
    r"\(([A-H])\)|\*\*([A-H])\*\*|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)[ \t]+\(?([A-H])\b(?!')"
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
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_PLACEHOLDER = re.compile(r"\W*|<.*>|\[?(?:your )?(?:final )?answer\]?", re.IGNORECASE)


def without_reasoning(text: str) -> str:
    """Return `text` without the blocks in which a model thinks aloud (<think>…</think>).

    A block that is never closed reaches to the end; one that was opened by the prompt, so that
    only its end is to be seen, begins at the start.
    """
    kept: list[str] = []
    at = depth = 0
    for tag in _THINKING.finditer(text):
        if not depth:
            kept.append(text[at : tag.start()])
        if not tag[1]:
            depth += 1
        elif depth:
            depth -= 1
        else:
            kept.clear()
        at = tag.end()
    if not depth:
        kept.append(text[at:])
    return "".join(kept).strip()


def extract_answer(text: str, how: AnswerFormat = "auto", *, question: str = "") -> str | None:
    """Return the final answer of `text`, or None if there is none to be read.

    Reasoning blocks are no part of the text. "auto" takes the first of these that is found: the
    text as JSON (of an object with an "answer", that), a marked line, a box, "the answer is …",
    the "#### 42" of GSM8K, a fenced JSON block, a choice in the last line, a reply of at most three
    words, and, weakest, the last number of a last line that asserts something. A number that stands
    in `question` is then no answer, nor is any number in a line that asks.
    """
    text = without_reasoning(text)
    if not text:
        return None
    if how == "auto":
        found = next(filter(None, (read(text) for read in _IN_AUTO_ORDER)), None)
        return found or _asserted_number(text, question)
    return _READERS[how](text)


def stated_answer(text: str) -> tuple[int, int] | None:
    """Return where the answer begins and ends that is stated last, or None if none is.

    It is what stands behind "the answer is" or "answer:", up to the end of the sentence or a reason
    given for it; of a choice such as "(B)" or "B. Paris" the letter alone.
    """
    for lead in reversed(list(_STATED.finditer(text))):
        said = text[lead.end() : lead.end() + _MAX_STATEMENT_LENGTH].partition("\n")[0]
        statement = _tidied(_statement(said))
        if statement:
            start = text.index(statement, lead.end())
            choice = _choice(statement)
            letter = choice and re.search(rf"\b{choice}\b", statement)
            if letter:
                return start + letter.start(), start + letter.end()
            return start, start + len(statement)
    return None


def read_json(text: str) -> dict[str, object] | list[object] | None:
    """Return the object or array that `text`, or its last fenced block that holds one, is.

    Numbers with a point or an exponent are `Decimal`s, so that their values compare exactly.
    """
    text = without_reasoning(text)
    whole = _loads(text)
    if whole is not None:
        return whole
    values = map(_loads, _json_blocks(text))
    return next((value for value in values if value is not None), None)


def _json_blocks(text: str) -> list[str]:
    """Return the fenced blocks that say they are JSON, or say nothing, the last one first."""
    blocks: list[str] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif not fence[1]:
            if opening[1].lower() in _JSON:
                blocks.append(text[opening.end() : fence.start()].strip())
            opening = None
    return blocks[::-1]


def _loads(text: str) -> dict[str, object] | list[object] | None:
    text = text.strip()
    if text[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _marked(text: str) -> str | None:
    for value in reversed(_MARKED.findall(text)):
        if answer := _tidied(_boxed(value) or _said(value) or value):
            return answer
    return None


def _boxed(text: str) -> str | None:
    contents: list[str] = []
    following = -1
    for box in reversed(list(_BOX.finditer(text))[-_MAX_BOXES:]):
        end = _closing_brace(text, box.end())
        if end is None:
            continue
        if contents and not _BETWEEN_BOXES.fullmatch(text[end + 1 : following]):
            break
        if content := text[box.end() : end].strip():
            contents.insert(0, content)
            following = box.start()
    return ", ".join(dict.fromkeys(contents)) or None


def _closing_brace(text: str, at: int) -> int | None:
    depth = 1
    for index in range(at, min(len(text), at + _MAX_BOX_LENGTH)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
            if not depth:
                return index
    return None


def _said(text: str) -> str | None:
    for lead in reversed(list(_SAID.finditer(text))):
        said = text[lead.end() : lead.end() + _MAX_STATEMENT_LENGTH].partition("\n")[0]
        if answer := _tidied(_boxed(said) or _statement(said)):
            return answer
    return None


def _statement(text: str) -> str:
    """Return `text` up to the end of the first sentence or the reason given for it."""
    return _END_OF_STATEMENT.split(text, maxsplit=1)[0]


def _hashes(text: str) -> str | None:
    found = _HASHES.findall(text)
    return _tidied(found[-1]) if found else None


def _whole_json(text: str) -> str | None:
    value = _loads(text)
    return None if value is None else _answer_of(value, text)


def _fenced_json(text: str) -> str | None:
    for block in _json_blocks(text):
        value = _loads(block)
        if value is not None:
            return _answer_of(value, block)
    return None


def _answer_of(value: dict[str, object] | list[object], text: str) -> str:
    """Return the value of an object's "answer", and else the whole as it is written."""
    if isinstance(value, dict):
        named = {name.lower().replace(" ", "_"): item for name, item in value.items()}
        answer = named.get("final_answer", named.get("answer"))
        if answer is not None:
            return answer if isinstance(answer, str) else json.dumps(answer, default=float)
    return text


def _json(text: str) -> str | None:
    return next((block for block in (text, *_json_blocks(text)) if _loads(block) is not None), None)


def _choice(text: str) -> str | None:
    found = _CHOICE_WITH_STOP.fullmatch(_last_line(text) or "")
    return found[1] if found else _clear_choice(text)


def _clear_choice(text: str) -> str | None:
    """Return the last line's choice; of "C. difficile", which may be a name, the whole line."""
    line = _last_line(text) or ""
    if _CHOICE_WITH_STOP.fullmatch(line):
        return _tidied(line)
    found = _CHOICE_LINE.fullmatch(line)
    if found:
        return found[1] or found[2]
    letters = {"".join(groups) for groups in _CHOICE_INSIDE.findall(line)}
    return letters.pop() if len(letters) == 1 else None


def _short(text: str) -> str | None:
    asks = text.endswith("?") or text.startswith("I ")
    is_short = "\n" not in text and len(text.split()) <= _MAX_WORDS
    return _tidied(text) if is_short and not asks and not _UNFINISHED.search(text) else None


def _number(text: str) -> str | None:
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def _asserted_number(text: str, question: str) -> str | None:
    line = _last_line(text) or ""
    numbers = list(_NUMBER.finditer(line))
    if not numbers or line.endswith("?"):
        return None
    last = numbers[-1]
    asked = {number.strip("$%\u20ac\u00a3") for number in _NUMBER.findall(question)}
    if last[0].strip("$%\u20ac\u00a3") in asked:
        return None
    before = line[max(0, last.start() - _MAX_ASSERTION_LENGTH) : last.start()]
    asserted = any(found.end() == len(before) for found in _ASSERTED.finditer(before))
    return last[0] if asserted or _CONCLUDES.match(line) else None


def _last_line(text: str) -> str | None:
    return text.rstrip().rpartition("\n")[2].strip() or None


def _tidied(text: str) -> str | None:
    """Return `text` without emphasis, math delimiters and a final stop; None for a placeholder."""
    previous = ""
    while text != previous:
        previous = text
        text = text.strip().strip("*`").strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        for opening, closing in _DELIMITERS:
            inside = text[len(opening) : -len(closing)]
            if text == opening + inside + closing and opening not in inside:
                text = inside
    return None if _PLACEHOLDER.fullmatch(text) else text


_READERS: Mapping[AnswerFormat, Callable[[str], str | None]] = {
    "marked": _marked,
    "boxed": _boxed,
    "choice": _choice,
    "number": _number,
    "json": _json,
    "last_line": _last_line,
}
_IN_AUTO_ORDER = (_whole_json, _marked, _boxed, _said, _hashes, _fenced_json, _clear_choice, _short)
