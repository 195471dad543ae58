"""What a question asks for, so that a reply's remarks are not taken for its answer.

The least reliable readers ask it: those that read a sentence which does not say that it is the
answer. A question that is not recognised accepts every answer.
"""

import re
from enum import Enum

from optillm_hooks.answers import words
from optillm_hooks.answers.patterns import Pattern


class Asked(Enum):
    """What a question asks for."""

    YES_OR_NO = "yes or no"
    NAME = "a name"
    NUMBER = "a number"
    TIME = "a date or a time"
    CHOICE = "one of the options that the question lists"
    TEXT = "a text, which is no answer that could be compared"
    ANYTHING = "not recognised"


_MAX_LENGTH = 600
"""The question stands at the end of a prompt; what is before it is ignored."""

_LAST = Pattern(
    r"(?<![^.!?\u3002\uff01\uff1f\n\u00bf])[^.!?\u3002\uff01\uff1f\n\u00bf]{2,}+[?\uff1f]"
    r"|(?<![^.!?\n])[^.!?\n]{2,}+\Z"
)
_OPTION = Pattern(r"(?:^|(?<=\s))\(?([A-Ja-j])[).:]\s?(?=\S)", re.MULTILINE)
_MAX_OPTIONS_LENGTH = 4000
_GIVEN = Pattern(r"\d")
_WORD = Pattern(r"[^\W\d_]{2,}")
_SMALL_WORDS = (
    "what which who whom when where how many much is are was were do does did has have had the"
    " of in on at to for an and there it its by from with year long wie viel viele wann wer was"
    " welche welcher welches ist sind war hat haben der die das den dem des ein eine einen"
    " combien quel quelle est sont la le les un une du cu\u00e1l cu\u00e1ntos cu\u00e1ntas"
    " qu\u00e9 es son el los las una tiene hay quanti quante qual quale il lo gli"
)
_YES_OR_NO = Pattern(
    r"(?:[^?]{1,200},\s)?(?:is|are|was|were|do|does|did|can|could|will|would|should"
    r"|has|have|had|must|may"
    r"|ist|sind|war|hat|haben|kann|k\u00f6nnen|darf|gibt es|stimmt"
    r"|est-ce|es|est\u00e1|son|puede|hay|\u00e8|sono|pu\u00f2|\u00e9|s\u00e3o"
    r"|pode)\b(?!.*\b(?:or|oder|ou|o)\b)"
    r"|(?!.*[\u4f55\u8ab0\u3044\u3069]).*(?:\u5417|\u3067\u3059\u304b)[?\uff1f]?\Z",
    re.IGNORECASE,
)
_NAME = Pattern(
    r"(?:who|whom|whose|where|wer|wen|wem|wo|qui|o\u00f9|qui\u00e9n|d\u00f3nde|chi"
    r"|dove|quem|onde)\b"
    r"|.*(?:\u8c01|\u8ab0|\u54ea\u91cc|\u54ea\u513f|\u3069\u3053)"
    r"|(?:in )?(?:what|which|welche[rs]?|wie|quel(?:le)?|cu\u00e1l|qu\u00e9|qual"
    r"|quale)\b.*?\b(?:capital|capitale"
    r"|hauptstadt|country|city|river|mountain|planet|author|ocean|lake|island|animal|language"
    r"|continent|organ|person|team|player|law|land|stadt|fluss|berg|pays|ville|fleuve"
    r"|montagne|r\u00edo|pa\u00eds|ciudad"
    r"|fiume|citt\u00e0|paese|rio|cidade)\b|.*(?:\u9996\u90fd|\u5c71\u306f)",
    re.IGNORECASE,
)
_NUMBER = Pattern(
    r".*?\b(?:how (?:many|much|long|far|old|tall|fast|high)|wie ?viele?|wie (?:lange|weit|alt|hoch)"
    r"|combien|cu\u00e1nt[oa]s?|quant[oaie]s?)\b"
    r"|.*(?:\u591a\u5c11|\u51e0[^\u4e4e]"
    r"|\u4f55[\u500b\u4eba\u679a\u5186\u672c\u5206\u6642\u65e5\u56de]|\u3044\u304f)",
    re.IGNORECASE,
)
_TIME = Pattern(
    r"(?:(?:on|in|at) )?(?:when|(?:what|which) (?:year|date|day|time|month|weekday)"
    r"|wann|quand|cu\u00e1ndo|quando)\b",
    re.IGNORECASE,
)
_TEXT = Pattern(
    r"(?:please )?(?:why|fix|improve|rewrite|refactor|debug|proofread|explain"
    r"|describe|compare|summari[sz]e|discuss|tell me (?:a|about)|give me (?:tips|advice)"
    r"|how (?:do|can|should|would|to)\b(?!.*\d)|what should|should i|(?:write|draft"
    r"|compose)\b (?:\w+ ){0,2}?an?\b"
    r"|warum|erkl\u00e4re?|beschreibe?|schreibe? (?:\w+ )?eine?n?|wie (?:kann|lerne?|mache?|soll)"
    r"|pourquoi|explique|d\u00e9cri[ts]|comment\b(?!.*\d)|\u00e9cri[ts]|por qu\u00e9"
    r"|escrib\w+|dame consejos|c\u00f3mo\b(?!.*\d)"
    r"|perch\u00e9|spiega|scrivi|come\b(?!.*\d)|por que|escreva|como\b(?!.*\d))\b"
    r"|(?:\u8bf7)?(?:\u600e\u6837|\u600e\u4e48|\u5982\u4f55|\u4e3a\u4ec0\u4e48"
    r"|\u5199\u4e00|\u8bf7\u5199)|.*(?:\u306a\u305c|\u66f8\u3044\u3066|\u65b9\u6cd5)",
    re.IGNORECASE,
)
_A_TIME = Pattern(
    r"\d{4}|\d{1,2}[:/.]\d{2}|\d\s?(?:am|pm|uhr)|(?:mon|tues|wednes|thurs|fri|satur|sun)day"
    r"|tag\b|woch|\d{1,2}(?:st|nd|rd|th)?\b.{0,60}[^\W\d_]{3}|[^\W\d_]{3}.{0,60}\d|\u5e74|\u6708",
    re.IGNORECASE,
)
_A_NUMBER = Pattern(r"[\d\\\u03c0\u221e\u221a]|infinite|infinity")
_CHOICE = Pattern(r"[A-J](?:, [A-J])*")


