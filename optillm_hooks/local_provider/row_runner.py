"""The runner for all other models: one row after another, each with the model's own cache.

Hybrid and state-space models keep a state that each token changes, and some models compute their
attention in a way that cannot be replaced. Each row has the cache that transformers made for it.

Called only from the engine's thread.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.adapters import Adapters
from optillm_hooks.local_provider.eviction import memory_of
from optillm_hooks.local_provider.model_runner import (
    Unsupported,
    check_positions,
    longest_text,
    max_logit_error,
)
from optillm_hooks.local_provider.steering import Steering

_CACHE_ARGUMENTS = ("past_key_values", "cache_params", "state")
_UNBOUNDED = 1 << 20
"""The context of a model whose state never grows, if its configuration has none."""

_STATES_IN_MODULES = ("conv1d_state", "recurrent_states")
"""Attributes in which RecurrentGemma's modules keep their state."""

_PROBE = 12
"""Tokens of the check when a model is loaded."""


@dataclass(slots=True)
class _State:
    """What a model knows of the tokens so far."""

    cache: Any = None
    in_modules: tuple[Tensor | None, ...] = ()
    """The state that the model keeps in its modules."""


@dataclass(eq=False, slots=True)
class Row:
    """The state of one sequence, which has `length` tokens."""

    state: _State
    length: int = 0
    pending: list[int] = field(default_factory=list[int])
    """Prompt tokens that are not in the state yet: the next step feeds them first."""

    before_last: _State | None = None
    """While a prompt is read: the state before its last token so far."""

    adapter: str | None = None
    steering: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The state after a prompt, or after all of it but its last token. Immutable.

    The latter can be reused by an equal prompt too, whose last token has to be computed again.
    """

    tokens: tuple[int, ...]
    """Those in `state`."""

    state: _State
    rest: tuple[int, ...] = ()
    """The prompt's last token, if it is not in `state`."""

    @property
    def bytes(self) -> int:
        return _bytes([self.state])


