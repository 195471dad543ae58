"""The model runner: forward passes over the rows of the KV cache.

Called only from the engine's thread.
"""

import logging
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AttentionInterface

from optillm_hooks.local_provider.adapters import Adapters
from optillm_hooks.local_provider.attention import RowTokens, Scores, StepPlan
from optillm_hooks.local_provider.cuda_graphs import DecodeGraphs, graphs_in_shared_memory
from optillm_hooks.local_provider.eviction import memory_of
from optillm_hooks.local_provider.fast_layers import use_fast_layers
from optillm_hooks.local_provider.gpu_attention import GPUPlan, Kernels, StepTable
from optillm_hooks.local_provider.kv_cache import (
    KVCache,
    KVShape,
    Prefix,
    Row,
)
from optillm_hooks.local_provider.layer_shapes import UnsupportedAttention, kv_shape
from optillm_hooks.local_provider.model_runner import (
    Unsupported,
    check_positions,
    longest_text,
    max_logit_error,
)
from optillm_hooks.local_provider.slots import SlotPool
from optillm_hooks.local_provider.steering import Steering

_log = logging.getLogger(__name__)

_ATTENTION = "optillm_rows"
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


class Plan(Protocol):
    """Attention metadata of one step, shared by all layers."""

    tokens: Tensor
    positions: Tensor
    last: Tensor
    """The place of each row's last token."""

    @property
    def rows(self) -> Sequence[Row]:
        """The row of each token."""
        ...

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores
    ) -> Tensor: ...


_CHECKED = 12
"""Tokens of the check when a model is loaded."""

_CHECKED_BYTES = 100 << 30
"""Maximum product of tokens and weight bytes of a longer check: seconds on two cores."""

_PLAN: ContextVar[Plan] = ContextVar("plan")
"""The plan of the running step. Some models do not hand arguments on to the attention function."""


class Runner:
    """A causal language model on one device, with KV cache, LoRA adapters and steering vectors."""

    shares_prefixes = True
    cuts_prefixes = True
    reads_in_chunks = True
    steps_together = True

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
        self._model = model
        self._cuts_logits = "logits_to_keep" in signature(model.forward).parameters
        self._counts_cache = any(
            getattr(module, "attn_temperature_tuning", False) for module in model.modules()
        )
        longest = longest_text(config)
        if context is None and longest is None:
            raise Unsupported(config, "its configuration has no context length; set `context`")
        self.context = min(length for length in (context, longest) if length is not None)
        """Maximum number of tokens of a prompt and its answer together."""

        check_positions(config, context)
        self.weight_bytes = memory_of(model)
        self.adapters = Adapters(model, {})
        self.steering = Steering(model, steering or {})
        self._kernels: Kernels | None = None
        self._graphs: DecodeGraphs | None = None
        self._replace_attention(config)
        self.adapters = Adapters(model, adapters or {})

    def _replace_attention(self, config: Any) -> None:
        """Make the model use our KV cache, and check that its logits stay the same.

        Some models do not call the attention function, or do part of their attention elsewhere.
        """
        words = self._model.get_input_embeddings().num_embeddings
        own = self._model.config._attn_implementation
        try:
            few = torch.tensor([1, 2], device=self._model.device)
            shape = kv_shape(self._model, lambda: self._run(few))
            self._model.set_attn_implementation(own)
            count = min(self.context, _checked_tokens(shape, self.weight_bytes))
            tokens = [1 + i * i % (words - 1) for i in range(count)]
            expected = self._run(torch.tensor(tokens, device=self._model.device))[-1]
            self.vocabulary = len(expected)
            """Number of logits; the tokenizer may have fewer tokens."""

            use_fast_layers(self._model)
            AttentionInterface.register(_ATTENTION, _attention)
            self._model.set_attn_implementation(_ATTENTION)
            error = self._use_kernels(shape, tokens, expected)
        except UnsupportedAttention as exc:
            raise Unsupported(config, str(exc)) from exc
        except Exception as exc:  # a model's own code may raise anything
            raise Unsupported(config, f"{type(exc).__name__}: {exc}") from exc
        if not error < max_logit_error(shape.dtype):
            raise Unsupported(config, f"its logits are off by {error:.1%}")

    def _use_kernels(self, shape: KVShape, tokens: Sequence[int], expected: Tensor) -> float:
        """Create the KV cache, for kernels if they work here; return the error of the logits."""
        kernels = kernels_for(shape.device, shape.dtype)
        if kernels is not None:
            self.kv_cache = KVCache(shape, self.context, SlotPool)
            self._kernels = kernels
            self._graphs = DecodeGraphs(self._run_plan, shape, kernels, graphs_in_shared_memory())
            try:
                # The second time, the decode step is the replay of a graph.
                error = max(self._error(tokens, expected) for _ in range(2))
                if error < max_logit_error(shape.dtype):
                    return error
                reason = f"the logits are off by {error:.1%}"
            except Exception as exc:  # a missing compiler, or any error of a kernel
                reason = f"{type(exc).__name__}: {exc}"
            _log.warning("attention runs without the kernels for GPUs: %s", reason)
        self._kernels = self._graphs = None
        self.kv_cache = KVCache(shape, self.context)
        return self._error(tokens, expected)

    def _error(self, tokens: Sequence[int], expected: Tensor) -> float:
        """Return the relative error of the logits after `tokens`, read in two steps by two rows."""
        row = self.kv_cache.new()
        try:
            self.step([(row, tokens[:-1])])
            fork = self.fork(self.snapshot(row, tokens[:-1]), shared=True)
            found = self.step([(row, tokens[-1:]), (fork, tokens[-1:])])
        finally:
            for left in list(self.kv_cache.rows()):
                self.free(left)
        return float((found - expected).norm(dim=-1).max() / expected.norm())

    @torch.inference_mode()
    def _run(
        self, tokens: Tensor, positions: Tensor | None = None, last: Tensor | None = None
    ) -> Tensor:
        """Return the float32 logits [places, V] after `tokens`, at the places `last` or at all."""
        given: dict[str, Any] = {}
        if positions is not None:
            given["position_ids"] = positions[None]
        if positions is not None and self._counts_cache:
            given["past_key_values"] = _TokensBefore(positions)
        if last is not None and self._cuts_logits:
            given["logits_to_keep"] = last
        logits: Tensor = self._model(input_ids=tokens[None], use_cache=False, **given).logits[0]
        if last is not None and not self._cuts_logits:
            logits = logits[last]
        return logits.float().contiguous()

    @torch.inference_mode()
    def step(self, feeds: Sequence[RowTokens]) -> Tensor:
        """Append tokens to rows in one forward pass; return float32 logits [rows, V].

        If it raises, the rows are as before.
        """
        lengths = [row.length for row, _ in feeds]
        try:
            return self._forward(feeds)
        except BaseException:
            for (row, _), length in zip(feeds, lengths, strict=True):
                row.length = length
            raise

    def _forward(self, feeds: Sequence[RowTokens]) -> Tensor:
        for row, tokens in feeds:
            self.kv_cache.reserve(row, len(tokens))
            row.length += len(tokens)
        if self._graphs is not None and all(map(_decodes_plainly, feeds)):
            self._assign([])
            logits = self._graphs.step(feeds)
            if logits is not None:
                return logits
        shape = self.kv_cache.shape
        if self._kernels is None:
            plan: Plan = StepPlan(feeds, shape)
        else:
            plan = GPUPlan(StepTable(feeds, shape), shape, self._kernels)
        self._assign(plan.rows)
        return self._run_plan(plan)

    def _assign(self, rows: Sequence[Row]) -> None:
        """Set the adapter and the steering vectors of each token of a step, by its row."""
        self.adapters.assign([row.adapter for row in rows], self.kv_cache.shape.device)
        self.steering.assign([row.steering for row in rows])

    def _run_plan(self, plan: Plan) -> Tensor:
        """Return the float32 logits [rows, V] of a step."""
        running = _PLAN.set(plan)
        try:
            return self._run(plan.tokens, plan.positions, plan.last)
        finally:
            _PLAN.reset(running)

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
    def clear(self, row: Row) -> None:
        self.kv_cache.clear(row)

    @torch.inference_mode()
    def free(self, row: Row) -> None:
        self.kv_cache.free(row)


