"""The model runner: forward passes over the rows of the KV cache.

Called only from the engine's thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.adapters import Adapters
from optillm_hooks.local_provider.fast_layers import use_fast_layers
from optillm_hooks.local_provider.kv_cache import (
    KVCache,
    KVShape,
    Prefix,
    Row,
    RowTokens,
    StepPlan,
)
from optillm_hooks.local_provider.steering import Steering

_ATTENTION = "optillm_rows"
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_MAX_LOGIT_ERROR = {torch.float32: 1e-3, torch.float64: 1e-3}
_MAX_LOGIT_ERROR_IN_HALF = 0.1
"""Maximum relative difference of logits that rounding explains."""

_CHANGES_SCORES = ("softcap", "s_aux")
"""Arguments of the attention function that change the scores, which is not supported here."""


class Runner:
    """A causal language model on one device, with KV cache, LoRA adapters and steering vectors."""

    def __init__(
        self,
        model: Any,
        adapters: Mapping[str, str] | None = None,
        steering: Mapping[str, str] | None = None,
        context: int | None = None,
    ) -> None:
        """Load adapters and steering vectors, and replace the model's attention.

        Args:
            model: a causal language model of transformers.
            adapters: folders of LoRA adapters by name.
            steering: files of steering vectors by name.
            context: maximum number of tokens of a prompt and its answer; None: the model's own.

        Raises:
            ProviderFailed: the model's attention is not supported, or an adapter or steering vector
                is invalid.
        """
        config = model.config.get_text_config()
        _check_layers(config)
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self._model = model
        self._shape = KVShape(
            layers=config.num_hidden_layers,
            kv_heads=kv_heads,
            group=heads // kv_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=model.dtype,
            device=model.device,
        )
        longest = int(config.max_position_embeddings)
        self.context = min(context or longest, longest)
        """Maximum number of tokens of a prompt and its answer together."""

        _check_windows(config, self.context)
        _check_positions(config, self.context)
        self.weight_bytes: int = sum(p.numel() * p.element_size() for p in model.parameters())
        self.kv_cache = KVCache(self._shape, self.context)
        self.adapters = Adapters(model, {})
        self.steering = Steering(model, steering or {})
        self._replace_attention(config)
        self.adapters = Adapters(model, adapters or {})

    def _replace_attention(self, config: Any) -> None:
        """Make the model use our KV cache, and check that its logits stay the same.

        Some models do not call the attention function, or do part of their attention elsewhere.
        """
        tokens = [1 + i % (config.vocab_size - 1) for i in range(12)]
        with torch.inference_mode():
            ids = torch.tensor([tokens], device=self._shape.device)
            expected = self._model(input_ids=ids, use_cache=False).logits[0, -1].float()
        self.vocabulary = len(expected)
        """Number of logits; the tokenizer may have fewer tokens."""

        use_fast_layers(self._model)
        AttentionInterface.register(_ATTENTION, _attention)
        row = self.kv_cache.new()
        try:
            self._model.set_attn_implementation(_ATTENTION)
            self.step([(row, tokens[:-1])])
            fork = self.fork(self.snapshot(row, tokens[:-1]), shared=True)
            found = self.step([(row, tokens[-1:]), (fork, tokens[-1:])])
            error = float((found - expected).norm(dim=-1).max() / expected.norm())
            written = row.pool.keys[:, row.slot].flatten(1).any(dim=1)
        except Exception as exc:  # a model's own code may raise anything
            raise _unsupported(config, f"{type(exc).__name__}: {exc}") from exc
        finally:
            for left in list(self.kv_cache.rows()):
                self.free(left)
        if not written.all():
            raise _unsupported(config, "its attention cannot be replaced")
        if not error < _MAX_LOGIT_ERROR.get(self._shape.dtype, _MAX_LOGIT_ERROR_IN_HALF):
            raise _unsupported(config, f"its logits are off by {error:.1%}")

    @torch.inference_mode()
    def step(self, feeds: Sequence[RowTokens]) -> Tensor:
        """Append tokens to rows in one forward pass; return float32 logits [rows, V]."""
        for row, tokens in feeds:
            self.kv_cache.reserve(row, len(tokens))
            row.length += len(tokens)
        plan = StepPlan(feeds, self._shape)
        self.adapters.assign([row.adapter for row in plan.rows], self._shape.device)
        self.steering.assign([row.steering for row in plan.rows])
        output = self._model(
            input_ids=plan.tokens[None],
            position_ids=plan.positions[None],
            use_cache=False,
            logits_to_keep=plan.last,
            plan=plan,
        )
        logits: Tensor = output.logits[0]
        return logits.float().contiguous()

    @torch.inference_mode()
    def fork(self, prefix: Prefix, *, shared: bool, adapter: str | None = None) -> Row:
        """Return a new row that starts with `prefix`: shared, or else copied."""
        if not shared:
            return self.begin(prefix, len(prefix.tokens), adapter)
        return self.kv_cache.new(prefix, adapter)

    @torch.inference_mode()
    def begin(self, prefix: Prefix | None, tokens: int, adapter: str | None = None) -> Row:
        """Return a new row with a copy of the first `tokens` tokens of `prefix` in its KV cache."""
        row = self.kv_cache.new(adapter=adapter, tokens=tokens)
        if prefix is not None:
            self.kv_cache.fill(row, prefix, tokens)
        return row

    @torch.inference_mode()
    def snapshot(self, row: Row, tokens: Sequence[int]) -> Prefix:
        """Return a copy of the KV cache of `row`, which holds `tokens`."""
        return self.kv_cache.snapshot(row, tokens)

    @torch.inference_mode()
    def free(self, row: Row) -> None:
        self.kv_cache.free(row)


def _check_layers(config: Any) -> None:
    """Raise ProviderFailed unless the model is decoder-only, with attention in every layer."""
    unsupported = set(getattr(config, "layer_types", None) or ()) - {"full_attention", *_WINDOWS}
    if unsupported:
        raise _unsupported(config, f"it has layers of {', '.join(sorted(unsupported))}")
    if config.is_encoder_decoder:
        raise _unsupported(config, "it has an encoder")


def _check_windows(config: Any, context: int) -> None:
    """Raise ProviderFailed if a layer's attention window is smaller than `context`."""
    kinds = set(getattr(config, "layer_types", None) or _WINDOWS)
    for kind in kinds & set(_WINDOWS):
        window = getattr(config, _WINDOWS[kind], None)
        if window and window < context:
            raise _unsupported(
                config,
                f"some layers attend to only {window} tokens of its context of {context}; "
                f"set `context: {window}` or less to serve it",
            )


