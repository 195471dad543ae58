"""AutoThink: a thinking budget that depends on the complexity of the question.

Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327. Deviations:
see `approaches.autothink`.
"""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.decoding.thinkdeeper import ThinkSettings

_TASKS = tuple(
    Pattern(words, re.IGNORECASE)
    for words in (
        # to prove or to explain
        r"\b(?:prove|proof|show|derive|justify|explain why|explain each|beweis|zeige|begründ"
        r"|démontr|montr|prouv|justifi|demuestr|demostr|prueb|доказ|докаж|обоснуй)"
        r"|证明|推导|讨论|論じ|証明|示せ|示し|導|أثبت|برهن|اثبت",
        # to solve or to calculate
        r"\b(?:solve|calculat|comput|find all|determine|evaluat|integra[tl]|probability|derivative"
        r"|how many|how much|how long|after how|berechn|löse|bestimme|wahrscheinlich|wie viele?\b"
        r"|wie lange|résou|calcul|probabilit|combien|détermin|resuelv|resolv|halla|cuánt"
        r"|cuant[oa]s|probabilidad|решит|реши\b|вычисл|найдите|вероятност|сколько)"
        r"|计算|求|解方程|概率|多少|几个?小时|何時間|何分|いくつ|解い|解け|確率"
        r"|احسب|حل المعادلة|احتمال|كم\s",
        # to program or to design
        r"\b(?:algorith?m|program|implement|complexity|refactor|debug|function|optimi[sz]e|entwirf"
        r"|laufzeit|algoritm|complexit|complejidad|diseñ|conçoi|conce[bv]|алгоритм|программ|сложност)"
        r"|算法|复杂度|程序|编程|アルゴリズム|計算量|プログラム|خوارزم|برنامج يحسب|تعقيد",
    )
)
"""Words of tasks that take several steps, in eight languages, by the kind of task."""

_NOTATION = Pattern(r"[=<>≤≥≠∑∫√^]|\\[a-z]{2,}|\b[a-z]\([a-z0-9]|```", re.IGNORECASE)
_NUMBER = Pattern(r"\d[\d.,:]*+")
_VARIABLE = Pattern(r"(?<![\w'\u2019])[b-hj-np-zB-HJ-NP-Z](?![\w'\u2019.)])")
"""A letter alone, unless it is a word of one of the languages (a, i, o), or "s" and the like."""

_WORD = Pattern(r"[^\W\d_]+|\d+")
_NO_SPACES = Pattern(r"[\u3040-\u30ff\u4e00-\u9fff]")
"""Characters of scripts without spaces, of which about two make a word."""

_LONG_QUESTION = 60
"""Number of words from which a question has the full score for its length."""


class AutoThinkSettings(BaseModel):
    """Settings of AutoThink in a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the reply's tokens for thinking, for the easiest questions.",
    )
    most_share: float = Field(
        default=0.6,
        ge=0,
        le=1,
        description="Share of the reply's tokens for thinking, for the hardest questions.",
    )
    pattern_strengths: dict[str, float] = Field(
        default_factory=dict[str, float],
        max_length=16,
        description="Strengths of the model's steering vectors by name, from -1 to 1, relative to "
        "the norm of the hidden state.",
    )

    @field_validator("pattern_strengths")
    @classmethod
    def _bounded(cls, strengths: dict[str, float]) -> dict[str, float]:
        if not all(-1 <= strength <= 1 for strength in strengths.values()):
            raise ValueError("a strength must be between -1 and 1")
        return strengths


_LEAST_FOR_HARD = 256
"""Minimum number of thinking tokens for the hardest questions."""

_MAX_LENGTH = 20_000
"""Characters of a question that count, from its end."""


def complexity(question: str) -> float:
    """Return a score from 0 to 1 of how many steps a question seems to take.

    It counts the words of tasks that take several steps (English, German, French, Spanish, Russian,
    Chinese, Japanese, Arabic), and what needs no language: mathematical notation and variables,
    numbers, and length. It is a guess from the outside: a short riddle looks easy.
    """
    question = question[-_MAX_LENGTH:]
    tasks = sum(task.search(question) is not None for task in _TASKS)
    numbers = len(_NUMBER.findall(question))
    length = len(_WORD.findall(question)) + len(_NO_SPACES.findall(question)) // 2
    score = (
        0.35 * min(tasks, 2)
        + 0.25 * (_NOTATION.search(question) is not None)
        + 0.1 * (_VARIABLE.search(question) is not None)
        + 0.1 * min(numbers, 3)
        + 0.2 * min(length / _LONG_QUESTION, 1.0)
    )
    return min(score, 1.0)


def thinking_settings(
    question: str, settings: AutoThinkSettings, reply_tokens: int
) -> ThinkSettings:
    """Return the thinking budget of a reply of at most `reply_tokens` tokens to `question`."""
    low, high = sorted((settings.least_share, settings.most_share))
    score = complexity(question)
    maximum = int(reply_tokens * (low + (high - low) * score))
    minimum = min(maximum, int(score * _LEAST_FOR_HARD))
    return ThinkSettings(max_thinking_tokens=maximum, min_thinking_tokens=minimum)
