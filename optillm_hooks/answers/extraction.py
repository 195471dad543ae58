"""Extracting the final answer from a model's reply. Pure functions, in linear time.

Of a long reply, only the beginning and the end are read: the answer is there.

There is one reader for all approaches. It tries the places where an answer can stand, the most
reliable first. What an answer is, and where it ends, is the same in each place: see
`answers.statements` and `answers.values`. The phrases are in `answers.phrases`.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache, partial
from typing import Literal

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.phrases import (
    CJK_ANSWER,
    CJK_COPULA,
    CJK_RESULT,
    has_decimal_comma,
    words,
)
from optillm_hooks.answers.questions import (
    Asked,
    asked_for,
    asks_for_a_fact,
    options,
    repeats,
    suits,
)
from optillm_hooks.answers.statements import (
    MAX_LENGTH,
    bare_name,
    choice,
    choice_in,
    concludes,
    conclusion,
    contents,
    counted,
    is_correct,
    name,
    statement,
    tidied,
    verdict,
    yes_or_no,
)
from optillm_hooks.answers.values import Extracted, in_decimal_points, part, value_at, values

AnswerFormat = Literal["auto", "marked", "boxed", "choice", "number", "json", "last_line"]
"""The place in the reply from which the answer is extracted.

* marked: after the last "ANSWER:" (or "Final answer:", in any language) at the start of a line, or
  under such a heading.