class RowStates:
    """The states of all rows."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._fixed = self._per_token = 0

    @property
    def bytes(self) -> int:
        """Memory of all states. What rows have in common is counted once."""
        rows = list(self._rows)  # another thread may ask
        states = [row.state for row in rows] + [row.before_last for row in rows]
        return _bytes([state for state in states if state is not None])

    def bytes_for(self, rows: int, tokens: int) -> int:
        """Return the maximum bytes that `rows` rows use for `tokens` tokens each."""
        return rows * self.prefix_bytes(tokens)

    def prefix_bytes(self, tokens: int) -> int:
        return self._fixed + tokens * self._per_token

    def rows(self) -> Iterator[Row]:
        yield from self._rows

    def add(self, row: Row) -> Row:
        self._rows.append(row)
        return row

    def remove(self, row: Row) -> None:
        self._rows.remove(row)

    def measure(self, shorter: Row, longer: Row) -> None:
        """Learn the bytes of states from two rows of different lengths."""
        sizes = [_bytes([row.state]) for row in (shorter, longer)]
        self._per_token = -(-(sizes[1] - sizes[0]) // (longer.length - shorter.length))
        self._fixed = max(0, sizes[0] - shorter.length * self._per_token)


class RowRunner:
    """A causal language model that runs one row after another."""

    shares_prefixes = False
    steps_together = False

    def __init__(
        self,
        model: Any,
        adapters: Mapping[str, str] | None = None,
        steering: Mapping[str, str] | None = None,
        context: int | None = None,
    ) -> None:
        """Load adapters and steering vectors, and check that the model can go on from its cache.

        Args:
            model: a causal language model of transformers.
            adapters: folders of LoRA adapters by name.
            steering: files of steering vectors by name.
            context: maximum number of tokens of a prompt and its answer; None: the model's own.

        Raises:
            ProviderFailed: the model is not supported, or an adapter or steering vector is invalid.
        """
        config = model.config.get_text_config()
        if config.is_encoder_decoder:
            raise Unsupported(config, "it has an encoder")
        lengths = [length for length in (context, longest_text(config)) if length is not None]
        self.context = min(lengths, default=_UNBOUNDED)
        check_positions(config, context)
        self.weight_bytes = memory_of(model)
        self.kv_cache = RowStates()
        self.cuts_prefixes = False
        self._model = model
        takes = inspect.signature(model.forward).parameters
        self._argument = next((n for n in _CACHE_ARGUMENTS if n in takes), _CACHE_ARGUMENTS[0])
        self._takes_positions = "position_ids" in takes
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._keepers = [
            (module, name)
            for module in model.modules()
            for name in _STATES_IN_MODULES
            if name in vars(module)
        ]
        self.reads_in_chunks = True

        self.adapters = Adapters(model, {})
        self.steering = Steering(model, steering or {})
        self._check(config)
        if not lengths and self.kv_cache.prefix_bytes(1) > self.kv_cache.prefix_bytes(0):
            raise Unsupported(config, "its configuration has no context length; set `context`")
        self.adapters = Adapters(model, adapters or {})
        self._check_adapters()

    @torch.inference_mode()
    def step(self, feeds: Sequence[tuple[Row, Sequence[int]]]) -> Tensor:
        """Append tokens to rows, one row after another; return float32 logits [rows, V]."""
        return torch.stack([self._feed(row, tokens) for row, tokens in feeds])

    def begin(self, prefix: Prefix | None, tokens: int, adapter: str | None = None) -> Row:
        """Return a new row that starts with the first `tokens` tokens of `prefix`."""
        if prefix is None or not tokens:
            return self.kv_cache.add(Row(_State(self._new_cache()), adapter=adapter))
        state = _copy(prefix.state)
        if tokens < len(prefix.tokens):
            state.cache.crop(tokens - len(prefix.tokens))
        return self.kv_cache.add(Row(state, tokens, adapter=adapter))

    def fork(self, prefix: Prefix, *, shared: bool, adapter: str | None = None) -> Row:
        """Return a new row that starts with the prompt of `prefix`, which is never `shared`."""
        assert not shared  # noqa: S101
        row = self.begin(prefix, len(prefix.tokens), adapter)
        row.pending = list(prefix.rest)
        return row

    def snapshot(self, row: Row, tokens: Sequence[int]) -> Prefix:
        """Return the prefix of `row`, which holds the prompt `tokens`."""
        if self.cuts_prefixes or row.before_last is None:
            return Prefix(tuple(tokens), _copy(row.state))
        return Prefix(tuple(tokens[:-1]), row.before_last, tuple(tokens[-1:]))

    def clear(self, row: Row) -> None:
        """Do nothing: no other row will have its memory."""

    def free(self, row: Row) -> None:
        self.kv_cache.remove(row)

    def _new_cache(self) -> Cache | None:
        """Return an empty cache if the model does not return the one that it makes."""
        return DynamicCache(config=self._model.config.get_text_config()) if self._keepers else None

    def _feed(self, row: Row, tokens: Sequence[int]) -> Tensor:
        """Append tokens to a row; return the float32 logits [V] after the last one."""
        reads_prompt = len(tokens) > 1 and not row.pending
        tokens, row.pending, row.before_last = [*row.pending, *tokens], [], None
        if reads_prompt and not self.cuts_prefixes:
            self._append(row, tokens[:-1])
            row.before_last, tokens = _copy(row.state), tokens[-1:]
        return self._append(row, tokens)

    def _append(self, row: Row, tokens: Sequence[int]) -> Tensor:
        if self.reads_in_chunks or not row.length:
            return self._forward(row, tokens)
        return [self._forward(row, [token]) for token in tokens][-1]

    def _forward(self, row: Row, tokens: Sequence[int]) -> Tensor:
        self.adapters.assign([row.adapter] * len(tokens), self._model.device)
        self.steering.assign([row.steering] * len(tokens))
        for (module, name), kept in zip(self._keepers, row.state.in_modules, strict=False):
            setattr(module, name, kept)
        end = row.length + len(tokens)
        given: dict[str, Any] = {self._argument: row.state.cache, **self._last_only}
        if self._takes_positions:
            given["position_ids"] = torch.arange(row.length, end, device=self._model.device)[None]
        ids = torch.tensor([tokens], device=self._model.device)
        output = self._model(input_ids=ids, use_cache=True, **given)
        kept_now = tuple(getattr(module, name) for module, name in self._keepers)
        row.state = _State(getattr(output, self._argument, row.state.cache), kept_now)
        if row.state.cache is None:
            raise Unsupported(self._model.config, "it keeps no cache")
        row.length = end
        logits: Tensor = output.logits[0, -1]
        return logits.float()

    @torch.inference_mode()
    def _check(self, config: Any) -> None:
        """Check the model's logits after a part of the tokens, and after a copy of its state."""
        tokens = [1 + i % (config.vocab_size - 1) for i in range(_PROBE)]
        try:
            ids = torch.tensor([tokens], device=self._model.device)
            expected = self._model(input_ids=ids, use_cache=False).logits[0, -1].float()
            self.vocabulary = len(expected)
            error = self._error(tokens, expected)
            if not error < max_logit_error(self._model.dtype):
                self.reads_in_chunks = False
                error = self._error(tokens, expected)
        except Unsupported:
            raise
        except Exception as exc:  # a model's own code may raise anything
            raise Unsupported(config, f"{type(exc).__name__}: {exc}") from exc
        if not error < max_logit_error(self._model.dtype):
            raise Unsupported(config, f"its logits are off by {error:.1%} after a part of them")

    def _error(self, tokens: Sequence[int], expected: Tensor) -> float:
        """Return the relative error of the logits of a row and its fork, fed in several parts."""
        row, half = self.begin(None, 0), len(tokens) // 2
        try:
            self.step([(row, tokens[:half])])
            shorter = self.kv_cache.add(Row(_copy(row.state), row.length))
            self.cuts_prefixes = not self._keepers and _can_be_cut(row.state.cache)
            self.step([(row, tokens[half:-1])])
            prefix = self.snapshot(row, tokens[:-1])
            begun = self.begin(prefix, half if self.cuts_prefixes else len(prefix.tokens))
            feeds = [(r, tokens[-1:]) for r in (row, self.fork(prefix, shared=False))]
            found = self.step([*feeds, (begun, tokens[begun.length :])])
            self.kv_cache.measure(shorter, row)
        finally:
            for left in list(self.kv_cache.rows()):
                self.free(left)
        return float((found - expected).norm(dim=-1).max() / expected.norm())

    @torch.inference_mode()
    def _check_adapters(self) -> None:
        """Raise ProviderFailed if the model reads the weights of an adapted layer by itself.

        Mamba's layers do so: an adapter of them would be ignored.
        """
        called: set[str] = set()
        hooks = [
            self._model.get_submodule(layer).register_forward_hook(
                lambda *_, layer=layer: called.add(layer)
            )
            for layer in self.adapters.layers
        ]
        self._model(input_ids=torch.tensor([[1, 1]], device=self._model.device), use_cache=False)
        for hook in hooks:
            hook.remove()
        ignored = sorted(name for name in self.adapters.layers - called if ".experts." not in name)
        if ignored:
            raise ProviderFailed(
                f"adapters cannot change {ignored[0]}: the model reads its weights by itself",
                status=500,
            )


def _can_be_cut(cache: Any) -> bool:
    """Return True if the state after fewer tokens is a part of this one."""
    if type(cache) is not DynamicCache:
        return False
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _copy(state: _State) -> _State:
    """Return a copy that the model can change. Keys and values, which only grow, are not copied."""
    layers = state.cache.layers if isinstance(state.cache, Cache) else []
    grown = [
        tensor
        for layer in layers
        if isinstance(layer, DynamicLayer)
        for tensor in (layer.keys, layer.values)
    ]
    return copy.deepcopy(state, {id(tensor): tensor for tensor in grown})


def _bytes(states: Sequence[_State]) -> int:
    """Return the memory of states, that of tensors in several of them once."""
    storages = [tensor.untyped_storage() for state in states for tensor in _tensors(state)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors within a cache, of whatever class it is."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, _State):
        yield from _tensors([value.cache, value.in_modules])
    elif not isinstance(value, Module | PreTrainedConfig | type) and hasattr(value, "__dict__"):
        yield from _tensors(vars(value))
