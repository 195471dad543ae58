"""ThinkDeeper: a minimum and a maximum of thinking before the answer (budget forcing).

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393, section 3.1.
Deviations: see `approaches.thinkdeeper`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.decoding.markers import Markers
from optillm_hooks.types import Json

_SHARES = {"low": 0.33, "medium": 0.66, "high": 0.9}
"""Share of the reply for thinking, by reasoning effort."""

_MAX_THOUGHTS = {"low": 64, "medium": 256, "high": 512}

_MIN_ANSWER = 64
"""Tokens."""


class ThinkSettings(BaseModel):
    """Settings of a request. Unset numbers of tokens follow from `reasoning_effort`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reasoning_effort: Literal["low", "medium", "high"] = Field(
        default="low", description="Share of the reply for thinking: 33, 66 or 90 %."
    )
    min_thinking_tokens: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Minimum of thinking; unset: 10 % of the reply.",
    )
    max_thinking_tokens: int | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Maximum of thinking; unset: by reasoning_effort.",
    )
    max_thoughts: int | None = Field(
        default=None, ge=1, le=100_000, description="Maximum number of thoughts."
    )
    thought_switch_tokens: tuple[str, ...] = Field(
        default=("Wait,", "Alternatively,", "However,", "On second thought,"),
        min_length=1,
        max_length=32,
        description="Words that begin another thought; written to make the model go on.",
    )
    prefill: str = Field(
        default="", max_length=4000, description="Text with which the thinking begins."
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
    """The minimum and maximum of thinking in a reply of `room` tokens, its opening not counted.

    A tenth of the reply, at least 64 tokens but never more than half, is kept for the answer.
    """

    def __init__(self, settings: ThinkSettings, room: int) -> None:
        answer = min(max(_MIN_ANSWER, room // 10), room // 2)
        share = int(room * _SHARES[settings.reasoning_effort])
        maximum = share if settings.max_thinking_tokens is None else settings.max_thinking_tokens
        minimum = (
            room // 10 if settings.min_thinking_tokens is None else settings.min_thinking_tokens
        )
        self.max_tokens = max(min(maximum, room - answer), 0)
        self.min_tokens = min(minimum, self.max_tokens)
        self.max_thoughts = settings.max_thoughts or _MAX_THOUGHTS[settings.reasoning_effort]

    def facts(self, tokens: int, thoughts: int, pushed: int) -> dict[str, Json]:
        """Return the budget and how much of it a reply used."""
        return {
            "least_thinking": self.min_tokens,
            "most_thinking": self.max_tokens,
            "thinking": tokens,
            "thoughts": thoughts,
            "pushed_on": pushed,
        }
