"""What approaches keep between requests: bounded, in this process only, apart for each caller."""

from collections import OrderedDict
from typing import Final

MAX_ENTRIES: Final = 256


class CallerCache:
    """A least-recently-used cache of texts. Callers share its room, but no entry of it."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()
        self._caller = ""

    def of(self, caller: str) -> "CallerCache":
        """Return this cache as `caller` sees it: with the caller's own entries only."""
        view = CallerCache(self._max_entries)
        view._entries = self._entries
        view._caller = caller
        return view

    def get(self, key: str) -> tuple[str, ...] | None:
        """Return the entry of `key`, which counts as used now, or None."""
        at = (self._caller, key)
        if at in self._entries:
            self._entries.move_to_end(at)
        return self._entries.get(at)

    def put(self, key: str, texts: tuple[str, ...]) -> None:
        """Keep `texts` under `key`. The entry that was not used for longest makes room."""
        self._entries[self._caller, key] = texts
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
