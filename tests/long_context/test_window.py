"""How many calls a request can afford, beside what has to follow them."""

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.llm import Price
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


@pytest.mark.parametrize(
    ("given", "known", "tokens"), [(None, 4000, 4000), (9000, 4000, 9000), (None, None, 8192)]
)
async def test_the_window(given: int | None, known: int | None, tokens: int) -> None:
    assert window_of(ScriptedLLM([], max_input_tokens=known), given).tokens == tokens


async def test_the_room_for_a_reply_is_what_the_client_asks_for_up_to_half() -> None:
    llm = ScriptedLLM([], max_input_tokens=8000)
    asked = [window_of(llm, None, Sampling(max_tokens=n)).reply for n in (100, 3000, 9000)]
    assert asked == [100, 3000, 4000]
