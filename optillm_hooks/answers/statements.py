"""Reading an answer out of a statement, and out of a concluding sentence.

A statement is what follows "The answer is" or stands in a box, a tag or bold: it begins with the
answer, and words may follow. A conclusion is a sentence about the answer, as in "So she has 42
apples left."
"""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.phrases import (
    CJK_CHOOSE,
    CJK_ENDS,
    CJK_VERBS,
    CJK_YES_NO,
    words,
)
from optillm_hooks.answers.values import LETTERS, Extracted, Value, part, settled, value_at, values
from optillm_hooks.answers.words import number_in_words

MAX_LENGTH = 600
"""Maximum length of a statement or a sentence; what follows is ignored."""

_MAX_NAME_WORDS = 6
_MAX_VALUES = 20
"""Maximum number of values, or of lists of them, in a sentence that concludes with one."""

_MAX_BEFORE = 60
"""Length of the text before a value in which words that introduce it are looked for."""

_MAX_EXCLUSION = 20
"""Length of the text after a choice that can exclude it: "option B is wrong"."""

# Decoration.
_DELIMITERS = (
    ("$$", "$$"),
    ("$", "$"),
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("“", "”"),
    ("「", "」"),
    ('"', '"'),
)
_PLACEHOLDER = Pattern(
    r"\W*|<.*>|\[?(?:your |the )?(?:final |numerical )?(?:answer|letter|value)(?: here)?\]?",
    re.IGNORECASE,
)
_WRAPPED = Pattern(
    r"(?:(?<!\s)\s++)?\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it|sf)|mbox)\s*+\{([^{}]*)\}[\s.]*+"
)
_BOXED_LABEL = Pattern(
    r"\s*\\text\{\s*(?:the\s)?(?:final\s)?answer(?:\sis)?\s?:?\s*\}", re.IGNORECASE
)
_BOLD = Pattern(r"(?:\*\*|__)(?=[^\s*_])([^*\n]*?[^*\n \t])[ \t]*+(?:\*\*|__)(?!\*)")
_LABEL = Pattern(r"[:：]\s*$")

# Statements.
_BECAUSE = words(lambda w: w.because)
_REASON = r"(?:because|since|weil|parce\sque|porque|perché|poiché)"
_NOT = words(lambda w: w.negation)
_AND = words(lambda w: w.conjunction)
_END_OF_STATEMENT = Pattern(
    rf"(?:[.?](?!\d)|(?<!\d)!)(?=\s|[*_`\"')\]]*$)|[。！？]|,\s+{_BECAUSE}\s|\s(?:{_REASON}|as|which"
    rf"|so\sthat)\s|;\s|\s[—–]\s"
    rf"|,\s+{_NOT}\s",
    re.IGNORECASE,
)
_OPTION = rf"(?:{words(lambda w: w.option)}(?!\w)|选项|選項)"
_FENCED = Pattern(r"\s*(?=```|~~~)")
_SKIPPED = Pattern(
    rf"(?:[\s*_`:：>=≈~→“\"]|\\(?:approx|quad|,|;)|[-•–](?=\s)|{words(lambda w: w.filler)}(?!\w"
    rf"|\s*=)"
    r"|(?:the\s)?(?:number|value|set|equation|interval|point|matrix|vector|ratio|date"
    r"|time)\s(?:of\s|is\s)?)*+",
    re.IGNORECASE,
)
_NOT_BUT = Pattern(
    rf"\W*{_NOT}\s.{{1,60}}?,?\s(?:but|sondern|mais|sino|ma|bensì|mas|maar)\s(?:rather\s)?",
    re.IGNORECASE,
)
_NEGATED = Pattern(r"\W*(?:not|nicht|pas)\b(?! necessarily)", re.IGNORECASE)
_UNKNOWN = Pattern(
    r"\W*(?:(?:it|this|the answer)\s(?:cannot|can't|depends|is not)\b|unknown|unclear"
    r"|undetermined|un?certain|unavailable|based|obtained|given by|found"
    r"|as follows"
    r"|cannot be|can't be|can be|let'?s|let us|first|we\b|to\b|i\b|in\b|the following|derived"
    r"|calculated"
    r"|step|dependent|different|provided|below|above|shown|correct\W*$|wrong|incorrect)",
    re.IGNORECASE,
)
_REJECTED_REST = Pattern(
    r"\s*+(?:(?:,\s*+)?plus\s|(?:times|mal|fois|veces|volte|vezes|than|more than|less than"
    r"|fewer than|plus|minus|divided|multiplied|modulo|mod|older|younger)\b"
    r"|\d|(?-i:[A-Z][a-z]?[₀-₉])|[\\+/=×·^)\]}<>]|\*(?!\*)|-\w)",
    re.IGNORECASE,
)
_OF_MORE = Pattern(r"\s*of\b(?! (?:them|these|those|which)\b)", re.IGNORECASE)
_BETWEEN_ITEMS = Pattern(rf"\s*+(?:,\s*+(?:{_AND}\s(?!=))?|{_AND}\s(?!=)|;\s)\s*+", re.IGNORECASE)

