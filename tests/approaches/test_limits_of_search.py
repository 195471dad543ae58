"""Deadline, budget, failure and cancellation at every call of the searching approaches."""

from typing import Any

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import Context
from optillm_hooks.errors import OptiLLMError, ProviderFailed
from optillm_hooks.testing import HANG, AnsweringLLM, Reply, answer, chat, context
from optillm_hooks.types import Answer, Chat, Sampling
from tests.simulated import kind, rating, solution

pytestmark = pytest.mark.anyio
ASKED = chat("6 * 7?")
LISTED = {
    "examples": [{"question": "2 * 2?", "answer": "4"}, {"question": "3 * 3?", "answer": "9"}]
}
PROGRAM = "```python\nprint(6 * 7)\n```\n"
"""Without code in the answer, rto is a plain call."""

RUNS: dict[str, dict[str, Any]] = {
    "mcts": {},
    "rstar": {},
    "pvg": {},
    "plansearch": {},
    "leap": LISTED,
    "rto": {},
}
CALLS = [
    (name, number)
    for name, calls in (
        ("mcts", 11),
        ("rstar", 23),
        ("pvg", 25),
        ("plansearch", 10),
        ("leap", 6),
        ("rto", 4),
    )
    for number in range(calls)
]


def reply(chat: Chat, sampling: Sampling) -> str:
    match kind(chat, sampling):
        case "rate":
            return rating(5)
        case "sneaky":
            return "SNEAKY\n" + solution("41")
        case "observe" | "condense":
            return "1. one\n2. two\n3. three"
        case "solve" if sampling.purpose == "draft":
            return solution("40")
        case "solve" | "finish" | "helpful":
            return PROGRAM + solution(str(42 + sampling.sample % 3))
        case "answer by plan":
            return solution(str(41 + sampling.sample))
        case "diagnose":
            return "Two equal factors make a square."
        case _:
            return solution("41")


class Faulty(AnsweringLLM):
    """Answers as `reply` does, but for its call `number`."""

    def __init__(self, number: int, fault: Reply) -> None:
        super().__init__(self._answered)
        self._number = number
        self._fault = fault

    def _answered(self, chat: Chat, sampling: Sampling) -> Reply:
        number = len(self.calls) - 1
        return self._fault if number == self._number else reply(chat, sampling)


async def outcome(name: str, llm: Faulty, ctx: Context) -> Answer | OptiLLMError:
    """Return the answer, or the error if nothing that could be one was written.

    In any case nothing is left running, every call is counted once, and no decoy is offered.
    """
    try:
        result: Answer | OptiLLMError = await answer(name, ASKED, llm, ctx, **RUNS[name])
    except OptiLLMError as error:
        result = ctx.best or error
    assert llm.inside == 0
    assert len(ctx.trace.calls) == ctx.budget.usage.calls == len(llm.calls)
    written = [
        record
        for record, (_, sampling) in zip(ctx.trace.calls, llm.calls, strict=True)
        if record.outcome == "ok" and sampling.purpose == "answer"
    ]
    assert isinstance(result, Answer) or not written
    assert "SNEAKY" not in str(result)
    return result


@pytest.mark.parametrize("name", RUNS)
async def test_every_call_of_a_run_is_tried(name: str) -> None:
    ctx = context()
    await outcome(name, Faulty(-1, HANG), ctx)
    assert [of for of, _ in CALLS].count(name) == ctx.budget.usage.calls


@pytest.mark.parametrize(("name", "number"), CALLS)
async def test_a_call_that_hangs_is_cut_at_the_deadline(name: str, number: int) -> None:
    ctx = context()
    result = await outcome(name, Faulty(number, HANG), ctx)
    assert isinstance(result, Answer) or result.status == 504


@pytest.mark.parametrize(("name", "number"), CALLS)
async def test_a_call_that_fails_costs_no_more_than_itself(name: str, number: int) -> None:
    result = await outcome(name, Faulty(number, ProviderFailed("busy", status=429)), context())
    assert isinstance(result, Answer) or result.status == 429


@pytest.mark.parametrize(("name", "number"), CALLS)
async def test_a_budget_that_ends_here_leaves_the_best_so_far(name: str, number: int) -> None:
    ctx = context(limits=Limits(max_calls=number))
    result = await outcome(name, Faulty(-1, HANG), ctx)
    assert isinstance(result, Answer) or result.code == "budget_exceeded"
    assert ctx.budget.usage.calls <= number
    assert ctx.budget.stopped_by == "max_calls"
