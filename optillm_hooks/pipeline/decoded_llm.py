"""The LLM that applies a decoding method to its replies."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from optillm_hooks.answers.deltas import as_delta
from optillm_hooks.context import Context
from optillm_hooks.errors import (
    EmptyCompletion,
    Refused,
    RequestRejected,
)
from optillm_hooks.llm import LLM, ModelFacts
from optillm_hooks.pipeline.plan import Stage
from optillm_hooks.types import (
    Chat,
    Completion,
    Delta,
    Fields,
    Sampling,
)


class DecodedLLM:
    """An `LLM` whose replies are made by a decoder. Judges' calls are not decoded."""

    def __init__(self, inner: LLM, stage: Stage, ctx: Context) -> None:
        self.model = inner.model
        self._inner = inner
        self._stage = stage
        self._ctx = ctx

    @property
    def facts(self) -> ModelFacts:
        """The model's facts, except `max_n`: each sample is decoded by itself."""
        return replace(self._inner.facts, max_n=1)

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        decoded = await self._decoded(chat, sampling)
        if isinstance(decoded, Completion):
            return decoded
        completion = await self._inner.complete(chat, decoded)
        self._note(completion.facts)
        return completion

    async def complete_n(self, chat: Chat, sampling: Sampling, _n: int, /) -> Sequence[Completion]:
        return [await self.complete(chat, sampling)]

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        decoded = await self._decoded(chat, sampling)
        if isinstance(decoded, Completion):
            yield as_delta(decoded)
            return
        async with aclosing(self._inner.stream(chat, decoded)) as pieces:
            async for delta in pieces:
                self._note(delta.facts)
                yield replace(delta, facts={})

    def _note(self, facts: Fields) -> None:
        if facts:
            self._ctx.trace.note(self._stage.approach.name, **facts)

    async def _decoded(self, chat: Chat, sampling: Sampling) -> Completion | Sampling:
        """Return the decoder's reply, or the sampling parameters of the call that makes it."""
        if sampling.purpose == "judge":
            return sampling
        decode = self._stage.approach.run
        try:
            decoded: Completion | Sampling = await decode(
                chat, sampling, self._inner, self._stage.params, self._ctx
            )
        except RequestRejected as exc:
            raise Refused(str(exc)) from exc
        if isinstance(decoded, Completion) and decoded.empty:
            raise EmptyCompletion(decoded)
        if isinstance(decoded, Completion):
            self._ctx.keep_reply(decoded, sampling.purpose, self._inner.facts)
        return decoded