# Choices, and yes or no.
_WRAPPING = r"(?:[\s*_`\"'$<\[]|\\?\\(?:text(?:bf|it|rm)?|mathrm|mathbf|boxed)\s*+\{)*+"
_CHOICE = Pattern(
    rf"{_WRAPPING}(?:la\s|the\s)?(?:{_OPTION}\s*+(?:[:：]\s*+)?)?{_WRAPPING}"
    r"(?:\((?P<enclosed>[A-Z])\)|(?P<plain>[A-Z])(?:(?P<mark>\)|\s?[:：](?=\s|\*)|\s?\}"
    r"|\s?\*\*(?!\w)|\$|\]|>)"
    rf"|(?P<stop>\.)(?=\s|\*|\}}|\"|$)|(?=\s*+(?:$|[,;!?。，、]|[—–-]\s|\((?!\s?\d)|(?<=\s)\("
    rf"|(?<=\s){_BECAUSE}\s|{CJK_ENDS}|[가-힣]|(?<=\s)is\b|\*))))",
)
_BARE_OPTION = Pattern(
    rf"{_WRAPPING}{_OPTION}\s*+(?:[:：]\s*+)?{_WRAPPING}\(?([A-Z])\)?(?!['’\w])", re.IGNORECASE
)
_ONE_OF_MANY = r"\*{0,2}\(?[A-J]\)?\*{0,2}"
_CHOICES = Pattern(
    rf"{_WRAPPING}(?:(?i:both|options?|choices?)\s++)?(?P<list>{_ONE_OF_MANY}"
    rf"(?:(?:\s*+(?:[,&]\s*+|[、和])|,?\s++(?:and|und|et|y|e)\s++){{1,2}}"
    rf"{_ONE_OF_MANY})+)(?![\w'’^(]|\s*+[=+*/.]\s?\w)"
)
_LETTER_ALONE = Pattern(rf"(?<![{LETTERS}\\])[A-J](?![{LETTERS}'’])")
_YES_OR_NO = Pattern(
    rf"[\W_]{{0,9}}((?:{words(lambda w: w.yes_no)})(?![\w'’-])|{CJK_YES_NO})"
    rf"(?=\s*(?:[.,:;!*)\n—–。，、！_-]|\Z)|\s+{_BECAUSE}\s)",
    re.IGNORECASE,
)
_VERDICT = Pattern(
    r"\b(?:statement|claim|assertion|proposition|hypothesis|conjecture|it|this|that|answer"
    r"|Aussage|affirmation"
    r"|afirmación|affermazione|afirmação)\s+(?:is|ist|est|es|è|é)\s+(?:therefore\s|thus\s"
    r"|indeed\s|also\s)?[*_]{0,2}"
    r"(true|false|yes|no|wahr|falsch|vraie?|fausse|faux|verdader[oa]|fals[oa]"
    r"|ver[oa])\b(?!\s+(?:that|if|when))",
    re.IGNORECASE,
)


def tidied(found: Extracted) -> Extracted | None:
    """Return `found` without emphasis, math delimiters and full stop; None for a placeholder."""
    text = found.answer
    start, end = _tidy_span(text)
    if _PLACEHOLDER.fullmatch(text, start, end):
        return None
    if not found.is_verbatim():
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
        if text.endswith((".", "。"), start, end) and not text.endswith("..", start, end):
            end -= 1
        for opening, closing in _DELIMITERS:
            first, last = start + len(opening), end - len(closing)
            enclosed = text.startswith(opening, start) and text.endswith(closing, first, end)
            if enclosed and opening not in text[first:last]:
                start, end = first, last
    return start, end


def _is_decoration(character: str) -> bool:
    return character in "*`" or character.isspace()


def choice(text: str, *, sure: bool = True) -> Extracted | None:
    """Return the letter or letters of the choices with which `text` begins, or None.

    With `sure`, "B. Paris" is a choice only if no name can be meant, as in "C. difficile".
    """
    if (found := _CHOICES.match(text)) and len(set(_LETTER_ALONE.findall(found["list"]))) > 1:
        letters = ", ".join(dict.fromkeys(_LETTER_ALONE.findall(found["list"])))
        return Extracted(letters, *found.span("list"))
    if found := _IS_CORRECT.match(text):
        return Extracted(found[1], *found.span(1))
    if found := _CHOICE.match(text):
        at = "enclosed" if found["enclosed"] else "plain"
        rest = text[found.end() :]
        if found["stop"] and (re.match(r"\s+[a-z]", rest) or (sure and re.match(r"\s+\w", rest))):
            return None
        if at == "plain" and found["mark"] is None and found["plain"] in "IXY" and rest.strip():
            return None
        if found["plain"] and found["plain"] > "J" and not found["mark"]:
            return None
        if re.match(r"\s*[=+^]", rest) or (at == "plain" and re.match(r"\s*is\b", rest)):
            return None
        return Extracted(found[at], *found.span(at))
    if found := _BARE_OPTION.match(text):
        excluded = _EXCLUDES.search(text, found.end(), found.end() + _MAX_EXCLUSION)
        is_choice = found[1].isupper() and not excluded
        return Extracted(found[1], *found.span(1)) if is_choice else None
    return None


def yes_or_no(text: str) -> Extracted | None:
    """Return the yes, no, true or false with which `text` begins, or None."""
    found = _YES_OR_NO.match(text)
    return Extracted(found[1], *found.span(1)) if found else None