* boxed: in the last LaTeX \\boxed{...}; adjacent boxes are one answer.
* choice: the letter of a choice in the last line, as in "(B)", "**B**" or "option B".
* number: the last value with a number in the text: the whole expression, date or quantity.
* json: the text if it is a JSON object or array, or the last fenced block that is one.
* last_line: the last line that is not blank.
* auto: all of these, the most reliable first.
"""

_MAX_WORDS = 3
"""Maximum number of words of a reply that is itself the answer."""

_MAX_BEGINNING = 4_000
"""Characters that are read of the beginning of a longer reply; the other limits are for its end."""

_MAX_END = 12_000
_MAX_JSON = 100_000
"""Maximum length of JSON that is read; longer JSON is no answer."""

_MAX_TAGGED = 10_000
"""Characters of each end of a reply in which tags of reasoning are looked for."""

_MAX_STATED_WORDS = 6
_MAX_BOX_LENGTH = 2000
_MAX_BOXES = 50
_MAX_PLACES = 20
_MAX_LINES = 12
_MAX_SENTENCES = 4

# Reasoning blocks.
_THINKING = Pattern(
    r"<(/?)(?:think|thinking|thought|reasoning|seed:think|scratchpad)>"
    r"|\u25c1(/?)think\u25b7|\[(/?)THINK\]|<\|(begin|end)_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary)<\|message\|>|<\|(end)\|>"
    r"|(?P<token><\|start\|>assistant|<\|channel\|>final<\|message\|>|<\|[a-z_]{1,30}\|>"
    r"|<(?:/s|eos|end_of_turn|turn\||\uff5cend\u2581of\u2581sentence\uff5c)>\s*\Z)",
    re.IGNORECASE,
)
_CLOSING_TAGS = (
    "</think>", "</thinking>", "</thought>", "</reasoning>", "</seed:think>", "</scratchpad>",
    "\u25c1/think\u25b7", "[/THINK]", "<|end_of_thought|>", "<|end|>",
)  # fmt: skip
_MAX_TAG = 40
_NEXT_TURN = Pattern(
    r"^(?:[ \t]*#{1,4}[ \t]*)?(?:Human|User|Question|Q|Problem|Instruction)\s*+(?:\d++\s*+)?:"
    r"|^<\|(?:im_start|user)\|>",
    re.MULTILINE,
)

# Cues.
_ANSWER = words(lambda w: w.answer)
_RESULT = words(lambda w: w.result)
_BEFORE = rf"(?:(?:{words(lambda w: w.before)})\s++){{0,4}}"
_AFTER = rf"(?:\s++{words(lambda w: w.after)}){{0,2}}"
_COPULA = words(lambda w: w.copula)
_ADVERB = words(lambda w: w.filler + " " + w.therefore)
_NOUN = (
    rf"{_BEFORE}(?:{_ANSWER}|{words(lambda w: w.option)}){_AFTER}(?!\w)"
    rf"|[^\W\d_]{{0,4}}(?:{CJK_ANSWER})"
)
_DECORATED = r"[ \t*_`\u00a0]*+(?:[(\uff08][^()\n]{0,40}[)\uff09][ \t*_`\u00a0]*+)?"
"""Emphasis, with an aside in it."""

_SEPARATOR = r"(?:[:\uff1a=|]|->|\u2192|\s?(?<=\s)[-\u2013\u2014](?=\s))"
_BEFORE_VALUE = r"(?:(?!```)[ \t*_`\u00a0])*+"
_LINE_START = r"^[^\w\n(\[{$\\]{0,14}"
_MARKED = Pattern(
    rf"{_LINE_START}(?:{_BEFORE}{_ANSWER}{_AFTER}(?!\w)|[^\W\d_]{{0,4}}(?:{CJK_ANSWER})|A(?=:)"
    rf"|Ans\.)"
    rf"(?:{_DECORATED}(?:{_SEPARATOR}|(?=\n))|(?<=Ans\.)){_BEFORE_VALUE}",
    re.IGNORECASE | re.MULTILINE,
)
_RESULT_LINE = Pattern(
    rf"{_LINE_START}(?:{_BEFORE}{_RESULT}{_AFTER}(?!\w)|(?:{CJK_RESULT}))(?:\s(?:cost|time|amount"
    rf"|distance|price))?"
    rf"{_DECORATED}(?:{_SEPARATOR}|(?=\n\s*+[^\n]{{1,80}}(?:\n|\Z))){_BEFORE_VALUE}",
    re.IGNORECASE | re.MULTILINE,
)
_SAID = Pattern(
    rf"(?:(?<!\w)(?:{_ANSWER}|{_RESULT}|(?:correct|right|best|final)\s{words(lambda w: w.option)}"
    rf"|{words(lambda w: w.option)}\s(?:correct[ae]?|corrett[ao]|certa)){_AFTER}"
    rf"(?:\s++(?:to|for|of|in)\s[^.:;\n=]{{1,80}}?)?[ \t]*+(?:[,*_]++[ \t]++|(?<=[ \t]))"
    rf"(?:(?:{_ADVERB}),?\s)?{_COPULA}(?!\w)"
    rf"|(?:{CJK_ANSWER}|{CJK_RESULT})[^\n.\u3002:\uff1a]{{0,6}}?(?:{CJK_COPULA})|(?:\u6545|\u5e94"
    rf"|\u6240\u4ee5)?\u9009\u62e9?[:\uff1a]?(?=[\s*]*[A-J])"
    rf"|(?<!\w){_ANSWER}{_AFTER}{_DECORATED}[:\uff1a\u2014\u2013](?!\n\n\s*+[-#]))"
    rf"[ \t]*[:\uff1a]?",
    re.IGNORECASE,
)
_HASHES = Pattern(r"^####(?!#)[ \t]*(?=[-+$\u20ac\u00a3\u2212.\d\\])([^\n]+)$", re.MULTILINE)
_TAG = Pattern(r"<(final[_-]?answer|answer|output|solution|result)>", re.IGNORECASE)
_ANSWER_KEY = Pattern(r'"(?:final[ _]?)?(?:answer|result)"\s*+:\s*+', re.IGNORECASE)
_ANSWER_KEYS = ("final_answer", "finalanswer", "answer", "result")
_MAX_ANSWER_KEYS = 16
_JSON = frozenset({"", "json", "json5", "jsonc"})
_BOX = Pattern(r"\\f?box(?:ed)?\s*\{")
_UNFINISHED = Pattern(r"\\f?boxed|answer[ \t*_`]*:", re.IGNORECASE)
_BETWEEN_BOXES = Pattern(r"(?:[\s,;$.]|\\[()\[\]]|\\text\{|\}|\\quad|\band\b|\bor\b)*")

# The end of a reply.
_OPTION = Pattern(
    r"(?:^[ \t*_]*|(?<=[.!?]\s))(?:(?:[Oo]ption|[Aa]nswer|[Cc]hoice)\s)?\(?([A-J])(?:[).:](?!\w)"
    r"|\s*\Z|\s(?:is|ist|est|es|\u00e8)\b)"
    r"|\(([A-J])\)|\*\*\(?([A-J])[).:]?(?:\s[^*\n]*)?\*\*|\b[Oo]ption\s\(?([A-J])\b"
    r"|\b(?:so|thus|hence|therefore|making|is)\s\(?([B-J])(?:\)|\s*[.,]|\s(?:is|the)\b)",
    re.MULTILINE,
)
_EXCLUDED = Pattern(
    r"\b(?:not|wrong|incorrect|cannot|\w+n['\u2019]t|exclude[sd]?|ruled|eliminate[sd]?|unlike|nicht"
    r"|falsch|perhaps|maybe)\b",
    re.IGNORECASE,
)
_CHOICE_WITH_STOP = Pattern(r"[*_ ]*([A-Z])[.:][*_ ]++\S.*")
_A_WORD = Pattern(r"[\u3040-\u30ff\u4e00-\u9fff]{1,3}|[^\s\u3040-\u30ff\u4e00-\u9fff]+")
_COURTESY = Pattern(
    r"\W*(?:let me know|would you like|i hope|hope (?:this|it|that)|feel free|if you(?:'d| would"
    r"| have| need| want)|"
    r"do you want|is there anything|happy to help|please let me|shall i|want me to|good luck"
    r"|thanks?\b|"
    r"m\u00f6chten sie|soll ich|voulez-vous|souhaitez|quieres|\u00bf|vuoi|gostaria|\u5982\u679c)",
    re.IGNORECASE,
)
_CHECK = Pattern(
    r"\W*(?:check|checking|verification|verify|to verify|proof|note|explanation|reason(?:ing)?"
    r"|justification|remark|"
    r"caveat|sources?|references?|probe|hinweis|erkl\u00e4rung|v\u00e9rification|explication"
    r"|comprobaci\u00f3n|verifica|"
    r"verifica\u00e7\u00e3o|this assumes|here['\u2019]s (?:why|how)|\u89e3\u91ca"
    r"|\u9a8c\u8bc1)\b[^\n]*",
    re.IGNORECASE,
)
_RULE = Pattern(r"[\W_]*")
_BOLD_LINE = Pattern(
    r"^((?![^\S\n]*+[-*\u2022]\s|#)[^*\n]*+\*\*[^*\n\d]*+\d[^*\n]*+(?<![:\uff1a])\*\*)[.]?\s*\Z",
    re.MULTILINE,
)
_LABELLED_ITEM = Pattern(r"\s*[-*•]\s[^\n:]{1,40}:")
_EQUATION = Pattern(r"=\s?[^\s=\d]*+\d")
_REMARK = Pattern(r"(?:That|This|It)(?:['\u2019]s|\sis|\swas)\b")
_WORDS_FIRST = Pattern(r"[^\W\d_]{2,}")
_CONCLUDED = Pattern(rf"(?<!\w){words(lambda w: w.therefore)}(?!\w)", re.IGNORECASE)
_COUNTS_ON = Pattern(
    r"(?<=[.!?]\s)(?:I|we|he|she|they|that|this|er|sie|ils?|elle|there)\s", re.IGNORECASE
)
_DISPLAY = Pattern(r"(?<!\\)\\\[(?:[^\\]++|\\[^\[\]])*+\\\]|\$\$(?:[^$]++|\$(?!\$))*+\$\$")
_SENTENCE_END = Pattern(
    r"(?<=[.!?\u3002\uff01\uff1f])(?<!\d\.)(?<![^\w][A-Z]\.)(?<!^[A-Z]\.)(?<!approx\.)(?<!ca\.)(?<!No\.)(?<!St\.)(?<!Mr\.)(?<!Dr\.)(?:\s+|(?<=[\u3002\uff01\uff1f]))"
    r"(?=[^\Wa-z]|[$\\\"'(*\u00bf\u201c-])"
    r"|(?<=\d\.)\s+(?=[A-Z](?!\w*\s\d{4})(?![a-z\u00e4]{1,8}\b(?<=uar|\u00e4rz|ril|Mai|uni|uli"
    r"|ust|ber)))"
)
_CLOSED = Pattern(r"[.!?\u3002\u2713\u2705*$)`]\s*$")
_REFUSES = Pattern(
    r"\b(?:(?:isn['’]t|is not|aren['’]t|are not|not) enough|insufficient|cannot|can['’]t"
    r"|unable to|don['’]t know|not sure)\b",
    re.IGNORECASE,
)
_NUMBERED = Pattern(r"\s*\d{1,2}[.)]\s")
_OPEN_LIST = Pattern(r"\W*(?:we|i|let|first|next|then)\b.*(?:\band|,)\s+\d+\s*\Z", re.IGNORECASE)
_OUTPUT = Pattern(
    r"(?:output|prints?|returns?|displays?|result|value|answer|ausgabe|sortie|salida|输出"
    r"|出力)[^\n.]{0,40}[:：]?[\s*_]*\Z",
    re.IGNORECASE,
)
_PARTS = Pattern(
    r"[ \t>*_-]*(?:Part|Teil|Partie|Parte)?\s?\(?([a-h])\)?[.):]++[*_ \t]*+(\S.*)", re.IGNORECASE
)
_CUT_OFF = Pattern(
    r"\b(?:and|or|the|a|an|of|to|by|that|so|then|we|with|from|is|are|which|because|in|for|und|der"
    r"|die|das|et|de|que|"
    r"el|la|y|e|il|o|by the|now|times|plus|minus|at|on|into|has|have|each|if|when)\s*\Z"
    r"|[,;(+=/\u00d7-]\s*\Z",
    re.IGNORECASE,
)
_TABLE_ROW = Pattern(r"\|(?:[^|\n]*\|){2,}\s*")
_TOTAL_ROW = Pattern(
    rf"[\W_]*(?:{_BEFORE}(?:{_ANSWER}|{_RESULT})|totals?|sum|grand total|gesamt|summe|somme"
    rf"|\u5408\u8ba1|\u5408\u8a08)\b",
    re.IGNORECASE,
)
_HOW_MANY = Pattern(
    r"\b(?:how|what|which|who|when|where|why|wie|was|welche\w*|wann|combien|quel\w*"
    r"|cu\u00e1nt\w*|qu\u00e9|quant\w*|find|compute|calculate)\b",
    re.IGNORECASE,
)
_CORRECTED = Pattern(r"\W+(?:wait|actually|hmm)\b", re.IGNORECASE)
_YES_OR_NO_LAST = Pattern(
    r"(?:\bso|\btherefore|\bthus|\bis|[,:\u2014-])\s+[*_]*(yes|no|true|false)\b\W*+\Z",
    re.IGNORECASE,
)

Reader = Callable[[str], Extracted | None]


def without_reasoning(text: str) -> str:
    """Return `text` without its reasoning blocks (<think>...</think>).

    A block without a closing tag extends to the end. One without an opening tag, which the prompt
    already contained, begins at the start. Of a text longer than 20,000 characters, both ends are
    searched for tags, and between them only the last closing tag counts.
    """
    return "".join(text[start:end] for start, end in _visible(text)).strip()


def _visible(text: str) -> list[tuple[int, int]]:
    """Return the spans of `text` outside its reasoning blocks."""
    spans: list[tuple[int, int]] = []
    at = depth = 0
    for tag in _tags(text):
        if not depth:
            spans.append((at, tag.start()))
        if tag.lastgroup == "token":
            pass
        elif not _is_closing(tag[0]):
            depth += 1
        elif depth:
            depth -= 1
        else:
            spans.clear()
        at = tag.end()
    if not depth:
        spans.append((at, len(text)))
    return spans


def _tags(text: str) -> Iterator[re.Match[str]]:
    """Yield the tags of reasoning in `text`; see `without_reasoning`."""
    if len(text) <= 2 * _MAX_TAGGED:
        yield from _THINKING.finditer(text)
        return
    end = len(text) - _MAX_TAGGED
    last = max(text.rfind(tag, _MAX_TAGGED, end) for tag in _CLOSING_TAGS)
    yield from _THINKING.finditer(text, 0, _MAX_TAGGED)
    if last >= 0 and (tag := _THINKING.match(text, last, last + _MAX_TAG)):
        yield tag
    yield from _THINKING.finditer(text, end)


def _is_closing(tag: str) -> bool:
    return "/" in tag or tag.lower().startswith("<|end")


def excerpt(text: str, *, as_json: bool = False) -> str:
    """Return the part of a reply that the readers read, without reasoning.

    With `as_json`, that is all of it, up to the maximum length of JSON.
    """
    text = without_reasoning(text)
    if as_json or text[:1] in ("{", "["):
        return text if len(text) <= _MAX_JSON else ""
    return "".join(text[start:end] for start, end in _both_ends(text, [(0, len(text))]))


def extract_answers(
    texts: Sequence[str], how: AnswerFormat = "auto", *, question: str = ""
) -> list[str | None]:
    """Return the final answer of each text, or None if it has none. See `extract`."""
    return [extract_answer(text, how, question=question) for text in texts]


def extract_answer(text: str, how: AnswerFormat = "auto", *, question: str = "") -> str | None:
    """Return the final answer of `text`, or None if it has none. See `extract`."""
    found = extract(text, how, question=question)
    return found.answer if found else None


def extract(
    text: str, how: AnswerFormat = "auto", *, question: str = "", lenient: bool = False
) -> Extracted | None:
    """Return the final answer of `text` with its span, or None if it has none.

    Reasoning blocks are skipped. "auto" returns the first of these that it finds: the text as JSON
    (if it is an object with an "answer", the value), an <answer> tag, a marked line, a box, "the
    answer is ...", GSM8K's "#### 42", a line such as "Result: 42", a fenced JSON block, a first
    line that is the answer, yes or no at the beginning, the choice or the conclusion of the last
    line, and a reply of at most three words. `question` helps where a reply repeats it: "The
    capital of France is Paris."

    With `lenient`, "auto" also accepts the last value anywhere, or else a yes or no at the end.
    This suits the decoding methods, which cannot use a reply without an answer.

    An answer in a language with a decimal comma is returned with a decimal point.
    """
    question = question[-_MAX_END:]
    spans = _visible(text)
    if how in ("auto", "json") and (found := _long_json(text, spans, how)):
        return found
    spans = _both_ends(text, spans)
    visible = "".join(text[start:end] for start, end in spans)
    stripped = visible.strip()
    if not stripped:
        return None
    found = _first_found(stripped, how, question, lenient=lenient)
    if found is None:
        return None
    leading = len(visible) - len(visible.lstrip())
    return _in_original(found.moved(leading), spans)


@lru_cache(maxsize=64)  # an approach reads its samples several times
def _first_found(text: str, how: AnswerFormat, question: str, *, lenient: bool) -> Extracted | None:
    """Return the answer that the first reader finds in a text of limited length."""
    if how == "auto":
        text = _first_turn(text)
    readers = _readers(how, question, lenient=lenient)
    found = next(filter(None, (read(text) for read in readers)), None)
    if found is None or how != "auto" or not has_decimal_comma(text):
        return found
    return found._replace(answer=in_decimal_points(found.answer))


def _long_json(text: str, spans: Sequence[tuple[int, int]], how: AnswerFormat) -> Extracted | None:
    """Return the JSON answer of a visible text that is too long for the other readers."""
    length = sum(end - start for start, end in spans)
    if not _MAX_BEGINNING + _MAX_END < length <= _MAX_JSON:
        return None
    visible = "".join(text[start:end] for start, end in spans)
    found = (_json if how == "json" else _whole_json)(visible.strip())
    leading = len(visible) - len(visible.lstrip())
    return _in_original(found.moved(leading), spans) if found else None


def _both_ends(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the parts of `spans` that are read; in a long text, lines in its middle are not."""
    left_out = sum(end - start for start, end in spans) - _MAX_BEGINNING - _MAX_END
    if left_out <= 0:
        return list(spans)
    first, rest = _split(spans, _MAX_BEGINNING)
    _, last = _split(rest, left_out)
    start, end = last[0]
    line = text.find("\n", start, min(end, start + MAX_LENGTH))
    return [*first, (max(start, line), end), *last[1:]]


