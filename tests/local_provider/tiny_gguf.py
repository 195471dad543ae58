"""Tiny GGUF files of random models, whose matrices have many types."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quantize
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.local_provider import tiny

END_OF_TURN = 1
MERGES = ["a b", "c d"]
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
HYBRID_NAMES = {
    "model.embed_tokens.": "token_embd.", "lm_head.": "output.", "model.norm.": "output_norm.",
    "model.layers.": "blk.", ".input_layernorm.": ".attn_norm.",
    ".post_attention_layernorm.": ".post_attention_norm.",
    ".self_attn.q_proj.": ".attn_q.", ".self_attn.k_proj.": ".attn_k.",
    ".self_attn.v_proj.": ".attn_v.", ".self_attn.o_proj.": ".attn_output.",
    ".self_attn.q_norm.": ".attn_q_norm.", ".self_attn.k_norm.": ".attn_k_norm.",
    ".mlp.gate_proj.": ".ffn_gate.", ".mlp.up_proj.": ".ffn_up.", ".mlp.down_proj.": ".ffn_down.",
    ".linear_attn.in_proj_qkv.": ".attn_qkv.", ".linear_attn.in_proj_z.": ".attn_gate.",
    ".linear_attn.in_proj_a.": ".ssm_alpha.", ".linear_attn.in_proj_b.": ".ssm_beta.",
    ".linear_attn.conv1d.": ".ssm_conv1d.", ".linear_attn.norm.": ".ssm_norm.",
    ".linear_attn.out_proj.": ".ssm_out.", ".linear_attn.A_log": ".ssm_a",
    ".linear_attn.dt_bias": ".ssm_dt.bias",
}  # fmt: skip
ARCHITECTURES = {"qwen3_moe": "qwen3moe", "qwen3_5_text": "qwen35"}
KINDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS",
    "Q4_K", "Q5_K", "Q6_K", "F16", "BF16", "F32", "Q2_K",
)  # fmt: skip
"""The types of the matrices, in the order of the layers."""

_SCALES_AT = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_XS": (0,), "Q2_K": (80, 82)}
"""Where the float16 numbers are in a block, of types that `gguf` cannot write."""

EXPERTS, EXPERT_SIZE = 4, 256

Tensors = dict[str, tuple[Any, str]]
"""Numbers or blocks, and their type, by name."""


def model(*, tied: bool = False, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer()) + len(MERGES),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        eos_token_id=tiny.END,
        initializer_range=0.1,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def mixture() -> Qwen3MoeForCausalLM:
    """Return a mixture of experts."""
    torch.manual_seed(1)
    config = Qwen3MoeConfig(
        vocab_size=len(tiny.tokenizer()) + len(MERGES),
        hidden_size=256,
        intermediate_size=256,
        moe_intermediate_size=EXPERT_SIZE,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=256,
        rope_theta=10000.0,
        initializer_range=0.1,
    )
    return Qwen3MoeForCausalLM(config).eval()


def tensors_of_mixture(made: Qwen3MoeForCausalLM, kinds: tuple[str, str, str]) -> Tensors:
    """Return the tensors of a GGUF file; `kinds`: of the experts' gate, up and down."""
    weights = {name: weight.detach().numpy() for name, weight in made.named_parameters()}
    layer = "model.layers.0"
    found: Tensors = {
        "token_embd.weight": (weights["model.embed_tokens.weight"], "F32"),
        "output.weight": (weights["lm_head.weight"], "F32"),
        "output_norm.weight": (weights["model.norm.weight"], "F32"),
        "blk.0.attn_norm.weight": (weights[f"{layer}.input_layernorm.weight"], "F32"),
        "blk.0.ffn_norm.weight": (weights[f"{layer}.post_attention_layernorm.weight"], "F32"),
        "blk.0.ffn_gate_inp.weight": (weights[f"{layer}.mlp.gate.weight"], "F32"),
    }
    for part in "qkv":
        weight = weights[f"{layer}.self_attn.{part}_proj.weight"]
        found[f"blk.0.attn_{part}.weight"] = (weight, "F32")
    found["blk.0.attn_output.weight"] = (weights[f"{layer}.self_attn.o_proj.weight"], "F32")
    for part in "qk":
        weight = weights[f"{layer}.self_attn.{part}_norm.weight"]
        found[f"blk.0.attn_{part}_norm.weight"] = (weight, "F32")
    gate, up = np.split(weights[f"{layer}.mlp.experts.gate_up_proj"], 2, axis=1)
    down = weights[f"{layer}.mlp.experts.down_proj"]
    for name, weight, kind in zip(("gate", "up", "down"), (gate, up, down), kinds, strict=True):
        found[f"blk.0.ffn_{name}_exps.weight"] = (stored(weight, kind), kind)
    return found


def hybrid() -> Qwen3_5ForCausalLM:
    """Return a model of linear and full attention, which transformers' own loader reads."""
    torch.manual_seed(1)
    config = Qwen3_5TextConfig(
        vocab_size=len(tiny.tokenizer()) + len(MERGES),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        full_attention_interval=2,
        max_position_embeddings=256,
        rope_parameters={
            "rope_theta": 10000.0,
            "mrope_section": [1, 1, 1],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.375,
        },
        tie_word_embeddings=False,
    )
    return Qwen3_5ForCausalLM(config).eval()


