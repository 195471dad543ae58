"""Reading the verdicts of a judge: ratings and choices. Pure functions.

A judge is asked for a last line such as "RATING: 8". The last such line counts before everything
else in the reply; if it cannot be read, the reply has no verdict. Replies without it are read in
the forms that models use instead.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from optillm_hooks.answers.extraction import read_json, without_reasoning
from optillm_hooks.answers.patterns import Pattern

_MAX_DEPTH = 3
_MAX_LENGTH = 10_000
"""Characters of a verdict that are read, from its end."""

_MAX_FOUND = 50
"""Places of one kind in a verdict that are looked at, from its end."""

_MAX_CLAUSE = 300
"""Characters before a verdict in which words that change its meaning are looked for."""

_COMMON_SCALES = frozenset({5.0, 10.0, 20.0, 100.0})

_NUMBER_WORDS: Final[Mapping[str, int]] = {
    word: number
    for number, words in enumerate(
        ["zero", "one first", "two second", "three third", "four fourth", "five fifth",
         "six sixth", "seven seventh", "eight eighth", "nine ninth", "ten tenth"]
    )
    for word in words.split()
}  # fmt: skip

# Rating: labels in several languages

_WORD = "|".join(_NUMBER_WORDS)
_DECIMAL = r"\d++(?:\.\d++)?|\d++,\d{1,2}(?![\d,])|\.\d++"
_VALUE = (
    rf"(?P<number>[-+]?(?:{_DECIMAL})|nan|inf(?:inity)?|(?:{_WORD})\b)"
    rf"(?:[ \t]*+(?:-|\u2013|\bto\b|\bor\b|\bbis\b|\boder\b|\bou\b)[ \t]*+(?P<upper>{_DECIMAL}))?"
    r"(?:(?:\s++(?:stars?|points?))?\s*+\(?(?:/|\b(?:out of|of|von|sur|su|sobre|de|em)\b)"
    r"\s*+(?P<scale>\d++(?:\.\d++)?)(?!\s*+/)"
    r"|\s*+(?P<percent>%))?"
    r"(?![A-Za-z\d])(?!\.\d)(?![,\u00b7]\d)(?!\s*+[/\u2044])(?!:\d)"
    r"(?!\s*+[+*=\u00d7]\s*+\d)(?!\s++(?:is|was) what\b)"
)
_LABEL = (
    "rating|score|grade|mark|verdict|bewertung|gesamtbewertung|punktzahl|wertung|"
    "puntuación|calificación|valoración|punteggio|valutazione|pontuação|"
    "avaliação|classificação|évaluation|评分|得分|分数|打分|总分|"
    "评级|評価|評点|得点|点数|スコア|評分|рейтинг|оценка"
)
_FOREIGN_NOTES = "note|nota|voto|punkte|points|puntos"
"""Labels that are also other words. They count only on a line with nothing but a value beside."""

_SCALE_NOTE = r"(?:\s*+\([^()\n]{0,40}\)|\s++out\s++of\s++\d++)?"
_IS = rf"{_SCALE_NOTE}(?:\s++(?:is|of|would\s++be)\b|\s*+[:=\u2013\u2014-])?\s*+(?:[:=]\s*+)?"
_COPULA = rf"{_SCALE_NOTE}\s*+(?:\b(?:is|of|would\s++be)\b\s*+:?|[:=])\s*+"
_REQUESTED_RATING = Pattern(r"\bRATING(?:\s*\([^()\n]{0,40}\)| OUT OF \d+)?\s*[:=]\s*")
_RATING_LINE = Pattern(
    rf"^[^\w\n]{{0,12}}(?:(?:final|overall|my)\s+)?rating\s*[:=]\s*{_VALUE}[^\w\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_READ_VALUE = Pattern(
    r"(?:[\u2600-\u27bf\u2b50\U0001f300-\U0001faff\ufe0f]+\s*\(?)?"
    rf"(?:[-\d. +*/()]{{1,40}}=\s*)?{_VALUE}",
    re.IGNORECASE,
)
_MORE = Pattern(
    r"[ \t]*+(?:[:,~|\u2013\u2014-]*+|or)[ \t]*+(?P<next>\d+)(?P<part>\s*+[/\u2044.]\d)?"
    r"|[ \t]++(?:point|and a half|or (?:higher|lower|above|below|more|less|better|worse))\b",
    re.IGNORECASE,
)
"""What makes the number before it a part of a number, or one of several."""

_SCALE_REMARK = Pattern(r"[^\n]{0,60}?\b(?:scale|stars?)\b[^\n]{0,30}", re.IGNORECASE)
_OVERALL = Pattern(
    rf"\b(?:overall|final|total)(?:\s++(?:{_LABEL}|assessment|evaluation|quality|result))*"
    rf"{_COPULA}{_VALUE}",
    re.IGNORECASE,
)
_LABELLED = Pattern(
    r"(?P<before>[\w'\u2019]{0,20})(?P<gap>[ \t]?)"
    rf"(?<!\w)(?P<label>{_LABEL}){_IS}(?:-\s+)?{_VALUE}",
    re.IGNORECASE,
)
_NOTE_LINE = Pattern(
    rf"^[^\w\n]{{0,12}}(?:{_FOREIGN_NOTES})\s*:\s*{_VALUE}[^\w\n]*$", re.IGNORECASE | re.MULTILINE
)
_ABOUT_ANOTHER = Pattern(
    r"\b(?:says|claims?|states?|gives?|reports?|returns?|lists?|has|had|have)\b[^.!?\n]{0,300}\Z",
    re.IGNORECASE,
)
_GENERAL_WORDS = "final overall my the total this your a an of quality general is and so its it"
_GENERAL = frozenset(_GENERAL_WORDS.split())
"""Words before a label that do not make it the rating of one aspect."""

_GIVEN = Pattern(
    r"\b(?:(?:I|we)\b[^.\n]{0,40}?\b(?:give|rate|assign|award|(?:go|put it)(?=\s+(?:with|at)))"
    r"|deserves|merits|earns)\b"
    r"(?:\s+(?:it|this|that|the|answer|response|a|an|as|at|with|to|full|only|just|about|score|"
    r"rating|"
    rf"of|solid|strong|around|roughly|marks))*[\s:]*{_VALUE}(?!\s+(?:on|for|in|by|if|unless)\b)",
    re.IGNORECASE,
)
_IF = Pattern(
    r"(?:\b(?:if|unless|had|not|never|cannot|without)\b|n['\u2019]t\b)[^.\n]{0,300}$", re.IGNORECASE
)
_POINTS = Pattern(
    r"(?<!满分)(?<!满分是)(?<!总分)(?<![\d.])(\d+(?:\.\d+)?)\s*[分点](?!中|満点|钟|钱)"
)
_FRACTION = Pattern(
    r"(?<![\d.,/\w-])(?<!step )(?<!part )(?P<number>\d+(?:[.,]\d+)?)\s*(?:/|out\s+of)\s*"
    r"(?P<scale>\d+(?:\.\d+)?)(?![\d/]|\.\d)(?:[ \t]+(?P<next>[a-z]+))?",
    re.IGNORECASE,
)
_SUMMARY = Pattern(r"\b(?:overall|in total|altogether)\b[^.\n]{0,300}\Z", re.IGNORECASE)
_JUDGING = Pattern(
    r"(?:\A|\n|[.!?]\s)(?:[^\w\n]|\b(?:so|an?|then|about|maybe|perhaps|solid|strong)\b){0,12}\Z"
    r"|\b(?:I|me|my|we|je|ich|overall|total|verdict|answer (?:is|deserves|gets|earns))\b"
    r"[^\n.]{0,300}\Z"
    rf"|(?:{_LABEL}|\brated|\bso)\W{{0,12}}\Z",
    re.IGNORECASE,
)
"""What is before a fraction that rates the answer: nothing in its sentence, or who rates what."""

_ENDING = Pattern(r"\W*\Z")

_WORDS_AFTER_FRACTION = """
is was seems would feels because since as and but overall stars star points point here from rating
score given due though although with so fair sounds looks"""
_AFTER_FRACTION = frozenset(_WORDS_AFTER_FRACTION.split())
_ALONE = Pattern(rf"(?:-\s)?\W{{0,12}}?{_VALUE}\s*+(?:points?|stars?)?[\s.!)]*+", re.IGNORECASE)
_STARS = Pattern(r"[\u2605\u2b50]\ufe0f?")
_RATING_KEYS = (
    "rating", "overall rating", "final rating", "score", "overall score", "final score",
    "total score", "overall", "grade", "total", "mark", "quality",
)  # fmt: skip
_SCALE = Pattern(r"\d+(?:\.\d+)?")
_SCALE_KEYS = ("max", "out of", "scale", "max score", "max rating", "maximum")
_ENDS_AS_JSON = Pattern(r"[}\]][^\w}\]]*+\Z")

# Choice

_NOUN = (
    r"(?:answers?|response|candidate|solution|option|choice|number|no\.?|nr\.?|n°|antwort|réponse|respuesta|"
    r"risposta|resposta|答案|回答|选项|解答|第)"
)
_SMALL_WORDS = (
    r"(?:is|the|as|to|be|a|an|one|final|ist|est|es|è|é|la|el|il|le|die|"
    r"是|的|は|为)"
)
_TO_NUMBER = rf"(?:[\s:=#<\[(\"'-]|{_NOUN}|\b{_SMALL_WORDS}\b|[是的はの为]){{0,12}}"
_PLACE = rf"(?P<place>(?<![-.\d])\d+(?:st|nd|rd|th)?|(?:{_WORD})\b)(?![A-Za-z\d]|[.,]\d)"
_REQUESTED_BEST = Pattern(
    r"\bBEST(?:\s+(?:ANSWER|RESPONSE|CANDIDATE|OPTION|ONE))?(?:\s*\([^()\n]{0,40}\))?\s*[:=]\s*"
)
_BEST_LINE = Pattern(
    rf"^[^\w\n]{{0,12}}best\s*[:=]{_TO_NUMBER}{_PLACE}[^\w\n]*$", re.IGNORECASE | re.MULTILINE
)
_READ_PLACE = Pattern(rf"{_TO_NUMBER}{_PLACE}", re.IGNORECASE)
_ANOTHER = Pattern(
    r"[ \t>\])]*+(?:[,:;/&=+|\u2013和或と-]|\b(?:or|and|oder|und|ou|et|y|o|e)\b)"
    rf"[ \t]*+(?:(?:also|perhaps|maybe)\s++)?{_NOUN}?\s*+(?:#\s*+)?(?:\d+|(?:{_WORD})\b)"
    r"(?!\s+(?:is|was|has|lacks|fails|makes|gets|misses)\b)",
    re.IGNORECASE,
)
_CHOSEN = Pattern(
    rf"(?<!not the )(?<!not )(?:\b(?:best|winner|winning|choice|verdict|decision|selected|select|"
    rf"choose|chose|chosen|pick|prefer|preferred|better|beste|meilleure?|mejor|migliore?|melhor)\b|"
    rf"最佳|最好|最优|选择|我选|最良|最も良い|一番良い){_TO_NUMBER}{_PLACE}"
    r"(?!\s+(?!(?:and|or|but|because|as|for|since|over|is|due|with|wins)\b)[a-z])",
    re.IGNORECASE,
)
_IS_BEST = Pattern(
    rf"(?:{_NOUN}|^|[,:.] )[\s#]*{_PLACE}[\s>)\]]+(?:is|wins|seems|was|stands|looks|remains)\b"
    r"(?:\s+(?:clearly|the|by|far|out|as|overall|definitely))*(?:\s+(?:best|winner|strongest))?",
    re.IGNORECASE,
)
_NUMBER_LINE = Pattern(rf"\W{{0,12}}?{_TO_NUMBER}{_PLACE}[\s*.!)\]>\"']*", re.IGNORECASE)
_MENTION = Pattern(
    rf"{_NOUN}\s*+(?:#\s*+)?{_PLACE}(?!\s*+[个個]|['\u2019]s|\s+answers)", re.IGNORECASE
)
_SENTENCE = Pattern(r"(?:[^\n.!?\u3002]|\.(?!\s)){1,80}[.!\u3002]?")
_AGAINST = Pattern(
    r"n['\u2019]t\b|\b(?:if|unless|part|wrong|incorrect|not|worse|worst|flawed|except|but|tie|tied|equal|equally|none|nor)\b",
    re.IGNORECASE,
)
_CHOICE_KEYS = (
    "best", "best answer", "choice", "final choice", "winner", "selected answer", "selected",
    "answer", "chosen", "chosen answer", "best response", "best candidate", "preferred", "verdict",
    "decision", "index", "number", "pick", "selection", "final answer", "best option",
)  # fmt: skip

# Both

_BEGINNING = Pattern(
    r"(?:\A|\n|[.!?:;)\]>\u3002\uff01][ ]?\n?|,(?= (?:so|thus|hence|but)\b))[^\w\n,]{0,12}"
    r"(?:[A-Za-z]+: )?(?:(?:so|thus|therefore|hence|but|as it stands|overall|finally|my|the|final"
    r"|honest|choice|verdict|is)\b[ ,:]*){0,4}\Z",
    re.IGNORECASE,
)
"""What is before a label that begins a line or a sentence."""

_GOES_ON = Pattern(r"[^\n]{1,40}\n\s*(?:which|that|and|but|as|is|was)\b")
_END = Pattern(r"[ *_.!\n]*+\Z")
_BULLET = Pattern(r"\s*[-\u2022]\s+(?-i:(?![A-Z]{4}))")
_BLANKS = Pattern(r"[^\S\n]+")
_BLANK_LINES = Pattern(r" ?\n\s*\n ?| \n")
_WRAPPED = Pattern(
    r"\\(?:boxed|fbox|text[a-z]*|mathbf|mathrm)\s*\{([^{}\n]{0,60})\}|\\[()\[\]]|[*`$\"\u201c\u201d\u201e\u3010\u3011]"
)
_TAG = Pattern(r"<([A-Za-z][\w-]{0,30})>\s*+([^<>]{0,40}?)\s*+</\1>")
_ANSWER_TAGS = frozenset({"answer", "output", "result", "response"})
_BRACKETS = Pattern(
    rf"[\[<({{]{{1,3}}\s*+([-+]?(?:{_DECIMAL})(?:\s*+/\s*+\d+)?)\s*+[\]>)}}]{{1,3}}"
)
_QUOTED_LABEL = Pattern(r"(?<=\S )[\"'\u201c\u201e\u2018`]+(?=(?:RATING|BEST)\s*:)")
"""What precedes a verdict that is quoted in a sentence."""

_QUOTED_KEY = Pattern(r"'(\w+)'\s*:")
_ROW = Pattern(r"^[ \t]*\|(.*\S)[ \t]*\|[ \t]*$", re.MULTILINE)
_ABOUT = Pattern(
    r"(?:[~\u2248]|\b(?:about|approximately|around|roughly|ca\.|circa|etwa|environ)\b)\s*(?=[\d.])",
    re.IGNORECASE,
)
_ARROW = Pattern(r"(?<!\s)\s*(?:\u2192|->|=>|\u21d2)\s*")
_PLACEHOLDER = Pattern(
    r"[\[<(]?\s*(?:<?your\s+)?(?:number|rating|n|x|score)\b\s*[\])>]?", re.IGNORECASE
)


def read_rating(text: str, low: float = 0.0, high: float = 10.0) -> float | None:
    """Return the rating from `low` to `high` in a judge's `text`, or None if there is none.

    The last "RATING:" counts before everything else. Otherwise the forms are, in order of
    preference: JSON with a rating or score; an overall rating; a labelled number (the last one, but
    not ratings of single aspects); "I give it an 8"; "8/10" and "8 out of 10"; a first or last line
    with only a number. A rating out of another number is scaled: 4/5 is 8 of 10. A range counts as
    its middle. A number that is not finite or not on the scale is no rating, and neither is a
    number of something else, such as a year.
    """
    said = last_part(text)
    if said.lstrip().startswith("{") and (value := _object(said)):
        return _json_rating(value, low, high)
    plain = _plain(said)
    requested = _requested(plain, _REQUESTED_RATING, _RATING_LINE)
    if requested is not None:
        found = _READ_VALUE.match(plain, requested)
        return _scaled(found, low, high) if found and _is_whole(found, high) else None
    if value := _object(said):
        return _json_rating(value, low, high)
    found = _stated_rating(plain)
    return _scaled(found, low, high) if found else _bare_rating(plain, low, high)


def read_choice(text: str, count: int) -> int | None:
    """Return the index, from 0, of the candidate that a judge's `text` chooses, or None.

    The last "BEST:" counts before everything else. Otherwise the forms are, in order of preference:
    JSON with the choice; the last number called best, chosen or the winner; a last line with only a
    number; the only answer that is mentioned. Two numbers, as in "2 or 3", are no choice.
    """
    said = last_part(text)
    if said.lstrip().startswith("{") and (value := _object(said)):
        return _json_choice(value, count)
    plain = _plain(said)
    requested = _requested(plain, _REQUESTED_BEST, _BEST_LINE)
    if requested is not None:
        return _place(_READ_PLACE.match(plain, requested), plain, count)
    if value := _object(said):
        return _json_choice(value, count)
    if chosen := _last(_CHOSEN, plain):
        return _place(chosen[-1], plain, count)
    if best := [found for found in _last(_IS_BEST, plain) if _says_best(found)]:
        return _place(best[-1], plain, count)
    lines = plain.split("\n")
    if alone := _NUMBER_LINE.fullmatch(lines[-1].strip()):
        return _place(alone, lines[-1].strip(), count)
    return _only_mention(plain, count)


def last_part(text: str) -> str:
    """Return the part of a judge's reply that is read: the end, without reasoning."""
    return without_reasoning(text)[-_MAX_LENGTH:]


