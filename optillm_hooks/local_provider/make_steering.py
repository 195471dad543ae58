"""Creates a steering vector from pairs of replies: a command for operators.

    python -m optillm_hooks.local_provider.make_steering --model FOLDER --pairs pairs.jsonl
        --layer 12 --out careful.safetensors

Each line of the pairs is {"prompt": ..., "positive": ..., "negative": ...}: a user turn, a reply
that shows the wanted behaviour, and one that does not. Source and deviations: `steering`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.steering import TENSOR, decoder_layers, fingerprint
from optillm_hooks.wrong_values import wrong_value


class Pair(BaseModel):
    """Two replies to one prompt: one with the wanted behaviour, and one without."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str = Field(min_length=1)
    positive: str = Field(min_length=1)
    negative: str = Field(min_length=1)


def contrast(model: Any, chat_format: ChatFormat, pairs: Sequence[Pair], layer: int) -> Tensor:
    """Return float32 [width]: the mean difference between a layer's outputs over `pairs`."""
    differences = [
        _mean_state(model, chat_format, pair.prompt, pair.positive, layer)
        - _mean_state(model, chat_format, pair.prompt, pair.negative, layer)
        for pair in pairs
    ]
    return torch.stack(differences).mean(dim=0)


def write(model: Any, direction: Tensor, layer: int, out: Path) -> None:
    """Write a steering vector for `layer` of `model`."""
    about = {"fingerprint": fingerprint(model, layer), "layer": str(layer)}
    save_file({TENSOR: direction.float().cpu().contiguous()}, out, metadata=about)


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs of a JSON Lines file.

    Raises:
        ProviderFailed: a line is not a pair (the message has its number), or the file is empty.
    """
    pairs: list[Pair] = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            pairs.append(Pair.model_validate_json(line))
        except ValidationError as exc:
            error = exc.errors()[0]
            where = ".".join(map(str, error["loc"]))
            raise ProviderFailed(f"{path}, line {number}: {where} {wrong_value(error)}") from None
    if not pairs:
        raise ProviderFailed(f"{path} has no pairs")
    return pairs


def _mean_state(model: Any, chat_format: ChatFormat, prompt: str, reply: str, layer: int) -> Tensor:
    """Return float32 [width]: the output of `layer`, averaged over the tokens of `reply`."""
    prompt_ids = chat_format.encode([{"role": "user", "content": prompt}])
    ids = [*prompt_ids, *chat_format.encode_text(reply)]
    found: list[Tensor] = []

    def keep(_module: Module, _given: tuple[Any, ...], out: Any) -> None:
        states = out[0] if isinstance(out, tuple) else out
        found.append(states[0, len(prompt_ids) :].float().mean(dim=0))

    hook = decoder_layers(model)[layer].register_forward_hook(keep)
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
    finally:
        hook.remove()
    return found[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Create a steering vector from pairs of replies, and write it to a file."""
    parser = argparse.ArgumentParser(prog="python -m optillm_hooks.local_provider.make_steering")
    parser.add_argument("--model", required=True, help="a folder, a hub id, or smollm2")
    parser.add_argument("--pairs", required=True, type=Path, help="JSON lines")
    parser.add_argument("--layer", required=True, type=int, help="from 0")
    parser.add_argument("--out", required=True, type=Path, help="a .safetensors file")
    given = parser.parse_args(arguments)
    try:
        pairs = read_pairs(given.pairs)
        built_in = models.BUILT_IN.get(given.model)
        loaded = models.load(built_in() if built_in else models.ModelSpec(path=given.model))
        layers = loaded.model.config.get_text_config().num_hidden_layers
        if not 0 <= given.layer < layers:
            raise ProviderFailed(f"the model's layers are 0 to {layers - 1}, not {given.layer}")
        chat_format = ChatFormat(loaded.tokenizer, models.end_ids(loaded))
        direction = contrast(loaded.model, chat_format, pairs, given.layer)
        write(loaded.model, direction, given.layer, given.out)
    except (OptiLLMError, OSError) as exc:
        sys.stderr.write(f"steering: {exc}\n")
        return 1
    sys.stdout.write(f"{given.out}: layer {given.layer}, from {len(pairs)} pairs\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