def contents(text: str) -> Extracted | None:
    """Return the answer in `text`, which is all that stands in a box or a tag."""
    if wrapped := _WRAPPED.fullmatch(text):
        inner = contents(wrapped[1])
        return inner.moved(wrapped.start(1)) if inner else None
    if found := choice(text, sure=False):
        return found
    if label := _BOXED_LABEL.match(text):
        inner = contents(text[label.end() :])
        return inner.moved(label.end()) if inner else None
    bare = tidied(part(text, 0, len(text)))
    if bare is None:
        return None
    words_outside = re.findall(rf"(?<!\\)(?<![{LETTERS}])[{LETTERS}]{{3,}}", bare.answer)
    if "\\" in bare.answer or not words_outside:
        answer = settled(bare.answer)
        return answer.moved(bare.start) if bare.is_verbatim() else answer
    return statement(text, open_text=True)


def statement(text: str, *, open_text: bool, sure: bool = False) -> Extracted | None:
    """Return the answer with which `text` begins, or None.

    With `open_text`, words are an answer too, up to the end of their sentence.
    """
    text = text[:MAX_LENGTH]
    if (fence := _FENCED.match(text)) and (blocks := code_blocks(text[fence.end() :])):
        return tidied(part(text, *_span(blocks[0].start + fence.end(), blocks[0].content)))
    first = re.match(r"[\s>]*", text)
    start = first.end() if first else 0
    if items := _items(text[start:]):
        return items.moved(start)
    spoken = value_at(text, _skipped(text, start))
    if spoken and (answer := _stated_value(text, spoken)):
        return answer
    line = text[start:].partition("\n")[0]
    answer = _in_line(line, open_text=open_text, sure=sure)
    return answer.moved(start) if answer else None


def _span(start: int, content: str) -> tuple[int, int]:
    return start, start + len(content)


def _skipped(text: str, at: int) -> int:
    found = _SKIPPED.match(text, at)
    return found.end() if found else at


def _in_line(line: str, *, open_text: bool, sure: bool) -> Extracted | None:
    if negated := _NOT_BUT.match(line):
        rest = statement(line[negated.end() :], open_text=open_text)
        return rest.moved(negated.end()) if rest else None
    if _NEGATED.match(line):
        return None
    for read in (lambda t: choice(t, sure=sure), yes_or_no, _bold_first):
        if (found := read(line)) is not None:
            return found
    if re.search(r"\?[^\w?]*+$", line):
        return None
    end = _END_OF_STATEMENT.search(line)
    said = line[: end.start()] if end else line
    if (found := conclusion(said, "", sentence_only=True)) is not None:
        return found
    if _UNKNOWN.match(said):
        return conclusion(line, "", sentence_only=True)
    if not open_text:
        return None
    return tidied(part(said, *_open_span(said)))


def _open_span(text: str) -> tuple[int, int]:
    end = re.search(rf"(?:(?<!\s)\s++)?(?:{CJK_ENDS})[。.]?\s*+$", text)
    return 0, end.start() if end else len(text)


def _bold_first(line: str) -> Extracted | None:
    found = re.match(r"[\s\"“>•✅-]*", line)
    at = found.end() if found else 0
    bold = _BOLD.match(line, at)
    if bold is None or _LABEL.search(bold[1]) or re.match(r"\s*[:：=+*/^×]", line[bold.end() :]):
        return None
    if several := _joined_bold(line, [bold, *_BOLD.finditer(line, bold.end())]):
        return several
    return _inside_bold(bold)


def _inside_bold(bold: re.Match[str]) -> Extracted | None:
    inner = statement(bold[1], open_text=True)
    return inner.moved(bold.start(1)) if inner else None


def _joined_bold(line: str, bolds: Sequence[re.Match[str]]) -> Extracted | None:
    """Return bold values separated by commas or "and" as one answer."""
    if len(bolds) < 2:
        return None
    gaps = [line[a.end() : b.start()] for a, b in pairwise(bolds)]
    inner = [_inside_bold(bold) for bold in bolds]
    if all(_BETWEEN_ITEMS.fullmatch(gap) for gap in gaps) and all(inner):
        answers = dict.fromkeys(
            bold[1].strip() if "=" in bold[1] else found.answer
            for bold, found in zip(bolds, inner, strict=True)
            if found
        )
        return Extracted(", ".join(answers), bolds[0].start(1), bolds[-1].end(1))
    return None


def _stated_value(text: str, spoken: Value) -> Extracted | None:
    """Return the value that a statement begins with, with the others of its list."""
    last = spoken
    while (gap := _BETWEEN_ITEMS.match(text, last.end)) and "\n" not in gap[0]:
        following = value_at(text, gap.end())
        if following is None or _belongs_to_more(text, following):
            break
        last = following
    if _belongs_to_more(text, last) or (
        last is spoken and re.match(rf"\s{_AND}\s", text[last.end :]) and not _is_closed(text, last)
    ):
        return None
    if last is spoken:
        return spoken.found
    return tidied(part(text, spoken.start, last.end))


def _belongs_to_more(text: str, item: Value) -> bool:
    """Return True if what follows makes the value part of something larger: "3 of the 5"."""
    is_bare = item.found.answer.isdigit()
    more = _REJECTED_REST.match(text, item.end) or (is_bare and _OF_MORE.match(text, item.end))
    return more is not None and more is not False


def _is_closed(text: str, last: Value) -> bool:
    """Return True if no second answer follows "and": only a clause does."""
    return re.match(rf"\s{_AND}\s(?:\d|\*|\$)", text[last.end :]) is None


