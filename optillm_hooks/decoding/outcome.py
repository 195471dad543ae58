"""The result of a decoding method."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from optillm_hooks.types import FinishReason, Json


@dataclass(frozen=True, slots=True)
class Decoded:
    """The reply that a decoding method makes from its branches."""

    text: str
    finish_reason: FinishReason = "stop"
    facts: Mapping[str, Json] = field(default_factory=dict[str, Json])
    """Statistics for the response's vendor fields."""