def _plain(text: str) -> str:
    """Return `text` without emphasis, LaTeX, tags and tables, in compatibility characters."""
    text = (
        unicodedata.normalize("NFKC", text)[-_MAX_LENGTH:]
        .replace("\u2212", "-")
        .replace("\uff1a", ":")
    )
    text = _BLANK_LINES.sub("\n\n", _BLANKS.sub(" ", text))
    text = _QUOTED_LABEL.sub("says ", text)
    for _ in range(2):
        text = _WRAPPED.sub(lambda found: found[1] or "", text)
    text = _TAG.sub(_untagged, text)
    text = _QUOTED_KEY.sub(r"\1:", _BRACKETS.sub(r"\1", text))
    text = _ROW.sub(lambda row: ": ".join(cell.strip() for cell in row[1].split("|")), text)
    text = _ARROW.sub(": ", text).replace("_", " ")
    return _ABOUT.sub("", text).strip()


def _last(pattern: Pattern, text: str) -> deque[re.Match[str]]:
    """Return the last places in `text` that `pattern` matches."""
    return deque(pattern.finditer(text), _MAX_FOUND)


def _untagged(found: re.Match[str]) -> str:
    label = "" if found[1].lower() in _ANSWER_TAGS else f"{found[1]}: "
    return f"\n{label}{found[2]}\n"


