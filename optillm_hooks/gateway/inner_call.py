"""One call of a plan, as an object in the call's metadata for LiteLLM.

LiteLLM passes it on to fallbacks, to callbacks, and to our provider if a fallback leads to an
alias. They see from it that the call belongs to a plan, and note in it what became of the call. A
client cannot forge the object: a body has only JSON.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from optillm_hooks.gateway.payments import Payment

INNER_CALL_KEY = "optillm_call"


@dataclass(frozen=True, slots=True)
class Held:
    """What a request's `max_cost_usd` holds for one call."""

    group: str
    """The model group whose price it was reckoned at."""

    usd: float
    prompt_tokens: int


@dataclass(slots=True, eq=False, repr=False)
class InnerCall:
    tried: set[str] = field(default_factory=set[str])
    """The model groups that were asked so far; calls that answer this one share the set."""

    needs_price: bool = False
    """Whether the request limits its cost, so that a model without a known price is refused."""

    held: Held | None = None
    """What is held for it, if the request limits its cost."""

    payment: Payment = field(default_factory=Payment)
    log: Any = None
    """LiteLLM's log of the attempt under way; None outside a proxy, where nobody is billed."""

    refused: bool = False
    """Whether an alias could not answer it."""

    answered_by_alias: bool = False
    cost_usd: float = 0.0
    """What the alias has spent that answered. LiteLLM is told 0, as it bills the alias's call."""

    def __repr__(self) -> str:
        return "<optillm call>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self


def inner_call(metadata: Mapping[str, Any]) -> InnerCall | None:
    """Return the call of a plan that has this metadata; None if a client made the request."""
    found = metadata.get(INNER_CALL_KEY)
    return found if isinstance(found, InnerCall) else None
