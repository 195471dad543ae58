"""Local models by name: their configuration, their memory, and the batch that serves them."""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from optillm_hooks.local_provider.eviction import memory_for_kv, memory_for_models
from optillm_hooks.local_provider.loading import (
    LoadedModel,
    device_of,
    end_ids,
    load,
    weight_bytes,
)
from optillm_hooks.local_provider.model_spec import BUILT_IN, ModelSpec, find
from optillm_hooks.local_provider.sampling_defaults import sampling_defaults
from optillm_hooks.machine import cores, cpus

if TYPE_CHECKING:
    from optillm_hooks.local_provider.batch import Batch

_log = logging.getLogger(__name__)

_GPU_CHUNK = 2048
"""Maximum number of prompt tokens per step on a GPU, which needs many to be busy."""

__all__ = [
    "BUILT_IN",
    "LoadedModel",
    "ModelSpec",
    "default_threads",
    "device_of",
    "end_ids",
    "find",
    "load",
    "memory_limit",
    "start",
    "weight_bytes",
]


def memory_limit(spec: ModelSpec, held: int) -> int:
    """Return the memory limit, in bytes, for all models on the device of `spec`.

    `held`: the memory of the models that are there already.
    """
    if spec.models_gib is not None:
        return int(spec.models_gib * 2**30)
    return memory_for_models(device_of(spec), held)


def default_threads() -> int:
    """Return the number of CPU threads: one for each core, but one processor for the event loop.

    The threads of an operation wait for the slowest of them.
    """
    return max(1, min(cores(), cpus() - 1))


def start(spec: ModelSpec) -> "Batch":
    """Load the model of `spec` and return an empty batch for it. Blocks for seconds."""
    import torch

    from optillm_hooks.local_provider.batch import Batch, Capacity
    from optillm_hooks.local_provider.chat_format import ChatFormat
    from optillm_hooks.local_provider.runners import runner_of

    torch.set_num_threads(spec.threads or default_threads())
    loaded = load(spec)
    runner = runner_of(loaded.model, spec.adapters, spec.steering, spec.context)
    prefix_bytes = int(spec.prefix_gib * 2**30)
    device = device_of(spec)
    default_kv = memory_for_kv(device, prefix_bytes)
    capacity = Capacity(
        rows=spec.rows,
        kv_bytes=int(spec.kv_gib * 2**30) if spec.kv_gib else default_kv,
        prefix_bytes=prefix_bytes,
        reply_tokens=spec.reply_tokens,
    )
    if device.startswith("cuda"):
        capacity = replace(capacity, chunk=_GPU_CHUNK)
    defaults: dict[str, float] = {}
    if spec.sampling_defaults == "model":
        defaults = sampling_defaults(loaded.model.generation_config)
        _log.info("sampling defaults of %s: %s", spec.path, defaults or "none")
    return Batch(runner, ChatFormat(loaded.tokenizer, end_ids(loaded)), capacity, defaults)