def _requested(text: str, label: Pattern, line: Pattern) -> int | None:
    """Return the index after the last `label` that is not mentioned, or after the last `line`.

    If all labels are mentioned, as in "it tells me to say RATING: 10", that is the end of `text`.
    """
    labels = [found for found in _last(label, text) if not _PLACEHOLDER.match(text, found.end())]
    places = [found.end() for found in labels if not _mentioned(found)]
    for found in _last(line, text):
        if _listed(found) or _GOES_ON.match(text, found.start()):
            continue
        colon = re.search(r"[:=]\s*", found[0])
        places.append(found.start() + (colon.end() if colon else 0))
    return max(places, default=len(text) if labels else None)


def _mentioned(label: re.Match[str]) -> bool:
    """Return whether `label` is part of a sentence instead of the beginning of one."""
    return not _before(_BEGINNING, label) or bool(_GOES_ON.match(label.string, label.end()))


def _is_whole(value: re.Match[str], high: float) -> bool:
    """Return whether the line of `value` neither goes on with its number nor has another scale."""
    text, end = value.string, value.end()
    more = _MORE.match(text, end)
    if more and (more["part"] or _number(more["next"] or "nan") != _number(value["number"])):
        return False
    remark = _SCALE_REMARK.match(text, end)
    if value["scale"] or not remark:
        return True
    return high in [float(number) for number in _SCALE.findall(remark[0])]


