"""DeepConf by calls: complete warm-up samples, then streams that are closed at low confidence.

Confidence is the mean over the 20 top log-probabilities that a provider returns. Concurrent streams
are limited to the number of warm-up samples, so that a consensus saves the rest.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from optillm_hooks.answers.deltas import DeltaAccumulator
from optillm_hooks.answers.extraction import excerpt, extract
from optillm_hooks.context import Context
from optillm_hooks.decoding.confidence import listed_confidence
from optillm_hooks.decoding.deepconf import ConfidenceMonitor, DeepConfSettings, Election
from optillm_hooks.decoding.remote.calls import MAX_ALTERNATIVES, token_logprobs, top_logprobs
from optillm_hooks.errors import SampleError
from optillm_hooks.fanout import outcomes, sample_many
from optillm_hooks.llm import LLM
from optillm_hooks.reading import read_or
from optillm_hooks.types import Chat, Completion, FinishReason, Sampling, Usage

_OTHER_SEEDS = 2
"""Seeds per sample: a fan-out that replaces failed samples uses up to this many."""


async def deepconf_decode(
    chat: Chat, sampling: Sampling, llm: LLM, settings: DeepConfSettings, ctx: Context
) -> Completion:
    """Return the most confident trace of the answer with the highest total confidence.

    Failed traces do not vote. If a warm-up trace calls tools, it is returned.

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
    whole = await sample_many(llm, chat, scored, ctx, n=warmup, kind="traces")
    calling = next((trace for trace in whole if trace.tool_calls), None)
    if calling is not None:
        return replace(calling, logprobs=(), usage=Usage())
    for trace in whole:
        number, monitor = election.open()
        for token in token_logprobs(trace):
            monitor.add(listed_confidence(top_logprobs(token)))
        answer = await _answer(trace.text, ctx)
        election.close(number, monitor, trace.text, answer, trace.finish_reason, stopped=False)
    for _ in range(warmup - len(whole)):
        election.fail(election.open()[0])
    await _count(election)

    async def work() -> None:
        while election.wanted > 0:
            number, monitor = election.open()
            seeded = replace(scored, sample=scored.sample + _OTHER_SEEDS * warmup + number)
            try:
                await _trace(chat, seeded, llm, election, number, monitor, ctx)
            except SampleError:
                ctx.trace.count("traces", lost=1, of=1)
                raise
            ctx.trace.count("traces", lost=0, of=1)

    workers: list[Callable[[], Awaitable[None]]] = [work] * min(warmup, max(election.wanted, 0))
    await outcomes(workers, settled=lambda: election.settled)
    found = election.outcome()
    ctx.trace.note("deepconf", **found.facts)
    return Completion(found.text, found.finish_reason, usage=Usage())


async def _trace(
    chat: Chat,
    sampling: Sampling,
    llm: LLM,
    election: Election,
    number: int,
    monitor: ConfidenceMonitor,
    ctx: Context,
) -> None:
    """Stream one trace until it ends or falls below the floor."""
    written, finish_reason, stopped = DeltaAccumulator(), "stop", False
    try:
        async with aclosing(llm.stream(chat, sampling)) as pieces:
            async for delta in pieces:
                written.add(delta)
                finish_reason = delta.finish_reason or finish_reason
                for token in delta.logprobs:
                    stopped = monitor.add(listed_confidence(top_logprobs(token))) or stopped
                if stopped:
                    break
    except SampleError:
        election.fail(number)
        await _count(election)
        raise
    reason: FinishReason = "length" if finish_reason == "length" else "stop"
    text = written.answer(reason).text
    answer = None if stopped else await _answer(text, ctx)
    election.close(number, monitor, text, answer, reason, stopped=stopped)
    await _count(election)


async def _answer(text: str, ctx: Context) -> str | None:
    found = await read_or(None, ctx, extract, excerpt(text), lenient=True)
    return found.answer if found else None


async def _count(election: Election) -> None:
    """Count the traces that have ended; other requests run between them."""
    while election.count():  # noqa: ASYNC110 (it waits for nothing)
        await asyncio.sleep(0)
