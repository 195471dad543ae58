"""The model itself: feeds tokens to rows, gives logits. Only the engine's thread calls it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.adapters import Adapters
from optillm_hooks.local_provider.kv_cache import KeyValues, Prefix, Row, Shape, StepPlan
from optillm_hooks.local_provider.steering import Steering

_ATTENTION = "optillm_rows"


class Runner:
    """A causal language model on one device, with the keys and values of its rows."""

    def __init__(
        self,
        model: Any,
        adapters: Mapping[str, str] | None = None,
        steering: Mapping[str, str] | None = None,
    ) -> None:
        """`adapters`: folders of LoRA adapters, `steering`: files of steering vectors, by the names
        under which rows choose them."""
        config = model.config
        if {"sliding_attention", "linear_attention"} & set(getattr(config, "layer_types", ())):
            raise ProviderFailed(f"{config.model_type} models have layers that are not supported")
        AttentionInterface.register(_ATTENTION, _attention)
        model.set_attn_implementation(_ATTENTION)
        self._model = model
        heads = config.num_attention_heads
        self._shape = Shape(
            layers=config.num_hidden_layers,
            heads=getattr(config, "num_key_value_heads", None) or heads,
            width=getattr(config, "head_dim", None) or config.hidden_size // heads,
            dtype=model.dtype,
            device=model.device,
        )
        self.context = int(config.max_position_embeddings)
        """Most tokens of a prompt and its answer together."""

        self.rows = KeyValues(self._shape, self.context)
        self.steering = Steering(model, steering or {})
        self.adapters = Adapters(model, adapters or {})

    @torch.inference_mode()
    def step(self, feeds: Sequence[tuple[Row, Sequence[int]]]) -> Tensor:
        """Append tokens to rows; returns float32 logits [rows, V] of what follows each last one."""
        for row, tokens in feeds:
            self.rows.reserve(row, len(tokens))
            row.length += len(tokens)
        plan = StepPlan([(row, len(tokens)) for row, tokens in feeds], self._shape)
        flat = [token for _, tokens in feeds for token in tokens]
        of_rows = [row.adapter for row, tokens in feeds for _ in tokens]
        self.adapters.choose(of_rows, self._shape.device)
        self.steering.choose([row.steering for row, tokens in feeds for _ in tokens])
        output = self._model(
            input_ids=torch.tensor([flat], device=self._shape.device),
            position_ids=plan.positions[None],
            use_cache=False,
            logits_to_keep=plan.last,
            plan=plan,
        )
        logits: Tensor = output.logits[0].float()
        return logits

    @torch.inference_mode()
    def fork(self, prefix: Prefix, *, shared: bool, adapter: str | None = None) -> Row:
        """Return a new row that holds `prefix`: by reference if `shared`, else as a copy."""
        row = self.rows.new(prefix if shared else None, adapter)
        if not shared:
            self.rows.fill(row, prefix, len(prefix.tokens))
        return row

    @torch.inference_mode()
    def begin(self, prefix: Prefix | None, tokens: int, adapter: str | None = None) -> Row:
        """Return a new row that holds a copy of the first `tokens` tokens of `prefix`."""
        row = self.rows.new(adapter=adapter)
        if prefix is not None:
            self.rows.fill(row, prefix, tokens)
        return row

    @torch.inference_mode()
    def snapshot(self, row: Row, tokens: Sequence[int]) -> Prefix:
        """Return a copy of the keys and values of `row`, which holds `tokens`."""
        return self.rows.snapshot(row, tokens)

    @torch.inference_mode()
    def free(self, row: Row) -> None:
        self.rows.free(row)


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
    **_unused: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers' models call in each layer."""
    return plan.attend(module.layer_idx, query, key, value, scaling), None
