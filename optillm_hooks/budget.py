"""The limits of one request, and what it has spent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from optillm_hooks.errors import BudgetExceeded, DeadlineExceeded, SampleError
from optillm_hooks.llm import LLM, Price, Scorer
from optillm_hooks.pauses import Pauses
from optillm_hooks.types import Chat, Purpose, Sampling, StoppedBy, Usage

N = TypeVar("N", int, float)

_UNBOUNDED = 2**31
"""Used in place of a missing limit."""

_WORK = frozenset[Purpose]({"solution", "draft", "judge"})
"""Purposes of the calls that lead to an answer, which the client's `max_tokens` does not limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may spend. None means no limit of that kind."""

    deadline_s: float | None = None
    """Seconds from the start of the request to its answer."""

    max_calls: int | None = None
    max_tokens_total: int | None = None
    """Prompt and completion tokens of all calls together."""

    max_cost_usd: float | None = None
    max_parallel: int | None = None
    """Model calls that may run concurrently."""

    def lowered(self, other: "Limits") -> "Limits":
        """Return the stricter of both, limit by limit."""
        return Limits(
            deadline_s=_stricter(self.deadline_s, other.deadline_s),
            max_calls=_stricter(self.max_calls, other.max_calls),
            max_tokens_total=_stricter(self.max_tokens_total, other.max_tokens_total),
            max_cost_usd=_stricter(self.max_cost_usd, other.max_cost_usd),
            max_parallel=_stricter(self.max_parallel, other.max_parallel),
        )

    def left(self, spent: Usage) -> "Limits":
        """Return these limits after `spent`; time is not counted."""
        return replace(
            self,
            max_calls=None if self.max_calls is None else max(0, self.max_calls - spent.calls),
            max_tokens_total=None
            if self.max_tokens_total is None
            else max(0, self.max_tokens_total - spent.total_tokens),
            max_cost_usd=None
            if self.max_cost_usd is None
            else max(0.0, self.max_cost_usd - spent.cost_usd),
        )

    def with_max_calls(self, default: int) -> "Limits":
        """Return these limits, with `default` as `max_calls` where nothing limits calls."""
        return self if self.max_calls is not None else replace(self, max_calls=default)


def _stricter(one: N | None, other: N | None) -> N | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


