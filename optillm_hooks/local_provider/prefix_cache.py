"""Prefix caching: the KV cache of recent prompts, reused by prompts with the same prefix."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar


class CachedPrefix(Protocol):
    """The tokens of a prompt and the size of their KV cache."""

    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def bytes(self) -> int: ...


R = TypeVar("R", bound=CachedPrefix)


class Hit(NamedTuple, Generic[R]):
    """A cached prefix that shares its first `tokens` tokens with the prompt."""

    prefix: R
    tokens: int


class PrefixCache(Generic[R]):
    """An LRU cache of prefixes, limited in bytes.

    The adapter is part of the key: another adapter computes other keys and values.

    `whole`: a prompt can reuse an entry only if it starts with all of it, as with a recurrent
    state, which cannot be cut.
    """

    def __init__(self, max_bytes: int, min_tokens: int = 16, *, whole: bool = False) -> None:
        self._max_bytes = max_bytes
        self._min_tokens = min_tokens
        self._whole = whole
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], R] = OrderedDict()
        self.bytes = 0

    def find(self, prompt: Sequence[int], adapter: str | None = None) -> Hit[R] | None:
        """Return the entry of which `prompt` can reuse the most tokens."""
        best: Hit[R] | None = None
        best_key = None
        prompt = tuple(prompt)  # comparable with the keys
        for key, prefix in self._entries.items():
            common = self.reusable(prompt, key[1]) if key[0] == adapter else 0
            if common >= self._min_tokens and (best is None or common > best.tokens):
                best, best_key = Hit(prefix, common), key
        if best_key is not None:
            self._entries.move_to_end(best_key)
        return best

    def reusable(self, prompt: Sequence[int], cached: Sequence[int]) -> int:
        """Return the number of tokens of `cached` that `prompt` can start with.

        The last token of the prompt is left out, since the caller needs its logits.
        """
        common = min(common_prefix_length(prompt, cached), len(prompt) - 1)
        return 0 if self._whole and common < len(cached) else common

    def accepts(self, prefix_bytes: int) -> bool:
        """Return True if a prefix of this size fits into the cache."""
        return prefix_bytes <= self._max_bytes

    def contains(self, prefix: R, adapter: str | None = None) -> bool:
        """Return True if `prefix` itself is cached, not just an equal one."""
        return self._entries.get((adapter, prefix.tokens)) is prefix

    def add(self, prefix: R, adapter: str | None = None) -> None:
        """Cache `prefix`; drop the entries that are prefixes of it and can be cut from it."""
        if not self.accepts(prefix.bytes) or len(prefix.tokens) < self._min_tokens:
            return
        for key in [k for k in self._entries if k[0] == adapter]:
            same = prefix.tokens == key[1]
            if same or (not self._whole and prefix.tokens[: len(key[1])] == key[1]):
                self._drop(key)
        self._entries[adapter, prefix.tokens] = prefix
        self.bytes += prefix.bytes
        while self.bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def _drop(self, key: tuple[str | None, tuple[int, ...]]) -> None:
        self.bytes -= self._entries.pop(key).bytes


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of leading elements that `a` and `b` share."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