_ITEM = Pattern(
    r"[ \t>]*(?:[-*•+]\s+|\(?(?:[a-h]|[ivx]{1,4}|\d{1,2})[.)]\s+|\([a-h]\)\s*)(.+)", re.IGNORECASE
)
_PART = Pattern(r"\(?(?:[a-h]|[ivx]{1,4})\)|\d{1,2}\)|(?:Part|Teil)\s\(?[a-d1-9]\)?", re.IGNORECASE)


def _items(text: str) -> Extracted | None:
    """Return the lines of a list of short answers as one answer: (a) 12, (b) 7.5."""
    block = re.split(r"\n\s*\n(?![ \t>]*(?:[-*•]\s|\(?[a-h]\)))", text.strip(), maxsplit=1)[0]
    lines = [line for line in block.split("\n") if line.strip()]
    items = [found for line in lines if (found := _ITEM.fullmatch(line))]
    if len(items) < 2 or len(items) != len(lines):
        return None
    answers = [tidied(part(item[1], 0, len(item[1]))) for item in items]
    if not all(a and len(a.answer.split()) <= _MAX_NAME_WORDS for a in answers):
        return None
    labelled = all(_PART.match(line.strip()) for line in lines)
    spoken = [
        f"{line.strip().split()[0]} {a.answer}" if labelled else a.answer
        for line, a in zip(lines, answers, strict=True)
        if a
    ]
    start = text.index(lines[0])
    return Extracted(", ".join(spoken).replace("*", ""), start, start + len(block))


# Conclusions.
_VERB = rf"{words(lambda w: ' '.join((w.copula, w.verbs)))}(?!\w)"
_ASSERTED = Pattern(
    rf"(?:(?<!\w){_VERB}|(?:{CJK_VERBS}|['’]s(?=\s)|[:：=≈→]|\\approx))(?:[\s*_`\"(,~]++"
    rf"|{words(lambda w: w.filler)}(?!\w)|(?<![\w])(?:the|an?|of)\s"
    r"|(?:number|value|point|interval|equation|set|exponent|pair|order|ratio|total)\s){0,20}+\Z",
    re.IGNORECASE,
)
_CONCLUDES = Pattern(
    rf"\W{{0,6}}(?:{words(lambda w: w.therefore)}(?!\w)|因此|所以|故|综上|よって|したがって"
    r"|따라서)",
    re.IGNORECASE,
)
_LAST_CLAUSE = Pattern(
    rf"(?:[,;—–]\s*|\s)(?:(?:and|und|et|y)\s)?(?:{words(lambda w: w.therefore)})(?!\s(?:far"
    rf"|that)\b)(?!\w),?\s",
    re.IGNORECASE,
)
_INSTEAD = Pattern(
    r";\s+(?:rather,?\s|instead,?\s)?(?=(?:it|the answer|the correct)\b)", re.IGNORECASE
)
_ASIDE = Pattern(
    rf",\s+(?:{_BECAUSE}|{_NOT}|rather\sthan|instead\sof|including)\s|\s[—–]\s|;\s"
    rf"|\s(?:instead of|rather than|not)\s",
    re.IGNORECASE,
)
_BECAUSE_CLAUSE = Pattern(rf"\s{_REASON}\s", re.IGNORECASE)
_OTHER_SUBJECT = Pattern(
    r"\W*(?:I(?!['’]?\w*\s(?:get|find|obtain|choose|would choose|pick|select))\b|let|see|here"
    r"|consider|step|first|"
    r"next|now|if|when|note|for|using|suppose|assume|imagine|recall|remember|given|to\s"
    r"|there are (?:two|three|several|many)"
    r"|however|but|in (?:step|part|case|order)|according|error|sure|okay|ok|hmm|please"
    r"|this (?:question|problem|is a)|as an)\b",
    re.IGNORECASE,
)
_WE = Pattern(r"\W*(?:we|i|you|each|every)\b", re.IGNORECASE)
_COMPARED = Pattern(
    r"(?:(?<!\s)\s++)?(?:is|are|was|ist|est|es|è|é|>)\s(?:\w+\s)?(?:\w+er|more\s\w+|less\s\w+|worse|better"
    r"|größer|kleiner|plus\s\w+|"
    r"mayor|menor|maggiore|minore|maior)\s(?:than|als|que|di|do)\b",
    re.IGNORECASE,
)
_REFERENCE = Pattern(
    r"\b(?:step|part|case|page|figure|fig\.?|table|chapter|section|question|problem|exercise"
    r"|equation|eq\.?|version|rule|"
    r"method|option|example|line|level|theorem|lemma|no\.|number of|#)\s*\Z",
    re.IGNORECASE,
)
_CONDITION = Pattern(
    r"\b(?:at|when|if|for|with|where|whenever|let|given|setting|substituting|using|since"
    r"|because)\s*\Z",
    re.IGNORECASE,
)
_NONE = Pattern(
    r"\b(no (?:real |integer |positive |such |valid |possible )*(?:solutions?|numbers?|values?"
    r"|integers?|answer)"
    r"|does not exist|doesn['’]t exist|undefined|infinitely many(?: solutions)?"
    r"|all real numbers)\b(?P<rest>[^.]*)",
    re.IGNORECASE,
)
_SAID_OF_CHOICE = Pattern(
    r"(?:\b(?:is|be|['’]s|choose|pick|select|chose|therefore|thus|so|hence|with|as)\s++|[:：]\s*+"
    r"|->\s*+|→\s*+)"
    rf"(?:(?:the|clearly|definitely|therefore|most likely)\s++){{0,4}}(?i:{_OPTION}\s*+)?"
    rf"(\*{{0,2}}\(?([A-J])\)?\*{{0,2}})(?=\s*+(?:[.,;!*)]|\Z|(?<=\s){_BECAUSE}\s|[—–(]))"
)
_CHOICE_INSIDE = Pattern(
    rf"(?<!\w)\(([A-H])\)|\*\*\(?([A-H])\)?\*\*|{_OPTION}[ \t]+\(?([A-H])(?![\w'’])"
    rf"|(?:{CJK_CHOOSE}|[はは])\s?[*(]*([A-H])(?![A-Za-z])",
    re.IGNORECASE,
)
_ROMAN = Pattern(r"\b(?:is|are)\s(\([ivx]+\)(?:(?:,\s*|,?\s+and\s+)\([ivx]+\))*)(?=[\s.,;]*\Z)")
_PREFERRED = Pattern(
    r"(?<![\w'’])\(?([A-J])\)?\*{0,2}\s+(?:is|seems to be|must be)\s+(?:the\s)?(?:better|best"
    r"|correct|right|only)\b"
)
_PICKED = Pattern(
    rf"\b(?:choose|pick|select|chose|go with|leaves(?!.{{0,80}}\b(?:and|or)\b)"
    rf"|opt for)\s++(?:the\s)?(?i:{_OPTION}\s*+)?[*(]*+([A-J])(?![\w'’])"
)
_IS_CORRECT = Pattern(
    rf"{_WRAPPING}(?i:{_OPTION}\s*+)?{_WRAPPING}\(?([A-J])\)?\W*+(?<=\s)(?:is|ist|est|es|è|é)\s+(?:the\s"
    rf"|die\s|la\s|a\s)?"
    r"(?:correct|right|best|true|answer|richtig|bonne|correcta|corretta|certa)",
)
_EXCLUDES = Pattern(
    r"\b(?:wrong|incorrect|ruled out|eliminat\w+|not|cannot|can't|isn't|ignores?|false|falsch"
    r"|excluded?|perhaps|maybe|possible|"
    r"whether|either|unlikely|distractor)\b",
    re.IGNORECASE,
)


