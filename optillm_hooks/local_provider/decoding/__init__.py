"""One decoding method per file: pure functions on what branches wrote, and the engine's method.

Nothing here imports torch: the stages that ask for a method import its settings from here.
"""

from dataclasses import replace

from pydantic import BaseModel

from optillm_hooks.types import Json, Sampling

FIELD = "optillm_decoding"
"""The request field by which the engine is told: the method's name, to its settings."""


def by_engine(name: str, settings: BaseModel, sampling: Sampling) -> Sampling:
    """Return `sampling` such that a local model decodes by the method `name`."""
    chosen: Json = {name: settings.model_dump(mode="json")}
    return replace(sampling, fields={**sampling.fields, FIELD: chosen})
