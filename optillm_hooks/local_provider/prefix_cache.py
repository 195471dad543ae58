"""Prompts that were read lately, so that the next one with the same beginning need not be."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar


class Remembered(Protocol):
    @property
    def tokens(self) -> tuple[int, ...]: ...

    @property
    def bytes(self) -> int: ...


R = TypeVar("R", bound=Remembered)


class Hit(NamedTuple, Generic[R]):
    """The first `tokens` tokens of `prefix` are those asked for."""

    prefix: R
    tokens: int


class PrefixCache(Generic[R]):
    """Keeps prefixes up to a number of bytes; the one unused for longest goes first.

    Prefixes computed with different adapters are different: `adapter` is part of the key.
    """

    def __init__(self, max_bytes: int, min_tokens: int = 16) -> None:
        self._most_bytes = max_bytes
        self._least_tokens = min_tokens
        self._entries: OrderedDict[tuple[str | None, tuple[int, ...]], R] = OrderedDict()
        self.bytes = 0

    def find(self, prompt: Sequence[int], adapter: str | None = None) -> Hit[R] | None:
        """Return the entry that has the most tokens in common with the beginning of `prompt`.

        At least one token of the prompt is left over: its logits are what the caller is after.
        """
        best: Hit[R] | None = None
        best_key = None
        asked = tuple(prompt[:-1])
        for key, prefix in self._entries.items():
            common = common_prefix_length(asked, key[1]) if key[0] == adapter else 0
            if common >= self._least_tokens and (best is None or common > best.tokens):
                best, best_key = Hit(prefix, common), key
        if best_key is not None:
            self._entries.move_to_end(best_key)
        return best

    def takes(self, prefix_bytes: int) -> bool:
        """Return whether a prefix of that size would be remembered."""
        return prefix_bytes <= self._most_bytes

    def holds(self, prefix: R, adapter: str | None = None) -> bool:
        """Return whether `prefix` itself, not one like it, is remembered."""
        return self._entries.get((adapter, prefix.tokens)) is prefix

    def add(self, prefix: R, adapter: str | None = None) -> None:
        """Remember `prefix`; entries that are its own beginning are dropped for it."""
        if not self.takes(prefix.bytes) or len(prefix.tokens) < self._least_tokens:
            return
        for key in [k for k in self._entries if k[0] == adapter]:
            if prefix.tokens[: len(key[1])] == key[1]:
                self._drop(key)
        self._entries[adapter, prefix.tokens] = prefix
        self.bytes += prefix.bytes
        while self.bytes > self._most_bytes:
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
