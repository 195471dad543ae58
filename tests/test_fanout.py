"""Fan-out: degradation, top-up, stragglers and cancellation."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from optillm_hooks.budget import Limits
from optillm_hooks.context import MeteredLLM
from optillm_hooks.errors import (
    CONTENT_POLICY_VIOLATION,
    CONTEXT_WINDOW_EXCEEDED,
    DeadlineExceeded,
    ProviderFailed,
    SamplesFailed,
)
from optillm_hooks.fanout import Background, outcomes, sample_many, speculating
from optillm_hooks.pauses import LONGEST_S
from optillm_hooks.testing import HANG, ONE_CALL, Reply, ScriptedLLM, chat, context
from optillm_hooks.types import Chat, Completion, Sampling

pytestmark = pytest.mark.anyio
ASKED = chat("6 * 7?")


async def sample(llm: ScriptedLLM, n: int, **kwargs: object) -> list[str]:
    ctx = context(**kwargs)  # type: ignore[arg-type] # forwarded as it is
    samples = await sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=n)
    llm.assert_used_up()
    return [completion.text for completion in samples]


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        pytest.param(["a", "b"], ["a", "b"], id="all finish"),
        pytest.param([ProviderFailed("502"), "b"], ["b"], id="a failed one is left out"),
        pytest.param([HANG, "b"], ["b"], id="a hanging one is left out at the deadline"),
        pytest.param(["", "b"], ["b"], id="an empty one is left out"),
    ],
)
async def test_samples_that_finish(replies: list[Reply], expected: list[str]) -> None:
    assert await sample(ScriptedLLM(replies), 2) == expected


async def test_nothing_finished_carries_the_first_status() -> None:
    with pytest.raises(SamplesFailed, match="calls failed: busy; ") as caught:
        await sample(ScriptedLLM([ProviderFailed("busy", status=429), HANG]), 2)
    assert caught.value.status == 429


async def test_one_call_serves_all_samples_where_n_is_honoured() -> None:
    llm = ScriptedLLM(["a", "b", "c"], max_n=8)
    assert await sample(llm, 3) == ["a", "b", "c"]
    assert len(llm.calls) == 1


async def test_choices_that_a_call_for_n_leaves_out_are_topped_up() -> None:
    llm = ScriptedLLM(["", "b", "", "d"], max_n=3)
    ctx = context()
    samples = await sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=2)
    assert [s.text for s in samples] == ["b"]
    assert ctx.budget.usage.calls == 2


async def test_a_sample_that_is_topped_up_has_a_seed_of_its_own() -> None:
    llm = ScriptedLLM([ProviderFailed("502"), "c", "d", "e", "f"], max_n=2)
    assert await sample(llm, 4, client=Sampling(seed=7)) == ["c", "d", "e", "f"]
    assert [sampling.seed for _, sampling in llm.calls] == [7, 9, 11, 12]


async def test_a_refused_n_falls_back_to_single_calls() -> None:
    llm = ScriptedLLM([ProviderFailed("n unknown", status=400), "a", "b"], max_n=2)
    assert await sample(llm, 2) == ["a", "b"]


@pytest.mark.parametrize("status", [401, 402, 403, 404])
async def test_what_another_call_cannot_change_is_not_asked_again(status: int) -> None:
    llm = ScriptedLLM([ProviderFailed("bad key", status=status)], max_n=2)
    with pytest.raises(SamplesFailed) as caught:
        await sample(llm, 2)
    assert caught.value.status == status


async def test_more_choices_than_asked_for_are_left_out() -> None:
    class Generous(ScriptedLLM):
        async def complete_n(
            self, chat: Chat, sampling: Sampling, n: int, /
        ) -> Sequence[Completion]:
            return await super().complete_n(chat, sampling, n + 1)

    assert await sample(Generous(["a", "b", "c"], max_n=2), 2) == ["a", "b"]


async def test_a_top_up_waits_for_no_more_samples_than_are_needed() -> None:
    """One of two is there and one is needed: the call for the other is cut as a straggler."""
    llm, ctx = ScriptedLLM(["a", "", HANG], max_n=2), context(limits=Limits())
    soon = asyncio.get_running_loop().time() + 0.05
    async with asyncio.timeout(10):  # a straggler that is not cut hangs
        samples = await sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=2, until=soon)
    assert [s.text for s in samples] == ["a"]
    llm.assert_used_up()


CUT = Completion("So f", finish_reason="length")


@pytest.mark.parametrize(
    ("replies", "max_n", "lost"),
    [
        (["a", "b", "c"], 1, ()),
        (["a", ProviderFailed("busy"), ""], 1, ("samples:2/3",)),
        (["a", ProviderFailed("busy"), HANG], 1, ("samples:2/3",)),  # late at the deadline
        (["a", "", "b", "c"], 3, ()),  # a missing choice is made up for
        ([ProviderFailed("busy"), "b", "c", ""], 3, ("samples:1/3",)),
        (["a", CUT, "c"], 1, ("samples:1/3",)),
        ([CUT, CUT, CUT], 1, ()),  # the answer itself is truncated, and says so
    ],
)
async def test_samples_that_fail_are_late_or_are_cut_off_count_as_lost(
    replies: list[Reply], max_n: int, lost: tuple[str, ...]
) -> None:
    ctx = context()
    llm = MeteredLLM(ScriptedLLM(replies, max_n=max_n), ctx)
    await sample_many(llm, ASKED, Sampling(), ctx, n=3)
    assert ctx.trace.lost == lost


async def test_samples_of_which_too_few_finish_count_as_lost_too() -> None:
    ctx = context()
    llm = MeteredLLM(ScriptedLLM([ProviderFailed("busy")] * 2), ctx)
    with pytest.raises(SamplesFailed):
        await sample_many(llm, ASKED, Sampling(), ctx, n=2, kind="proposals")
    assert ctx.trace.lost == ("proposals:2/2",)


async def test_samples_of_one_prompt_have_different_seeds() -> None:
    llm = ScriptedLLM(["a", "b", "c"])
    await sample(llm, 3, client=Sampling(seed=7))
    assert [sampling.seed for _, sampling in llm.calls] == [7, 8, 9]


async def test_a_fanout_cannot_overspend() -> None:
    assert await sample(ScriptedLLM(["a", "b"]), 5, limits=Limits(max_calls=2)) == ["a", "b"]


async def test_a_bug_is_not_a_failed_sample() -> None:
    llm = ScriptedLLM([KeyError("bug"), HANG])
    with pytest.raises(ExceptionGroup) as caught:
        await sample(llm, 2)
    assert caught.group_contains(KeyError, match="bug")
    assert llm.inside == 0


async def test_cancelling_leaves_no_call_running() -> None:
    llm = ScriptedLLM([HANG, HANG])
    ctx = context(limits=Limits())
    task = asyncio.create_task(sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=2))
    await llm.until_hanging(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert llm.inside == 0
    assert [call.outcome for call in ctx.trace.calls] == ["cancelled", "cancelled"]


async def test_stragglers_are_cut_when_their_time_is_up() -> None:
    llm = ScriptedLLM([HANG, "b"])
    ctx = context(limits=Limits())
    now = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):  # a straggler that is not cut hangs
        samples = await sample_many(MeteredLLM(llm, ctx), ASKED, Sampling(), ctx, n=2, until=now)
    assert [s.text for s in samples] == ["b"]
    assert llm.inside == 0


async def test_the_only_call_is_never_cut_as_a_straggler() -> None:
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "late"

    async def failing() -> str:
        asyncio.get_running_loop().call_soon(gate.set)
        raise ProviderFailed("502")

    now = asyncio.get_running_loop().time()
    late, failed = await outcomes([slow, failing], until=now)
    assert late == "late"
    assert isinstance(failed, ProviderFailed)


async def test_depth_counts_the_longest_chain_and_not_the_calls() -> None:
    llm = MeteredLLM(ScriptedLLM(["a", "b", "c", "d"]), ctx := context())
    await sample_many(llm, ASKED, Sampling(), ctx, n=3)
    await llm.complete(ASKED, Sampling())
    assert [call.depth for call in ctx.trace.calls] == [1, 1, 1, 2]
    assert ctx.trace.depth == 2


async def test_a_speculative_call_does_not_shorten_the_chain_beside_it() -> None:
    llm = MeteredLLM(ScriptedLLM(["a", "b", "c", "d"]), ctx := context())
    async with speculating(lambda: llm.complete(ASKED, Sampling())) as direct:
        await llm.complete(ASKED, Sampling())
        await llm.complete(ASKED, Sampling())
        await direct()
    await llm.complete(ASKED, Sampling())
    assert sorted(call.depth for call in ctx.trace.calls) == [1, 1, 2, 3]


async def test_a_speculative_call_is_cancelled_when_nobody_waits_for_it() -> None:
    llm = ScriptedLLM([HANG])
    async with speculating(
        lambda: MeteredLLM(llm, context(limits=Limits())).complete(ASKED, Sampling())
    ):
        await llm.until_hanging(1)
    assert llm.inside == 0


async def test_a_speculative_call_does_not_shorten_the_longer_chain_beside_it() -> None:
    llm = MeteredLLM(ScriptedLLM(["a", "b", "c", "d"]), ctx := context())
    async with speculating(lambda: llm.complete(ASKED, Sampling())) as direct:
        for _ in range(2):
            await llm.complete(ASKED, Sampling())
        await direct()
    await llm.complete(ASKED, Sampling())
    assert sorted(call.depth for call in ctx.trace.calls) == [1, 1, 2, 3]


async def test_a_speculative_call_gives_its_result_or_its_error() -> None:
    llm = MeteredLLM(ScriptedLLM(["a", HANG]), context())
    async with speculating(lambda: llm.complete(ASKED, Sampling())) as direct:
        assert (await direct()).text == "a"
    async with speculating(lambda: llm.complete(ASKED, Sampling())) as direct:
        with pytest.raises(DeadlineExceeded):
            await direct()


@pytest.mark.anyio
async def test_once_it_is_settled_the_calls_under_way_are_cancelled() -> None:
    ended: list[str] = []

    async def hangs() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cut")
        raise AssertionError("unreachable")

    async def decides() -> str:
        ended.append("decided")
        return "decided"

    found = await outcomes([hangs, decides, hangs], settled=lambda: "decided" in ended)
    assert [type(o) for o in found] == [DeadlineExceeded, str, DeadlineExceeded]
    assert ended == ["decided", "cut", "cut"]


@pytest.mark.parametrize("code", [CONTEXT_WINDOW_EXCEEDED, CONTENT_POLICY_VIOLATION])
@pytest.mark.parametrize("max_n", [1, 3], ids=["calls of their own", "one call"])
async def test_a_prompt_that_the_model_does_not_take_is_not_sent_again(
    code: str, max_n: int
) -> None:
    rejected = ProviderFailed("no", status=400, code=code)
    replies: list[Reply] = [rejected] if max_n == 3 else [HANG, rejected]
    llm = ScriptedLLM(replies, max_n=max_n)
    with pytest.raises(SamplesFailed) as caught:
        async with asyncio.timeout(20):
            await sample(llm, 3, limits=Limits(deadline_s=40))
    assert (caught.value.status, caught.value.code) == (400, code)
    assert (len(llm.calls), llm.inside) == (len(replies), 0)


@pytest.mark.parametrize("max_n", [1, 3], ids=["calls of their own", "one call"])
async def test_empty_replies_are_not_asked_for_again(max_n: int) -> None:
    empty = Completion("", "length", "a long thought", usage=ONE_CALL)
    llm = ScriptedLLM([empty] * 3, max_n=max_n)
    with pytest.raises(SamplesFailed) as caught:
        await sample(llm, 3)
    assert caught.value.empty_reply == empty
    assert len(llm.calls) == 3 // max_n


async def test_refusals_do_not_outvote_an_answer() -> None:
    refusal = Completion("", fields={"provider_specific_fields": {"refusal": "no"}}, usage=ONE_CALL)
    assert await sample(ScriptedLLM([refusal, refusal, "42"]), 3) == ["42"]
    with pytest.raises(SamplesFailed) as caught:
        await sample(ScriptedLLM([refusal, ProviderFailed("busy", status=429), refusal]), 3)
    assert caught.value.empty_reply == refusal


OVERLOAD = [408, 429, 503, 504, 529]


def busy(status: int = 429, wait_s: float | None = None) -> ProviderFailed:
    error = ProviderFailed("busy", status=status)
    error.wait_s = wait_s
    return error


@pytest.mark.parametrize("status", OVERLOAD)
async def test_an_overloaded_provider_gets_no_single_calls_in_place_of_one(status: int) -> None:
    llm = ScriptedLLM([busy(status)], max_n=5)
    with pytest.raises(SamplesFailed) as caught:
        await sample(llm, 5)
    assert (caught.value.status, len(llm.calls)) == (status, 1)


@pytest.mark.parametrize("status", OVERLOAD)
async def test_it_gets_the_same_call_again_after_the_time_it_asks_for(status: int) -> None:
    llm = ScriptedLLM([busy(status, wait_s=0.05), "a", "b", "c"], max_n=3)
    began = asyncio.get_running_loop().time()
    assert await sample(llm, 3, limits=Limits()) == ["a", "b", "c"]
    assert asyncio.get_running_loop().time() - began >= 0.05
    assert len(llm.calls) == 2


@pytest.mark.parametrize(
    ("wait_s", "limits"),
    [(0.05, Limits(deadline_s=0.01)), (LONGEST_S + 1, Limits())],
    ids=["beyond the deadline", "longer than a request waits"],
)
async def test_a_pause_that_is_too_long_ends_the_fanout_at_once(
    wait_s: float, limits: Limits
) -> None:
    llm = ScriptedLLM([busy(wait_s=wait_s)], max_n=3)
    with pytest.raises(SamplesFailed, match="busy"):
        await sample(llm, 3, limits=limits)


async def test_what_has_finished_is_kept_when_the_rest_must_not_be_asked() -> None:
    llm = ScriptedLLM(["a", "b", busy()], max_n=2)
    assert await sample(llm, 4) == ["a", "b"]


async def test_single_calls_that_have_not_begun_wait() -> None:
    llm = ScriptedLLM([busy(wait_s=0.05), "b", "c", "d"])
    began = asyncio.get_running_loop().time()
    assert await sample(llm, 4, limits=Limits(max_parallel=1)) == ["b", "c", "d"]
    assert asyncio.get_running_loop().time() - began >= 0.05


async def test_single_calls_that_have_not_begun_stop_if_the_pause_is_too_long() -> None:
    llm = ScriptedLLM([busy(wait_s=LONGEST_S + 1)])
    with pytest.raises(SamplesFailed) as caught:
        await sample(llm, 4, limits=Limits(max_parallel=1))
    assert [str(error) for error in caught.value.errors] == ["busy"] * 4
    assert len(llm.calls) == 1


async def test_a_model_that_keeps_refusing_is_not_waited_for_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optillm_hooks.pauses.LONGEST_S", 0.05)
    llm = ScriptedLLM([busy(wait_s=0.03)] * 2)
    with pytest.raises(SamplesFailed):
        await sample(llm, 5, limits=Limits(max_parallel=1))
    assert len(llm.calls) == 2


async def test_calls_to_another_model_do_not_wait() -> None:
    ctx = context(models=[ScriptedLLM(["b"], model="other")])
    with pytest.raises(ProviderFailed):
        await MeteredLLM(ScriptedLLM([busy(wait_s=60)]), ctx).complete(ASKED, Sampling())
    assert (await ctx.llm("other").complete(ASKED, Sampling())).text == "b"


# ---------------------------------------------------------------------------- after the answer


async def test_work_after_an_answer_has_room_for_each_caller() -> None:
    background, open_gate, done = Background(running=2, waiting=3), asyncio.Event(), list[str]()

    def job(name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            await open_gate.wait()
            done.append(name)

        return work

    taken = [background.accept("anna", job(f"a{n}")) for n in range(5)]
    assert taken == [True] * 3 + [False] * 2
    assert background.accept("ben", job("b"))
    open_gate.set()
    await background.ended()
    assert sorted(done) == ["a0", "a1", "a2", "b"]
    assert background.accept("anna", job("later"))
    await background.ended()
    assert done[-1] == "later"


async def test_a_job_that_fails_or_hangs_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    background, done = Background(running=1, seconds=0.01), list[str]()

    async def hangs() -> None:
        await asyncio.Event().wait()

    async def fails() -> None:
        raise ValueError("with a user's words")

    async def works() -> None:
        done.append("worked")

    for each in (hangs, fails, works):
        assert background.accept("anna", each)
    await background.ended()
    assert done == ["worked"]
    assert "ValueError" in caplog.text
    assert "user's words" not in caplog.text


async def test_stopping_cancels_what_runs_and_what_waits() -> None:
    background, ran, cancelled = Background(running=1), asyncio.Event(), list[str]()

    async def hangs() -> None:
        ran.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("one")

    for _ in range(3):
        background.accept("anna", hangs)
    await ran.wait()
    await background.stop()
    assert cancelled == ["one"]
