"""Tiny random models of many families: the engine's greedy text against `generate`, in float32."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.kv_cache import Row, Window
from optillm_hooks.local_provider.layer_shapes import _Mask
from optillm_hooks.local_provider.runner import Runner

CONTEXT: Final = 96
COMMON: Final[Mapping[str, Any]] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_SLIDING: Final = {"sliding_window": 8}
_MIXED: Final = _SLIDING | {"layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS: Final = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_ROUTED: Final = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT: Final = _ROUTED | {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "first_k_dense_replace": 1,
}
_PER_LAYER: Final = {
    "num_hidden_layers": 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 160,
    "hidden_size_per_layer_input": 16,
}
_GPT: Final = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}

BATCHED: Final[Mapping[str, Mapping[str, Any]]] = {
    "afmoe": _MIXED | _EXPERTS,
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "axk1": _LATENT,
    "bert": {"is_decoder": True},
    "biogpt": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": _MIXED,
    "cohere2_moe": _MIXED | _EXPERTS,
    "ctrl": _GPT | {"dff": 96},
    "cwm": _MIXED,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "dots1": _MIXED | _ROUTED | {"n_shared_experts": 1},
    "ernie4_5": {},
    "ernie4_5_moe": _EXPERTS | {"moe_num_experts": 4},
    "exaone4": _MIXED,
    "exaone_moe": _MIXED | _EXPERTS,
    "flex_olmo": _EXPERTS,
    "gemma": {},
    "gemma2": _MIXED | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 0.3},
    "gemma3_text": _MIXED | {"query_pre_attn_scalar": 16},
    "gemma3n_text": _PER_LAYER
    | {
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "laurel_rank": 8,
    },
    "gemma4_text": _PER_LAYER | {"global_head_dim": 32},
    "glm": {},
    "glm4": {},
    "glm4_moe": _ROUTED,
    "glm4_moe_lite": _LATENT,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neox": {},
    "gpt_oss": _MIXED | _EXPERTS,
    "granite": {},
    "granite_swa": _SLIDING,
    "granitemoe": _EXPERTS,
    "granitemoe_swa": _SLIDING | _EXPERTS,
    "granitemoeshared": _EXPERTS,
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": _EXPERTS,
    "hy_v3": _EXPERTS | _ROUTED,
    "hyperclovax": {},
    "internlm3": {},
    "jais2": {},
    "jetmoe": _EXPERTS,
    "laguna": _MIXED | _EXPERTS,
    "llama": {},
    "llama4_text": _EXPERTS
    | {
        "attention_chunk_size": 8,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
        "floor_scale": 4,
        "intermediate_size_mlp": 96,
    },
    "longcat_flash": _LATENT,
    "mellum": _MIXED | _EXPERTS,
    "mimo_v2_flash": _MIXED | _ROUTED,
    "minicpm3": _LATENT,
    "minimax_m2": _EXPERTS,
    "ministral": _MIXED,
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.5,
        }
    },
    "mistral": _SLIDING,
    "mixtral": _SLIDING | _EXPERTS,
    "modernbert-decoder": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "nanochat": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": _MIXED,
    "olmoe": _EXPERTS,
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "persimmon": {},
    "phi": {},
    "phi3": _SLIDING,
    "phimoe": _SLIDING | _EXPERTS,
    "qwen2": _MIXED | {"use_sliding_window": True},
    "qwen2_moe": _EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "seed_oss": {},
    "smollm3": {},
    "solar_open": _ROUTED,
    "stablelm": {},
    "starcoder2": _SLIDING,
    "vaultgemma": _MIXED,
    "youtu": _LATENT,
}
"""Families that the engine batches, by what their tiny models add to the common configuration."""


def tiny_model(family: str, **fields: Any) -> Any:
    """Return a random model of a family whose logits differ enough that no tie decides."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**COMMON, **BATCHED[family], **fields})
    return sharpened(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())


def sharpened(model: Any) -> Any:
    """Return `model` with larger weights."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return model


TOKENS: Final = 10
PROMPTS: Final = [[3 + (7 * i + 3 * i * i) % 150 for i in range(length)] for length in (4, 19, 34)]


def generated(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False
    )
    text: list[int] = out[0, len(prompt) :].tolist()
    return text


class Greedy:
    """A row that reads its prompt in chunks, then writes the likeliest tokens."""

    def __init__(self, row: Row, prompt: Sequence[int]) -> None:
        self.row = row
        self.waiting = list(prompt)
        self.text: list[int] = []

    def feed(self, chunk: int = 7) -> tuple[Row, list[int]]:
        fed, self.waiting = self.waiting[:chunk], self.waiting[chunk:]
        return self.row, fed

    def take(self, token: int) -> None:
        if not self.waiting:
            self.text.append(token)
            self.waiting = [token]


def write(runner: Runner, sequences: Sequence[Greedy]) -> list[list[int]]:
    """Return the text of each sequence; every second step, another one joins."""
    joined = 0
    while any(len(sequence.text) < TOKENS for sequence in sequences):
        joined += 1
        running = [s for s in sequences[: 1 + joined // 2] if len(s.text) < TOKENS]
        logits = runner.step([sequence.feed() for sequence in running])
        for sequence, token in zip(running, logits.argmax(-1).tolist(), strict=True):
            sequence.take(token)
    for sequence in sequences:
        runner.free(sequence.row)
    return [sequence.text for sequence in sequences]


@pytest.mark.parametrize("family", BATCHED)
def test_a_batch_writes_what_generate_writes(family: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny_model(family)
        expected = [generated(model, prompt) for prompt in PROMPTS]
    runner = Runner(model, context=CONTEXT)
    assert write(runner, [Greedy(runner.begin(None, 0), PROMPTS[-1])]) == expected[-1:]
    row = runner.begin(None, 0)
    runner.step([(row, PROMPTS[1])])
    prefix = runner.snapshot(row, PROMPTS[1])
    runner.free(row)
    first = expected[1][0]
    shared = [Greedy(runner.fork(prefix, shared=True), [first]) for _ in range(3)]
    copied = Greedy(runner.begin(prefix, 11), PROMPTS[1][11:])
    read = [Greedy(runner.begin(None, 0), prompt) for prompt in PROMPTS]
    mixed = [shared[0], *read[:2], shared[1], copied, *read[2:], shared[2]]
    texts = dict(zip(map(id, mixed), write(runner, mixed), strict=True))
    for sequence in shared:
        assert [first, *texts[id(sequence)]][:TOKENS] == expected[1]
    assert texts[id(copied)] == expected[1]
    assert [texts[id(sequence)] for sequence in read] == expected


def test_a_cache_that_layers_share_is_stored_once() -> None:
    runner = Runner(tiny_model("gemma4_text"), context=CONTEXT)
    sliding, full = 2 * (16 + 16), 2 * (32 + 32)
    assert runner.kv_cache.shape.token_bytes == (sliding + full) * 4


@pytest.mark.parametrize("family", ["mistral", "llama4_text"])
def test_a_model_whose_window_goes_wrong_is_refused_when_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    def wider(mask: _Mask) -> Window | None:
        return None if mask.size is None else Window(mask.size + 1, family == "llama4_text")

    monkeypatch.setattr(_Mask, "window", wider)
    with pytest.raises(ProviderFailed, match="its logits are off by"):
        Runner(tiny_model(family), context=CONTEXT)


def test_a_model_that_attends_to_what_follows_is_not_batched() -> None:
    with pytest.raises(ProviderFailed, match="its attention mask is not that of a causal model"):
        Runner(tiny_model("bert", is_decoder=False), context=CONTEXT)
