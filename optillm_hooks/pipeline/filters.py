"""The filters of a final call: those of the approach and of the wrappers around it."""

from dataclasses import dataclass, replace
from typing import TypeVar

from optillm_hooks.answers.deltas import filtered
from optillm_hooks.llm import FinalCall
from optillm_hooks.types import Answer, Delta, DeltaFilter, TextFilter

A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class _OfText:
    """A `TextFilter` as a `DeltaFilter`."""

    text_filter: TextFilter

    def feed(self, piece: Delta, /) -> Delta:
        return replace(piece, text=self.text_filter.feed(piece.text))

    def close(self) -> Delta:
        return Delta(text=self.text_filter.close())


class Filters:
    """The filters of one reply, in their order."""

    def __init__(self, final: FinalCall) -> None:
        self._filters: list[DeltaFilter] = [make() for make in final.wrappers]
        if final.text_filter is not None:
            self._filters.insert(0, _OfText(final.text_filter()))

    def __bool__(self) -> bool:
        return bool(self._filters)

    def feed(self, piece: Delta) -> Delta:
        """Return what the client gets now that `piece` has arrived."""
        for each in self._filters:
            piece = each.feed(piece)
        return piece

    def close(self) -> list[Delta]:
        """Return what the client gets at the end. Each filter sees what those before it kept."""
        rest: list[Delta] = []
        for each in self._filters:
            rest = [*map(each.feed, rest), each.close()]
        return [piece for piece in rest if piece != Delta()]

    def whole(self, reply: A) -> A:
        """Return a whole reply as the client gets it."""
        return filtered(reply, lambda piece: (self.feed(piece), *self.close()))
