"""A random two-layer model that writes bytes: a step takes a millisecond."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.runner import Runner

CHATML = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "<|im_start|>assistant\n"
)
SPECIAL = ("<|im_end|>", "<|im_start|>", "[TOOL_CALLS]", "<|python_tag|>")
WORDS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "true", "false", "null")
END = 0
SPELLED = range(len(SPECIAL), len(SPECIAL) + 256 + len(WORDS))
"""The tokens that have text."""


def tokenizer(
    template: str = CHATML, words: Sequence[str] = WORDS, special: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """Return one with a token for each byte, the special ones and a few words.

    `special`: those of the words that are special too.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=SPECIAL[END])
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL[1:])})
    for word in words:
        fast.add_tokens([word], special_tokens=word in special)
    fast.chat_template = template
    return fast


def chat_format(
    template: str = CHATML, words: Sequence[str] = WORDS, special: Sequence[str] = ()
) -> ChatFormat:
    return ChatFormat(tokenizer(template, words, special), {END})


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA = [
    decoders.Replace("\u2581", " "),
    decoders.ByteFallback(),
    decoders.Fuse(),
    decoders.Strip(" ", 1, 0),
]


def byte_fallback_tokenizer(
    words: Sequence[str], steps: Sequence[decoders.Decoder] = LLAMA
) -> PreTrainedTokenizerFast:
    """Return one in the form of Llama 2 and Mistral: `words`, and a token for each other byte."""
    pieces = ["<unk>", "<s>", "</s>", "<think>", *BYTES, *words]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(list(steps))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<s>"]})
    fast.add_tokens(["<think>"], special_tokens=True)
    fast.chat_template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    return fast


def model(context: int = 1024, spread: float = 1.0, spare: int = 7) -> LlamaForCausalLM:
    """Return a model whose next token depends on all before it. `spread`: of its logits.

    `spare`: rows of logits without a token, as many checkpoints have them.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()) + spare,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight.normal_(std=spread / 32**0.5)
    return made


def runner(context: int = 1024, spread: float = 1.0) -> Runner:
    return Runner(model(context, spread))
