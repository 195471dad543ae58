"""Steering vectors: directions between a model's layers along which a reply can be pushed.

Source: Rimsky et al. 2023, "Steering Llama 2 via Contrastive Activation Addition",
arXiv:2312.06681, sections 3 and 4: a vector is the mean difference between what a layer puts out
for replies that show a behaviour and for replies that do not, and is added at every token behind
the prompt. Deviations: what a layer puts out is averaged over all tokens of a reply, since replies
are not letters of a multiple choice; and a push is a share of the state's own length, so that a
strength means the same in every model and layer.

The operator makes the files, each for one model and layer, and names them in a model's `steering`:

    python -m optillm_hooks.local_provider.steering --model FOLDER --pairs pairs.jsonl --layer 12
        --out careful.safetensors

A line of the pairs is {"prompt": ..., "positive": ..., "negative": ...}: a user's turn, a reply as
it should be, and one as it should not.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module, ModuleList

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.chat_format import ChatFormat

_TENSOR = "direction"
_SAMPLE = 64
"""Numbers of each weight that a fingerprint is made of."""


class Pair(BaseModel):
    """Two replies to one prompt: as it should be, and as it should not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1)
    positive: str = Field(min_length=1)
    negative: str = Field(min_length=1)


class Vector(NamedTuple):
    """A direction [width] of length 1, and the layer (from 0) to whose output it belongs."""

    layer: int
    direction: Tensor


class _Push(NamedTuple):
    """What a layer adds: to the tokens at `places`, shares of their length along `along`."""

    places: Tensor
    along: Tensor
    """[places, width]: the sum of the directions, each times its strength."""


class Steering:
    """The steering vectors of one model, by name. A wrong one is an error when it is loaded."""

    def __init__(self, model: Any, files: Mapping[str, str]) -> None:
        self._vectors = {name: _read(model, name, Path(file)) for name, file in files.items()}
        self._pushes: dict[int, _Push] = {}
        self.names = frozenset(files)
        layers = _layers(model)
        for layer in sorted({vector.layer for vector in self._vectors.values()}):
            layers[layer].register_forward_hook(partial(self._push, layer))

    def choose(self, strengths: Sequence[Mapping[str, float]]) -> None:
        """Say for each token of the next step how strongly it is pushed along which vectors."""
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
        """Change the output [1, tokens, width] of a layer, in place, where it is to be pushed."""
        push = self._pushes.get(layer)
        if push is None:
            return
        states = out[0] if isinstance(out, tuple) else out
        pushed = states[0, push.places].float()
        pushed += pushed.norm(dim=-1, keepdim=True) * push.along
        states[0, push.places] = pushed.to(states.dtype)


def fingerprint(model: Any, layer: int) -> str:
    """Return what tells one model's layer from every other: by its shape and by its weights.

    Of the weights a sample in bfloat16 counts, so that the type in which it was loaded does not.
    """
    config = model.config
    shape = [config.model_type, config.hidden_size, config.num_hidden_layers, config.vocab_size]
    digest = hashlib.sha256(json.dumps([*shape, layer]).encode())
    weights = [model.get_input_embeddings().weight, *_layers(model)[layer].parameters()]
    for weight in weights:
        sample = weight.detach().flatten()[:_SAMPLE].to(torch.bfloat16)
        digest.update(json.dumps(sample.tolist()).encode())
    return digest.hexdigest()


def contrast(model: Any, chat_format: ChatFormat, pairs: Sequence[Pair], layer: int) -> Tensor:
    """Return float32 [width]: the mean difference of the layer's output over `pairs`."""
    differences = [
        _mean_state(model, chat_format, pair.prompt, pair.positive, layer)
        - _mean_state(model, chat_format, pair.prompt, pair.negative, layer)
        for pair in pairs
    ]
    return torch.stack(differences).mean(dim=0)


def write(model: Any, direction: Tensor, layer: int, out: Path) -> None:
    """Write a steering vector for `layer` of `model`."""
    about = {"fingerprint": fingerprint(model, layer), "layer": str(layer)}
    save_file({_TENSOR: direction.float().cpu().contiguous()}, out, metadata=about)


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs of a file with a JSON object on each line.

    Raises:
        ProviderFailed: a line is none, or there is none; the message names it.
    """
    pairs: list[Pair] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            pairs.append(Pair.model_validate_json(line))
        except ValidationError as exc:
            error = exc.errors()[0]
            where = ".".join(map(str, error["loc"]))
            raise ProviderFailed(f"{path}, line {number}: {where} {error['msg']}") from None
    if not pairs:
        raise ProviderFailed(f"{path} has no pairs")
    return pairs


def _mean_state(model: Any, chat_format: ChatFormat, prompt: str, reply: str, layer: int) -> Tensor:
    """Return float32 [width]: what `layer` puts out, on average over the tokens of `reply`."""
    asked = chat_format.encode([{"role": "user", "content": prompt}])
    ids = [*asked, *chat_format.encode_text(reply)]
    found: list[Tensor] = []

    def keep(_module: Module, _given: tuple[Any, ...], out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        found.append(states[0, len(asked) :].float().mean(dim=0))

    hook = _layers(model)[layer].register_forward_hook(keep)
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        hook.remove()
    return found[0]


def _layers(model: Any) -> ModuleList:
    count = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, ModuleList) and len(m) == count)


def _read(model: Any, name: str, file: Path) -> Vector:
    """Return the vector in `file`.

    Raises:
        ProviderFailed: it is not there, is no steering vector, or was made for another model.
    """
    try:
        with safe_open(file, framework="pt") as content:
            about = content.metadata() or {}
            direction = content.get_tensor(_TENSOR).float()
        layer = int(about["layer"])
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        raise ProviderFailed(f"steering vector {name!r}: {exc!r}", status=500) from exc
    config = model.config
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
        raise ProviderFailed(f"steering vector {name!r} has no direction", status=500)
    return Vector(layer, (direction / length).to(model.device))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a steering vector out of pairs of replies, and write it into a file."""
    parser = argparse.ArgumentParser(prog="python -m optillm_hooks.local_provider.steering")
    parser.add_argument("--model", required=True, help="a folder, a hub id, or smollm2")
    parser.add_argument("--pairs", required=True, type=Path, help="JSON lines")
    parser.add_argument("--layer", required=True, type=int, help="from 0")
    parser.add_argument("--out", required=True, type=Path, help="a .safetensors file")
    asked = parser.parse_args(arguments)
    try:
        pairs = read_pairs(asked.pairs)
        built_in = models.BUILT_IN.get(asked.model)
        loaded = models.load(built_in() if built_in else models.ModelSpec(path=asked.model))
        layers = loaded.model.config.num_hidden_layers
        if not 0 <= asked.layer < layers:
            raise ProviderFailed(f"the model's layers are 0 to {layers - 1}, not {asked.layer}")
        chat_format = ChatFormat(loaded.tokenizer, models.end_ids(loaded))
        direction = contrast(loaded.model, chat_format, pairs, asked.layer)
        write(loaded.model, direction, asked.layer, asked.out)
    except (OptiLLMError, OSError) as exc:
        sys.stderr.write(f"steering: {exc}\n")
        return 1
    sys.stdout.write(f"{asked.out}: layer {asked.layer}, from {len(pairs)} pairs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
