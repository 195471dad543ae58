"""Entropy decoding: how a token is drawn depends on how uncertain the model is at that point.

Source: the sampler of entropix (xjdr, 2024; no paper), in the form that looks at the logits alone:
entropy and varentropy (bits) of the next token's distribution choose among five ways to draw. What
differs: the statistics of attention weights are left out, since no cached attention kernel yields
them; top-p keeps the likeliest tokens; a hesitant model is not made to write a fixed token; and
where the distribution is ordinary the request's own law holds, with a lower min-p when it is flat.
"""

from pydantic import BaseModel, ConfigDict, Field


class EntropySettings(BaseModel):
    """What a request can set. Entropy in bits, varentropy in bits squared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_entropy: float = Field(default=0.1, ge=0, le=20, description="Below: certain (bits).")
    low_varentropy: float = Field(default=0.1, ge=0, le=100, description="Below: even (bits²).")
    hesitant_entropy: float = Field(
        default=3.0, ge=0, le=20, description="Above, and even: hesitant (bits)."
    )
    high_entropy: float = Field(
        default=5.0, ge=0, le=20, description="Parts a fork from a fog (bits)."
    )
    high_varentropy: float = Field(
        default=5.0, ge=0, le=100, description="Above: a fork or a fog (bits²)."
    )
    most_temperature: float = Field(
        default=1.5, gt=0, le=2, description="Temperature that no rule exceeds."
    )
