"""What kind of task a question is, so that an approach can be chosen for it."""

import re
from enum import StrEnum
from typing import Final

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.answers.questions import Asked, asked_for, asks_for_a_fact


class Task(StrEnum):
    """Kinds of tasks."""

    CODE = "code"
    PROOF = "proof"
    PUZZLE = "puzzle"
    """It has one answer, under several conditions."""

    DEFINITE = "definite"
    """It has one answer, which can be compared."""

    TEXT = "text"
    """Anything else: many answers are good."""


_MAX_LENGTH: Final = 4000
"""Characters at the end of a question that are read."""

_MANY_CONDITIONS: Final = 3

_PROGRAM: Final = Pattern(
    r"\b(?:functions?|programs?|scripts?|algorithms?|methods?|class(?:es)?|code|regex|unit tests?"
    r"|python|javascript|typescript|java|c\+\+|rust|golang|sql|bash"
    r"|funktion(?:en)?|programm|skript|algorithmus|fonctions?|programme|algorithme"
    r"|funci\u00f3n|programa|algoritmo|c\u00f3digo|funzione|programma|codice|fun\u00e7\u00e3o)\b"
    r"|\u51fd\u6570|\u4ee3\u7801|\u7a0b\u5e8f|\u7b97\u6cd5|\u95a2\u6570|\u30b3\u30fc\u30c9"
    r"|\u30d7\u30ed\u30b0\u30e9\u30e0",
    re.IGNORECASE,
)
_MAKE: Final = Pattern(
    r"\b(?:write|implement|create|complete|fix|debug|refactor|code|optimi[sz]e"
    r"|schreibe?n?|implementiere?n?|programmiere?n?|\u00e9cri(?:s|vez|re)|impl\u00e9mente[rz]?"
    r"|escrib[ae]|implement[ae]|programa|scrivi|implementa|escreva)\b"
    r"|\u5199|\u7f16\u5199|\u5b9e\u73b0|\u5b9f\u88c5|\u66f8\u3044\u3066|\u66f8\u304f",
    re.IGNORECASE,
)
_PROSE: Final = Pattern(
    r"\b(?:poems?|essays?|stor(?:y|ies)|songs?|haikus?|jokes?|e-?mails?|letters?|articles?|posts?"
    r"|gedichte?|geschichten?|briefe?|po\u00e8mes?|lettres?|poemas?|cuentos?|cartas?|lettere)\b"
    r"|\u8bd7|\u6545\u4e8b|\u90ae\u4ef6|\u8a69|\u7269\u8a9e",
    re.IGNORECASE,
)
_PROVE: Final = Pattern(
    r"\b(?:prove|proof|disprove|show that|beweise?n?|zeige?,? dass|d\u00e9montre[rz]?"
    r"|prouve[rz]?|montre[rz]? que|demuestr[ae]|demostrar|prueb[ae] que|dimostr[aie]+|prove que)\b"
    r"|\u8bc1\u660e|\u8a3c\u660e",
    re.IGNORECASE,
)
_CALCULATE: Final = Pattern(
    r"\d\s?[-+*/^\u00d7\u00f7=<>\u2264\u2265]\s?[\d(a-z]"
    r"|[a-z]\s?[=<>\u2264\u2265]\s?[-\d]|\\(?:frac|sqrt|sum|int)\b"
    r"|\b(?:calculate|compute|evaluate|solve|determine|find the|simplify"
    r"|berechne|bestimme|l\u00f6se|calcule[rz]?|r\u00e9sou[ds]|d\u00e9termine[rz]?"
    r"|calcul[ae]|resuelve|determina|calcola|risolvi|resolva)\b"
    r"|\u8ba1\u7b97|\u6c42|\u8a08\u7b97|\u89e3\u3051",
    re.IGNORECASE,
)
_CONDITION: Final = Pattern(
    r"\b(?:exactly|at least|at most|each|every|different|distinct|only|neither|either|unless"
    r"|not|never|must|cannot|can't|next to|left of|right of|between|before|after|immediately"
    r"|lies|lying|truth"
    r"|genau|mindestens|h\u00f6chstens|jede[rsnm]?|verschiedene?n?|nur|weder|entweder|nicht|neben"
    r"|exactement|au moins|au plus|chaque|seulement|ni|entre|avant|apr\u00e8s"
    r"|exactamente|al menos|como m\u00e1ximo|cada|solo|ning\u00fan|entre|antes|despu\u00e9s"
    r"|esattamente|almeno|al massimo|ogni|solo|prima|dopo)\b"
    r"|\u6070\u597d|\u81f3\u5c11|\u81f3\u591a|\u6bcf|\u53ea|\u4e0d|\u3061\u3087\u3046\u3069"
    r"|\u5c11\u306a\u304f\u3068\u3082",
    re.IGNORECASE,
)
_DEFINITE: Final = frozenset({Asked.YES_OR_NO, Asked.NAME, Asked.NUMBER, Asked.TIME, Asked.CHOICE})


def task_of(question: str) -> Task:
    """Return the kind of task that `question` is; `TEXT` if it is not recognised."""
    end = question.strip()[-_MAX_LENGTH:]
    if not end:
        return Task.TEXT
    makes = _MAKE.search(end) and _PROGRAM.search(end) and not _PROSE.search(end)
    if makes or _continues_code(end):
        return Task.CODE
    if _PROVE.search(end):
        return Task.PROOF
    asked = asked_for(question)
    calculates = _CALCULATE.search(end) is not None
    if asked not in _DEFINITE and not calculates:
        is_open = asked is Asked.TEXT or asks_for_a_fact(end)
        return Task.TEXT if is_open else Task.DEFINITE
    conditions = sum(1 for _ in _CONDITION.finditer(end))
    return Task.PUZZLE if conditions >= _MANY_CONDITIONS else Task.DEFINITE


def _continues_code(text: str) -> bool:
    """Return whether `text` ends with a block of code that is to be continued."""
    blocks = code_blocks(text)
    return bool(blocks) and not text[blocks[-1].start + len(blocks[-1].content) :].strip("`~ \n")
