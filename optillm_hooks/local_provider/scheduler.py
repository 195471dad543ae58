"""Who gets the next free row, and how many tokens each row may feed. Plain numbers, no torch."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Claimant(Protocol):
    """A request that takes part in the scheduling."""

    @property
    def rows(self) -> int:
        """Rows it has now."""
        ...

    @property
    def wanted(self) -> int:
        """Further rows it could use now."""
        ...


C = TypeVar("C", bound=Claimant)


def admit(claimants: Sequence[C], free: int, fits: Callable[[C], bool]) -> list[C]:
    """Return who gets each of at most `free` rows, one entry per row.

    Each row goes to the claimant with the fewest rows so far, the earliest among equals: a request
    for a hundred samples does not keep the ones behind it waiting. A claimant for whose row there
    is no memory (`fits` is False) ends the round if it has no row yet, so that smaller requests
    cannot pass it for ever.
    """
    granted: list[C] = []
    given = [0] * len(claimants)
    open_to = set(range(len(claimants)))
    while len(granted) < free:
        hungry = [i for i in sorted(open_to) if given[i] < claimants[i].wanted]
        if not hungry:
            break
        i = min(hungry, key=lambda i: claimants[i].rows + given[i])
        claimant = claimants[i]
        if not fits(claimant):
            if claimant.rows + given[i] == 0:
                break
            open_to.discard(i)
            continue
        given[i] += 1
        granted.append(claimant)
    return granted


def chunk_prefills(waiting: Sequence[int], chunk: int) -> list[int]:
    """Return how many of its waiting tokens each row feeds in the next step.

    A single token always goes through, so that no running answer stalls. Longer runs (prompts, as
    a rule) share `chunk` tokens in order, and what does not fit waits for the next step.
    """
    fed: list[int] = []
    for count in waiting:
        if count <= 1:
            fed.append(count)
        else:
            fed.append(min(count, chunk))
            chunk -= fed[-1]
    return fed