def _stated_rating(text: str) -> re.Match[str] | None:
    """Return the rating that `text` states with a label or a verb."""
    if overall := _last(_OVERALL, text):
        return overall[-1]
    if labelled := _of_the_whole([f for f in _last(_LABELLED, text) if not _reported(f)]):
        return labelled[-1]
    notes = _last(_NOTE_LINE, text)
    given = [
        found for found in _last(_GIVEN, text) if not _is_conditional(text, found.start("number"))
    ]
    return next((some[-1] for some in (notes, given) if some), None)


def _is_conditional(text: str, at: int) -> bool:
    """Return whether an "if" or a "not" precedes `at` in its sentence."""
    return _IF.search(text, max(0, at - _MAX_CLAUSE), at) is not None


def _of_the_whole(labelled: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Return those of `labelled` that rate the answer as a whole, not an aspect of it."""
    general = [found for found in labelled if not _aspect(found)]
    if general or len(labelled) != 1 or labelled[0]["before"].endswith(("'s", "\u2019s")):
        return general
    return [found for found in labelled if found["before"].islower()]


def _reported(found: re.Match[str]) -> bool:
    """Return whether the sentence of `found` is about the rating of something else."""
    return _listed(found) or _before(_ABOUT_ANOTHER, found)


def _before(pattern: Pattern, found: re.Match[str]) -> bool:
    """Return whether `pattern` is in the words before `found`."""
    start = found.start("label") if "label" in found.re.groupindex else found.start()
    return bool(pattern.search(found.string, max(0, start - _MAX_CLAUSE), start))


def _listed(found: re.Match[str]) -> bool:
    """Return whether `found` is an item of a list that is not the end of the reply."""
    text = found.string
    line = text.rfind("\n", 0, found.end() - 1) + 1
    return bool(_BULLET.match(text, line) and not _END.match(text, found.end()))


def _aspect(found: re.Match[str]) -> bool:
    return found["before"].lower() not in _GENERAL and bool(found["before"])


def _bare_rating(text: str, low: float, high: float) -> float | None:
    """Return the rating that `text` gives as a fraction, in points, in stars or as a number."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    fractions = [
        found
        for found in _last(_FRACTION, text)
        if float(found["scale"]) in _COMMON_SCALES | {high}
        and not _reported(found)
        and (not found["next"] or found["next"].lower() in _AFTER_FRACTION)
    ]
    summaries = [found for found in fractions if _in_summary(found)]
    judging = [found for found in fractions if _before(_JUDGING, found)]
    last = [found for found in fractions if _ENDING.match(text, found.end())]
    chosen = summaries or judging or (last if len(fractions) == 1 else [])
    values = {_scaled(found, low, high) for found in chosen}
    if len(values) == 1:
        return values.pop()
    if points := _last(_POINTS, text):
        return _on_scale(float(points[-1][1]), None, low, high)
    for line in lines[-1:] + lines[:1]:
        if alone := _ALONE.fullmatch(line):
            return _scaled(alone, low, high)
    filled = len(_STARS.findall(text))
    full = filled + text.count("\u2606")
    return _on_scale(filled, full, low, high) if full in (5, 10) and filled < full else None


