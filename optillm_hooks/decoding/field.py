"""The request field `optillm_decoding`, which selects a decoding method of the engine."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel

from optillm_hooks.types import Json, Sampling

S = TypeVar("S", bound=BaseModel)

Supports = Callable[[str], bool]
"""Returns True if a model supports the request field of this name."""

FIELD = "optillm_decoding"
"""The request field. Its value maps the name of a method to its settings."""


def settings_of(kind: type[S], params: BaseModel) -> S:
    """Return the engine's settings among the parameters of a stage."""
    return kind.model_validate(params.model_dump(include=set(kind.model_fields)))


def with_decoding(name: str, settings: BaseModel, sampling: Sampling) -> Sampling:
    """Return `sampling` with the field that selects the decoding method `name`."""
    chosen: Json = {name: settings.model_dump(mode="json")}
    return replace(sampling, fields={**sampling.fields, FIELD: chosen})
