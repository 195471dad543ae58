"""DeepConf over a model that shows alternatives: whole samples first, then streams that are cut."""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from optillm_hooks.errors import ProviderFailed, Refused, SamplesFailed
from optillm_hooks.llm import Price
from optillm_hooks.pipeline.events import Outcome, Request
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.pipeline.run import run
from optillm_hooks.testing import HANG, chat
from optillm_hooks.types import Chat, Completion, Delta, Fields, Sampling, TokenLogprob
from tests.vllm import PrefixLLM, peaked

pytestmark = pytest.mark.anyio
SCORED = ("logprobs", "top_logprobs")

Trace = tuple[str, Sequence[float]]
"""An answer, and the confidence of each token before it."""


class Traces:
    """Writes the trace of each sample's number, in the order in which the method numbers them."""

    def __init__(self, warmup: Sequence[Trace], later: Sequence[Trace] = ()) -> None:
        self._warmup = warmup
        self._later = later

    def __call__(self, _prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        number = body["sample"]
        warm = len(self._warmup)
        answer, confidences = (
            self._warmup[number] if number < warm else self._later[number - 3 * warm]
        )
        return [*(peaked("x", c) for c in confidences), peaked(f" {answer}", confidences[-1])]


async def ask(llm: PrefixLLM, approach: str, **how: Any) -> Outcome:
    how.setdefault("client", Sampling())
    request = Request(plan=resolve(parse(approach)), base="base", chat=chat("6 * 7?"), **how)
    return await run(request, {"base": llm}.__getitem__)


def facts_of(ended: Outcome) -> Fields:
    [(_, facts)] = ended.report.notes
    return facts  # type: ignore[return-value]


async def test_offline_the_least_confident_do_not_vote_and_the_rest_weigh_their_confidence() -> (
    None
):
    """High keeps 90 %: the 10th percentile of 1, 9, 10, 11 is 3.4, so 41 alone falls out.

    Then 42 has 10 + 9 against 11 for 43.
    """
    traces = [("42", [10.0] * 20), ("43", [11.0] * 20), ("42", [9.0] * 20), ("41", [1.0] * 20)]
    llm = PrefixLLM(Traces(traces), fields=SCORED)
    ended = await ask(llm, "deepconf(warmup_samples=4;max_traces=4;variant=high)")
    assert ended.answers[0].text == "x" * 20 + " 42"
    facts = facts_of(ended)
    assert (facts["traces"], facts["stopped"]) == (4, 0)
    assert facts["votes"] == pytest.approx([19, 11])
    assert (ended.report.calls, ended.report.depth) == (4, 1)
    assert {s.fields["top_logprobs"] for _, s in llm.calls} == {20}


async def test_online_a_trace_is_closed_when_its_group_falls_and_does_not_vote() -> None:
    """Warm-up of 9, 10, 11: high keeps nine tenths, the floor is 9.2, groups have 16 tokens."""
    warmup = [("42", [9.0] * 20), ("43", [10.0] * 20), ("44", [11.0] * 20)]
    later = [("41", [1.0] * 100), ("45", [12.0] * 20)]
    llm = PrefixLLM(Traces(warmup, later), fields=SCORED)
    ended = await ask(llm, "deepconf(warmup_samples=3;max_traces=5;consensus_threshold=1)")
    facts = facts_of(ended)
    assert (facts["traces"], facts["stopped"]) == (5, 1)
    assert facts["votes"] == pytest.approx([12, 11, 10])
    assert ended.answers[0].text == "x" * 20 + " 45"
    assert llm.sent == 16 + 21, "the first stream was closed at its first whole group"


async def test_after_a_consensus_no_trace_is_begun() -> None:
    warmup = [("41", [9.0] * 20), ("44", [10.0] * 20), ("44", [11.0] * 20)]
    llm = PrefixLLM(Traces(warmup, [("45", [12.0] * 20)] * 2), fields=SCORED)
    ended = await ask(llm, "deepconf(warmup_samples=3;max_traces=5;consensus_threshold=1)")
    assert (facts_of(ended)["traces"], llm.sent) == (3, 0)


async def test_one_vote_is_no_consensus() -> None:
    """With low, only the surest of the warm-up passes the floor."""
    warmup = [("42", [9.0] * 20), ("43", [10.0] * 20), ("44", [11.0] * 20)]
    llm = PrefixLLM(Traces(warmup, [("45", [12.0] * 20)] * 2), fields=SCORED)
    ended = await ask(
        llm, "deepconf(warmup_samples=3;max_traces=5;consensus_threshold=1;variant=low)"
    )
    assert facts_of(ended)["traces"] == 5
    assert ended.answers[0].text == "x" * 20 + " 45"


async def test_what_a_closed_stream_wrote_is_paid_for() -> None:
    warmup = [("42", [10.0] * 20), ("43", [10.0] * 20)]
    llm = PrefixLLM(Traces(warmup, [("41", [1.0] * 100)]), fields=SCORED)
    llm.facts = replace(llm.facts, price=Price(prompt=1.0, completion=2.0))
    ended = await ask(llm, "deepconf(warmup_samples=2;max_traces=3;variant=high)")
    usage = ended.report.usage
    assert usage.calls == 3
    assert usage.completion_tokens == 21 + 21 + 16
    assert usage.prompt_tokens == 100 + 100 + 3, "each word of the question counts as a token"
    assert usage.cost_usd == pytest.approx(3 + 2 * 16)


async def test_a_trace_may_be_given_time_before_it_is_stopped() -> None:
    warmup = [("42", [10.0] * 20), ("43", [10.0] * 20)]
    llm = PrefixLLM(Traces(warmup, [("41", [1.0] * 100)]), fields=SCORED)
    await ask(llm, "deepconf(warmup_samples=2;max_traces=3;variant=high;min_trace_length=40)")
    assert llm.sent == 40


async def test_consensus_of_the_warmup_ends_it() -> None:
    llm = PrefixLLM(Traces([("42", [10.0] * 20)] * 3), fields=SCORED)
    ended = await ask(llm, "deepconf(warmup_samples=3;max_traces=99)")
    assert (ended.report.calls, facts_of(ended)["traces"]) == (3, 3)


class Late(PrefixLLM):
    """Lets the streams end in the order that `order` says, by the number of the trace."""

    def __init__(self, writes: Traces, order: Sequence[int]) -> None:
        super().__init__(writes, fields=SCORED)
        self._turns = [asyncio.Event() for _ in order]
        self._order = list(order)
        self._streams = 0
        self._turns[self._order[0]].set()

    async def stream(self, asked: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        number, self._streams = self._streams, self._streams + 1
        try:
            await self._turns[number].wait()
            async for delta in super().stream(asked, sampling):
                yield delta
        finally:
            later = self._order[self._order.index(number) + 1 :]
            if later:
                self._turns[later[0]].set()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_the_result_does_not_depend_on_which_trace_ends_first(order: Sequence[int]) -> None:
    """Number 3 alone would be no consensus; with it 42 has more than half, and 4 and 5 are late."""
    warmup = [("42", [10.0] * 20), ("43", [10.0] * 20), ("44", [10.0] * 20)]
    later = [("42", [20.0] * 20), ("43", [90.0] * 20), ("43", [90.0] * 20)]
    llm = Late(Traces(warmup, later), order)
    ended = await ask(
        llm, "deepconf(warmup_samples=3;max_traces=6;variant=high;consensus_threshold=0.55)"
    )
    assert ended.answers[0].text.endswith("42")
    assert facts_of(ended)["traces"] == 4
    assert facts_of(ended)["votes"] == pytest.approx([30, 10, 10])


async def test_a_stream_that_hangs_is_cut_once_the_vote_is_settled() -> None:
    class Hanging(PrefixLLM):
        hanging = 0

        async def stream(self, asked: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
            if sampling.sample == 3 * 2:
                async for delta in super().stream(asked, sampling):
                    yield delta
                return
            self.hanging += 1
            try:
                await asyncio.Event().wait()
            finally:
                self.hanging -= 1

    warmup = [("42", [10.0] * 20), ("43", [10.0] * 20)]
    llm = Hanging(Traces(warmup, [("42", [90.0] * 20)]), fields=SCORED)
    ended = await ask(
        llm, "deepconf(warmup_samples=2;max_traces=9;variant=high;consensus_threshold=0.9)"
    )
    assert ended.answers[0].text.endswith("42")
    assert llm.hanging == 0


async def test_traces_that_fail_do_not_vote() -> None:
    traces = Traces([("42", [10.0] * 20), ("43", [11.0] * 20)])

    def flaky(prefix: str, body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        if body["sample"] != 0:
            raise ProviderFailed("busy", status=429)
        return traces(prefix, body)

    ended = await ask(PrefixLLM(flaky, fields=SCORED), "deepconf(warmup_samples=2;max_traces=9)")
    assert ended.answers[0].text.endswith("42")

    def broken(_prefix: str, _body: Mapping[str, Any]) -> Sequence[TokenLogprob]:
        raise ProviderFailed("busy", status=429)

    with pytest.raises(SamplesFailed) as error:
        await ask(PrefixLLM(broken, fields=SCORED), "deepconf(warmup_samples=2;max_traces=9)")
    assert error.value.status == 429


async def test_a_stream_that_fails_is_passed_over() -> None:
    class Failing(PrefixLLM):
        async def stream(self, asked: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
            if sampling.sample == 3 * 2:
                raise ProviderFailed("busy", status=429)
            async for delta in super().stream(asked, sampling):
                yield delta

    warmup = [("42", [10.0] * 20), ("43", [10.0] * 20)]
    llm = Failing(Traces(warmup, [("41", [10.0] * 20), ("42", [20.0] * 20)]), fields=SCORED)
    ended = await ask(llm, "deepconf(warmup_samples=2;max_traces=4;variant=high)")
    assert facts_of(ended)["votes"] == pytest.approx([30, 10])


async def test_without_log_probabilities_the_first_answer_stands_and_the_report_says_so() -> None:
    class Hiding(PrefixLLM):
        async def complete(self, *call: Any) -> Completion:
            return Completion((await super().complete(*call)).text)

    llm = Hiding(Traces([("42", [10.0] * 20)] * 2), fields=SCORED)
    ended = await ask(llm, "deepconf(warmup_samples=2)")
    assert ended.answers[0].text.endswith("42")
    assert ended.report.degraded == (Refused.code,)


async def test_cancelling_leaves_no_stream_open() -> None:
    class Hanging(PrefixLLM):
        async def stream(self, asked: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
            self._answer = lambda *_: HANG
            yield Delta(text=(await self.complete(asked, sampling)).text)

    traces = Traces([("42", [10.0] * 20), ("43", [10.0] * 20)], [("42", [10.0] * 20)] * 7)
    llm = Hanging(traces, fields=SCORED)
    task = asyncio.ensure_future(ask(llm, "deepconf(warmup_samples=2;max_traces=9;variant=high)"))
    await llm.until_hanging(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert llm.inside == 0
