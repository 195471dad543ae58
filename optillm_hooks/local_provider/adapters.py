"""LoRA adapters on one base model (multi-LoRA): each row of a step uses its own adapter, or none.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685:
y = W x + s B A x, with s = alpha / r. Files are in PEFT's format. PEFT's own layers select an
adapter per batch element; a step here is one flat list of tokens, so a hook adds each adapter's
update to the tokens of its rows.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Linear

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.transfer import to_device

_PREFIX = "base_model.model."
_UNSUPPORTED = (
    "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication",
    "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "target_parameters",
)  # fmt: skip
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""LoRA initialisations that also change the weights of the base model."""


class LowRank(NamedTuple):
    """The low-rank update of one linear layer: A = down [r, in], s B = up [out, r]."""

    down: Tensor
    up: Tensor


class Adapters:
    """The LoRA adapters of one model by name. An invalid one is an error when it is loaded."""

    def __init__(self, model: Any, folders: Mapping[str, str]) -> None:
        self._rows: Mapping[str, Tensor] = {}
        changed: dict[str, dict[str, LowRank]] = {}
        for name, folder in folders.items():
            for layer, change in _read(model, name, Path(folder)).items():
                changed.setdefault(layer, {})[name] = change
        self.names = frozenset(folders)
        self.layers = frozenset(changed)
        """The names of the layers that any of them changes."""

        for layer, changes in changed.items():
            hook = partial(self._add, changes)
            model.get_submodule(layer).register_forward_hook(hook)

    def assign(self, adapters: Sequence[str | None], device: torch.device) -> None:
        """Set the adapter of each token of the next step."""
        names = sorted({adapter for adapter in adapters if adapter is not None})
        rows = [[i for i, a in enumerate(adapters) if a == name] for name in names]
        self._rows = dict(zip(names, to_device(device, *rows), strict=True)) if names else {}

    def _add(
        self, changes: Mapping[str, LowRank], _layer: Any, given: tuple[Tensor, ...], out: Tensor
    ) -> Tensor:
        """Add each adapter's update to its own tokens in `out` [1, tokens, width]; return `out`."""
        for name, rows in self._rows.items():
            if name in changes:
                change = changes[name]
                out[0, rows] += given[0][0, rows] @ change.down.T @ change.up.T
        return out


def _read(model: Any, name: str, folder: Path) -> dict[str, LowRank]:
    """Return the low-rank updates of an adapter by layer name.

    Raises:
        ProviderFailed: it is missing, not plain LoRA, trained for another model, or has a tensor
            that would be ignored.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        weights = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as exc:
        raise ProviderFailed(f"adapter {name!r}: {exc}", status=500) from exc
    _check_config(name, config)
    layers = {key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in weights}
    unused = weights.keys() - {key for layer in layers for key in _keys(layer)}
    if unused:
        raise ProviderFailed(
            f"adapter {name!r} is not plain LoRA: it has {min(unused)}", status=500
        )
    found = {layer: _change(model, weights, layer, _scale(config)) for layer in layers}
    wrong = sorted(layer for layer, change in found.items() if change is None)
    if wrong or not found:
        raise ProviderFailed(f"adapter {name!r} does not fit the model: {wrong[:3]}", status=500)
    lacking = sorted(_targets(model, config) - found.keys())
    if lacking:
        raise ProviderFailed(
            f"adapter {name!r} lacks weights of {len(lacking)} layers: {lacking[:3]}", status=500
        )
    return {layer: change for layer, change in found.items() if change is not None}


def _check_config(name: str, config: Mapping[str, Any]) -> None:
    """Raise ProviderFailed unless the PEFT `config` describes plain LoRA."""
    odd = [key for key in _UNSUPPORTED if config.get(key)]
    if str(config.get("init_lora_weights")).startswith(_CHANGE_THE_BASE):
        odd.append("init_lora_weights")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or odd:
        raise ProviderFailed(f"adapter {name!r} is not plain LoRA: {odd or config}", status=500)


def _targets(model: Any, config: Mapping[str, Any]) -> set[str]:
    """Return the names of the linear layers that a PEFT `config` selects for its adapter."""
    target, some = config.get("target_modules") or [], config.get("layers_to_transform")
    excluded, some = config.get("exclude_modules") or [], [some] if isinstance(some, int) else some
    return {
        layer
        for layer, module in model.named_modules()
        if isinstance(module, Linear)
        and module is not model.get_output_embeddings()
        and _selects(target, layer)
        and not _selects(excluded, layer)
        and (some is None or any(int(n) in some for n in re.findall(r"\.(\d+)\.", layer)))
    }


def _selects(modules: str | Sequence[str], layer: str) -> bool:
    """Return True if PEFT's `target_modules`, a pattern or names, select `layer`."""
    if modules == "all-linear":
        return True
    if isinstance(modules, str):
        return re.fullmatch(modules, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in modules)


def _scale(config: Mapping[str, Any]) -> float:
    """Return alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA."""
    rank = config["r"]
    return float(config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _keys(layer: str) -> tuple[str, str]:
    """Return the names of a layer's LoRA tensors A (down) and B (up)."""
    return f"{_PREFIX}{layer}.lora_A.weight", f"{_PREFIX}{layer}.lora_B.weight"


def _change(model: Any, weights: Mapping[str, Tensor], layer: str, scale: float) -> LowRank | None:
    """Return the low-rank update of one linear layer, or None if it does not fit the model."""
    down, up = map(weights.get, _keys(layer))
    try:
        module = model.get_submodule(layer)
        weight = module.weight
    except AttributeError:
        return None
    if module is model.get_output_embeddings():
        return None  # its input is only the last token of each row, not the flat list of the step
    if down is None or up is None or up.shape[1] != down.shape[0]:
        return None
    if (up.shape[0], down.shape[1]) != tuple(weight.shape):
        return None
    where = {"dtype": weight.dtype, "device": weight.device}
    return LowRank(down.to(**where), (up * scale).to(**where))
