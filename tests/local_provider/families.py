"""Tiny random models of many families, and how each of them is served."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.local_provider import tiny

CONTEXT: Final = 512
ABSENT: Final = object()
"""The value of a field of `COMMON` that a configuration does not take."""

COMMON: Final[Mapping[str, Any]] = {
    "vocab_size": len(tiny.tokenizer()),
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": tiny.END,
    "bos_token_id": tiny.END,
    "eos_token_id": tiny.END,
    "tie_word_embeddings": False,
}
_HYBRID: Final = ["linear_attention", "full_attention"]
_CONVOLUTIONS: Final = ["conv", "full_attention"]
_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_SHARED_EXPERTS: Final = _EXPERTS | {"shared_expert_intermediate_size": 32}
_DELTA: Final = {
    "layer_types": _HYBRID,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA2: Final = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
}
_LATENT: Final = {
    "layer_types": _HYBRID,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_group": 1,
    "topk_group": 1,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "linear_head_dim": 16,
    "linear_num_heads": 4,
}
_INDEXED: Final = _LATENT | {
    "layer_types": ["indexed_attention"] * 2,
    "q_lora_rank": 24,
    "head_dim": 8,
    "n_routed_experts": 4,
    "index_n_heads": 4,
    "index_head_dim": 16,
    "index_topk": CONTEXT,  # with fewer, near ties decide which tokens are attended to
}
_ZAMBA: Final = {"layers_block_type": ["mamba", "hybrid"]}
_GPT: Final = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}

ROW_BY_ROW: Final[Mapping[str, Mapping[str, Any]]] = {
    "bailing_hybrid": _LATENT | {"head_dim": 16, "num_attention_heads": 4},
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "bloom": {"n_head": 4, "n_layer": 2, "seq_length": CONTEXT},
    "codegen": _GPT | {"rotary_dim": 8, "n_inner": 96},
    "deepseek_v32": _INDEXED,
    "deepseek_v4": {
        "layer_types": ["compressed_sparse_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
        "sliding_window": 8,
        "num_key_value_heads": 1,
        "q_lora_rank": 24,
        "o_groups": 2,
        "o_lora_rank": 8,
        "hc_mult": 2,
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": CONTEXT,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "diffllama": {},
    "doge": {},
    "falcon": {"head_dim": ABSENT},
    "falcon_h1": _MAMBA2 | {"mamba_d_ssm": 128},
    "falcon_mamba": {"state_size": 8},
    "glm_moe_dsa": _INDEXED,
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "window_size": 16,
        "num_layers": 2,
        "num_heads": 4,
    },
    "gpt_neox_japanese": {},
    "gptj": _GPT | {"rotary_dim": 8},
    "granitemoehybrid": _MAMBA2
    | {
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 96,
    },
    "jamba": {
        "mamba_d_state": 8,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
    },
    "kimi_linear": _LATENT,
    "lfm2": {"layer_types": _CONVOLUTIONS, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": _CONVOLUTIONS, "num_dense_layers": 1, **_EXPERTS},
    "lfm3": {"layer_types": _CONVOLUTIONS},
    "mamba": {"state_size": 8},
    "mamba2": {
        "num_heads": 4,
        "head_dim": 32,
        "state_size": 16,
        "n_groups": 1,
        "chunk_size": 8,
        "expand": 2,
    },
    "minimax": {
        "layer_types": ["full_attention", "linear_attention"],
        "num_local_experts": 2,
        "block_size": 16,
    },
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT},
    "nemotron_h": {
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "moe", "attention"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 1,
        "chunk_size": 8,
        "use_mamba_kernels": False,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "olmo_hybrid": _DELTA,
    "qwen3_5_moe_text": _DELTA | _SHARED_EXPERTS,
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA | _SHARED_EXPERTS,
    "qwen4_exp_text": _DELTA
    | _SHARED_EXPERTS
    | {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": CONTEXT,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "lru_width": 64,
        "attention_window_size": 32,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "rwkv": {"attention_hidden_size": 64, "context_length": CONTEXT},
    "xglm": {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96},
    "xlstm": {"hidden_size": 128, "num_heads": 4},
    "zamba": _ZAMBA | {"mamba_d_state": 8, "n_mamba_heads": 2, "use_mamba_kernels": False},
    "zamba2": _ZAMBA
    | {
        "mamba_d_state": 16,
        "mamba_headdim": 32,
        "n_mamba_heads": 4,
        "mamba_ngroups": 1,
        "chunk_size": 8,
        "num_mem_blocks": 1,
        "hybrid_layer_ids": [1],
    },
    "zaya": {},
}

MULTIMODAL: Final = {
    "lfm2_vl": "lfm2",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""Multimodal families by that of their text model, which runs row by row."""

_NO_CACHE: Final = "it keeps no cache"
REFUSED: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "bert": ({}, _NO_CACHE),
    "openai-gpt": (_GPT, _NO_CACHE),
    "roberta": ({}, _NO_CACHE),
    "xlm-roberta": ({}, _NO_CACHE),
}
"""Those that no runner can run, and why."""

_ENCODER: Final = "it has an encoder"
_NO_TEXT: Final = "transformers has no causal language model of this kind"
NO_DECODERS: Final[Mapping[str, tuple[Mapping[str, Any], str]]] = {
    "bart": ({"is_encoder_decoder": True}, _ENCODER),
    "clip": ({}, _NO_TEXT),
    "distilbert": ({}, _NO_TEXT),
    "modernbert": ({}, _NO_TEXT),
    "t5": ({}, _ENCODER),
    "whisper": ({}, _ENCODER),
}
"""Those that are refused by their configuration, and why."""


def tiny_model(family: str, **fields: Any) -> Any:
    """Return a random model of a family whose logits differ enough that no tie decides."""
    torch.manual_seed(0)
    refused = {name: given for name, (given, _) in REFUSED.items()}
    known = {**ROW_BY_ROW, **refused}
    fields = {**COMMON, **known[family], **fields}
    given = {name: value for name, value in fields.items() if value is not ABSENT}
    config = CONFIG_MAPPING[family](**given)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return model
