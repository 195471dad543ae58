"""What the batch needs of a runner, whether it runs all rows of a step together or one by one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.prefix_cache import CachedPrefix

_CONTEXTS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "context_length",
)
"""What configurations call the longest text of a model."""

_MAX_LOGIT_ERROR = {torch.float32: 1e-3, torch.float64: 1e-3}
_MAX_LOGIT_ERROR_IN_HALF = 0.1


class Unsupported(ProviderFailed):
    """A runner cannot run models of a kind; another runner may."""

    def __init__(self, config: Any, reason: str) -> None:
        super().__init__(f"{config.model_type} models are not supported: {reason}", status=500)
        self.reason = reason


def longest_text(config: Any) -> int | None:
    """Return the maximum number of tokens that a model reads exactly; None: it does not say.

    With longrope, it is the original length: transformers chooses the rotary frequencies by the
    longest row of a step, once that row exceeds it. (With dynamic scaling, once it exceeds
    `max_position_embeddings`, which no row does.)
    """
    named = (getattr(config, name, None) for name in _CONTEXTS)
    longest = next((int(length) for length in named if length), None)
    return min((length for length in (longest, _original(config)) if length), default=None)


def check_positions(config: Any, context: int | None) -> None:
    """Raise ProviderFailed if a `context` is asked for beyond the original length of longrope."""
    original = _original(config)
    if original is not None and context is not None and original < context:
        raise Unsupported(
            config,
            f"its positions change beyond {original} tokens of its context of {context}; "
            f"set `context: {original}` or less to serve it",
        )


def _original(config: Any) -> int | None:
    """Return the length up to which longrope does not change the positions; None: no longrope."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, Mapping)]
    lengths = (
        int(kind["original_max_position_embeddings"])
        for kind in kinds  # models may have one rope config per layer type
        if kind.get("rope_type") == "longrope"
    )
    return min(lengths, default=None)


def max_logit_error(dtype: torch.dtype) -> float:
    """Return the maximum relative difference of logits that rounding explains."""
    return _MAX_LOGIT_ERROR.get(dtype, _MAX_LOGIT_ERROR_IN_HALF)


class RunnerRow(Protocol):
    """The cache of one sequence."""

    steering: Mapping[str, float]
    """Strengths of steering vectors by name, for tokens fed from now on."""


class RowCache(Protocol):
    """The memory of all rows."""

    @property
    def bytes(self) -> int:
        """Memory in use, without prefixes that no row uses."""
        ...

    def rows(self) -> Iterable[RunnerRow]: ...

    def bytes_for(self, rows: int, tokens: int) -> int:
        """Return the maximum bytes that `rows` rows use for `tokens` tokens each."""
        ...

    def prefix_bytes(self, tokens: int) -> int:
        """Return the bytes of a prefix of `tokens` tokens."""
        ...


class Named(Protocol):
    """Adapters or steering vectors."""

    @property
    def names(self) -> frozenset[str]: ...


R = TypeVar("R", bound=RunnerRow)
P = TypeVar("P", bound=CachedPrefix)


class ModelRunner(Protocol[R, P]):
    """A causal language model with a cache row per sequence. `R`: its rows; `P`: its prefixes."""

    @property
    def context(self) -> int:
        """Maximum number of tokens of a prompt and its answer together."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of logits; the tokenizer may have fewer tokens."""
        ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def kv_cache(self) -> RowCache: ...

    @property
    def adapters(self) -> Named: ...

    @property
    def steering(self) -> Named: ...

    @property
    def shares_prefixes(self) -> bool:
        """Whether several rows can read one prefix, which is stored once."""
        ...

    @property
    def cuts_prefixes(self) -> bool:
        """Whether a row can start with a part of a prefix. A recurrent state cannot be cut."""
        ...

    @property
    def reads_in_chunks(self) -> bool:
        """Whether a prompt may be fed in several steps."""
        ...

    def begin(self, prefix: P | None, tokens: int, adapter: str | None = None) -> R:
        """Return a new row that starts with the first `tokens` tokens of `prefix`."""
        ...

    def fork(self, prefix: P, *, shared: bool, adapter: str | None = None) -> R:
        """Return a new row that starts with the prompt of which `prefix` is the snapshot."""
        ...

    def snapshot(self, row: R, tokens: Sequence[int]) -> P:
        """Return the prefix of `row`, which holds the prompt `tokens`."""
        ...

    @property
    def steps_together(self) -> bool:
        """Whether the rows of a step share one forward pass, which can be repeated if it fails.

        If not, the batch runs a step for each row, and a row whose step fails is lost.
        """
        ...

    def step(self, feeds: Sequence[tuple[R, Sequence[int]]]) -> Tensor:
        """Append tokens to rows; return float32 logits [rows, V].

        If it raises, the rows are as before (if `steps_together`).
        """
        ...

    def clear(self, row: R) -> None:
        """Erase a row that holds NaN, before its memory is given to another one."""
        ...

    def free(self, row: R) -> None: ...


AnyRunner = ModelRunner[Any, Any]
"""A runner whose rows and prefixes are only handed back to it."""
