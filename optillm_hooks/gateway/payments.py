"""What calls cost that LiteLLM's spend counters do not show yet, by counter, in this process."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_UNBOOKED_S: Final = 10.0
"""After which a call that has ended counts as booked, or as one that LiteLLM does not book."""


@dataclass(slots=True)
class Account:
    """What the calls of one request cost, at their estimates while they are under way."""

    charged_usd: float = 0.0


@dataclass(slots=True, eq=False)
class Payment:
    """The cost of one call: an estimate until it is settled, and pending until it is booked."""

    counters: Sequence[str] = ()
    usd: float = 0.0
    account: Account = field(default_factory=Account)
    owed: bool = False
    """Whether LiteLLM books the call if it is cut off now."""

    ended: float | None = None
    """Instant on `time.monotonic` when the call has ended."""

    def settle(self, usd: float) -> None:
        """Replace the estimate by what the call has cost."""
        self.account.charged_usd += usd - self.usd
        self.usd = usd
        if not usd:
            PAYMENTS.drop(self)

    def end(self) -> None:
        """Note that the call has ended."""
        self.ended = time.monotonic()

    def book(self) -> None:
        """Note that LiteLLM's counters include the call."""
        PAYMENTS.drop(self)


class Payments:
    """The payments that are pending."""

    def __init__(self) -> None:
        self._of: defaultdict[str, set[Payment]] = defaultdict(set)
        self._next = asyncio.Event()
        self.version = 0
        """Changes with each payment that begins or is dropped."""

    def begin(self, counters: Sequence[str], usd: float, account: Account) -> Payment:
        payment = Payment(counters, usd, account)
        account.charged_usd += usd
        self.version += 1
        for counter in counters:
            self._of[counter].add(payment)
        return payment

    def pending(self, counter: str) -> float:
        """Return the dollars that are under way or not booked."""
        now = time.monotonic()
        for payment in [*self._of.get(counter, ())]:
            if payment.ended is not None and now - payment.ended > _UNBOOKED_S:
                self.drop(payment)
        return sum(payment.usd for payment in self._of.get(counter, ()))

    def drop(self, payment: Payment) -> None:
        found = False
        for counter in payment.counters:
            of_counter = self._of.get(counter, set[Payment]())
            found = found or payment in of_counter
            of_counter.discard(payment)
            if not of_counter:
                self._of.pop(counter, None)
        if found:
            self.version += 1
            passed, self._next = self._next, asyncio.Event()
            passed.set()

    async def change(self) -> None:
        """Wait until a payment is dropped, or may be."""
        try:
            async with asyncio.timeout(_UNBOOKED_S):
                await self._next.wait()
        except TimeoutError:
            return


PAYMENTS: Final = Payments()
"""Those of this process."""
