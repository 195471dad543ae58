"""The request field that tells the engine which decoding method to use."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel

from optillm_hooks.types import Json, Sampling

S = TypeVar("S", bound=BaseModel)

Supports = Callable[[str], bool]
"""Whether a model supports the request field of that name."""

FIELD = "optillm_decoding"
"""The request field; its value maps the method's name to its settings."""


def settings_of(kind: type[S], params: BaseModel) -> S:
    """Return the parameters of a stage that are also settings of the engine."""
    return kind.model_validate(params.model_dump(include=set(kind.model_fields)))


def by_engine(name: str, settings: BaseModel, sampling: Sampling) -> Sampling:
    """Return `sampling` with the field that makes a local model use the method `name`."""
    chosen: Json = {name: settings.model_dump(mode="json")}
    return replace(sampling, fields={**sampling.fields, FIELD: chosen})