def asked_for(question: str) -> Asked:
    """Return what `question` asks for."""
    end = question.strip()[-_MAX_LENGTH:]
    if not end:
        return Asked.ANYTHING
    if options(question):
        return Asked.CHOICE
    sentences = [found[0].strip(" \n\"'*:,") for found in _LAST.finditer(end.rstrip(" .!"))]
    asked = next((s for s in reversed(sentences) if s.endswith(("?", "\uff1f"))), "")
    asked = asked or (sentences[-1] if sentences else "")
    for kind, pattern in _PATTERNS:
        if pattern.match(asked):
            return kind
    return Asked.ANYTHING


_PATTERNS = (
    (Asked.TEXT, _TEXT),
    (Asked.TIME, _TIME),
    (Asked.NUMBER, _NUMBER),
    (Asked.YES_OR_NO, _YES_OR_NO),
    (Asked.NAME, _NAME),
)


def options(question: str) -> dict[str, str]:
    """Return the texts of the options at the end of `question` by their capital letters."""
    end = question.strip()[-_MAX_OPTIONS_LENGTH:]
    marks = list(_OPTION.finditer(end))
    starts = [i for i, mark in enumerate(marks) if mark[1] in "Aa"]
    marks = marks[starts[-1] :] if starts else []
    letters = [mark[1].upper() for mark in marks]
    if len(marks) < 2 or letters != sorted(set(letters)):
        return {}
    ends = [*(mark.start() for mark in marks[1:]), len(end)]
    texts = [end[mark.end() : stop] for mark, stop in zip(marks, ends, strict=True)]
    return {
        letter: text.strip().partition("\n")[0].strip(" .,;")
        for letter, text in zip(letters, texts, strict=True)
    }


def asks_for_a_fact(question: str) -> bool:
    """Return whether `question` gives no numbers to calculate with."""
    question = question[-_MAX_OPTIONS_LENGTH:]
    return bool(question) and not _GIVEN.search(question) and not _spoken_numbers(question)


def _spoken_numbers(question: str) -> bool:
    spoken = (words.number_in_words(word) for word in _WORD.findall(question))
    return any(number not in (None, "1") for number in spoken)


def repeats(sentence: str, question: str) -> bool:
    """Return whether `sentence` has most of the words of `question`, in any inflection."""
    asked = {word.lower() for word in _WORD.findall(question[-_MAX_OPTIONS_LENGTH:])} - set(
        _SMALL_WORDS.split()
    )
    said = {word.lower()[:4] for word in _WORD.findall(sentence)}
    return 3 * sum(word[:4] in said for word in asked) >= 2 * max(1, len(asked))


def _is_option(answer: str, question: str) -> bool:
    listed = options(question)
    if _CHOICE.fullmatch(answer):
        return set(answer.split(", ")) <= listed.keys()
    return any(
        re.match(rf"{re.escape(text)}(?!\w)", answer, re.IGNORECASE) for text in listed.values()
    )


def suits(answer: str, asked: Asked, question: str = "") -> bool:
    """Return whether `answer` is what was asked for, as far as that can be told."""
    if asked is Asked.CHOICE:
        return _is_option(answer, question)
    if asked is Asked.TEXT:
        return False
    if asked is Asked.ANYTHING or _CHOICE.fullmatch(answer):
        return True
    if asked is Asked.YES_OR_NO:
        return words.yes_or_no(answer) is not None
    if asked is Asked.NAME:
        return not re.search(r"\d", answer)
    if asked is Asked.TIME:
        if re.search(r"\b(?:years|months|weeks|days|hours|minutes)\b", answer):
            return False
        return _A_TIME.search(answer) is not None
    if re.search(r"[<>≤≥≠]|\\(?:leq?|geq?|neq?)\b", answer):
        return False
    return _A_NUMBER.search(answer) is not None or words.number_in_words(answer) is not None
