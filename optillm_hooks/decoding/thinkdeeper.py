"""ThinkDeeper: minimum and maximum thinking before the answer (budget forcing).

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393, section 3.1.
Deviations: see `approaches.thinkdeeper`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.decoding.markers import Markers
from optillm_hooks.types import Json

_SHARES = {"low": 0.33, "medium": 0.66, "high": 0.9}
"""Share of the reply's tokens for thinking, by reasoning effort."""

_MINIMUM = {"low": 32, "medium": 128, "high": 512}
"""Minimum number of thinking tokens, by reasoning effort, unless a tenth of the reply is less."""

_MAX_THOUGHTS = {"low": 64, "medium": 256, "high": 512}

_MIN_ANSWER = 64
"""Minimum number of tokens reserved for the answer."""


class ThinkSettings(BaseModel):
    """Settings of ThinkDeeper. `reasoning_effort` determines unset numbers of tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reasoning_effort: Literal["low", "medium", "high"] = Field(
        default="low", description="Share of the reply's tokens for thinking: 33, 66 or 90 %."
    )
    min_thinking_tokens: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Minimum number of thinking tokens; default: 32, 128 or 512 by "
        "reasoning_effort, and at most 10 % of the reply.",
    )
    max_thinking_tokens: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Maximum number of thinking tokens; default: by reasoning_effort.",
    )
    max_thoughts: int | None = Field(
        default=None, ge=1, le=100_000, description="Maximum number of thoughts."
    )
    thought_switch_tokens: tuple[str, ...] = Field(
        default=("Wait,", "Alternatively,", "However,", "On second thought,"),
        min_length=1,
        max_length=32,
        description="Words that begin another thought; inserted to continue the thinking.",
    )
    prefill: str = Field(
        default="", max_length=4000, description="Text that the thinking begins with."
    )
    start_think_token: str = Field(
        default="<think>",
        min_length=1,
        max_length=64,
        description="Opening marker of the thinking.",
    )
    end_think_token: str = Field(
        default="</think>",
        min_length=1,
        max_length=64,
        description="Closing marker of the thinking.",
    )

    @property
    def markers(self) -> Markers:
        return self.start_think_token, self.end_think_token


class ThinkingBudget:
    """The thinking budget of a reply of `reply_tokens` tokens, without the opening marker.

    A tenth of the reply is reserved for the answer, but at least 64 tokens and at most half; of a
    reply of one token, that token.
    """

    def __init__(self, settings: ThinkSettings, reply_tokens: int) -> None:
        answer = min(max(_MIN_ANSWER, reply_tokens // 10), max(1, reply_tokens // 2))
        share = int(reply_tokens * _SHARES[settings.reasoning_effort])
        maximum = share if settings.max_thinking_tokens is None else settings.max_thinking_tokens
        minimum = (
            min(_MINIMUM[settings.reasoning_effort], reply_tokens // 10)
            if settings.min_thinking_tokens is None
            else settings.min_thinking_tokens
        )
        self.max_tokens = max(min(maximum, reply_tokens - answer), 0)
        self.min_tokens = min(minimum, self.max_tokens)
        self.max_thoughts = settings.max_thoughts or _MAX_THOUGHTS[settings.reasoning_effort]

    def facts(self, tokens: int, thoughts: int, pushed: int) -> dict[str, Json]:
        """Return the budget and its use, for the response's vendor fields."""
        return {
            "least_thinking": self.min_tokens,
            "most_thinking": self.max_tokens,
            "thinking": tokens,
            "thoughts": thoughts,
            "pushed_on": pushed,
        }
