"""Tiny multimodal models, loaded from a folder: given text, they write what the whole one does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from optillm_hooks.local_provider import models
from optillm_hooks.local_provider.completeness import OTHER_TOWERS
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny
from tests.local_provider.test_architectures import (
    BATCHED,
    COMMON,
    CONTEXT,
    PROMPTS,
    Greedy,
    generated,
    sharpened,
    write,
)

pytestmark = pytest.mark.filterwarnings("ignore")

VISION: Final = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
    "fullatt_block_indexes": [1],
}
_MROPE: Final = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
}
FAMILIES: Final[Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {
    "gemma3": (BATCHED["gemma3_text"], {"model_type": "siglip_vision_model"}),
    "gemma3n": (BATCHED["gemma3n_text"], {}),
    "gemma4": (BATCHED["gemma4_text"], {}),
    "internvl": ({"model_type": "qwen2"}, {"image_size": [28, 28], "patch_size": [14, 14]}),
    "llama4": (BATCHED["llama4_text"], {}),
    "mistral3": ({"model_type": "mistral"}, {"model_type": "pixtral"}),
    "qwen2_vl": (_MROPE, {}),
    "qwen2_5_vl": (_MROPE, {}),
    "qwen3_vl": (_MROPE, {}),
}
"""What the tiny models' text and vision configurations add to the common ones."""


def config_of(family: str) -> Any:
    text, vision = FAMILIES[family]
    towers = {} if family == "gemma3n" else {"vision_config": {**VISION, **vision}}
    return CONFIG_MAPPING[family](text_config={**COMMON, **text}, **towers)


def whole_model(family: str) -> Any:
    """Return a random model with all its towers, if their packages are installed."""
    torch.manual_seed(0)
    config = config_of(family)
    loader = AutoModelForCausalLM
    if family in ("internvl", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        loader = AutoModelForImageTextToText
    if family in ("gemma3n", "llama4"):
        config = config.get_text_config()
    return sharpened(loader.from_config(config, attn_implementation="eager").eval())


_PUBLISHED: Final = {
    "gemma3n": {"model.": "model.language_model."},
    "llama4": {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."},
}
"""Beginnings of the names that weights of a text model have in a whole one's checkpoint."""


def save(model: Any, family: str, folder: Path) -> None:
    """Save a checkpoint with a tokenizer, as the family's published ones are."""
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    if family not in _PUBLISHED:
        return
    config_of(family).save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {"vision_tower.weight": torch.ones(2)}
    for name, weight in load_file(file).items():
        begins = next((old for old in _PUBLISHED[family] if name.startswith(old)), "")
        weights[_PUBLISHED[family].get(begins, "") + name.removeprefix(begins)] = weight
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_model_writes_what_the_whole_model_writes(family: str, tmp_path: Path) -> None:
    whole = whole_model(family)
    save(whole, family, tmp_path)
    loaded = models.load(models.ModelSpec(path=str(tmp_path), dtype="float32")).model
    assert not any(OTHER_TOWERS.search(name) for name, _ in loaded.named_parameters())
    runner = Runner(loaded, context=CONTEXT)
    rows = [Greedy(runner.begin(None, 0), prompt) for prompt in PROMPTS]
    assert write(runner, rows) == [generated(whole, prompt) for prompt in PROMPTS]