def kernels_for(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Return the kernels for attention on a GPU; None: there are none for this device or dtype."""
    if device.type != "cuda" or dtype.itemsize > 4:
        return None
    try:
        from optillm_hooks.local_provider.gpu_kernels import TritonKernels
    except ImportError:
        return None
    return TritonKernels(device)


def _decodes_plainly(feed: RowTokens) -> bool:
    """Return True if a row feeds one token, without an adapter or steering vectors."""
    row, tokens = feed
    return len(tokens) == 1 and row.adapter is None and not any(row.steering.values())


def _check_layers(config: Any) -> None:
    """Raise ProviderFailed unless the model is decoder-only, with attention in every layer."""
    unsupported = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS
    if unsupported:
        raise Unsupported(config, f"it has layers of {', '.join(sorted(unsupported))}")
    if config.is_encoder_decoder:
        raise Unsupported(config, "it has an encoder")


def _checked_tokens(shape: KVShape, weight_bytes: int) -> int:
    """Return the number of tokens to check: more than the smallest window, unless it takes long."""
    windows = [kind.window.size for kind in shape.kinds if kind.window is not None]
    longer = min(windows, default=0) + _CHECKED
    return longer if longer * weight_bytes < _CHECKED_BYTES else _CHECKED


class _TokensBefore:
    """Stands in for the cache of Llama 4, whose layers add its length to a token's place.

    The sum, by which they scale queries, then is the token's position in its row.
    """

    def __init__(self, positions: Tensor) -> None:
        self._counts = positions - torch.arange(len(positions), device=positions.device)

    def get_seq_length(self, _layer: int) -> Tensor:
        return self._counts

    def update(self, key: Tensor, value: Tensor, _layer: int) -> tuple[Tensor, Tensor]:
        return key, value


class _Layer(Protocol):
    layer_idx: int


def _attention(
    module: _Layer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 (models name it)
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Attend over the KV cache: the function that transformers' models call in each layer."""
    if position_bias is not None:
        raise UnsupportedAttention("its attention depends on a position bias")
    scale = key.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, softcap, s_aux)
    return _PLAN.get().attend(module.layer_idx, query, key, value, scores), None
