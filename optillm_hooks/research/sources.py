"""The sources of a research: each page once, by its address, with a number."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from optillm_hooks.answers.citations import Cited, address_key
from optillm_hooks.services import Page, SearchResult

MAX_PAGE: Final = 100_000
"""Maximum characters that are kept of a page."""


@dataclass(frozen=True, slots=True)
class Source:
    """A page that was read."""

    number: int
    title: str
    url: str
    text: str

    @property
    def cited(self) -> Cited:
        return Cited(self.title, self.url)


@dataclass(slots=True)
class Sources:
    """The pages read so far, at most `maximum`."""

    maximum: int
    _by_key: dict[str, Source] = field(default_factory=dict[str, Source])
    """By every address that led to a page."""

    _tried: set[str] = field(default_factory=set[str])
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def choose(self, results: Sequence[Sequence[SearchResult]]) -> list[str]:
        """Return the addresses to read next: those not tried yet, the best of each search first."""
        chosen: list[str] = []
        for rank in range(max(map(len, results), default=0)):
            for found in results:
                if rank >= len(found) or self._count + len(chosen) >= self.maximum:
                    continue
                key = address_key(found[rank].url)
                if key and key not in self._tried:
                    self._tried.add(key)
                    chosen.append(found[rank].url)
        return chosen

    def add(self, asked: str, page: Page) -> None:
        """Add a page that was read at the address `asked`. A page without text is no source."""
        key = address_key(page.url) or address_key(asked)
        if not page.text.strip():
            return
        source = self._by_key.get(key)
        if source is None:
            self._count += 1
            source = Source(self._count, page.title, page.url, page.text[:MAX_PAGE])
        for each in (key, address_key(asked)):
            self._by_key[each] = source
            self._tried.add(each)

    def of(self, results: Sequence[SearchResult]) -> list[Source]:
        """Return the sources that are among the results of a search, each once."""
        found = [self._by_key.get(address_key(result.url)) for result in results]
        return list(dict.fromkeys(source for source in found if source is not None))

    def cited(self, numbers: Collection[int]) -> dict[int, Cited]:
        """Return the sources with these numbers, by number."""
        every = {source.number: source.cited for source in self._by_key.values()}
        return {number: every[number] for number in sorted(numbers) if number in every}
