"""DeepConf by calls: whole warm-up samples, then streams that are closed when they lose confidence.

Confidence covers the 20 alternatives that a provider returns. At most as many streams are open
concurrently as there were warm-up samples, so that a consensus saves the rest.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from optillm_hooks.answers.deltas import Accumulated
from optillm_hooks.context import Context
from optillm_hooks.decoding.confidence import listed_confidence
from optillm_hooks.decoding.deepconf import DeepConfSettings, Election, Watch
from optillm_hooks.decoding.remote.calls import MAX_ALTERNATIVES, alternatives, scores
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes, sample_many
from optillm_hooks.llm import LLM
from optillm_hooks.types import Chat, Completion, FinishReason, Sampling, Usage

_OTHER_SEEDS = 2
"""A fan-out that replaces failed samples uses up to twice as many seeds as samples."""


async def deepconf_decode(
    chat: Chat, sampling: Sampling, llm: LLM, settings: DeepConfSettings, ctx: Context
) -> Completion:
    """Return the surest trace of the answer whose traces have the highest total confidence.

    A trace that fails does not vote. A warm-up trace that calls tools is returned.

    Raises:
        Refused: the model returns no log-probabilities.
        SamplesFailed: every warm-up trace failed.
    """
    election = Election(settings)
    warmup = election.wanted
    ctx.budget.expected_calls += warmup - 1
    scored = replace(
        sampling,
        sample=sampling.sample * _OTHER_SEEDS * settings.max_traces,
        fields={**sampling.fields, "logprobs": True, "top_logprobs": MAX_ALTERNATIVES},
    )
    whole = await sample_many(llm, chat, scored, n=warmup)
    calling = next((trace for trace in whole if trace.tool_calls), None)
    if calling is not None:
        return replace(calling, logprobs=(), usage=Usage())
    for trace in whole:
        number, watch = election.open()
        for token in scores(trace):
            watch.falls(listed_confidence(alternatives(token)))
        election.close(number, watch, trace.text, trace.finish_reason, stopped=False)
    for _ in range(warmup - len(whole)):
        election.give_up(election.open()[0])

    async def work() -> None:
        while election.wanted > 0:
            number, watch = election.open()
            seeded = replace(scored, sample=scored.sample + _OTHER_SEEDS * warmup + number)
            await _trace(chat, seeded, llm, election, number, watch)

    workers: list[Callable[[], Awaitable[None]]] = [work] * min(warmup, max(election.wanted, 0))
    await outcomes(workers, settled=lambda: election.settled)
    found = election.outcome()
    ctx.trace.note("deepconf", **found.facts)
    return Completion(found.text, found.finish_reason, usage=Usage())


async def _trace(
    chat: Chat, sampling: Sampling, llm: LLM, election: Election, number: int, watch: Watch
) -> None:
    """Stream one trace until it ends or loses confidence."""
    written, finish_reason, stopped = Accumulated(), "stop", False
    try:
        async with aclosing(llm.stream(chat, sampling)) as pieces:
            async for delta in pieces:
                written.add(delta)
                finish_reason = delta.finish_reason or finish_reason
                for token in delta.logprobs:
                    stopped = watch.falls(listed_confidence(alternatives(token))) or stopped
                if stopped:
                    break
    except SampleError:
        election.give_up(number)
        raise
    reason: FinishReason = "length" if finish_reason == "length" else "stop"
    election.close(number, watch, written.answer(reason).text, reason, stopped=stopped)
