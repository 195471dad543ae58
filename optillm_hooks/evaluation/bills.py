"""What calls have cost."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Bill:
    """Tokens and dollars of one call or of several."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    """None if the cost of any call is unknown."""

    def __add__(self, other: "Bill") -> "Bill":
        costs = (self.cost_usd, other.cost_usd)
        return Bill(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            None if None in costs else sum(cost for cost in costs if cost is not None),
        )


NOTHING: Final = Bill()
