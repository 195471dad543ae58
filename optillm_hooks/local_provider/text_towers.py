"""Multimodal models, which are served as their text model: prompts are text only."""

from typing import Any, Final

from optillm_hooks.local_provider.completeness import OTHER_TOWERS

_TEXT_CLASSES: Final = frozenset({"gemma3n"})
"""Models whose vision tower needs a package of its own, and whose text model loads without it."""


def loader_of(config: Any) -> tuple[Any, Any]:
    """Return the class of transformers that loads the model of `config`, and its configuration.

    Raises:
        ProviderFailed: it is no model that continues text.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    from optillm_hooks.local_provider.model_runner import Unsupported

    if config.is_encoder_decoder:
        raise Unsupported(config, "it has an encoder")
    if config.model_type in _TEXT_CLASSES:
        return AutoModelForCausalLM, config.get_text_config()
    has_code = "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or has_code:
        return AutoModelForCausalLM, config
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText, config
    raise Unsupported(config, "transformers has no causal language model of this kind")


def drop_other_towers(model: Any) -> None:
    """Free the weights of a multimodal model that prompts of text do not use."""
    inner = model.base_model
    for name, _ in list(inner.named_children()):
        if OTHER_TOWERS.search(name):
            setattr(inner, name, None)
