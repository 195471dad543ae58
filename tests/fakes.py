"""Hand-written stand-ins. Each satisfies the real protocol and is stricter than the real thing."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Final

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.budget import Budget, Limits
from optillm_hooks.context import Context, MeteredLLM
from optillm_hooks.llm import FinalCall, ModelFacts, Price
from optillm_hooks.registry import Params, Result, get_approach
from optillm_hooks.types import Answer, Chat, Completion, Delta, Message, Sampling, Usage

_PATIENCE_S: Final = 10.0
"""Seconds after which a test that waits for something has failed."""

ONE_CALL: Final = Usage(calls=1, prompt_tokens=10, completion_tokens=5)


class Hang:
    """A call that never returns."""


HANG: Final = Hang()

Reply = str | Completion | Exception | Hang


def chat(text: str) -> Chat:
    return (Message("user", text),)


def count_words(chat: Chat, _sampling: Sampling) -> int:
    """Return the words of a conversation, which are the tokens of these models."""
    return sum(len(message.text.split()) for message in chat)


class ScriptedLLM:
    """Gives out `replies` in the order of the calls; a call beyond the script is a failure.

    A string is the text of a whole completion. `max_n` above 1 makes it a provider that
    honours n: a call for n takes the next n replies.
    """

    def __init__(
        self,
        replies: Sequence[Reply],
        *,
        model: str = "base",
        max_n: int = 1,
        price: Price | None = None,
        fields: Sequence[str] = (),
        max_output_tokens: int | None = None,
    ) -> None:
        self._replies = list(replies)
        self.model = model
        self.facts = ModelFacts(
            count_tokens=count_words,
            max_n=max_n,
            max_output_tokens=max_output_tokens,
            price=price,
            supported=frozenset(fields),
        )
        self.calls: list[tuple[Chat, Sampling]] = []
        self.inside = 0
        """Calls that hang now."""

        self._changed = asyncio.Condition()

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        self.calls.append((chat, sampling))
        return await self._next(chat, sampling)

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        self.calls.append((chat, sampling))
        choices = [await self._next(chat, sampling) for _ in range(n)]
        return [choices[0], *(replace(choice, usage=Usage()) for choice in choices[1:])]

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        self.calls.append((chat, sampling))
        whole = await self._next(chat, sampling)
        for piece in whole.text.splitlines(keepends=True):
            yield Delta(text=piece)
        yield Delta(finish_reason=whole.finish_reason, usage=whole.usage)

    def _next_reply(self, _chat: Chat, _sampling: Sampling) -> Reply:
        assert self._replies, f"call {len(self.calls)} is not in the script: {self.calls[-1]}"
        return self._replies.pop(0)

    async def _next(self, chat: Chat, sampling: Sampling) -> Completion:
        match self._next_reply(chat, sampling):
            case Hang():
                self.inside += 1
                try:
                    async with self._changed:
                        self._changed.notify_all()
                    await asyncio.Event().wait()
                finally:
                    self.inside -= 1
                raise AssertionError("unreachable")
            case Exception() as error:
                raise error
            case Completion() as completion:
                return completion
            case text:
                return Completion(text, usage=ONE_CALL)

    async def until_hanging(self, calls: int) -> None:
        """Wait until `calls` calls hang; fail if that many never do."""
        async with asyncio.timeout(_PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: self.inside >= calls)

    def assert_used_up(self) -> None:
        assert not self._replies, f"{len(self._replies)} scripted replies were never asked for"


class AnsweringLLM(ScriptedLLM):
    """Answers every call by a function of conversation and sampling, for methods at random."""

    def __init__(
        self,
        answer: Callable[[Chat, Sampling], Reply],
        *,
        model: str = "base",
        fields: Sequence[str] = (),
        max_n: int = 1,
    ) -> None:
        super().__init__([], model=model, fields=fields, max_n=max_n)
        self._answer = answer

    def _next_reply(self, chat: Chat, sampling: Sampling) -> Reply:
        return self._answer(chat, sampling)


class Pieces(ScriptedLLM):
    """Streams `pieces` at the first stream, and answers other calls by the script."""

    def __init__(
        self, pieces: Sequence[Delta | Exception | Hang], replies: Sequence[Reply] = ()
    ) -> None:
        super().__init__(replies)
        self._pieces = pieces
        self.closed = False
        """Whether the stream was opened and closed."""

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        if self.closed:
            async for delta in super().stream(chat, sampling):
                yield delta
            return
        self.calls.append((chat, sampling))
        try:
            for piece in self._pieces:
                if isinstance(piece, Exception):
                    raise piece
                if isinstance(piece, Hang):
                    await asyncio.Event().wait()
                else:
                    yield piece
        finally:
            await asyncio.sleep(0)  # as closing a connection does
            self.closed = True


def context(
    *,
    limits: Limits | None = None,
    seed: int = 0,
    client: Sampling | None = None,
    models: Sequence[ScriptedLLM] = (),
) -> Context:
    """Return a context whose deadline, unless `limits` says otherwise, has already passed: only
    a call that waits notices."""
    groups = {llm.model: llm for llm in models}
    return Context(
        budget=Budget(
            limits=limits or Limits(deadline_s=0.0), started=asyncio.get_running_loop().time()
        ),
        rng=random.Random(seed),
        client=client or Sampling(),
        models=groups.__getitem__,
    )


def params(name: str, **given: object) -> Params:
    return get_approach(name).params.model_validate(given)


async def run(
    name: str, asked: Chat, llm: ScriptedLLM, ctx: Context | None = None, **given: object
) -> Result:
    """Run the answerer `name` as the pipeline does, and return its result."""
    ctx = ctx or context()
    spec = get_approach(name)
    assert spec.kind == "answerer"
    result = await spec.run(asked, MeteredLLM(llm, ctx), params(name, **given), ctx)
    assert isinstance(result, Answer | FinalCall)
    return result


async def answer(
    name: str, asked: Chat, llm: ScriptedLLM, ctx: Context | None = None, **given: object
) -> Answer:
    """Run the answerer `name` and, if it leaves one, its final call."""
    ctx = ctx or context()
    result = await run(name, asked, llm, ctx, **given)
    if isinstance(result, Answer):
        return result
    whole = await MeteredLLM(llm, ctx).complete(result.chat, result.sampling)
    if result.text_filter is None:
        return whole
    shown = result.text_filter()
    return replace(whole, text=shown.feed(whole.text) + shown.close())
