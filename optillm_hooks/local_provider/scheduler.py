"""Scheduling: which request gets the next free row, and how many tokens each row feeds.

Works on plain numbers, without torch.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar


class Claimant(Protocol):
    """A request that competes for rows."""

    @property
    def rows(self) -> int:
        """Number of rows it has now: running sequences and prefills."""
        ...

    @property
    def wanted(self) -> int:
        """Number of further rows it could use now."""
        ...


C = TypeVar("C", bound=Claimant)


def admit(claimants: Sequence[C], free: int, fits: Callable[[C], bool]) -> list[C]:
    """Return the claimants that are admitted: one entry for each of at most `free` rows.

    Each row goes to the claimant with the fewest rows so far (ties: the earliest), so that a
    request for a hundred samples does not block later ones. If there is no memory for a row
    (`fits` returns False) and its claimant has no row yet, admission ends, so that smaller requests
    cannot starve it.
    """
    admitted: list[C] = []
    given = [0] * len(claimants)
    open_to = set(range(len(claimants)))
    while len(admitted) < free:
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
        admitted.append(claimant)
    return admitted


def chunk_prefills(waiting: Sequence[int], chunk: int) -> list[int]:
    """Return the number of tokens that each row feeds in the next step (chunked prefill).

    A single token is always fed, so that no decoding sequence stalls. Longer runs (mostly prompts)
    share a budget of `chunk` tokens: half of it in order, the rest by length, the shortest first.
    So the shortest prompt is read at half of the full speed or faster, whatever came before it; and
    so is every prompt once the older ones are read, however many shorter ones arrive.
    """
    sizes = [count if count <= 1 else 0 for count in waiting]
    runs = [row for row, count in enumerate(waiting) if count > 1]
    left = chunk
    for order, reserved in ((runs, chunk // 2), (sorted(runs, key=waiting.__getitem__), 0)):
        for row in order:
            size = min(waiting[row] - sizes[row], left - reserved)
            sizes[row] += size
            left -= size
    return sizes


def whole_prefills(waiting: Sequence[int]) -> list[int]:
    """Return the same for a model that cannot read a prompt in chunks.

    A single token is always fed, and the first of the longer runs in one go.
    """
    first = next((row for row, count in enumerate(waiting) if count > 1), None)
    return [count if count <= 1 or row == first else 0 for row, count in enumerate(waiting)]
