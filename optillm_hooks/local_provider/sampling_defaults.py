"""The sampling parameters that a model's authors recommend, for requests that set none."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from optillm_hooks.local_provider.engine_request import EngineRequest

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(generation_config: Any) -> dict[str, float]:
    """Return the sampling parameters that a model's `generation_config.json` sets."""
    found = {name: getattr(generation_config, name, None) for name in _NAMES}
    return {name: value for name, value in found.items() if value is not None}


def with_defaults(request: EngineRequest, defaults: Mapping[str, float]) -> EngineRequest:
    """Return `request` with the model's `defaults` where it leaves a parameter to the model."""
    used: dict[str, Any] = {k: v for k, v in defaults.items() if k in request.unset}
    if not used:
        return request
    penalty = used.pop("repetition_penalty", request.repetition_penalty)
    return replace(request, sampling=replace(request.sampling, **used), repetition_penalty=penalty)
