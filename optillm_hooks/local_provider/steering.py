"""Steering vectors: directions that are added to a layer's activations (activation steering).

Source: Rimsky et al. 2023, "Steering Llama 2 via Contrastive Activation Addition",
arXiv:2312.06681, sections 3 and 4: a vector is the mean difference between a layer's outputs for
replies that show a behaviour and replies that do not, and is added at every token after the prompt.
Deviations: outputs are averaged over all tokens of a reply, since replies are not single letters of
a multiple-choice question; and strengths are relative to the norm of the hidden state, so that a
strength means the same in every model and layer.

The operator creates the files with `make_steering`, each for one model and layer, and lists them
in a model's `steering` setting.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Module, ModuleList

from optillm_hooks.errors import ProviderFailed

TENSOR = "direction"
_SAMPLE = 64
"""Number of elements of each weight that the fingerprint includes."""


class Vector(NamedTuple):
    """A direction [width] of norm 1, and the layer (from 0) to whose output it is added."""

    layer: int
    direction: Tensor


class _Push(NamedTuple):
    """The update of a layer's tokens at `places`: `along`, times the norm of their states."""

    places: Tensor
    along: Tensor
    """[places, width]: the sum of the directions, each times its strength."""


class Steering:
    """The steering vectors of one model by name. An invalid one is an error when it is loaded."""

    def __init__(self, model: Any, files: Mapping[str, str]) -> None:
        self._vectors = {name: _read(model, name, Path(file)) for name, file in files.items()}
        self._pushes: dict[int, _Push] = {}
        self.names = frozenset(files)
        layers = decoder_layers(model) if files else ModuleList()
        for layer in sorted({vector.layer for vector in self._vectors.values()}):
            layers[layer].register_forward_hook(partial(self._push, layer))

    def assign(self, strengths: Sequence[Mapping[str, float]]) -> None:
        """Set the strengths of steering vectors for each token of the next step."""
        self._pushes = {}
        if not self._vectors:
            return
        pushed = [place for place, of_token in enumerate(strengths) if any(of_token.values())]
        for layer in {v.layer for v in self._vectors.values()}:
            mine = {name: v.direction for name, v in self._vectors.items() if v.layer == layer}
            places = [p for p in pushed if strengths[p].keys() & mine.keys()]
            if places:
                along = torch.stack(
                    [
                        sum(
                            (strengths[p].get(name, 0.0) * v for name, v in mine.items()),
                            torch.zeros_like(next(iter(mine.values()))),
                        )
                        for p in places
                    ]
                )
                self._pushes[layer] = _Push(torch.tensor(places, device=along.device), along)

    def _push(self, layer: int, _module: Module, _given: tuple[Any, ...], out: Any) -> None:
        """Steer the output [1, tokens, width] of a layer in place."""
        push = self._pushes.get(layer)
        if push is None:
            return
        states = out[0] if isinstance(out, tuple) else out
        pushed = states[0, push.places].float()
        pushed += pushed.norm(dim=-1, keepdim=True) * push.along
        states[0, push.places] = pushed.to(states.dtype)


def fingerprint(model: Any, layer: int) -> str:
    """Return a hash of a model's shape and a sample of its weights, to identify model and layer.

    The sample is cast to bfloat16, so that the dtype of the loaded model does not matter.
    """
    config = model.config.get_text_config()
    shape = [config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size]
    digest = hashlib.sha256(json.dumps([*shape, layer]).encode())
    weights = [model.get_input_embeddings().weight, *decoder_layers(model)[layer].parameters()]
    for weight in weights:
        sample = weight.detach().flatten()[:_SAMPLE].to(torch.bfloat16)
        digest.update(json.dumps(sample.tolist()).encode())
    return digest.hexdigest()


def decoder_layers(model: Any) -> ModuleList:
    count = model.config.get_text_config().num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, ModuleList) and len(m) == count)


def _read(model: Any, name: str, file: Path) -> Vector:
    """Return the vector in `file`.

    Raises:
        ProviderFailed: it is missing, not a steering vector, or made for another model.
    """
    try:
        with safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            direction = content.get_tensor(TENSOR).float()
        layer = int(about["layer"])
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        raise ProviderFailed(f"steering vector {name!r}: {exc!r}", status=500) from exc
    config = model.config.get_text_config()
    if direction.shape != (config.hidden_size,) or not 0 <= layer < config.num_hidden_layers:
        raise ProviderFailed(
            f"steering vector {name!r} does not fit the model: it is for layer {layer} of "
            f"{config.num_hidden_layers}, and of shape {list(direction.shape)}",
            status=500,
        )
    if about.get("fingerprint") != fingerprint(model, layer):
        raise ProviderFailed(
            f"steering vector {name!r} was made for another model (its fingerprint differs)",
            status=500,
        )
    length = direction.norm()
    if not (torch.isfinite(length) and length > 0):
        raise ProviderFailed(f"steering vector {name!r} is zero or not finite", status=500)
    return Vector(layer, (direction / length).to(model.device))
