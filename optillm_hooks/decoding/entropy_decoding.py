"""Entropy decoding: sampling parameters adapted to the model's uncertainty at each token.

Source: the sampler of entropix (xjdr, 2024; no paper). Deviations: see
`approaches.entropy_decoding`.
"""

from pydantic import BaseModel, ConfigDict, Field


class EntropySettings(BaseModel):
    """Settings of entropy decoding. Entropy is in bits, varentropy in bits squared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_entropy: float = Field(
        default=0.1,
        ge=0,
        le=20,
        description="Entropy (bits) below which, with low varentropy, a token is certain.",
    )
    low_varentropy: float = Field(
        default=0.1, ge=0, le=100, description="Varentropy (bits²) below which it is low."
    )
    hesitant_entropy: float = Field(
        default=3.0,
        ge=0,
        le=20,
        description="Entropy (bits) above which, with low varentropy, a token is hesitant.",
    )
    high_entropy: float = Field(
        default=5.0,
        ge=0,
        le=20,
        description="Entropy (bits) that separates, with high varentropy, fork (below) from fog.",
    )
    high_varentropy: float = Field(
        default=5.0,
        ge=0,
        le=100,
        description="Varentropy (bits²) above which a token is a fork or a fog.",
    )
    most_temperature: float = Field(
        default=1.5, gt=0, le=2, description="Maximum temperature that a rule may set."
    )