def _check_positions(config: Any, context: int) -> None:
    """Raise ProviderFailed if a row's rotary embedding depends on the length of other rows.

    Transformers chooses the frequencies by the longest row of a step: with longrope, once that row
    exceeds the original length. (With dynamic scaling, once it exceeds `max_position_embeddings`,
    which no row does.)
    """
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in (rope, *rope.values()):  # models may have one rope config per layer type
        if not isinstance(kind, Mapping) or kind.get("rope_type") != "longrope":
            continue
        original = kind["original_max_position_embeddings"]
        if original < context:
            raise _unsupported(
                config,
                f"its positions change beyond {original} tokens of its context of {context}; "
                f"set `context: {original}` or less to serve it",
            )


def _unsupported(config: Any, reason: str) -> ProviderFailed:
    return ProviderFailed(f"{config.model_type} models are not supported: {reason}", status=500)


class _Layer(Protocol):
    layer_idx: int


def _attention(
    module: _Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float,
    plan: StepPlan,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend over the KV cache: the function that transformers' models call in each layer."""
    unsupported = [name for name in _CHANGES_SCORES if others.get(name) is not None]
    if unsupported:
        raise NotImplementedError(f"attention with {' and '.join(unsupported)}")
    return plan.attend(module.layer_idx, query, key, value, scaling), None
