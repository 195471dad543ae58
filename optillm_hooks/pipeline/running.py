"""The plans that run in this process, which can all be told to end early."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from optillm_hooks.budget import Budget


class Running:
    """The budgets of the plans that run, in one event loop."""

    def __init__(self) -> None:
        self._budgets: set[Budget] = set()
        self._until = float("inf")

    @property
    def are_hurried(self) -> bool:
        return self._until < float("inf")

    @contextmanager
    def plan(self, budget: Budget) -> Iterator[None]:
        """Run the block, in which a plan of this budget runs."""
        budget.hurry(self._until)
        self._budgets.add(budget)
        try:
            yield
        finally:
            self._budgets.remove(budget)

    def hurry(self, until: float) -> None:
        """Give every plan, under way and to come, a deadline: an instant on the loop's clock.

        Of several, the earliest counts.
        """
        self._until = min(self._until, until)
        for budget in self._budgets:
            budget.hurry(self._until)


RUNNING: Final = Running()
"""Those of this process."""
