"""AutoThink: how long a reply thinks depends on how hard its question looks.

Source: Sharma 2025, "AutoThink: efficient inference for reasoning LLMs", SSRN 5253327. There a
trained classifier gives one of two budgets in tokens; here a rule that needs no download gives a
score, and thinking gets a share of the reply that grows with it. The paper's steering vectors are
left out. The thinking itself is that of thinkdeeper.
"""

import re

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.local_provider.decoding.thinkdeeper import ThinkSettings

_SIGNS = (
    r"\b(prove|proof|derive|show that|explain why|step by step)\b",
    r"\b(analy[sz]e|compare|design|optimi[sz]e|plan)\b",
    r"\b(how many|how much|calculate|compute|solve|probability|integral|equation)\b",
    r"\b(if|then|unless|assume|suppose|given that|such that|at least|at most|exactly)\b",
    r"\b(algorithm|code|function|program|complexity|bug|implement)\b",
    r"\d[\d.,]*\D+\d[\d.,]*\D+\d",
    r"[=<>^∑∫√]|\\\\[a-z]+",
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