def tensors_of_hybrid(made: Qwen3_5ForCausalLM) -> Tensors:
    """Return the tensors of a GGUF file, in the form that llama.cpp's converter gives them."""
    found: Tensors = {}
    for name, weight in made.named_parameters():
        numbers = weight.detach().numpy()
        if "norm" in name and "linear_attn.norm" not in name:
            numbers = numbers + 1
        elif name.endswith("A_log"):
            numbers = -np.exp(numbers)
        elif "conv1d" in name:
            numbers = numbers[:, 0]
        stored_name = name
        for ours, theirs in HYBRID_NAMES.items():
            stored_name = stored_name.replace(ours, theirs)
        kind = "Q8_0" if "ffn" in stored_name else "F32"
        found[stored_name] = (stored(np.ascontiguousarray(numbers), kind), kind)
    return found


def stored(numbers: Any, kind: str) -> Any:
    """Return numbers as blocks; random blocks of the types that `gguf` cannot write."""
    if kind in ("F32", "F16"):
        return numbers.astype(kind.replace("F", "float"))
    if kind not in _SCALES_AT and kind != "IQ4_NL":
        return quantize(numbers, GGMLQuantizationType[kind])
    random = np.random.default_rng(len(kind))
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = random.integers(0, 256, (*numbers.shape[:-1], numbers.shape[-1] // weights, size))
    blocks = blocks.astype(np.uint8)
    for at in _SCALES_AT.get(kind, (0,)):
        scales = random.uniform(1e-5, 1e-4, blocks.shape[:-1]).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(*numbers.shape[:-1], -1)


def _interleaved(weight: Any, heads: int) -> Any:
    """Return the rows of a query or key projection in llama.cpp's order."""
    rows = weight.reshape(heads, 2, -1, weight.shape[-1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def tensors(made: LlamaForCausalLM, *, kinds: tuple[str, ...] = KINDS) -> Tensors:
    """Return the tensors of a GGUF file; its matrices have the types `kinds`, again and again."""
    weights = {name: weight.detach().numpy() for name, weight in made.named_parameters()}
    found: Tensors = {"output_norm.weight": (weights["model.norm.weight"], "F32")}
    matrices = {"token_embd.weight": weights["model.embed_tokens.weight"]}
    if not made.config.tie_word_embeddings:
        matrices["output.weight"] = weights["lm_head.weight"]
    for layer in range(made.config.num_hidden_layers):
        there, here = f"model.layers.{layer}", f"blk.{layer}"
        for name, norm in (
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
        ):
            found[f"{here}.{name}.weight"] = (weights[f"{there}.{norm}.weight"], "F32")
        for name, ours in NAMES.items():
            weight = weights[f"{there}.{ours}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(name)
            matrices[f"{here}.{name}.weight"] = _interleaved(weight, heads) if heads else weight
    for i, (name, weight) in enumerate(sorted(matrices.items())):
        kind = kinds[i % len(kinds)]
        found[name] = (stored(weight, kind), kind)
    return found


def write(file: Path, made: Any, content: Tensors, rope: Mapping[str, Any] = {}) -> None:
    """Write a GGUF file. `rope`: how it scales positions."""
    architecture = ARCHITECTURES.get(made.config.model_type, made.config.model_type)
    writer = GGUFWriter(file, architecture)
    config = made.config
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    if architecture == "qwen3moe":
        writer.add_key_length(config.head_dim)
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(EXPERT_SIZE)
    if architecture == "qwen35":
        writer.add_key_length(config.head_dim)
        writer.add_rope_dimension_count(6)
        writer.add_rope_dimension_sections([1, 1, 1, 0])
        writer.add_uint32("qwen35.full_attention_interval", 2)
        writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
        writer.add_ssm_state_size(config.linear_key_head_dim)
        writer.add_ssm_group_count(config.linear_num_key_heads)
        writer.add_ssm_time_step_rank(config.linear_num_value_heads)
        writer.add_ssm_inner_size(32)
    for key, value in rope.items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](f"{architecture}.rope.scaling.{key}", value)
    _add_tokenizer(writer)
    for name, (numbers, kind) in content.items():
        if kind in ("F32", "F16"):
            writer.add_tensor(name, numbers)
        else:
            writer.add_tensor(name, numbers, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: GGUFWriter) -> None:
    tokenizer = tiny.tokenizer()
    spelled: Mapping[str, int] = tokenizer.get_vocab()
    tokens = sorted(spelled, key=spelled.__getitem__)
    tokens += [merge.replace(" ", "") for merge in MERGES]
    kinds = [3 if token in tiny.SPECIAL else 4 if token in tiny.WORDS else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(tiny.END)
    writer.add_eot_token_id(END_OF_TURN)
    writer.add_chat_template(tiny.CHATML)