def _in_summary(found: re.Match[str]) -> bool:
    """Return whether the line of `found` says that it is about the answer as a whole."""
    text, start = found.string, found.start()
    return bool(_SUMMARY.search(text, text.rfind("\n", 0, start) + 1, start))


def _scaled(found: re.Match[str] | None, low: float, high: float) -> float | None:
    """Return the value in `found`, scaled from its own scale to that from `low` to `high`."""
    if found is None:
        return None
    parts = found.groupdict()
    number = _number(parts["number"])
    if parts.get("upper"):
        upper = _number(parts["upper"])
        number = (number + upper) / 2 if upper > number else float("nan")
    scale = "100" if parts.get("percent") else parts.get("scale")
    return _on_scale(number, float(scale) if scale else None, low, high)


def _number(written: str) -> float:
    words = _NUMBER_WORDS.get(written.lower())
    return float(written.replace(",", ".")) if words is None else float(words)


def _on_scale(number: float, scale: float | None, low: float, high: float) -> float | None:
    if scale is not None and scale < 10 and scale not in (4, 5, high):
        return None  # a fraction, such as 2/3
    if scale and scale != high:
        number = low + number / scale * (high - low)
    return number if low <= number <= high else None


def _object(text: str) -> Mapping[str, object] | None:
    """Return the JSON object that `text` ends with; none if it is in a sentence or a list."""
    if not _ENDS_AS_JSON.search(text):
        return None
    value = read_json(text)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return {"items": value}
    return value if isinstance(value, dict) else None


