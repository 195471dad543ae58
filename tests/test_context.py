"""The budget, the clock and the client's fields: what a metered call costs, gets and leaves."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.budget import Budget, Limits
from optillm_hooks.context import Context, MeteredLLM
from optillm_hooks.errors import (
    CONTEXT_WINDOW_EXCEEDED,
    BudgetExceeded,
    DeadlineExceeded,
    EmptyCompletion,
    ProviderFailed,
    SampleError,
)
from optillm_hooks.fanout import outcomes, sample_many
from optillm_hooks.llm import ModelFacts, Price
from optillm_hooks.testing import HANG, ONE_CALL, Hang, Reply, ScriptedLLM, chat, context
from optillm_hooks.trace import Trace
from optillm_hooks.types import (
    Answer,
    Chat,
    Completion,
    Delta,
    FinishReason,
    Json,
    Message,
    Purpose,
    Sampling,
    StoppedBy,
    ToolCall,
    Usage,
)
from tests.fakes import Pieces

pytestmark = pytest.mark.anyio
ASKED = chat("one two three four")
PROMPT = 4
"""Tokens of ASKED, as the fake counts them."""

NO_LIMIT = Limits()


def used(completion_tokens: int, prompt_tokens: int = PROMPT, cost_usd: float = 0.0) -> Completion:
    usage = Usage(
        calls=1,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_usd=cost_usd,
    )
    return Completion("text", usage=usage)


def asked_for(llm: ScriptedLLM) -> list[int | None]:
    return [sampling.max_tokens for _, sampling in llm.calls]


# ---------------------------------------------------------------------------------------- calls


async def test_a_fanout_of_64_takes_its_calls_exactly() -> None:
    llm = ScriptedLLM([HANG] * 10)
    ctx = context(limits=Limits(max_calls=10))
    metered = MeteredLLM(llm, ctx)
    ended: list[object] = []

    async def one() -> None:
        try:
            await metered.complete(ASKED, Sampling())
        except BudgetExceeded as exc:
            ended.append(str(exc))

    fanout = asyncio.create_task(outcomes([one] * 64))
    await llm.until_hanging(10)
    assert ended == ["no calls left of 10"] * 54
    assert (ctx.budget.calls_taken, ctx.budget.stopped_by) == (10, "max_calls")
    fanout.cancel()
    await asyncio.wait([fanout])
    assert llm.inside == 0
    llm.assert_used_up()


async def test_a_call_for_n_choices_is_one_call() -> None:
    llm = ScriptedLLM(["a", "b", "c"], max_n=8)
    ctx = context(limits=Limits(max_calls=1))
    assert len(await MeteredLLM(llm, ctx).complete_n(ASKED, Sampling(), 3)) == 3
    assert ctx.budget.usage == ONE_CALL


@pytest.mark.parametrize(
    "reply", [ProviderFailed("busy"), ""], ids=["a failed call", "an empty reply"]
)
async def test_what_gave_nothing_is_counted_all_the_same(reply: Reply) -> None:
    ctx = context(limits=Limits(max_calls=1))
    llm = MeteredLLM(ScriptedLLM([reply]), ctx)
    with pytest.raises(SampleError):
        await llm.complete(ASKED, Sampling())
    assert ctx.budget.usage.calls == 1
    with pytest.raises(BudgetExceeded):
        await llm.complete(ASKED, Sampling())


async def test_usage_is_the_sum_over_all_calls() -> None:
    one = Usage(
        calls=1,
        prompt_tokens=7,
        completion_tokens=5,
        reasoning_tokens=3,
        cached_tokens=2,
        cost_usd=0.25,
    )
    ctx = context()
    llm = MeteredLLM(ScriptedLLM([Completion("x", usage=one)] * 2), ctx)
    await llm.complete(ASKED, Sampling())
    await llm.complete(ASKED, Sampling())
    assert ctx.budget.usage == one + one
    assert (one + one).total_tokens == 24


# ------------------------------------------------------------------------------ tokens and money


@pytest.mark.parametrize(
    ("limit", "expected_calls", "client", "own", "max_tokens"),
    [
        pytest.param(104, 4, None, None, 25, id="a share of what is left"),
        pytest.param(104, 1, None, None, 100, id="all of it for the only call"),
        pytest.param(104, 4, 10, None, 10, id="the client's, which is lower"),
        pytest.param(104, 4, 60, None, 60, id="the client's, above the share but within room"),
        pytest.param(104, 4, 500, None, 100, id="never more than is left"),
        pytest.param(104, 4, 500, 60, 60, id="the approach's, which is lower"),
        pytest.param(104, 4, 10, 60, 10, id="never above the client's"),
        pytest.param(5, 4, None, None, 1, id="one token at least"),
        pytest.param(None, 4, None, None, None, id="unlimited"),
        pytest.param(None, 4, 10, 60, 10, id="unlimited but by the client"),
    ],
)
async def test_max_tokens_of_a_call(
    limit: int | None,
    expected_calls: int,
    client: int | None,
    own: int | None,
    max_tokens: int | None,
) -> None:
    llm = ScriptedLLM(["x"])
    ctx = context(limits=Limits(max_tokens_total=limit), client=Sampling(max_tokens=client))
    ctx.budget.expected_calls = expected_calls
    await MeteredLLM(llm, ctx).complete(ASKED, Sampling(max_tokens=own))
    assert asked_for(llm) == [max_tokens]


async def test_a_limit_of_calls_below_the_estimate_gives_each_call_more() -> None:
    llm = ScriptedLLM(["x"])
    ctx = context(limits=Limits(max_tokens_total=104, max_calls=2))
    ctx.budget.expected_calls = 4
    await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert asked_for(llm) == [50]


async def test_no_room_for_a_word_stops_before_the_call() -> None:
    ctx = context(limits=Limits(max_tokens_total=PROMPT))
    with pytest.raises(BudgetExceeded, match="max_tokens_total"):
        await MeteredLLM(ScriptedLLM([]), ctx).complete(ASKED, Sampling())
    assert (ctx.budget.stopped_by, ctx.budget.usage.calls) == ("max_tokens_total", 0)


async def test_a_fanout_shares_what_is_left() -> None:
    llm = ScriptedLLM([HANG] * 4)
    ctx = context(limits=Limits(max_tokens_total=4 * (PROMPT + 25)))
    ctx.budget.expected_calls = 4
    fanout = asyncio.create_task(sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=4))
    await llm.until_hanging(4)
    shares = asked_for(llm)
    assert all(share is not None and 20 <= share <= 31 for share in shares)
    assert ctx.budget.tokens_taken <= 4 * (PROMPT + 25)
    fanout.cancel()
    await asyncio.wait([fanout])
    assert ctx.budget.tokens_taken == 4 * PROMPT


@pytest.mark.parametrize(
    ("max_output_tokens", "asked"),
    [(None, 96), (20, 20), (500, 96)],
    ids=["unknown", "less", "more"],
)
async def test_a_share_is_no_more_than_the_model_can_give(
    max_output_tokens: int | None, asked: int
) -> None:
    llm = ScriptedLLM(["a"], max_output_tokens=max_output_tokens)
    ctx = context(limits=Limits(max_tokens_total=100))
    await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert asked_for(llm) == [asked]


async def test_a_call_for_n_reserves_every_choice() -> None:
    llm = ScriptedLLM(["a", "b", "c", "d"], max_n=8)
    ctx = context(limits=Limits(max_tokens_total=PROMPT + 100))
    await MeteredLLM(llm, ctx).complete_n(ASKED, Sampling(max_tokens=90), 4)
    assert asked_for(llm) == [25]


async def test_each_choice_of_a_call_for_n_gets_the_share_of_a_call() -> None:
    """An estimate counts each choice as a call, since a model may give only one per call."""
    llm = ScriptedLLM(["a", "b", "c", "d"], max_n=8)
    ctx = context(limits=Limits(max_tokens_total=PROMPT + 100))
    ctx.budget.expected_calls = 5
    metered = MeteredLLM(llm, ctx)
    await metered.complete_n(ASKED, Sampling(), 4)
    assert asked_for(llm) == [20]
    assert ctx.budget.replies_taken == 4


async def test_single_calls_in_place_of_a_refused_call_for_n_share_what_is_left() -> None:
    llm = ScriptedLLM([ProviderFailed("no n", status=400)], max_n=8)
    ctx = context(limits=Limits(max_tokens_total=5 * (PROMPT + 20)))
    ctx.budget.expected_calls = 5
    metered = MeteredLLM(llm, ctx)
    with pytest.raises(ProviderFailed):
        await metered.complete_n(ASKED, Sampling(), 4)
    assert ctx.budget.replies_taken == 1


def test_all_choices_of_a_call_are_reserved_at_their_maximum_length() -> None:
    budget = Budget(limits=Limits(max_tokens_total=100))
    budget.take(ScriptedLLM([]), ASKED, Sampling(max_tokens=10), 3)
    assert budget.tokens_taken == PROMPT + 3 * 10


async def test_what_a_call_did_not_use_is_free_again() -> None:
    llm = ScriptedLLM([used(5), used(5)])
    ctx = context(limits=Limits(max_tokens_total=100))
    metered = MeteredLLM(llm, ctx)
    await metered.complete(ASKED, Sampling(max_tokens=96))
    assert ctx.budget.tokens_taken == 9
    await metered.complete(ASKED, Sampling(max_tokens=96))
    assert asked_for(llm) == [96, 100 - 9 - PROMPT]


async def test_what_a_failed_call_reserved_is_free_again() -> None:
    ctx = context(limits=Limits(max_tokens_total=100, max_cost_usd=1.0))
    llm = ScriptedLLM([ProviderFailed("busy")], price=Price(0.001, 0.001))
    with pytest.raises(ProviderFailed):
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert (ctx.budget.tokens_taken, ctx.budget.cost_taken) == (0, 0.0)


async def test_a_cancelled_call_counts_with_its_prompt() -> None:
    ctx = context(limits=Limits(max_tokens_total=100, max_cost_usd=1.0))
    llm = ScriptedLLM([HANG], price=Price(0.001, 0.001))
    task = asyncio.create_task(MeteredLLM(llm, ctx).complete(ASKED, Sampling()))
    await llm.until_hanging(1)
    assert ctx.budget.tokens_taken == 100
    task.cancel()
    await asyncio.wait([task])
    assert (ctx.budget.tokens_taken, llm.inside) == (PROMPT, 0)
    assert ctx.budget.cost_taken == pytest.approx(PROMPT * 0.001)
    assert ctx.budget.usage == Usage(calls=1)  # the bill says what the provider says


async def test_a_call_that_was_never_sent_counts_with_nothing() -> None:
    ctx = context(limits=Limits(max_tokens_total=100, max_parallel=1, deadline_s=0.01))
    llm = ScriptedLLM([HANG])
    metered = MeteredLLM(llm, ctx)
    calls = [partial(metered.complete, ASKED, Sampling(max_tokens=10)) for _ in range(2)]
    assert [type(ended) for ended in await outcomes(calls)] == [DeadlineExceeded] * 2
    assert (len(llm.calls), ctx.budget.tokens_taken) == (1, PROMPT)


@pytest.mark.parametrize(("status", "counted"), [(408, PROMPT), (504, PROMPT), (500, 0), (429, 0)])
async def test_a_call_given_up_counts_with_its_prompt_and_a_refused_one_with_nothing(
    status: int, counted: int
) -> None:
    ctx = context(limits=Limits(max_tokens_total=100))
    llm = ScriptedLLM([ProviderFailed("no", status=status)])
    with pytest.raises(ProviderFailed):
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert ctx.budget.tokens_taken == counted


async def test_a_call_beyond_the_callers_budget_counts_with_nothing_and_is_named() -> None:
    ctx = context(limits=Limits(max_tokens_total=100))
    with pytest.raises(BudgetExceeded):
        await MeteredLLM(ScriptedLLM([BudgetExceeded("used up")]), ctx).complete(ASKED, Sampling())
    assert (ctx.budget.tokens_taken, ctx.budget.stopped_by) == (0, "caller_budget")


def test_the_first_limit_that_stops_a_request_is_the_one_named() -> None:
    budget = Budget()
    budget.stop("max_calls")
    budget.stop("deadline")
    assert budget.stopped_by == "max_calls"


@pytest.mark.parametrize("end", ["closed", "broken off", "all used"])
async def test_a_stream_that_is_cut_off_counts_with_its_prompt_and_what_came(end: str) -> None:
    last: Exception | Hang = ProviderFailed("broke off") if end == "broken off" else HANG
    said = 3 if end == "all used" else 10
    ctx = context(limits=Limits(max_tokens_total=100, deadline_s=60))
    llm = Pieces([Delta(text="un deux "), Delta(reasoning="three ", text="four "), last])
    pieces = MeteredLLM(llm, ctx).stream(ASKED, Sampling(max_tokens=said))
    assert [await anext(pieces), await anext(pieces)]
    if end == "broken off":
        with pytest.raises(ProviderFailed):
            await anext(pieces)
    await pieces.aclose()
    assert ctx.budget.tokens_taken == PROMPT + min(said, 4)


async def test_a_call_without_usage_costs_what_was_reserved() -> None:
    ctx = context(limits=Limits(max_tokens_total=2 * (PROMPT + 10)))
    llm = ScriptedLLM([Completion("no usage")] * 2)
    metered = MeteredLLM(llm, ctx)
    for _ in range(2):
        await metered.complete(ASKED, Sampling(max_tokens=10))
    with pytest.raises(BudgetExceeded):
        await metered.complete(ASKED, Sampling(max_tokens=10))


async def test_the_first_limit_that_stops_a_request_is_the_one_reported() -> None:
    ctx = context(limits=Limits(max_calls=0, max_tokens_total=0))
    with pytest.raises(BudgetExceeded):
        await MeteredLLM(ScriptedLLM([]), ctx).complete(ASKED, Sampling())
    ctx.budget.stop("deadline")
    assert ctx.budget.stopped_by == "max_calls"


async def test_money_is_shared_at_the_models_price() -> None:
    llm = ScriptedLLM([used(10, cost_usd=0.24)], price=Price(prompt=0.01, completion=0.02))
    ctx = context(limits=Limits(max_cost_usd=1.0))
    await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert asked_for(llm) == [48]  # (1.00 - 4 x 0.01) / 0.02
    assert ctx.budget.cost_taken == pytest.approx(0.24)


async def test_no_money_for_the_prompt_stops_before_the_call() -> None:
    ctx = context(limits=Limits(max_cost_usd=0.03))
    llm = ScriptedLLM([], price=Price(prompt=0.01, completion=0.0))
    with pytest.raises(BudgetExceeded, match="max_cost_usd"):
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert ctx.budget.stopped_by == "max_cost_usd"


async def test_a_model_that_costs_nothing_is_not_asked_for_billions_of_tokens() -> None:
    llm = ScriptedLLM(["x"], price=Price(0.0, 0.0))
    await MeteredLLM(llm, context(limits=Limits(max_cost_usd=1.0))).complete(ASKED, Sampling())
    assert asked_for(llm) == [None]


async def test_the_narrower_of_two_limits_counts_and_is_named() -> None:
    llm = ScriptedLLM([], price=Price(0.0, 0.01))
    ctx = context(limits=Limits(max_tokens_total=1000, max_cost_usd=0.005))
    with pytest.raises(BudgetExceeded, match="max_cost_usd"):
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling())


@dataclass
class Planned:
    """How a call goes: the share of its `max_tokens` it uses, how wrong its prompt estimate is."""

    share: float
    prompt_error: int
    waits: int
    ends: str
    max_tokens: int | None
    choices: int


PRICE = Price(prompt=0.001, completion=0.002)
BILLED = ModelFacts(count_tokens=lambda *_: PROMPT, max_n=4, price=PRICE)


@dataclass
class Bill:
    """A model that does as planned, and keeps its own books."""

    plan: list[Planned]
    model: str = "base"
    facts: ModelFacts = BILLED
    billed: Usage = field(default_factory=Usage)
    cut_off: int = 0
    """Calls that were cancelled under way."""

    error: int = 0
    """How much longer the prompts were than estimated, in all."""

    async def complete(self, asked: Chat, sampling: Sampling, /) -> Completion:
        return (await self.complete_n(asked, sampling, 1))[0]

    async def complete_n(self, _asked: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        now = self.plan[sampling.sample]
        try:
            for _ in range(now.waits):
                await asyncio.sleep(0)
            if now.ends == "hanging":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cut_off += 1
            raise
        if now.ends == "failed":
            raise ProviderFailed("busy")
        assert sampling.max_tokens is not None
        assert sampling.max_tokens >= 1
        assert now.max_tokens is None or sampling.max_tokens <= now.max_tokens
        prompt, reply = PROMPT + now.prompt_error, n * int(now.share * sampling.max_tokens)
        usage = Usage(
            calls=1,
            prompt_tokens=prompt,
            completion_tokens=reply,
            cost_usd=prompt * PRICE.prompt + reply * PRICE.completion,
        )
        self.billed += usage
        self.error += now.prompt_error
        return [Completion("x", usage=usage), *[Completion("x", usage=Usage())] * (n - 1)]

    def stream(self, _: Chat, __: Sampling, /) -> AsyncGenerator[Delta, None]:
        raise NotImplementedError


planned = st.builds(
    Planned,
    share=st.floats(0, 1),
    prompt_error=st.integers(0, 3),
    waits=st.integers(0, 3),
    ends=st.sampled_from(["ok", "ok", "ok", "failed", "hanging"]),
    max_tokens=st.none() | st.integers(1, 50),
    choices=st.integers(1, 4),
)


@given(
    plan=st.lists(planned, min_size=1, max_size=10),
    rounds=st.integers(1, 3),
    tokens=st.none() | st.integers(1, 300),
    cost=st.none() | st.floats(0.001, 0.5),
    expected_calls=st.integers(1, 20),
)
def test_spending_passes_a_limit_by_no_more_than_the_estimates_were_wrong(
    plan: list[Planned], rounds: int, tokens: int | None, cost: float | None, expected_calls: int
) -> None:
    if tokens is None and cost is None:
        tokens = 100
    llm = Bill(plan)

    async def spend() -> Budget:
        clock = asyncio.get_running_loop().time
        limits = Limits(max_tokens_total=tokens, max_cost_usd=cost)
        budget = Budget(limits=limits, started=clock(), expected_calls=expected_calls)
        metered = MeteredLLM(llm, Context(budget=budget, rng=random.Random(0)))

        def call(number: int) -> Callable[[], object]:
            now = plan[number]
            sampling = Sampling(max_tokens=now.max_tokens, sample=number)
            if now.choices == 1:
                return partial(metered.complete, ASKED, sampling)
            return partial(metered.complete_n, ASKED, sampling, now.choices)

        for _ in range(rounds):
            calls = [call(number) for number in range(len(plan))]
            fanout = asyncio.create_task(outcomes(calls))  # type: ignore[arg-type] # two result types
            for _ in range(8):
                await asyncio.sleep(0)
            fanout.cancel()
            await asyncio.wait([fanout])
        return budget

    budget = asyncio.run(spend())
    counted = replace(budget.usage, calls=0, cost_usd=0.0)
    assert counted == replace(llm.billed, calls=0, cost_usd=0.0)
    assert budget.usage.cost_usd == pytest.approx(llm.billed.cost_usd)
    cut_off = PROMPT * llm.cut_off
    assert budget.tokens_taken == llm.billed.total_tokens + cut_off  # nothing stays reserved
    cost_taken = llm.billed.cost_usd + cut_off * PRICE.prompt
    assert budget.cost_taken == pytest.approx(cost_taken, abs=1e-9)
    if tokens is not None:
        assert llm.billed.total_tokens <= tokens + llm.error
    if cost is not None:
        assert llm.billed.cost_usd <= cost + llm.error * PRICE.prompt + 1e-9


# -------------------------------------------------------------------------- time and parallelism


async def test_a_call_that_waits_past_the_deadline_is_stopped() -> None:
    ctx, llm = context(), ScriptedLLM([HANG])
    with pytest.raises(DeadlineExceeded) as caught:
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert (caught.value.status, ctx.budget.stopped_by, llm.inside) == (504, "deadline", 0)
    assert [call.outcome for call in ctx.trace.calls] == ["failed"]


async def test_a_timeout_of_the_providers_own_is_not_the_deadline() -> None:
    ctx = context(limits=NO_LIMIT)
    with pytest.raises(TimeoutError):
        await MeteredLLM(ScriptedLLM([TimeoutError("theirs")]), ctx).complete(ASKED, Sampling())
    assert ctx.budget.stopped_by is None


async def test_no_deadline_never_passes() -> None:
    ctx = context(limits=NO_LIMIT)
    assert ctx.deadline == ctx.within(0.5) == float("inf")
    assert (await MeteredLLM(ScriptedLLM(["a"]), ctx).complete(ASKED, Sampling())).text == "a"


async def test_within_is_a_share_of_the_time_left() -> None:
    ctx = context(limits=Limits(deadline_s=100.0))
    now = asyncio.get_running_loop().time()
    assert ctx.within(0.25) == pytest.approx(now + 25, abs=10)


async def test_no_more_calls_are_under_way_than_may_be() -> None:
    llm = ScriptedLLM([HANG] * 2)
    ctx = context(limits=Limits(max_parallel=2))
    metered = MeteredLLM(llm, ctx)
    task = asyncio.create_task(sample_many(metered, ASKED, Sampling(), ctx, n=6))
    await llm.until_hanging(2)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(llm.calls) == 2
    task.cancel()
    await asyncio.wait([task])
    assert ctx.budget.usage.calls == 2  # those that waited for their turn were never sent


async def test_a_place_in_the_queue_is_freed_by_failures_too() -> None:
    llm = ScriptedLLM([ProviderFailed("busy"), "", "b", "c"])
    ctx = context(limits=Limits(max_parallel=1))
    samples = await sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=4)
    assert [sample.text for sample in samples] == ["b", "c"]


async def test_waiting_for_a_turn_ends_at_the_deadline() -> None:
    llm = ScriptedLLM([HANG])
    ctx = context(limits=Limits(max_parallel=1, deadline_s=0.0))
    ended = await outcomes([lambda: MeteredLLM(llm, ctx).complete(ASKED, Sampling())] * 2)
    assert [type(outcome) for outcome in ended] == [DeadlineExceeded] * 2
    assert ctx.budget.usage.calls == 1


# ------------------------------------------------------------------------ the client's own fields

TOOLS: Json = [{"type": "function", "function": {"name": "f"}}]
CLIENT = Sampling(
    temperature=0.3,
    top_p=0.9,
    max_tokens=50,
    stop=("END",),
    seed=7,
    fields={
        "tools": TOOLS,
        "tool_choice": "required",
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "logit_bias": {"5": 1},
        "top_k": 40,
        "user": "u",
    },
)
FORM = {"response_format", "logprobs", "top_logprobs"}


async def sent(
    sampling: Sampling, asked: Chat = ASKED, client: Sampling = CLIENT, run: int = 0
) -> Sampling:
    llm = ScriptedLLM(["x"])
    ctx = context(client=client)
    await MeteredLLM(llm, ctx.child(run) if run else ctx).complete(asked, sampling)
    return llm.calls[0][1]


async def test_an_answer_gets_every_field_of_the_client() -> None:
    assert await sent(Sampling()) == CLIENT


async def test_a_draft_gets_what_samples_but_not_what_forms_the_answer() -> None:
    got = await sent(Sampling(purpose="draft"))
    assert got == replace(
        CLIENT,
        stop=None,
        max_tokens=None,
        purpose="draft",
        fields={k: v for k, v in CLIENT.fields.items() if k not in FORM},
    )


async def test_a_solution_gets_all_but_the_limit_of_the_answer() -> None:
    got = await sent(Sampling(purpose="solution"))
    assert got == replace(CLIENT, max_tokens=None, purpose="solution")


@pytest.mark.parametrize(
    ("purpose", "own", "limit"),
    [
        ("answer", None, 300),
        ("answer", 900, 300),
        ("answer", 200, 200),
        ("solution", None, 2000),
        ("draft", None, 2000),
        ("draft", 900, 900),
        ("judge", None, 2000),
        ("piece", 900, 900),  # its decoder knows the purpose of the whole reply
        ("piece", None, None),
    ],
)
async def test_the_clients_limit_is_that_of_its_answer(
    purpose: Purpose, own: int | None, limit: int | None
) -> None:
    ctx = context(client=Sampling(max_tokens=300))
    with ctx.drafting(2000):
        assert ctx.filled(Sampling(max_tokens=own, purpose=purpose)).max_tokens == limit
    assert ctx.draft_tokens is None


async def test_a_draft_is_not_asked_to_be_longer_than_the_model_can_write() -> None:
    """An answer is asked for as the client asks, as the plain model would be."""
    llm = ScriptedLLM(["draft", "answer"], max_output_tokens=4096)
    ctx = context(client=Sampling(max_tokens=9000))
    with ctx.drafting(9000):
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling(purpose="draft"))
        await MeteredLLM(llm, ctx).complete(ASKED, Sampling())
    assert [sampling.max_tokens for _, sampling in llm.calls] == [4096, 9000]


async def test_where_tokens_are_limited_a_draft_gets_no_more_than_its_share() -> None:
    """One draft may not take what the calls after it need, as an answer may."""
    llm = ScriptedLLM(["ok"] * 2)
    ctx = context(limits=Limits(max_tokens_total=1000))
    ctx.budget.expected_calls = 4
    for purpose in ("draft", "answer"):
        sampling = Sampling(max_tokens=900, purpose=purpose)
        await MeteredLLM(llm, ctx).complete(ASKED, sampling)
    draft, last = [sampling.max_tokens or 0 for _, sampling in llm.calls]
    assert 200 < draft <= 250
    assert last == 900


@pytest.mark.parametrize(
    ("words", "limit", "kept", "reason"),
    [(8, 8, 8, "stop"), (8, None, 8, "stop"), (8, 4, 4, "length"), (800, 300, 300, "length")],
)
async def test_a_solution_that_is_kept_is_cut_to_the_length_of_an_answer(
    words: int, limit: int | None, kept: int, reason: str
) -> None:
    ctx = context(client=Sampling(max_tokens=limit))
    llm = MeteredLLM(ScriptedLLM(["word " * words]), ctx)
    reply = await llm.complete(ASKED, Sampling(purpose="solution"))
    assert len(reply.text.split()) == words
    assert ctx.best is not None
    assert (len(ctx.best.text.split()), ctx.best.finish_reason) == (kept, reason)


async def test_a_judge_gets_nothing_of_the_client() -> None:
    judging = Sampling(temperature=0.1, purpose="judge")
    assert await sent(judging) == judging


async def test_a_judge_of_tool_results_gets_the_tools_and_may_not_call_them() -> None:
    asked = (
        *ASKED,
        Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
        Message("tool", "42", {"tool_call_id": "1"}),
    )
    got = await sent(Sampling(purpose="judge"), asked)
    assert got.fields == {"tools": TOOLS, "tool_choice": "none"}
    assert got == replace(Sampling(purpose="judge"), fields=got.fields)
    assert (await sent(Sampling(purpose="judge"), asked, client=Sampling())).fields == {}


@pytest.mark.parametrize("purpose", ["answer", "draft"])
async def test_what_an_approach_sets_is_stronger_than_the_clients(purpose: Purpose) -> None:
    own = Sampling(
        temperature=0.0,
        top_p=1.0,
        stop=(),
        seed=1,
        fields={"top_k": 1, "own": True},
        purpose=purpose,
    )
    got = await sent(own)
    assert (got.temperature, got.top_p, got.stop, got.seed) == (0.0, 1.0, (), 1)
    assert (got.fields["top_k"], got.fields["own"], got.fields["user"]) == (1, True, "u")


async def test_samples_and_runs_have_seeds_and_numbers_of_their_own() -> None:
    seen = [
        (got.seed, got.sample)
        for run in range(3)
        for sample in range(3)
        if (got := await sent(Sampling(sample=sample), run=run))
    ]
    assert len({seed for seed, _ in seen}) == len({number for _, number in seen}) == 9
    assert seen[:3] == [(7, 0), (8, 1), (9, 2)]


async def test_no_seed_is_made_up_where_nobody_gave_one() -> None:
    assert (await sent(Sampling(sample=3), client=Sampling())).seed is None


async def test_a_runs_rng_depends_on_the_request_and_the_run_alone() -> None:
    def drawn(order: Sequence[int]) -> dict[int, float]:
        runs = {run: context(seed=5).child(run) for run in order}
        return {run: runs[run].rng.random() for run in sorted(order)}

    assert drawn([0, 1, 2]) == drawn([2, 0, 1])
    assert len(set(drawn([0, 1, 2]).values())) == 3


# ------------------------------------------------------------------------------ the best so far

CUT = Completion("cut", finish_reason="length", usage=ONE_CALL)
WHOLE = Completion("whole", usage=ONE_CALL)
CALLING = Completion("", tool_calls=(ToolCall("1", "f", "{}"),), usage=ONE_CALL)
REFUSING = Completion("", fields={"refusal": "no"}, usage=ONE_CALL)


@pytest.mark.parametrize(
    ("replies", "best"),
    [
        pytest.param([WHOLE, replace(WHOLE, text="later")], "whole", id="the first whole one"),
        pytest.param([CUT, WHOLE], "whole", id="a whole one replaces a cut one"),
        pytest.param([WHOLE, CUT], "whole", id="a cut one replaces nothing"),
        pytest.param([CUT, replace(CUT, text="later")], "cut", id="the first of cut ones"),
    ],
)
async def test_the_best_so_far_among_answers(replies: list[Reply], best: str) -> None:
    ctx = context()
    llm = MeteredLLM(ScriptedLLM(replies), ctx)
    for _ in replies:
        await llm.complete(ASKED, Sampling())
    assert ctx.best is not None
    assert ctx.best.text == best


@pytest.mark.parametrize("purpose", ["draft", "judge"])
async def test_what_is_no_answer_is_never_the_best_so_far(purpose: Purpose) -> None:
    ctx = context()
    await MeteredLLM(ScriptedLLM(["x"]), ctx).complete(ASKED, Sampling(purpose=purpose))
    assert ctx.best is None


async def test_an_offer_replaces_the_best_so_far() -> None:
    ctx = context()
    await MeteredLLM(ScriptedLLM(["x"]), ctx).complete(ASKED, Sampling())
    ctx.offer(Answer("chosen"))
    assert ctx.best == Answer("chosen")
    assert ctx.child(1).best is None


# ------------------------------------------------------------------------- empty and cut replies


@pytest.mark.parametrize("reply", [CALLING, CUT], ids=["tool call", "cut"])
async def test_a_reply_a_user_can_use_is_not_empty(reply: Completion) -> None:
    assert await MeteredLLM(ScriptedLLM([reply]), context()).complete(ASKED, Sampling()) == reply


@pytest.mark.parametrize("name", ["audio", "images"])
async def test_a_reply_in_another_form_than_text_is_not_empty(name: str) -> None:
    reply = Completion("", fields={name: {"id": "1"}}, usage=ONE_CALL)
    assert await MeteredLLM(ScriptedLLM([reply]), context()).complete(ASKED, Sampling()) == reply
    pieces = [Delta(fields=reply.fields), LAST]
    streamed = MeteredLLM(Pieces(pieces), context(limits=NO_LIMIT)).stream(ASKED, Sampling())
    assert [delta async for delta in streamed] == pieces


@pytest.mark.parametrize("text", ["", " \n\t"])
@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_the_error_of_a_reply_without_content_has_the_reply(text: str, reason: str) -> None:
    reply = Completion(text, reason, "only thoughts", usage=ONE_CALL)  # type: ignore[arg-type] # a finish reason
    ctx = context()
    with pytest.raises(EmptyCompletion) as caught:
        await MeteredLLM(ScriptedLLM([reply]), ctx).complete(ASKED, Sampling())
    assert caught.value.empty_reply is reply
    assert (ctx.budget.usage, ctx.best) == (ONE_CALL, None)


async def test_a_refusal_is_no_content() -> None:
    with pytest.raises(EmptyCompletion) as caught:
        await MeteredLLM(ScriptedLLM([REFUSING]), context()).complete(ASKED, Sampling())
    assert caught.value.empty_reply is REFUSING


@pytest.mark.parametrize("reply", ["", REFUSING], ids=["empty", "refusal"])
async def test_what_a_judge_does_not_say_is_no_answer(reply: Reply) -> None:
    asked = Sampling(purpose="judge")
    with pytest.raises(EmptyCompletion) as caught:
        await MeteredLLM(ScriptedLLM([reply]), context()).complete(ASKED, asked)
    assert caught.value.empty_reply is None
    streamed = MeteredLLM(ScriptedLLM([reply]), context(limits=NO_LIMIT)).stream(ASKED, asked)
    with pytest.raises(EmptyCompletion) as caught:
        [delta async for delta in streamed]
    assert caught.value.empty_reply is None


async def test_empty_choices_of_one_call_are_left_out() -> None:
    ctx, llm = context(), ScriptedLLM(["", "b", ""], max_n=3)
    kept = await MeteredLLM(llm, ctx).complete_n(ASKED, Sampling(), 3)
    assert [c.text for c in kept] == ["b"]
    assert ctx.best is not None
    with pytest.raises(EmptyCompletion):
        await MeteredLLM(ScriptedLLM(["", ""]), ctx).complete_n(ASKED, Sampling(), 2)


# ------------------------------------------------------------------------------------- streaming


A_PIECE = Delta(text="a")
LAST = Delta(finish_reason="stop", usage=ONE_CALL)


async def test_a_stream_is_paid_by_its_usage() -> None:
    ctx, llm = context(limits=NO_LIMIT), Pieces([A_PIECE, LAST])
    assert [d async for d in MeteredLLM(llm, ctx).stream(ASKED, Sampling())] == [A_PIECE, LAST]
    assert ctx.budget.usage == ONE_CALL
    assert [(c.outcome, c.depth) for c in ctx.trace.calls] == [("ok", 1)]


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_a_stream_without_content_is_an_empty_reply(reason: FinishReason) -> None:
    thoughts = [Delta(reasoning="hm", text=" "), replace(LAST, finish_reason=reason)]
    ctx = context(limits=NO_LIMIT)
    with pytest.raises(EmptyCompletion) as caught:
        [delta async for delta in MeteredLLM(Pieces(thoughts), ctx).stream(ASKED, Sampling())]
    assert caught.value.empty_reply == Answer("", reason, "hm")
    assert ctx.budget.usage == ONE_CALL


@pytest.mark.parametrize(
    ("last", "error", "stopped_by"),
    [(ProviderFailed("broke off"), ProviderFailed, None), (HANG, DeadlineExceeded, "deadline")],
    ids=["broken off", "past the deadline"],
)
async def test_a_stream_that_breaks_off_is_counted(
    last: Exception | Hang, error: type[Exception], stopped_by: StoppedBy | None
) -> None:
    ctx = context(limits=Limits(deadline_s=0.01) if isinstance(last, Hang) else NO_LIMIT)
    llm = Pieces([A_PIECE, last])
    pieces = MeteredLLM(llm, ctx).stream(ASKED, Sampling())
    assert await anext(pieces) == A_PIECE
    with pytest.raises(error):
        await anext(pieces)
    assert ctx.budget.usage.calls == 1
    assert (ctx.budget.stopped_by, llm.closed) == (stopped_by, True)
    assert [c.outcome for c in ctx.trace.calls] == ["failed"]


async def test_closing_a_stream_closes_the_models() -> None:
    ctx, llm = context(limits=NO_LIMIT), Pieces([A_PIECE, HANG])
    pieces = MeteredLLM(llm, ctx).stream(ASKED, Sampling())
    assert await anext(pieces) == A_PIECE
    await pieces.aclose()
    assert llm.closed
    assert [c.outcome for c in ctx.trace.calls] == ["cancelled"]


# ----------------------------------------------------------------------------------------- trace


async def test_the_trace_has_a_record_of_each_call() -> None:
    ctx = context(limits=Limits(deadline_s=50.0))
    ctx.stage = "bon"
    llm = MeteredLLM(ScriptedLLM(["a", ProviderFailed("busy")], model="m"), ctx)
    await llm.complete(ASKED, Sampling(purpose="draft"))
    with pytest.raises(ProviderFailed):
        await llm.complete(ASKED, Sampling(purpose="judge"))
    first, second = ctx.trace.calls
    assert (first.stage, first.model, first.purpose, first.outcome) == ("bon", "m", "draft", "ok")
    assert (second.purpose, second.outcome, second.usage) == ("judge", "failed", Usage(calls=1))
    assert (first.depth, second.depth, ctx.trace.depth) == (1, 2, 2)
    assert 0 <= first.started_s <= second.started_s < 50


async def test_no_calls_have_no_depth() -> None:
    assert context().trace.depth == 0


async def test_depth_is_that_of_the_longest_branch() -> None:
    ctx = context()
    llm = MeteredLLM(ScriptedLLM(["x"] * 6), ctx)

    async def chain(calls: int) -> None:
        for _ in range(calls):
            await llm.complete(ASKED, Sampling())

    await outcomes([partial(chain, 1), partial(chain, 3), partial(chain, 1)])
    await chain(1)
    assert ctx.trace.depth == 4


async def test_another_model_of_the_context_is_metered_too() -> None:
    other = ScriptedLLM(["x"], model="other")
    ctx = context(models=[other])
    assert (await ctx.llm("other").complete(ASKED, Sampling())).text == "x"
    assert (ctx.budget.usage.calls, ctx.trace.calls[0].model) == (1, "other")
    with pytest.raises(LookupError):
        ctx.llm("unknown")


@pytest.mark.parametrize(
    ("when", "fields", "reasons"),
    [
        ("always", {}, True),
        ("always", {"reasoning_effort": "none"}, False),
        ("always", {"chat_template_kwargs": {"enable_thinking": False}}, False),
        ("never", {"reasoning_effort": "high"}, False),
        ("on_request", {}, False),
        ("on_request", {"reasoning_effort": "low"}, True),
        ("on_request", {"reasoning_effort": "none"}, False),
        ("on_request", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ("on_request", {"thinking": {"type": "adaptive"}}, True),
        ("on_request", {"thinking": {"type": "disabled"}}, False),
    ],
)
async def test_the_client_can_switch_reasoning_on_or_off_where_the_model_has_it(
    when: Literal["always", "never", "on_request"], fields: dict[str, Json], reasons: bool
) -> None:
    ctx = context(client=Sampling(fields=fields))
    assert ctx.reasons(ScriptedLLM([], reasoning=when)) is reasons


def test_lost_steps_are_counted_by_kind() -> None:
    trace = Trace()
    trace.count("samples", lost=0, of=5)
    trace.count("ratings", lost=1, of=3)
    trace.count("ratings", lost=1, of=3)
    assert trace.lost == ("ratings:2/6",)


async def test_a_model_that_has_rejected_the_prompt_is_not_asked_again() -> None:
    rejected = ProviderFailed("too long", status=400, code=CONTEXT_WINDOW_EXCEEDED)
    ctx, base, roomy = context(), ScriptedLLM([rejected]), ScriptedLLM(["42"], model="roomy")
    for _ in range(3):
        with pytest.raises(ProviderFailed) as caught:
            await MeteredLLM(base, ctx.child(1)).complete(ASKED, Sampling())
        assert caught.value is rejected
    assert (len(base.calls), len(ctx.trace.calls)) == (1, 1)
    assert (await MeteredLLM(roomy, ctx).complete(ASKED, Sampling())).text == "42"


async def test_a_later_prompt_that_is_too_long_is_its_own_failure() -> None:
    rejected = ProviderFailed("too long", status=400, code=CONTEXT_WINDOW_EXCEEDED)
    llm = ScriptedLLM(["a draft", rejected, "42"])
    metered = MeteredLLM(llm, context())
    await metered.complete(ASKED, Sampling())
    with pytest.raises(ProviderFailed):
        await metered.complete(ASKED, Sampling())
    assert (await metered.complete(ASKED, Sampling())).text == "42"
