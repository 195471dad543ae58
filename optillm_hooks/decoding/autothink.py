"""AutoThink: how long a reply thinks depends on how hard its question looks.

Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327. There a
trained classifier gives one of two budgets in tokens; here a rule that needs no download gives a
score, and thinking gets a share of the reply that grows with it. The thinking itself is that of
thinkdeeper. Steering vectors are the operator's (`local_provider.steering`); a request says which,
and how strongly, instead of having a classifier find one.
"""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from optillm_hooks.decoding.thinkdeeper import ThinkSettings

_SIGNS = (
    r"\b(prove|proof|derive|show that|explain why|step by step)\b",
    r"\b(analy[sz]e|compare|design|optimi[sz]e|plan)\b",
    r"\b(how many|how much|calculate|compute|solve|probability|integral|equation)\b",
    r"\b(if|then|unless|assume|suppose|given that|such that|at least|at most|exactly)\b",
    r"\b(algorithm|code|function|program|complexity|bug|implement)\b",
    r"\d[\d.,]*\D+\d[\d.,]*\D+\d",
    r"[=<>^∑∫√]|\\[a-z]+",
)


_LONG_WORDS = 120


class AutoThinkSettings(BaseModel):
    """What a request can set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    least_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the reply for thinking, easiest question."
    )
    most_share: float = Field(
        default=0.6, ge=0, le=1, description="Share of the reply for thinking, hardest question."
    )
    pattern_strengths: dict[str, float] = Field(
        default_factory=dict[str, float],
        max_length=16,
        description="Steering vectors of the model by name, each with its strength from -1 to 1: "
        "the share of a hidden state's length that is added along it.",
    )

    @field_validator("pattern_strengths")
    @classmethod
    def _bounded(cls, strengths: dict[str, float]) -> dict[str, float]:
        if not all(-1 <= strength <= 1 for strength in strengths.values()):
            raise ValueError("a strength lies between -1 and 1")
        return strengths


def complexity(question: str) -> float:
    """Return how hard a question looks, from 0 to 1, by its length and the signs it shows."""
    shown = sum(re.search(sign, question, re.IGNORECASE) is not None for sign in _SIGNS)
    length = min(len(question.split()) / _LONG_WORDS, 1.0)
    return 0.75 * min(shown / 4, 1.0) + 0.25 * length


def thinking_for(question: str, settings: AutoThinkSettings, room: int) -> ThinkSettings:
    """Return the budget of a reply of `room` tokens to `question`."""
    low, high = sorted((settings.least_share, settings.most_share))
    most = int(room * (low + (high - low) * complexity(question)))
    return ThinkSettings(max_thinking_tokens=most, min_thinking_tokens=min(most, room // 20))