def _json_rating(value: Mapping[str, object], low: float, high: float) -> float | None:
    named = dict(_named(value))
    keys = [key for key in _RATING_KEYS if key in named]
    if not keys or isinstance(named[keys[0]], bool):
        return None
    found = _READ_VALUE.fullmatch(str(named[keys[0]]).strip())
    scale = next((_SCALE.fullmatch(str(named[key])) for key in _SCALE_KEYS if key in named), None)
    if found and scale and not found["scale"]:
        return _on_scale(_number(found["number"]), float(scale[0]), low, high)
    return _scaled(found, low, high)


def _json_choice(value: Mapping[str, object], count: int) -> int | None:
    named = dict(_named(value))
    keys = [key for key in _CHOICE_KEYS if key in named]
    if not keys or isinstance(named[keys[0]], bool):
        return None
    chosen = _plain(str(named[keys[0]]))
    return _place(_READ_PLACE.match(chosen), chosen, count)


def _named(value: Mapping[str, object], depth: int = 0) -> Iterator[tuple[str, object]]:
    """Yield the members of `value` and of objects in it with normalised names, the outer last."""
    for item in value.values():
        if isinstance(item, dict) and depth < _MAX_DEPTH:
            yield from _named(item, depth + 1)
    for name, item in value.items():
        if not isinstance(item, dict):
            yield re.sub(r"[\s_-]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).lower(), item


def _place(found: re.Match[str] | None, text: str, count: int) -> int | None:
    """Return the index of the candidate in `found`; None if another one is named beside it."""
    if found is None or _ANOTHER.match(text, found.end("place")):
        return None
    written = found["place"].lower()
    if written in _NUMBER_WORDS:
        return _in_range(_NUMBER_WORDS[written], count)
    return _in_range(int(re.sub(r"\D", "", written)[:9]), count)


def _says_best(found: re.Match[str]) -> bool:
    best = found[0].lower().endswith(("best", "winner", "strongest", "wins"))
    return best and not _is_conditional(found.string, found.start())


def _only_mention(text: str, count: int) -> int | None:
    """Return the only answer that `text`, one sentence, mentions; None if perhaps as a bad one."""
    if not _SENTENCE.fullmatch(text):
        return None
    places = {_place(found, text, count) for found in _MENTION.finditer(text)}
    if len(places) != 1 or _AGAINST.search(text):
        return None
    return places.pop()


def _in_range(number: int, count: int) -> int | None:
    return number - 1 if 1 <= number <= count else None
