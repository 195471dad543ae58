"""Entropy decoding: sampling parameters that follow the model's uncertainty, token by token.

Source: the sampler of entropix (xjdr, 2024; no paper). Deviations: see
`approaches.entropy_decoding`.
"""

from pydantic import BaseModel, ConfigDict, Field


class EntropySettings(BaseModel):
    """Settings of a request. Entropy is in bits, varentropy in bits squared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_entropy: float = Field(default=0.1, ge=0, le=20, description="Below: certain (bits).")
    low_varentropy: float = Field(default=0.1, ge=0, le=100, description="Below: even (bits²).")
    hesitant_entropy: float = Field(
        default=3.0, ge=0, le=20, description="Above, and even: hesitant (bits)."
    )
    high_entropy: float = Field(
        default=5.0, ge=0, le=20, description="Below: a fork; above: a fog (bits)."
    )
    high_varentropy: float = Field(
        default=5.0, ge=0, le=100, description="Above: a fork or a fog (bits²)."
    )
    most_temperature: float = Field(
        default=1.5, gt=0, le=2, description="Maximum temperature of any rule."
    )