def conclusion(sentence: str, question: str, *, sentence_only: bool = False) -> Extracted | None:
    """Return the answer that `sentence` concludes with, or None.

    With `sentence_only`, the text may also be a name or a remark, so that a value in it must be
    asserted with a verb or an equals sign.
    """
    sentence = sentence[:MAX_LENGTH]
    start = _start_of_last_clause(sentence)
    if (picked := _PICKED.search(sentence)) and not _EXCLUDES.search(sentence[: picked.start()]):
        return Extracted(picked[1], *picked.span(1))
    if re.search(r"[?？][^\w?？]*+$", sentence) or _OTHER_SUBJECT.match(sentence, start):
        return None
    if start and _bold_values(sentence[:start]) and not _bold_values(sentence[start:]):
        return None  # emphasis and conclusion differ
    clause = _without_aside(sentence[start:])
    asserted_only = sentence_only or bool(_WE.match(sentence))
    found = _read_clause(clause, question, asserted_only=asserted_only)
    return found.moved(start) if found else None


def _bold_values(text: str) -> bool:
    return any(values(bold[1]) for bold in _BOLD.finditer(text))


def _start_of_last_clause(sentence: str) -> int:
    if again := _INSTEAD.search(sentence):
        return again.end()
    starts = [found.end() for found in _LAST_CLAUSE.finditer(sentence)]
    return starts[-1] if starts and values(sentence[starts[-1] :]) else 0


def _without_aside(clause: str) -> str:
    """Return `clause` without a remark at its end, such as ", not 12" or "because ..."."""
    aside = _ASIDE.search(clause)
    if aside and (values(clause[: aside.start()]) or _BOLD.search(clause[: aside.start()])):
        clause = clause[: aside.start()]
    reason = _BECAUSE_CLAUSE.search(clause)
    return clause[: reason.start()] if reason else clause


def _read_clause(clause: str, question: str, *, asserted_only: bool) -> Extracted | None:
    if negated := re.search(
        rf"\s{_NOT}\s.{{1,40}}?,?\s(?:but|sondern|mais|sino|ma|mas)\s", clause, re.IGNORECASE
    ):
        rest = statement(clause[negated.end() :], open_text=False)
        if rest:
            return rest.moved(negated.end())
    if (verdict := _VERDICT.search(clause)) and not values(clause):
        return Extracted(verdict[1], *verdict.span(1))
    if (found := _chosen(clause)) or (found := _bold_conclusion(clause)):
        return found
    if found := _value_conclusion(clause, question, asserted_only=asserted_only):
        return found
    if (none := _NONE.search(clause)) and not re.search(r"\bat\b|\bwhen\b|\bif\b", none["rest"]):
        return Extracted(none[1], *none.span(1))
    return (_named(clause, question) if question else None) or _complement(clause)