def _split(
    spans: Sequence[tuple[int, int]], length: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return `spans` in two parts, the first of `length` characters."""
    first: list[tuple[int, int]] = []
    for at, (start, end) in enumerate(spans):
        if end - start > length:
            return [*first, (start, start + length)], [(start + length, end), *spans[at + 1 :]]
        first.append((start, end))
        length -= end - start
    return first, []


def _in_original(found: Extracted, spans: Sequence[tuple[int, int]]) -> Extracted:
    """Return `found`, an answer in the concatenated `spans`, with its span in the text."""
    start, end = _original(spans, found.start), _original(spans, found.end - 1) + 1
    return found._replace(start=start, end=end)


def _first_turn(text: str) -> str:
    """Return `text` without further questions that the model invented after its answer."""
    cues = filter(None, (cue.search(text) for cue in (_SAID, _MARKED, _HASHES)))
    first = min((cue.end() for cue in cues), default=len(text))
    for found in _NEXT_TURN.finditer(text, first):
        return text[: found.start()].rstrip()
    return text


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
    asked = asked_for(question)
    readers: list[Reader] = [
        *_EXPLICIT_READERS,
        partial(_first_word, question=question),
        _parts,
        partial(_option, question=question),
        partial(_suitable, read=_first_line, asked=asked, question=question),
        _output,
        partial(_last_lines, question=question, asked=asked),
        partial(_option_text, question=question),
        _short,
    ]
    return [*readers, _number, _last_yes_or_no] if lenient else readers


def _suitable(text: str, *, read: Reader, asked: Asked, question: str) -> Extracted | None:
    """Return what `read` finds, if it is what was asked for."""
    found = read(text)
    return found if found and suits(found.answer, asked, question) else None


def _option(text: str, question: str) -> Extracted | None:
    """Return the letter of the only option of `question` that `text` names, if it does so."""
    listed = options(question)
    if not listed:
        return None
    named = [found for found in _OPTION.finditer(text) if _letter(found) in listed]
    is_cut_off = _CUT_OFF.search(text[-MAX_LENGTH:])
    if is_cut_off or len({_letter(found) for found in named}) != 1 or _EXCLUDED.search(text):
        return None
    return _group(named[0])


def _letter(found: re.Match[str]) -> str:
    return found[found.lastindex or 0]


def _option_text(text: str, question: str) -> Extracted | None:
    """Return the text of the only option of `question` that `text` mentions, if it does so."""
    said = [
        found
        for option in options(question).values()
        if option
        and (found := re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE))
    ]
    if len(said) != 1 or _EXCLUDED.search(text):
        return None
    return Extracted(said[0][0], *said[0].span())


def read_json(text: str) -> dict[str, object] | list[object] | None:
    """Return `text` parsed as a JSON object or array, or else its last fenced block that is one.

    Numbers with a decimal point or an exponent are `Decimal`s, so that they compare exactly. A text
    longer than 100,000 characters is not read.
    """
    text = without_reasoning(text)
    if len(text) > _MAX_JSON:
        return None
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


def _answers(text: str, cue: Pattern, read: Reader) -> Iterator[Extracted]:
    """Yield what `read` finds after each match of `cue`, last match first."""
    for found in reversed(list(cue.finditer(text))[-_MAX_PLACES:]):
        if answer := read(text[found.end() : found.end() + MAX_LENGTH]):
            yield answer.moved(found.end())


def _stated(text: str, *, cue: Pattern, open_text: bool) -> Extracted | None:
    read = partial(_boxed_or_stated, open_text=open_text)
    return next(_answers(text, cue, read), None)


def _boxed_or_stated(text: str, *, open_text: bool) -> Extracted | None:
    first = re.match(r"\s*(?:\\\[|\$\$)?[^\n]*(?:\n\s*[^\n]*){0,2}", text)
    boxed = _boxed(first[0]) if first else None
    if boxed and not re.search(r"\n\s*\n.*\n\s*\n", text[: boxed.start].strip("\n")):
        return boxed
    if again := _SAID.match(text):
        inner = statement(text[again.end() :], open_text=open_text)
        if inner:
            return inner.moved(again.end())
    return statement(_one_block(text), open_text=open_text)


def _one_block(text: str) -> str:
    """Return `text` up to its first heading after the first line."""
    heading = re.search(r"\n[ \t]*+(?:#{1,6}\s|---|\*\*[^*\n]{1,40}\*\*:?[ \t]*+\n)", text.lstrip())
    leading = len(text) - len(text.lstrip())
    return text[: leading + heading.start()] if heading else text


def _marked(text: str) -> Extracted | None:
    return _marked_shortly(text) or _stated(text, cue=_MARKED, open_text=True)


def _marked_shortly(text: str) -> Extracted | None:
    """Return the last marked answer that is a value or a few words, not a sentence."""
    return next(_answers(text, _MARKED, _value_or_few_words), None)


def _value_or_few_words(text: str) -> Extracted | None:
    if (value := _boxed_or_stated(text, open_text=False)) is not None:
        return value
    few = _boxed_or_stated(text, open_text=True)
    return few if few and len(few.answer.split()) <= _MAX_STATED_WORDS else None


def _tagged(text: str) -> Extracted | None:
    for tag in reversed(list(_TAG.finditer(text))[-_MAX_PLACES:]):
        end = text.find(f"</{tag[1]}", tag.end())
        inner = text[tag.end() : end] if end >= 0 else ""
        answer = _boxed(inner) or _marked(inner) or (contents(inner) if inner.strip() else None)
        if answer:
            return answer.moved(tag.end())
    return None


def _boxed(text: str) -> Extracted | None:
    boxes: list[tuple[int, int, Extracted]] = []
    for box in reversed(list(_BOX.finditer(text))[-_MAX_BOXES:]):
        end = _closing_brace(text, box.end())
        if end is None:
            continue
        if boxes and not _BETWEEN_BOXES.fullmatch(text[end + 1 : boxes[0][0]]):
            break
        if content := contents(text[box.end() : end]):
            boxes.insert(0, (box.start(), end + 1, content.moved(box.end())))
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


def _hashes(text: str) -> Extracted | None:
    for found in reversed(list(_HASHES.finditer(text))[-_MAX_PLACES:]):
        if answer := statement(found[1], open_text=False):
            return answer.moved(found.start(1))
    return None


def _whole_json(text: str) -> Extracted | None:
    value = _loads(text)
    return None if value is None else _answer_of(value, text)


def _fenced_answer(text: str) -> Extracted | None:
    """Return the "answer" of a fenced JSON object; None if the objects have none."""
    return _fenced_json(text) if _ANSWER_KEY.search(text) else None


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
    answer = next((named[key] for key in _ANSWER_KEYS if named.get(key) is not None), None)
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
    if line is None or len(line.answer) > MAX_LENGTH:
        return None
    if found := _CHOICE_WITH_STOP.fullmatch(line.answer):
        return _group(found).moved(line.start)
    answer = choice(line.answer, sure=False) or conclusion(line.answer, "")
    is_letters = answer is not None and re.fullmatch(r"[A-Z](?:, [A-Z])*", answer.answer)
    return answer.moved(line.start) if answer and is_letters else None


def _short(text: str) -> Extracted | None:
    asks = text.endswith(("?", "\uff1f")) or re.match(
        r"(?:I|You|Let|Sure|Okay|OK|Hello|Hi)\b", text
    )
    is_short = "\n" not in text and len(_A_WORD.findall(text)) <= _MAX_WORDS
    if (
        not is_short
        or asks
        or _UNFINISHED.search(text)
        or _MARKED.match(text)
        or _SAID.search(text)
    ):
        return None
    return tidied(_whole(text))


def _number(text: str) -> Extracted | None:
    tail = text[-MAX_LENGTH:]
    found = [v.found for v in values(tail) if re.search(r"[\d\\]", v.found.answer)]
    if not found:
        return None
    last = found[-1]
    boxed = _boxed(tail[last.start : last.end])
    return (boxed.moved(last.start) if boxed else last).moved(len(text) - len(tail))


def _last_yes_or_no(text: str) -> Extracted | None:
    found = re.search(r"\b(yes|no)\b\W*+\Z", text[-MAX_LENGTH:], re.IGNORECASE)
    return _group(found).moved(max(0, len(text) - MAX_LENGTH)) if found else None


def _first_word(text: str, question: str) -> Extracted | None:
    """Return the yes, no, true or false with which a reply begins."""
    if _HOW_MANY.search(question) and not re.search(r"true|false|yes", question, re.IGNORECASE):
        return None
    found = yes_or_no(text[:MAX_LENGTH])
    if found is None:
        return None
    if _CORRECTED.match(text, found.end):
        return _last_yes_or_no(text)
    last = _YES_OR_NO_LAST.search(text[-MAX_LENGTH:])
    return _group(last).moved(max(0, len(text) - MAX_LENGTH)) if last else found


def _first_line(text: str) -> Extracted | None:
    """Return the first line, without emphasis, if it is an answer and an explanation follows."""
    line, _, rest = text.partition("\n")
    if not rest.strip() or len(line) > MAX_LENGTH:
        return None
    bare = line.strip(" *_`#>.!\u3002")
    if found := choice(line, sure=True):
        is_it = line.lstrip("* (")[:1] == found.answer[:1]
        return found if is_it and not re.search(r"\n[^\w\n]*+(?:B[).]|[A-Z]:)", rest) else None
    if not bare:
        return None
    at = line.index(bare)
    spoken = value_at(line, at)
    is_formula = spoken and spoken.is_equation and "=" in spoken.found.answer
    if spoken and not is_formula and spoken.end >= at + len(bare) and not _listed(line):
        return spoken.found
    return None


def _parts(text: str) -> Extracted | None:
    """Return the answers to parts (a), (b) and so on, if the text is nothing else."""
    lines = [line for line in text[: 2 * MAX_LENGTH].split("\n") if line.strip()]
    parts = [found for line in lines if (found := _PARTS.fullmatch(line))]
    if len(text) > 2 * MAX_LENGTH or len(parts) < 2 or len(parts) < len(lines):
        return None
    read = [statement(found[2], open_text=False) for found in parts]
    if not all(read):
        return None
    answers = [f"({found[1]}) {a.answer}" for found, a in zip(parts, read, strict=True) if a]
    return Extracted(", ".join(answers), 0, len(text))


def _output(text: str) -> Extracted | None:
    """Return a last code block that is announced as the output."""
    blocks = code_blocks(text)
    if (
        not blocks
        or not blocks[-1].closed
        or text[blocks[-1].start + len(blocks[-1].content) :].strip("` ~\n")
    ):
        return None
    before = text[: blocks[-1].start].rstrip()
    announced = _OUTPUT.search(before[: before.rfind("\n") + 1].rstrip()[-MAX_LENGTH:])
    start = blocks[-1].start
    return tidied(part(text, start, start + len(blocks[-1].content))) if announced else None


def _listed(line: str) -> bool:
    return re.match(r"\s*(?:\d+[.)]\s|[-*]\s|#)", line) is not None


def _last_lines(text: str, question: str, asked: Asked) -> Extracted | None:
    """Return the conclusion of the last line, courtesies and checks after it left out."""
    if _cut_off_box(text):
        return None
    flat = _DISPLAY.sub(lambda found: found[0].replace("\n", " "), text)
    end = len(flat)
    for _ in range(_MAX_LINES):
        start = flat.rfind("\n", 0, end) + 1
        line = flat[start:end]
        if _RULE.fullmatch(line) or _COURTESY.match(line) or (start and _CHECK.match(line)):
            end = start - 1
            if end <= 0:
                return None
            continue
        if _LABELLED_ITEM.match(line) and _LABELLED_ITEM.match(_line_before(flat, start)):
            return None
        if (
            "**" not in line
            and not concludes(line)
            and (above := _BOLD_LINE.search(flat, max(0, start - MAX_LENGTH), start))
        ):
            start, line = above.start(1), above[1]
        answer = (
            _table_total(line)
            if _TABLE_ROW.fullmatch(line)
            else _last_sentence(line, question, asked)
        )
        return answer.moved(start) if answer else None
    return None


def _line_before(text: str, start: int) -> str:
    end = max(0, start - 1)
    return text[text.rfind("\n", 0, end) + 1 : end]


def _cut_off_box(text: str) -> bool:
    boxes = list(_BOX.finditer(text))
    return bool(boxes) and _closing_brace(text, boxes[-1].end()) is None


def _table_total(row: str) -> Extracted | None:
    """Return the last cell of a row that is labelled "Total" or "Answer"."""
    cells = [cell for cell in re.finditer(r"[^|]+", row) if cell[0].strip()]
    if len(cells) < 2 or not _TOTAL_ROW.match(cells[0][0]):
        return None
    answer = statement(cells[-1][0], open_text=True)
    return answer.moved(cells[-1].start()) if answer else None


def _last_sentence(line: str, question: str, asked: Asked) -> Extracted | None:
    line_start = max(0, len(line) - 4 * MAX_LENGTH)
    line = line[line_start:]
    numbered = _NUMBERED.match(line)
    if numbered and _whole_value(line[numbered.end() :]):
        return None
    first = numbered.end() if numbered else 0
    if not line_start and not numbered and (direct := _direct(line, asked, question)):
        return direct
    starts = [first, *(found.end() for found in _SENTENCE_END.finditer(line, first))]
    ends = [*starts[1:], len(line)]
    sentences = list(zip(starts, ends, strict=True))[-_MAX_SENTENCES:]
    is_last = numbered is None
    if asked is Asked.TIME and not _CONCLUDED.search(line):
        sentences.reverse()
    if (
        asked in (Asked.NUMBER, Asked.ANYTHING)
        and asks_for_a_fact(question)
        and not _CONCLUDED.search(line)
        and not _COUNTS_ON.search(line)
    ):
        restated = [s for s in sentences if repeats(line[slice(*s)], question)][:1]
        if restated and len(values(line[slice(*restated[0])])) <= 1:
            sentences = restated
        is_last = is_last and bool(sentences) and sentences[0][1] == len(line)
    emphatic = [(a, b) for a, b in sentences if "**" in line[a:b] or is_correct(line[a:b])]
    for start, end in emphatic if len(emphatic) == 1 else reversed(sentences):
        sentence = line[start:end].rstrip()
        if not sentence or _COURTESY.match(sentence):
            continue
        if is_last and (_CUT_OFF.search(sentence) or _OPEN_LIST.match(sentence)):
            return None
        if _REFUSES.search(sentence) and "**" not in sentence:
            return None
        is_only = len(sentences) == 1
        if asked is Asked.NAME:
            answer = name(sentence, question)
        elif asked is Asked.YES_OR_NO:
            answer = verdict(sentence, question)
        elif asked is Asked.NUMBER:
            answer = counted(sentence, question)
        elif question and not values(sentence) and not choice_in(sentence):
            answer = name(sentence, question)
        else:
            answer = None
        answer = answer or _sentence(sentence, question, is_only=is_only, is_last=is_last)
        if answer and suits(answer.answer, asked, question):
            return answer.moved(start + line_start)
        if _EQUATION.search(sentence):
            return None
        if is_last and len(sentences) > 1 and not _CLOSED.search(sentence):
            return None
        is_last = False
    return None


def _direct(line: str, asked: Asked, question: str) -> Extracted | None:
    """Return a first sentence that is a value and on which the others only remark."""
    end = _SENTENCE_END.search(line)
    if end is None or concludes(line[end.end() :]):
        return None
    is_open = asked in (Asked.NAME, Asked.ANYTHING) and _HOW_MANY.match(question)
    if is_open and (answer := bare_name(line[: end.start()], question)):
        return answer
    value = _whole_value(line[: end.start()])
    is_equation = value is not None and "=" in line[: end.start()]
    remark = _REMARK if is_equation else _WORDS_FIRST
    if value and suits(value.answer, asked, question) and remark.match(line, end.end()):
        return value
    return None


def _sentence(sentence: str, question: str, *, is_only: bool, is_last: bool) -> Extracted | None:
    bare = sentence.strip("*_ ")
    if is_only and (found := choice(sentence)) and (len(bare) < 80):
        return found
    if is_only and len(bare) < 80 and _CHOICE_WITH_STOP.fullmatch(bare):
        return tidied(_whole(sentence))
    if is_last and (whole := _whole_value(sentence)):
        return whole
    found = conclusion(sentence, question, sentence_only=not is_last)
    if found is None and is_only and _bold_name(sentence):
        found = statement(sentence, open_text=True)
    return found


def _whole_value(sentence: str) -> Extracted | None:
    """Return the sentence if it is nothing but a value, as in "42 apples."."""
    first = re.match(r"[\s*_=\u2248>]*", sentence)
    at = first.end() if first else 0
    spoken = value_at(sentence, at)
    if spoken and re.fullmatch(r"[\s*_.!\u3002\u2713\u2705]*", sentence[spoken.end :]):
        return spoken.found
    return None


def _bold_name(sentence: str) -> bool:
    return re.match(r"\s*\*\*[^*\n]{1,60}\*\*\s*(?:\(|$|[,.\u2014\u2013-])", sentence) is not None


def _last_line(text: str) -> Extracted | None:
    end = len(text.rstrip())
    line = part(text, text.rfind("\n", 0, end) + 1, end)
    return line if line.answer else None


_READERS: Mapping[AnswerFormat, Reader] = {
    "marked": _marked,
    "boxed": _boxed,
    "choice": _choice,
    "number": _number,
    "json": _json,
    "last_line": _last_line,
}
_EXPLICIT_READERS: Sequence[Reader] = (
    _whole_json,
    _fenced_answer,
    _tagged,
    _marked_shortly,
    _boxed,
    partial(_stated, cue=_MARKED, open_text=True),
    partial(_stated, cue=_SAID, open_text=False),
    _hashes,
    partial(_stated, cue=_RESULT_LINE, open_text=False),
    partial(_stated, cue=_SAID, open_text=True),
    _fenced_json,
)
