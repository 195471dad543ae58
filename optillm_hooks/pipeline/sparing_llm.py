"""The LLM of a run beside the one that answers, to which it leaves the last call of the budget."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from optillm_hooks.budget import Budget
from optillm_hooks.errors import BudgetExceeded
from optillm_hooks.llm import LLM, ModelFacts
from optillm_hooks.types import Chat, Completion, Delta, Sampling


class SparingLLM:
    """A model that leaves the last call of a budget to others."""

    def __init__(self, inner: LLM, budget: Budget) -> None:
        self.model = inner.model
        self._inner = inner
        self._budget = budget

    @property
    def facts(self) -> ModelFacts:
        return self._inner.facts

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        self._check()
        return await self._inner.complete(chat, sampling)

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        self._check()
        return await self._inner.complete_n(chat, sampling, n)

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        self._check()
        async with aclosing(self._inner.stream(chat, sampling)) as pieces:
            async for piece in pieces:
                yield piece

    def _check(self) -> None:
        most = self._budget.limits.max_calls
        if most is not None and most - self._budget.calls_taken <= 1:
            raise BudgetExceeded(f"the last of {most} calls is for the answer")