def _chosen(clause: str) -> Extracted | None:
    if (found := _PREFERRED.search(clause)) and not _EXCLUDES.search(clause, found.start()):
        return Extracted(found[1], *found.span(1))
    if found := _ROMAN.search(clause):
        return Extracted(found[1], *found.span(1))
    if said := list(_SAID_OF_CHOICE.finditer(clause)):
        if several := _CHOICES.match(clause, said[-1].start(1)):
            return Extracted(several["list"].replace("*", ""), *several.span("list"))
        if not _EXCLUDES.search(clause[max(0, said[-1].start() - 20) :]):
            return Extracted(said[-1][2], *said[-1].span(2))
        return None
    inside = [
        Extracted(found[at].upper(), *found.span(at))
        for found in _CHOICE_INSIDE.finditer(clause)
        if (at := found.lastindex or 0) and (found[at].isupper())
    ]
    letters = list(dict.fromkeys(found.answer for found in inside))
    if not letters or _EXCLUDES.search(clause):
        return None
    if len(letters) == 1:
        return inside[-1]
    between = clause[inside[0].start : inside[-1].end]
    if re.search(r"\bor\b", between) or not re.search(r"\band\b|,", between):
        return None
    return Extracted(", ".join(letters), inside[0].start, inside[-1].end)


def _bold_conclusion(clause: str) -> Extracted | None:
    bolds = [b for b in _BOLD.finditer(clause) if not _LABEL.search(b[1])]
    if len(bolds) > _MAX_VALUES:
        return None
    bolds = [b for b in bolds if yes_or_no(b[1]) or not re.match(r"\s*[:：]", clause[b.end() :])]
    if not bolds:
        return None
    if several := _joined_bold(clause, bolds):
        return several
    bolds = [
        b for b in bolds if values(b[1]) or not re.match(r"\s(?:as|than)\s", clause[b.end() :])
    ]
    read = [(bold, inner) for bold in bolds if (inner := _inside_bold(bold))]
    if not read:
        return None
    if len(read) > 1:
        asserted = [(b, i) for b, i in read if _before(_ASSERTED, clause, b.start())]
        read = asserted or [(b, i) for b, i in read if values(b[1])]
    if len({inner.answer for _, inner in read}) != 1:
        return None
    bold, inner = read[-1]
    outside = clause[: bold.start()] + clause[bold.end() :]
    if (
        not values(bold[1])
        and values(outside)
        and _before(_ASSERTED, clause, values(outside)[-1].start)
    ):
        return None
    return inner


def _value_conclusion(clause: str, question: str, *, asserted_only: bool) -> Extracted | None:
    every = values(clause)
    if len(list(_lists(clause, every))) > _MAX_VALUES:
        return None
    found = [
        v
        for v in every
        if not _before(_REFERENCE, clause, v.start)
        and not re.search(
            rf"(?<!\w){_NOT}\W+\Z", clause[max(0, v.start - 12) : v.start], re.IGNORECASE
        )
        and not (v.is_equation and _before(_CONDITION, clause, v.start))
    ]
    if not found:
        return None
    if _COMPARED.match(clause, found[0].end) and not clause[: found[0].start].strip(" *_\"'$"):
        return found[0].found
    if len(found) > 1 and question:
        found = [v for v in found if clause[v.start : v.end] not in question] or found
    lists = list(_lists(clause, found))
    asserted = [
        item
        for item in lists
        if _before(_ASSERTED, clause, item[0].start) or item[0].is_equation or item[0].start == 0
    ]
    asserted = [item for item in asserted if not _belongs_to_more(clause, item[-1])]
    if len(asserted) > 1:
        asserted = [i for i in asserted if i[0].start != 0] or asserted
    if len(asserted) == 1 and (item := asserted[0]):
        if item[0].start == 0 and len(lists) > 1 and not item[0].is_equation:
            return None
        return _list_answer(clause, item)
    if asserted and all(item[0].is_equation for item in asserted):
        return _list_answer(clause, asserted[-1])
    answers = {item[-1].found.answer for item in asserted}
    if len(answers) == 1:
        return _list_answer(clause, asserted[-1])
    if asserted or asserted_only or len(lists) != 1 or found[0].kind == "code":
        return None
    if _belongs_to_more(clause, lists[0][-1]):
        return None
    return _list_answer(clause, lists[0])


def _before(pattern: Pattern, clause: str, at: int) -> bool:
    """Return whether `pattern`, which ends at the end, is in the last words before `at`."""
    return pattern.search(clause, max(0, at - _MAX_BEFORE), at) is not None


def _lists(clause: str, found: Sequence[Value]) -> Iterator[list[Value]]:
    """Yield the values, those that only commas or "and" separate together."""
    current: list[Value] = []
    for item in found:
        if current and not (
            _BETWEEN_ITEMS.fullmatch(clause, current[-1].end, item.start)
            and current[-1].is_equation == item.is_equation
        ):
            yield current
            current = []
        current.append(item)
    if current:
        yield current


def _list_answer(clause: str, item: Sequence[Value]) -> Extracted | None:
    if len(item) == 1:
        return item[0].found
    return tidied(part(clause, item[0].start, item[-1].end))


