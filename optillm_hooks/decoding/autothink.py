"""AutoThink: a thinking budget that depends on the complexity of the question.

Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327. Deviations:
see `approaches.autothink`.
"""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from optillm_hooks.answers.patterns import Pattern
from optillm_hooks.decoding.thinkdeeper import ThinkSettings

_SIGNS = tuple(
    Pattern(sign, re.IGNORECASE)
    for sign in (
        r"\b(prove|proof|derive|show that|explain why|step by step)\b",
        r"\b(analy[sz]e|compare|design|optimi[sz]e|plan)\b",
        r"\b(how many|how much|calculate|compute|solve|probability|integral|equation)\b",
        r"\b(if|then|unless|assume|suppose|given that|such that|at least|at most|exactly)\b",
        r"\b(algorithm|code|function|program|complexity|bug|implement)\b",
        r"\d\D++\d++\D++\d",
        r"[=<>^∑∫√]|\\[a-z]+",
    )
)

_LONG_QUESTION = 120
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


_MAX_LENGTH = 20_000
"""Characters of a question that count, from its end."""


def complexity(question: str) -> float:
    """Return a complexity score from 0 to 1, from a question's length and signs of difficulty."""
    question = question[-_MAX_LENGTH:]
    shown = sum(sign.search(question) is not None for sign in _SIGNS)
    length = min(len(question.split()) / _LONG_QUESTION, 1.0)
    return 0.75 * min(shown / 4, 1.0) + 0.25 * length


def thinking_settings(
    question: str, settings: AutoThinkSettings, reply_tokens: int
) -> ThinkSettings:
    """Return the thinking budget of a reply of at most `reply_tokens` tokens to `question`."""
    low, high = sorted((settings.least_share, settings.most_share))
    maximum = int(reply_tokens * (low + (high - low) * complexity(question)))
    return ThinkSettings(
        max_thinking_tokens=maximum, min_thinking_tokens=min(maximum, reply_tokens // 20)
    )
