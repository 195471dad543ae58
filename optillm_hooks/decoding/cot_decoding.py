"""CoT decoding: k branches, one per likely first token; the answer they are surest of wins.

Source: Wang and Zhou 2024, "Chain-of-Thought Reasoning Without Prompting", arXiv:2402.10200,
sections 2.2 and 3. As there, confidence is the mean gap between the two likeliest tokens over the
tokens of the answer alone, and the gaps of equal answers are added up. What the answer is, is read
off the text: a box, what stands behind "the answer is", a number, a yes or no. Where a branch has
none the paper asks the model to name it; here the text is then an answer of its own, with the gap
over the whole of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.answers.extraction import stated_answer
from optillm_hooks.types import FinishReason, Json

_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")


_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


_LEADING = re.compile(
    r"(?:\A|</think>)\W{0,9}(yes\b|no\b(?=[ \t]*(?:[.,:;!*)\n]|\Z|because\b|since\b)))",
    re.IGNORECASE,
)


_FINAL = re.compile(r"\b(yes|no)\b\W*\Z", re.IGNORECASE)


class CotSettings(BaseModel):
    """What a request can set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(default=10, ge=1, le=64, description="Branches, one per likely first token.")
    aggregate_paths: bool = Field(
        default=True,
        description="Add up the confidence of branches with equal answers; else the surest wins.",
    )
    branch_temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Of what follows a first token. Unset: 0 as in the paper, and within an "
        "approach that samples, that approach's: greedy branches would give it one answer only.",
    )


class Span(NamedTuple):
    """Where an answer stands in a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Path:
    """One branch with its answer; `answer` is in the form in which answers are compared."""

    text: str
    answer: str
    confidence: float
    finish_reason: FinishReason


def answer_span(text: str) -> Span | None:
    """Return where the final answer stands, or None if there is none to be read.

    It is the last box, else what is stated last to be the answer (of that an option's letter, a yes
    or no, a number, or else all the words), else the last number, else a yes or no at the end of
    the text, or else at its beginning.
    """
    boxes = list(_BOXED.finditer(text))
    if boxes:
        return Span(*boxes[-1].span(1))
    stated = stated_answer(text)
    if stated is not None:
        start, end = stated
        leading = _LEADING.match(text[start:end])
        if leading:
            return Span(start + leading.start(1), start + leading.end(1))
        return _last_number(text, start, end) or Span(start, end)
    return _last_number(text, 0, len(text)) or _yes_or_no(text)


def _last_number(text: str, start: int, end: int) -> Span | None:
    numbers = list(_NUMBER.finditer(text, start, end))
    if not numbers:
        return None
    number = numbers[-1]
    return Span(number.start(), number.start() + len(number.group().rstrip(",")))


def _yes_or_no(text: str) -> Span | None:
    found = _FINAL.search(text) or next(reversed(list(_LEADING.finditer(text))), None)
    return Span(*found.span(1)) if found else None


def comparable(answer: str) -> str:
    """Return `answer` such that equal numbers are equal: 1,000.0 and 1000."""
    plain = answer.strip().replace(",", "").removeprefix("$").strip()
    try:
        number = Decimal(plain)
    except InvalidOperation:
        return " ".join(answer.split()).casefold()
    return format(number.normalize() + 0, "f") if number.is_finite() else plain


def span_confidence(margins: Sequence[float], ends: Sequence[int], span: Span) -> float:
    """Return the mean margin of the tokens that write `span`; 0 if there are none.

    `ends[i]` is the length of the text after token i, `margins[i]` the gap at that token.
    """
    starts = [0, *ends[:-1]]
    inside = [
        margin
        for margin, start, end in zip(margins, starts, ends, strict=True)
        if start < span.end and end > span.start
    ]
    return sum(inside) / len(inside) if inside else 0.0


def read_path(
    text: str, margins: Sequence[float], ends: Sequence[int], finish_reason: FinishReason
) -> Path:
    """Return a branch with its answer and how sure the model was of it."""
    span = answer_span(text)
    if span is None:
        whole = Span(0, len(text))
        confidence = span_confidence(margins, ends, whole)
        return Path(text, comparable(text), confidence, finish_reason)
    answer = comparable(text[span.start : span.end])
    return Path(text, answer, span_confidence(margins, ends, span), finish_reason)


def choose(paths: Sequence[Path], *, aggregate: bool) -> Path:
    """Return the winning path: of the best answer, the surest; among equals the first.

    Paths with text go before empty ones, and finished ones before those cut off.
    """
    able = [path for path in paths if path.text.strip()] or list(paths)
    able = [path for path in able if path.finish_reason != "length"] or able
    scores = {path.answer: 0.0 for path in able}
    for path in able:
        scores[path.answer] = (
            scores[path.answer] + path.confidence
            if aggregate
            else max(scores[path.answer], path.confidence)
        )
    best = max(scores, key=lambda answer: scores[answer])
    return max((path for path in able if path.answer == best), key=lambda path: path.confidence)


def facts(paths: Sequence[Path], best: Path) -> dict[str, Json]:
    """Return what can be said of how `best` won."""
    return {
        "paths": len(paths),
        "agreeing": sum(path.answer == best.answer for path in paths),
        "confidence": round(best.confidence, 6),
    }