_COMPARATIVE = Pattern(
    r"\W*([^\W\d_][\w' ]{0,30}?)\s(?:is|was)\s(?:[a-z]+er|(?:more|less)\s\w+)\W*"
)
_WORD = Pattern(r"[^\W_]+(?:['’-][^\W_]+)*")
_IS = Pattern(
    r"\s(?:is(?:\scalled)?|are|was|were|be|ist|sind|war|heißt|heisst|lautet|est|sont|s['’]appelle"
    r"|es|son|se\sllama|è|sono|si\schiama|é|são|se\schama)\s(?!not\b|that\b|called\b)",
    re.IGNORECASE,
)
_LEAD = Pattern(rf"\W*(?:{words(lambda w: w.therefore)}(?!\w),?\s)?", re.IGNORECASE)
_BEFORE_REMARK = Pattern(r"\*{0,2}(?:,\s|\s[—–(]|[;:，；（(。]|[.!]\s*\Z|\Z)")
_CJK_IS = Pattern(
    r"([^是は]{2,40}?)(?:是|は)[*“「\s]*([^*，。（(]{1,20}?)[*”」]*(?:です|である)?\Z"
)
_DONE_BY = Pattern(
    r"\b(?:by|von|par|por|da|de)\s[*_]*((?:[A-ZÀ-Ý][\w'’.-]*|\b(?:de|von|van|der|da|la)\b)"
    r"(?:\s(?:[A-ZÀ-Ý][\w'’.-]*|(?:de|von|van|der|da|la)\b))*)"
)
_DOER = Pattern(r"\W*((?:[A-ZÀ-Ý][\w'’-]+)(?:\s[A-ZÀ-Ý][\w'’-]+){0,3})\s([a-zà-ÿ]+)\b(?!\snot\b)")
_WHO = Pattern(r"\b(?:who|wer|qui|quién|chi|quem)\b", re.IGNORECASE)
_ARTICLE = Pattern(
    r"(?:in|the|an?|der|die|das|le|la|les|l['’]|il|lo|el|los|o|a)(?:(?<=['’])|\s)", re.IGNORECASE
)
_NO_NAME = Pattern(
    r"(?:The|It|He|She|They|This|That|In|We|I|You|There|Nobody|No|One|Der|Die|Das|Il|La|Le|El|O|A)\b"
)


def name(sentence: str, question: str) -> Extracted | None:
    """Return the name in `sentence` that answers `question`, which asks for one, or None."""
    sentence = sentence[:MAX_LENGTH]
    lead = _LEAD.match(sentence)
    start = lead.end() if lead else 0
    if clauses := list(_LAST_CLAUSE.finditer(sentence, start)):
        start = clauses[-1].end()
    end = _BEFORE_REMARK.search(sentence, start)
    clause = sentence[start : end.start() if end else len(sentence)]
    if (found := _CJK_IS.match(clause)) and 2 * len(set(found[1]) & set(question)) >= len(
        set(found[1])
    ):
        return Extracted(found[2], *found.span(2)).moved(start)
    if re.search(rf"\s{_NOT}\s", clause, re.IGNORECASE):
        return None
    if _WHO.search(question):
        doer = _DOER.match(sentence, start)
        is_asked = doer and re.search(rf"\b{re.escape(doer[2])}\b", question)
        if doer and is_asked and doer[0].strip() not in question and not _NO_NAME.match(doer[1]):
            return Extracted(doer[1], *doer.span(1))
        if by := _DONE_BY.search(sentence):
            return tidied(Extracted(by[1], *by.span(1)))
    if _OTHER_SUBJECT.match(clause) or yes_or_no(clause):
        return None
    found_name = _named(clause, question) or _complement(clause)
    if found_name is None:
        return None
    article = _ARTICLE.match(found_name.answer)
    skipped = article.end() if article else 0
    return part(sentence, start + found_name.start + skipped, start + found_name.end)


_BARE_NAME = Pattern(
    r"\W*(?:(?:The|A|An|Der|Die|Das|La|Le|Les|Il|El|L['’])\s?)?"
    r"((?!(?:Sure|Okay|OK|Well|Yes|No|True|False|Great|Hi|Hello|Thanks|Correct|Certainly|Absolutely"
    r"|Gerne|Gute|Ja|Nein|Oui|Non|S[iíì]|It|This|That|Here|Interesting)\b)[A-ZÀ-Ý][\w'’.-]*+"
    r"(?:\s(?:(?:of|de|von|van|the|da|del|du)\s)?[A-ZÀ-Ý][\w'’-]*+){0,3})[*_]*[.!]?\s*"
)


def bare_name(sentence: str, question: str) -> Extracted | None:
    """Return the name that is all of `sentence`, unless `question` already says it."""
    found = _BARE_NAME.fullmatch(sentence[:MAX_LENGTH])
    if found is None or found[1].lower() in question.lower():
        return None
    return tidied(Extracted(found[1], *found.span(1)))


def concludes(text: str) -> bool:
    """Return whether `text` begins as a conclusion does: "So she has ..."."""
    return _CONCLUDES.match(text) is not None


def choice_in(sentence: str) -> bool:
    """Return whether `sentence` mentions a choice, as in "the white book (C)"."""
    sentence = sentence[:MAX_LENGTH]
    return bool(_CHOICE_INSIDE.search(sentence) or _PREFERRED.search(sentence))


def is_correct(sentence: str) -> bool:
    """Return whether `sentence` begins with the choice that it calls correct."""
    return _IS_CORRECT.match(sentence[:80]) is not None


_COUNT = Pattern(r"(?<![\w-])([^\W\d_]{2,20}(?:-[^\W\d_]{2,20})?)(?=\s(?:\w{1,20}\s)?(\w{1,30}))")


