"""The shape of each layer's attention, found by running the model once.

Configurations name head counts, widths and windows in many ways. What a layer gives to its
attention function is the same in all models.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from optillm_hooks.local_provider.kv_cache import AttentionKind, KVShape, LayerShape, Window

_NAME: Final = "optillm_recording"


class UnsupportedAttention(Exception):
    """The attention of a model is not supported; the message says why."""


@dataclass(frozen=True, slots=True)
class _Mask:
    """The mask that a layer is given, as a function of positions."""

    visible: Callable[..., Tensor]
    size: int | None

    def __getitem__(self, _part: object) -> "_Mask":
        return self  # some models cut the mask to the number of keys

    def __getattr__(self, name: str) -> Any:
        raise UnsupportedAttention("it makes its attention masks by itself")

    def window(self) -> Window | None:
        """Return the window that the mask describes."""
        if self.size is None:
            choices: list[Window | None] = [None]
        else:
            choices = [Window(self.size), Window(self.size, chunked=True)]
        for window in choices:
            if self._is(window):
                return window
        raise UnsupportedAttention("its attention mask is not that of a causal model")

    def _is(self, window: Window | None) -> bool:
        size = 1 if window is None else window.size
        near = torch.tensor(sorted({0, 1, size - 1, size, 2 * size - 1, 2 * size, 2 * size + 1}))
        query, key = near[:, None], near[None]
        expected = key <= query
        if window is not None:
            expected = expected & (key >= window.first(query))
        first = torch.zeros((), dtype=torch.long)
        return bool((self.visible(first, first, query, key) == expected).all())


@dataclass(slots=True)
class _Recording:
    layers: dict[int, LayerShape]
    keys: list[Tensor]
    """The keys of each cache, by which layers that share one are known."""


_RECORDING: ContextVar[_Recording] = ContextVar("recording")


def kv_shape(model: Any, run: Callable[[], object]) -> KVShape:
    """Return the shape of the model's KV cache; `run` makes a forward pass of a few tokens.

    Raises:
        UnsupportedAttention: not all layers call the attention function of transformers.
    """
    AttentionInterface.register(_NAME, _record)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)
    recording = _Recording({}, [])
    token = _RECORDING.set(recording)
    try:
        run()
    finally:
        _RECORDING.reset(token)
    layers = recording.layers
    if not layers:
        raise UnsupportedAttention("its attention cannot be replaced")
    absent = set(range(max(layers) + 1)) - layers.keys()
    if absent:
        raise UnsupportedAttention(f"the attention of layer {min(absent)} cannot be replaced")
    return KVShape(tuple(layers[index] for index in sorted(layers)), model.dtype, model.device)


def _record(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: _Mask | None,
    **_given: Any,
) -> tuple[Tensor, None]:
    """Record one layer's shape; return zeros instead of its attention."""
    recording = _RECORDING.get()
    if module.layer_idx in recording.layers:
        raise UnsupportedAttention(f"it runs layer {module.layer_idx} more than once")
    heads, kv_heads = query.shape[1], key.shape[1]
    window = None if attention_mask is None else attention_mask.window()
    kind = AttentionKind(kv_heads, heads // kv_heads, window)
    shape = LayerShape(kind, key.shape[-1], value.shape[-1], cache=len(recording.keys))
    for cache, stored in enumerate(recording.keys):
        if key.shape == stored.shape and key.data_ptr() == stored.data_ptr():
            shape = replace(shape, cache=cache, stores=False)
    if shape.stores:
        recording.keys.append(key)
    recording.layers[module.layer_idx] = shape
    return query.new_zeros(1, query.shape[2], heads, shape.value_width), None


def _mask(
    *, mask_function: Callable[..., Tensor], local_size: int | None = None, **_given: Any
) -> _Mask:
    return _Mask(mask_function, local_size)