@dataclass(slots=True, kw_only=True, eq=False)
class Budget:
    """The budget that all runs of one request share: its time, calls, tokens and money.

    `expected_calls` is the estimated number of calls of the plan, in which each choice of a call
    for several counts. The tokens left are divided by the calls left, for calls without
    `max_tokens`.
    """

    limits: Limits = Limits()
    started: float = 0.0
    """Instant on the loop's clock (`loop.time()`)."""

    expected_calls: int = 1
    usage: Usage = field(default_factory=Usage)
    calls_taken: int = 0
    replies_taken: int = 0
    """The choices of the calls taken, while tokens or money are limited."""

    tokens_taken: int = 0
    cost_taken: float = 0.0
    stopped_by: StoppedBy | None = None
    rejections: dict[str, SampleError] = field(default_factory=dict[str, SampleError])
    """The errors of models that have rejected the request's prompt, by model."""

    pauses: Pauses = field(default_factory=Pauses)
    """The pauses that overloaded models have asked for."""

    _slots: asyncio.Semaphore | None = None
    _hurried: float = float("inf")
    _scopes: dict[asyncio.Timeout, float] = field(default_factory=dict[asyncio.Timeout, float])
    """The blocks that run until the deadline, with their seconds of grace."""

    @property
    def deadline(self) -> float:
        """Instant on the loop's clock, not a duration: nesting needs no arithmetic."""
        seconds = self.limits.deadline_s
        return self._hurried if seconds is None else min(self._hurried, self.started + seconds)

    @asynccontextmanager
    async def in_time(self, grace_s: float = 0.0) -> AsyncIterator[None]:
        """Run the block until `grace_s` seconds after the deadline, wherever that moves meanwhile.

        Raises:
            DeadlineExceeded: that time has passed.
        """
        scope = asyncio.timeout_at(self.deadline + grace_s)
        self._scopes[scope] = grace_s
        try:
            async with scope:
                yield
        except TimeoutError as exc:
            if not scope.expired():
                raise
            self.stop("deadline")
            raise DeadlineExceeded("the deadline passed") from exc
        finally:
            del self._scopes[scope]

    def hurry(self, deadline: float) -> None:
        """Move the deadline forward to an instant on the loop's clock, if it is later."""
        if deadline >= self.deadline:
            return
        self._hurried = deadline
        for scope, grace_s in self._scopes.items():
            if not scope.expired():
                scope.reschedule(deadline + grace_s)

    @property
    def slots(self) -> asyncio.Semaphore:
        if self._slots is None:
            self._slots = asyncio.Semaphore(self.limits.max_parallel or _UNBOUNDED)
        return self._slots

    def take(
        self, llm: LLM | Scorer, chat: Chat, sampling: Sampling, choices: int
    ) -> "Reservation":
        """Reserve one call, its prompt, and `choices` replies of their maximum length.

        If tokens or money are limited, a call without `max_tokens` gets its share of what is left,
        up to the model's maximum, and a given `max_tokens` is lowered to what is left; to the
        share, if the call is not for an answer. So a fan-out exceeds a limit by no more than the
        error of the prompt estimates.

        Raises:
            BudgetExceeded: a limit leaves no room for the call.
        """
        limits = self.limits
        if limits.max_calls is not None and self.calls_taken >= limits.max_calls:
            self.stop("max_calls")
            raise BudgetExceeded(f"no calls left of {limits.max_calls}")
        if limits.max_tokens_total is None and limits.max_cost_usd is None:
            self.calls_taken += 1
            return Reservation(sampling, 0, 0, Price(0.0, 0.0), choices)
        facts = llm.facts
        prompt = facts.count_tokens(chat, sampling)
        price = facts.price_of(sampling)
        room, limited_by = self._reply_room(price, prompt, choices)
        thinking = facts.thinking_tokens(sampling)
        if room <= thinking:
            self.stop(limited_by)
            raise BudgetExceeded(f"no room left under {limited_by}")
        ask = sampling.max_tokens
        if room < _UNBOUNDED and (ask is None or sampling.purpose in _WORK):
            replies_left = self.expected_calls - self.replies_taken
            if limits.max_calls is not None:
                replies_left = min(replies_left, (limits.max_calls - self.calls_taken) * choices)
            replies_left = max(choices, replies_left)
            share = thinking + max(1, room * choices // replies_left)
            longest = facts.max_output_tokens or share
            if facts.max_input_tokens is not None:  # many hosts have one window for both
                room_in_window = facts.max_input_tokens * 9 // 10 - prompt
                longest = min(longest, max(thinking + 1, room_in_window))
            ask = min(share, ask or share, longest)
        max_tokens = None if ask is None else min(ask, room)
        reply = choices * (max_tokens or 0)
        reserved = Reservation(
            replace(sampling, max_tokens=max_tokens),
            prompt,
            reply,
            price or Price(0.0, 0.0),
            choices,
        )
        self.calls_taken += 1
        self.replies_taken += choices
        self.tokens_taken += reserved.tokens
        self.cost_taken += reserved.cost
        return reserved

    def settle(self, reserved: "Reservation", spent: Usage) -> None:
        """Replace a reservation by what the call has spent."""
        self.tokens_taken += spent.total_tokens - reserved.tokens
        self.cost_taken += spent.cost_usd - reserved.cost
        if reserved.tokens and not spent.total_tokens:  # single calls may make up for it
            self.replies_taken -= reserved.choices - 1

    def pay(self, usd: float) -> None:
        """Count what a service costs, such as the call of a tool.

        Raises:
            BudgetExceeded: there is not that much money left.
        """
        most = self.limits.max_cost_usd
        if most is not None and self.cost_taken + usd > most:
            self.stop("max_cost_usd")
            raise BudgetExceeded("no room left under max_cost_usd")
        self.cost_taken += usd
        self.usage += Usage(cost_usd=usd)

    def stop(self, by: StoppedBy) -> None:
        """Note which limit has cut the request short; the first one is reported."""
        self.stopped_by = self.stopped_by or by

    def _reply_room(self, price: Price | None, prompt: int, choices: int) -> tuple[int, StoppedBy]:
        """Return the maximum tokens of each reply, and the limit that sets it."""
        rooms: list[tuple[int, StoppedBy]] = []
        if self.limits.max_tokens_total is not None:
            left = self.limits.max_tokens_total - self.tokens_taken - prompt
            rooms.append((left // choices, "max_tokens_total"))
        if self.limits.max_cost_usd is not None and price is not None:
            money = self.limits.max_cost_usd - self.cost_taken - prompt * price.prompt
            per_token = choices * price.completion
            rooms.append((int(money / per_token) if per_token else _UNBOUNDED, "max_cost_usd"))
            if money < 0:
                rooms.append((0, "max_cost_usd"))
        return min(rooms, default=(_UNBOUNDED, "max_tokens_total"))


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one call may spend, from when it is made until its real usage is known."""

    sampling: Sampling
    """The call's sampling, with `max_tokens` as the budget allows."""

    prompt: int
    reply: int
    """Tokens of the prompt, and of all replies; 0 if neither tokens nor money are limited."""

    price: Price
    choices: int = 1

    @property
    def tokens(self) -> int:
        return self.prompt + self.reply

    @property
    def cost(self) -> float:
        return self.prompt * self.price.prompt + self.reply * self.price.completion

    def spent(self, replied: int) -> Usage:
        """Return the usage of the call if its reply has `replied` tokens, up to those reserved."""
        used = replace(self, reply=min(replied, self.reply))
        return Usage(prompt_tokens=used.prompt, completion_tokens=used.reply, cost_usd=used.cost)