def counted(sentence: str, question: str) -> Extracted | None:
    """Return the number in words of what `question` asks to count: "Mars has two moons"."""
    asked = {word.lower() for word in _WORD.findall(question)}
    said = [
        Extracted(word[1], *word.span(1))
        for word in _COUNT.finditer(sentence[:MAX_LENGTH])
        if word[2].lower() in asked and number_in_words(word[1]) not in (None, "1")
    ]
    return said[0] if len(said) == 1 and not values(sentence) else None


_VERDICT_INSIDE = Pattern(
    rf"(?:\A\W*|(?:[,;—–]|\b(?:{words(lambda w: w.therefore)}))\s(?:the answer is\s)?[*_]*)"
    rf"(?:(?:likely|probably|generally|mostly)\s)?"
    rf"({words(lambda w: w.yes_no)})\b(?=[*_]*(?:[,.!;—–]|\s[—–]|\s*\Z))",
    re.IGNORECASE,
)


def verdict(sentence: str, question: str) -> Extracted | None:
    """Return the yes or no in `sentence`, an answer to a question that asks for it."""
    said = list(_VERDICT_INSIDE.finditer(sentence[:MAX_LENGTH]))
    if said:
        return Extracted(said[-1][1], *said[-1].span(1))
    if found := _AFFIRMED.match(sentence):
        return Extracted("no" if found["no"] else "yes", *found.span())
    asked = {word.lower() for word in _WORD.findall(question)}
    found = _SAME_PREDICATE.search(sentence[-MAX_LENGTH:])
    if found is None or asked & {"not", "no"} or found[3].lower() not in asked:
        return None
    at = max(0, len(sentence) - MAX_LENGTH)
    return Extracted("no" if found[1] or found[2] else "yes", at + found.start(), at + found.end())


_AFFIRMED = Pattern(
    r"\W*(?:(?P<no>not really|not exactly|(?:absolutely|certainly|definitely|of course)\snot)"
    r"|(?:absolutely|certainly|definitely|of course|indeed)"
    r"|(?:it|they|he|she|you|that)\s(?:is|are|does|do|did|can|will|was|were|has|would)"
    r")(?=[.,!]|\s[—–])",
    re.IGNORECASE,
)
_SAME_PREDICATE = Pattern(
    r"\b(?:is|are|was|were)(n['’]t)?(?:\s(?:therefore|thus|indeed))?(\snot)?\s(\w{1,40})\W*\Z",
    re.IGNORECASE,
)


_SMALL_WORDS = frozenset(
    {"the", "a", "an", "of", "in", "is", "are", "was", "were", "to", "and", "so", "thus", "hence"}
)


_COMPLEMENT = Pattern(
    r"\W*(?i:(?:so|thus|hence|therefore|then),?\s)?(?:(?:[Ii]t|[Tt]hat|[Tt]his)|(?:[Tt]he|[Mm]y"
    r"|[Hh]er|[Hh]is|[Ii]ts"
    r"|[Tt]heir)\s[^.:;,]{1,100}?)"
    r"\s(?:is|was|are|were|would be|must be)\s(?:therefore\s|thus\s|also\s)?"
    r"(?:[\"“'‘*_]++([^\"”*_]{1,60}?)[\"”’'*_]++"
    r"|(?:the\s)?([A-Z][\w'’-]*+(?:\s(?:of|de|von|van|the|and|[A-Z][\w'’.-]*+))*+))[.!]*+\s*\Z"
)


def _complement(clause: str) -> Extracted | None:
    """Return the name or the quotation in "The author is William Shakespeare."."""
    found = _COMPLEMENT.fullmatch(clause)
    return (
        Extracted(found[found.lastindex or 0], *found.span(found.lastindex or 0)) if found else None
    )


def _named(clause: str, question: str) -> Extracted | None:
    """Return the side of "X is Y" that answers the question, which the other side repeats."""
    asked = {word.lower() for word in _WORD.findall(question)}
    compared = _COMPARED.search(clause)
    subject = clause[: compared.start()] if compared else ""
    if subject and {word.lower() for word in _WORD.findall(subject)} <= asked:
        return tidied(part(clause, 0, len(subject)))
    if (bare := _COMPARATIVE.fullmatch(clause)) and bare[1].lower() in question.lower():
        return Extracted(bare[1], *bare.span(1))
    for verb in _IS.finditer(clause):
        subject, rest = clause[: verb.start()], clause[verb.end() :].rstrip(" .!")
        subject = re.split(rf",\s{_NOT}\s", subject, maxsplit=1)[0]
        in_subject, in_rest = (
            {w.lower() for w in _WORD.findall(side)} - _SMALL_WORDS for side in (subject, rest)
        )
        if not in_subject or not in_rest:
            continue
        if in_subject <= asked and not in_rest <= asked and len(rest.split()) <= _MAX_NAME_WORDS:
            return tidied(part(clause, verb.end(), verb.end() + len(rest)))
        is_name = subject[:1].isupper() and rest.startswith("the ")
        if (
            in_rest <= asked
            and (is_name or not in_subject <= asked)
            and len(subject.split()) <= _MAX_NAME_WORDS
        ):
            lead = _CONCLUDES.match(subject)
            return tidied(part(clause, lead.end() if lead else 0, len(subject)))
    return None
