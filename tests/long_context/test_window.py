"""How many calls a request can afford, beside what has to follow them."""

import asyncio

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.llm import Price
from optillm_hooks.long_context.notes import fitting
from optillm_hooks.long_context.window import affordable, settle_calls, window_of
from optillm_hooks.testing import ScriptedLLM, context
from optillm_hooks.types import Sampling

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("limits", "taken", "found"),
    [
        pytest.param(Limits(), 0, 10, id="no limits"),
        pytest.param(Limits(max_calls=100), 0, 10, id="enough"),
        pytest.param(Limits(max_calls=12), 0, 9, id="its share"),
        pytest.param(Limits(max_calls=12), 8, 3, id="what others have left, but for one"),
        pytest.param(Limits(max_calls=1), 0, 0, id="the answer alone"),
        pytest.param(Limits(max_tokens_total=100_000), 0, 10, id="tokens enough"),
        pytest.param(Limits(max_tokens_total=40_000), 0, 4, id="half of the tokens"),
        pytest.param(Limits(max_cost_usd=0.01), 0, 2, id="half of the money"),
    ],
)
async def test_the_calls_that_can_be_paid(limits: Limits, taken: int, found: int) -> None:
    """A call takes 3000 tokens and a reply of 2000, which cost 0.002 dollars; three come after."""
    llm = ScriptedLLM([], max_input_tokens=8000, price=Price(1e-6 / 3, 1e-6 / 2))
    ctx = context(limits=limits)
    ctx.budget.expected_calls, ctx.budget.calls_taken = 13, taken
    assert affordable(ctx, window_of(llm, None), 10, 3000, own=10) == found


async def test_calls_that_are_not_made_are_left_to_others() -> None:
    ctx = context()
    ctx.budget.expected_calls = 13
    settle_calls(ctx, declared=10, made=2)
    assert ctx.budget.expected_calls == 5


async def test_a_note_that_is_too_long_leaves_its_room_to_others() -> None:
    window = window_of(ScriptedLLM([], max_input_tokens=8000), None)
    notes = ["gate " * 400, "the gate is open", "the weather is fine"]
    assert await fitting(notes, "Which gate?", window, 300, context(), 2) == [1]
    assert await fitting(notes, "Which gate?", window, 300, context(), 3) == [1, 2]


@pytest.mark.parametrize("most", [10_000, 100])
async def test_many_notes_do_not_hold_the_loop(most: int) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    window = window_of(ScriptedLLM([], max_input_tokens=10**6), None)
    notes = [f"Note {number} of the gate" for number in range(2000)]
    found = await fitting(notes, "Which gate?", window, 500_000, context(), most)
    beside.cancel()
    assert len(found) == min(most, 2000)
    assert turns >= min(most, 2000) // 16


@pytest.mark.parametrize(
    ("given", "known", "tokens"), [(None, 4000, 4000), (9000, 4000, 9000), (None, None, 8192)]
)
async def test_the_window(given: int | None, known: int | None, tokens: int) -> None:
    assert window_of(ScriptedLLM([], max_input_tokens=known), given).tokens == tokens


async def test_the_room_for_a_reply_is_what_the_client_asks_for_up_to_half() -> None:
    llm = ScriptedLLM([], max_input_tokens=8000)
    asked = [window_of(llm, None, Sampling(max_tokens=n)).reply for n in (100, 3000, 9000)]
    assert asked == [100, 3000, 4000]
