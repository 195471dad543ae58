"""CoT decoding: k branches, one per likely first token; the most confident answer wins.

Source: Wang and Zhou 2024, "Chain-of-Thought Reasoning Without Prompting", arXiv:2402.10200,
sections 2.2 and 3. Deviations: see `approaches.cot_decoding`.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.answers.values import Extracted
from optillm_hooks.types import FinishReason, Json


class CotSettings(BaseModel):
    """Settings of CoT decoding in a request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int = Field(
        default=10, ge=1, le=64, description="Number of branches, one per likely first token."
    )
    first_token_exponent: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="A branch counts with the probability of its first token to this power. "
        "0: all count alike, as in the paper.",
    )
    every_mention: bool = Field(
        default=True,
        description="Measure the confidence in a number wherever the branch writes it, and take "
        "the lowest; else only where it is the final answer, as in the paper.",
    )
    aggregate_paths: bool = Field(
        default=True,
        description="Sum the confidences of equal answers; else the most confident branch wins.",
    )
    branch_temperature: float | None = Field(
        default=None,
        ge=0,
        le=2,
        description="Temperature after the first token. Default: 0, as in the paper; within an "
        "approach that samples, the approach's, because its greedy samples would all be equal.",
    )


@dataclass(frozen=True, slots=True)
class Path:
    """One branch, its answer, and the model's confidence in the answer."""

    text: str
    answer: str
    confidence: float
    finish_reason: FinishReason
    probability: float
    """Of its first token."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The path that won, the number of paths, and how many of them have its answer."""

    path: Path
    paths: int
    agreeing: int

    def facts(self) -> dict[str, Json]:
        """Return statistics for the response's vendor fields."""
        return {
            "paths": self.paths,
            "agreeing": self.agreeing,
            "confidence": round(self.path.confidence, 6),
        }


def read_path(
    text: str,
    margins: Sequence[float],
    ends: Sequence[int],
    finish_reason: FinishReason,
    found: Extracted | None,
    probability: float,
    *,
    every_mention: bool,
) -> Path:
    """Return a branch with its answer and confidence.

    `found`: its final answer; without one, the answer is the whole text. `ends[i]`: the length of
    the text up to and including token i. `margins[i]`: the difference between the probabilities of
    the two likeliest tokens at this place. `probability`: of the first token. `every_mention`: see
    `CotSettings`.
    """
    found = found or Extracted(text, 0, len(text))
    spans = [(found.start, found.end)]
    if every_mention:
        spans += mentions(text[: found.start], text[found.start : found.end])
    confidence = min(span_confidence(margins, ends, start, end) for start, end in spans)
    return Path(text, found.answer, confidence, finish_reason, probability)


def mentions(text: str, answer: str) -> list[tuple[int, int]]:
    """Return where `text` has the number `answer`; nothing for an answer without a digit.

    Part of a word or of another number is no mention: 1 is not in 10, -1, 1.5 or 1/2. Words are
    left out, because a short one such as "A" or "no" often means something else earlier in a text.
    """
    if not re.search(r"\d", answer):
        return []
    whole = re.compile(rf"(?<![\w/-])(?<!\d[.,]){re.escape(answer)}(?![\w/]|[.,]\d)")
    return [match.span() for match in whole.finditer(text)]


def span_confidence(margins: Sequence[float], ends: Sequence[int], start: int, end: int) -> float:
    """Return the mean margin of the tokens in `text[start:end]`; 0 if there are none."""
    inside = margins[bisect_right(ends, start) : bisect_left(ends, end) + 1]
    return sum(inside) / len(inside) if inside else 0.0


def choose(paths: Sequence[Path], same: Sequence[int | None], settings: CotSettings) -> Choice:
    """Return the path that counts most of the answer with the highest score; ties: the first.

    A path counts with its confidence, weighted by `first_token_exponent`. Paths with text are
    preferred to empty ones, and finished paths to truncated ones. `same` has the class of each
    path's answer; equivalent answers count as one.
    """
    able = [at for at, path in enumerate(paths) if path.text.strip()] or list(range(len(paths)))
    able = [at for at in able if paths[at].finish_reason != "length"] or able
    votes = [path.confidence * path.probability**settings.first_token_exponent for path in paths]
    scores: dict[int | None, float] = {}
    for at in able:
        score = scores.get(same[at], 0.0)
        scores[same[at]] = score + votes[at] if settings.aggregate_paths else max(score, votes[at])
    answer = max(scores, key=lambda answer: scores[answer])
    best = max((at for at in able if same[at] == answer), key=lambda at: votes[at])
    return Choice(paths[best], len(paths), same.count(answer))
