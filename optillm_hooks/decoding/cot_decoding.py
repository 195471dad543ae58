"""CoT decoding: k branches, one per likely first token; the most confident answer wins.

Source: Wang and Zhou 2024, "Chain-of-Thought Reasoning Without Prompting", arXiv:2402.10200,
sections 2.2 and 3. Deviations: see `approaches.cot_decoding`.
"""

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
) -> Path:
    """Return a branch with its answer and confidence.

    `found`: its final answer; without one, the answer is the whole text. `ends[i]`: the length of
    the text up to and including token i. `margins[i]`: the difference between the probabilities of
    the two likeliest tokens at this place.
    """
    found = found or Extracted(text, 0, len(text))
    confidence = span_confidence(margins, ends, found.start, found.end)
    return Path(text, found.answer, confidence, finish_reason)


def span_confidence(margins: Sequence[float], ends: Sequence[int], start: int, end: int) -> float:
    """Return the mean margin of the tokens in `text[start:end]`; 0 if there are none."""
    starts = [0, *ends[:-1]]
    inside = [
        margin
        for margin, token_start, token_end in zip(margins, starts, ends, strict=True)
        if token_start < end and token_end > start
    ]
    return sum(inside) / len(inside) if inside else 0.0


def choose(paths: Sequence[Path], same: Sequence[int | None], *, aggregate: bool) -> Choice:
    """Return the most confident path of the answer with the highest score; ties: the first.

    Paths with text are preferred to empty ones, and finished paths to truncated ones. `same` has
    the class of each path's answer; equivalent answers count as one.
    """
    able = [at for at, path in enumerate(paths) if path.text.strip()] or list(range(len(paths)))
    able = [at for at in able if paths[at].finish_reason != "length"] or able
    scores: dict[int | None, float] = {}
    for at in able:
        score, confidence = scores.get(same[at], 0.0), paths[at].confidence
        scores[same[at]] = score + confidence if aggregate else max(score, confidence)
    answer = max(scores, key=lambda answer: scores[answer])
    best = max((at for at in able if same[at] == answer), key=lambda at: paths[at].confidence)
    return Choice(paths[best], len(paths), same.count(answer))
