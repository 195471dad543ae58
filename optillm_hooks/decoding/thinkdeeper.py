"""ThinkDeeper: thinking of at least and at most so many tokens before the answer.

Source: Muennighoff et al. 2025, "s1: Simple test-time scaling", arXiv:2501.19393, section 3.1
(budget forcing): too early an end of thinking is replaced by a word that makes the model go on, and
at the budget the end marker is written for it. Limiting the number of thoughts follows Wang et al.
2025, arXiv:2501.18585, which penalises switching; here switches are counted.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from optillm_hooks.decoding.markers import Markers
from optillm_hooks.types import Json

_SHARES = {"low": 0.33, "medium": 0.66, "high": 0.9}


_THOUGHTS = {"low": 64, "medium": 256, "high": 512}


_MIN_ANSWER = 64


class ThinkSettings(BaseModel):
    """What a request can set. Numbers of tokens left open follow from `reasoning_effort`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reasoning_effort: Literal["low", "medium", "high"] = Field(
        default="low", description="Share of the reply for thinking: 33, 66 or 90 %."
    )
    min_thinking_tokens: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Least thinking; else 10 % of the reply."
    )
    max_thinking_tokens: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Most thinking."
    )
    max_thoughts: int | None = Field(
        default=None, ge=1, le=100_000, description="Most changes of direction."
    )
    thought_switch_tokens: tuple[str, ...] = Field(
        default=("Wait,", "Alternatively,", "However,", "On second thought,"),
        min_length=1,
        max_length=32,
        description="Words that begin another thought, written to keep the model thinking.",
    )
    prefill: str = Field(default="", max_length=4000, description="How the thinking begins.")
    start_think_token: str = Field(
        default="<think>", min_length=1, max_length=64, description="Opens it."
    )
    end_think_token: str = Field(
        default="</think>", min_length=1, max_length=64, description="Closes it."
    )

    @property
    def markers(self) -> Markers:
        return self.start_think_token, self.end_think_token


class ThinkingBudget:
    """Tokens of thinking for a reply with `room` tokens behind its opening.

    The answer always keeps some of them: a tenth and at least 64, but never more than half.
    """

    def __init__(self, settings: ThinkSettings, room: int) -> None:
        answer = min(max(_MIN_ANSWER, room // 10), room // 2)
        share = int(room * _SHARES[settings.reasoning_effort])
        most = share if settings.max_thinking_tokens is None else settings.max_thinking_tokens
        least = room // 10 if settings.min_thinking_tokens is None else settings.min_thinking_tokens
        self.most = max(min(most, room - answer), 0)
        self.least = min(least, self.most)
        self.thoughts = settings.max_thoughts or _THOUGHTS[settings.reasoning_effort]

    def facts(self, tokens: int, thoughts: int, pushed: int) -> dict[str, Json]:
        """Return what a reply made of its budget."""
        return {
            "least_thinking": self.least,
            "most_thinking": self.most,
            "thinking": tokens,
            "thoughts": thoughts,
            "pushed_on": pushed,
        }
