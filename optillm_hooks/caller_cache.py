"""An LRU cache for approaches, separate for each caller. It lasts as long as the process."""

from collections import OrderedDict
from typing import Final

MAX_ENTRIES: Final = 256


class CallerCache:
    """An LRU cache of texts. Callers share its capacity, but each sees only its own entries."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()
        self._caller = ""

    def for_caller(self, caller: str) -> "CallerCache":
        """Return a view of this cache with the entries of `caller` only."""
        view = CallerCache(self._max_entries)
        view._entries = self._entries
        view._caller = caller
        return view

    def get(self, key: str) -> tuple[str, ...] | None:
        """Return the entry of `key` and mark it as the most recently used; None if missing."""
        at = (self._caller, key)
        if at in self._entries:
            self._entries.move_to_end(at)
        return self._entries.get(at)

    def put(self, key: str, texts: tuple[str, ...]) -> None:
        """Store `texts` under `key`. A full cache evicts its least recently used entry."""
        at = (self._caller, key)
        self._entries[at] = texts
        self._entries.move_to_end(at)
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
