"""Scripted models and helpers for tests of approaches, including your own.

    @pytest.mark.anyio
    async def test_the_longest_draft_wins() -> None:
        llm = ScriptedLLM(["short", "a longer one"])
        result = await answer("longest", chat("Explain."), llm, n=2)
        assert result.text == "a longer one"
        llm.assert_used_up()

Import the module of your approach first, which registers it. Async tests need a pytest plugin, such
as anyio's or pytest-asyncio; this module itself needs neither. No call leaves the process.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

import optillm_hooks.approaches  # noqa: F401 (registers the built-in ones)
from optillm_hooks.answers.deltas import as_delta, parts
from optillm_hooks.budget import Budget, Limits
from optillm_hooks.context import Context, MeteredLLM
from optillm_hooks.llm import ModelFacts, Price, Scores
from optillm_hooks.registry import DraftingParams, Params, Result, get_approach
from optillm_hooks.types import Answer, Chat, Completion, Delta, Message, Sampling, Usage

_PATIENCE_S: Final = 10.0
"""Seconds after which a test that waits for something has failed."""

ONE_CALL: Final = Usage(calls=1, prompt_tokens=10, completion_tokens=5)
"""The usage of a reply that is given as a string."""


class Hang:
    """A call that never returns."""


HANG: Final = Hang()

Reply = str | Completion | Exception | Hang
"""What a model does when called: answer (with a text or a whole completion), fail, or hang."""

StageReply = Reply | Callable[[int, Chat], Reply]
"""A reply, or a function of the number of the stage's call, from 0, and the conversation."""


def chat(text: str) -> Chat:
    """Return a conversation of one user message."""
    return (Message("user", text),)


def in_turn(*replies: Reply) -> StageReply:
    """Return replies for a stage's calls in their order; the last one repeats."""
    return lambda number, _: replies[min(number, len(replies) - 1)]


def _count_words(chat: Chat, _sampling: Sampling) -> int:
    return sum(len(message.text.split()) for message in chat)


class ScriptedLLM:
    """A model that gives `replies` in the order of the calls; a call beyond them is an error.

    Each word counts as a prompt token. The other arguments are the model's facts. `max_n` above 1
    makes it a provider that honours `n`: a call for `n` takes the next `n` replies.
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
        max_input_tokens: int | None = None,
        reasoning: Literal["never", "on_request", "always"] = "never",
    ) -> None:
        self._replies = list(replies)
        self.model = model
        self.facts = ModelFacts(
            count_tokens=_count_words,
            max_n=max_n,
            max_output_tokens=max_output_tokens,
            max_input_tokens=max_input_tokens,
            price=price,
            reasoning=reasoning,
            supported=frozenset(fields),
        )
        self.calls: list[tuple[Chat, Sampling]] = []
        """The conversation and sampling parameters of each call, in order."""

        self.inside = 0
        """The number of calls that hang now."""

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
        for part in parts(replace(as_delta(whole), usage=whole.usage)):
            first, *lines = part.text.splitlines(keepends=True) or [""]
            yield replace(part, text=first)
            for line in lines:
                yield Delta(text=line)

    def _next_reply(self, _chat: Chat, _sampling: Sampling) -> Reply:
        if not self._replies:
            raise AssertionError(f"call {len(self.calls)} is not in the script: {self.calls[-1]}")
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
        """Wait until `calls` calls hang.

        Raises:
            TimeoutError: fewer do after ten seconds.
        """
        async with asyncio.timeout(_PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: self.inside >= calls)

    def assert_used_up(self) -> None:
        """Raise `AssertionError` if fewer calls were made than there are scripted replies."""
        if self._replies:
            raise AssertionError(f"{len(self._replies)} scripted replies were never asked for")


class AnsweringLLM(ScriptedLLM):
    """A model whose replies are a function of conversation and sampling."""

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


class StagedLLM(AnsweringLLM):
    """A model that replies by the stage of an approach that calls it.

    Args:
        stages: words that the last message of a stage's prompts contains, by the stage's name. If
            several match, the first is taken. The words "" match any prompt.
        replies: by the stage's name. The default reply is the name and the number of the call.
        model: the name of the model.
        fields: the request fields that the model accepts.
    """

    def __init__(
        self,
        stages: Mapping[str, str],
        replies: Mapping[str, StageReply] | None = None,
        *,
        model: str = "base",
        fields: Sequence[str] = (),
    ) -> None:
        super().__init__(self._staged, model=model, fields=fields)
        self._stages = stages
        self._stage_replies = replies or {}
        self.seen: list[tuple[str, Chat, Sampling]] = []
        """The calls in their order, each with its stage."""

    def at(self, stage: str) -> list[tuple[Chat, Sampling]]:
        """Return the calls of one stage."""
        return [(asked, sampling) for name, asked, sampling in self.seen if name == stage]

    @property
    def counts(self) -> dict[str, int]:
        """The number of calls of each stage that made any."""
        return dict(Counter(name for name, _, _ in self.seen))

    def _staged(self, asked: Chat, sampling: Sampling) -> Reply:
        text = asked[-1].text
        stage = next((name for name, words in self._stages.items() if words in text), None)
        if stage is None:
            raise AssertionError(f"the words of no stage are in {text!r}")
        number = len(self.at(stage))
        self.seen.append((stage, asked, sampling))
        reply = self._stage_replies.get(stage, f"{stage} {number}")
        return reply(number, asked) if callable(reply) else reply


class AnsweringScorer:
    """A scorer whose scores are a function of conversation and text.

    With an exception the call fails, and with `HANG` it never returns.

    Args:
        score: returns the score of a text.
        model: the name of the model.
        max_scored: the texts that one call takes.
        price: of a token, and of a call.
        cut: how many texts of each call are too long.
    """

    def __init__(
        self,
        score: Callable[[Chat, str], float | Exception | Hang],
        *,
        model: str = "scorer",
        max_scored: int = 32,
        price: Price | None = None,
        cut: int = 0,
    ) -> None:
        self._score = score
        self._cut = cut
        self.model = model
        self.facts = ModelFacts(count_tokens=_count_words, max_scored=max_scored, price=price)
        self.calls: list[tuple[Chat, Sequence[str]]] = []
        """The conversation and the texts of each call, in order."""

    async def score(self, chat: Chat, texts: Sequence[str], /) -> Scores:
        if not 1 <= len(texts) <= self.facts.max_scored:
            raise AssertionError(f"a call takes 1 to {self.facts.max_scored} texts")
        self.calls.append((chat, tuple(texts)))
        found: list[float] = []
        for text in texts:
            score = self._score(chat, text)
            if isinstance(score, Exception):
                raise score
            if isinstance(score, Hang):
                await asyncio.Event().wait()
            else:
                found.append(score)
        return Scores(found, Usage(calls=1, prompt_tokens=10 * len(texts)), self._cut)


def context(
    *,
    limits: Limits | None = None,
    seed: int = 0,
    client: Sampling | None = None,
    models: Sequence[ScriptedLLM] = (),
    scorers: Sequence[AnsweringScorer] = (),
) -> Context:
    """Return the context of a request, for an approach under test.

    Unless `limits` are given, its deadline has already passed. That affects only calls that wait,
    so a call that hangs is cancelled immediately.

    Args:
        limits: what the request may spend.
        seed: seeds `rng`.
        client: the fields of the client's request.
        models: the other model groups that the approach may look up by name.
        scorers: the model groups that score.
    """
    groups = {llm.model: llm for llm in models}
    return Context(
        budget=Budget(
            limits=limits or Limits(deadline_s=0.0), started=asyncio.get_running_loop().time()
        ),
        rng=random.Random(seed),  # noqa: S311 (no secret)
        client=client or Sampling(),
        models=groups.__getitem__,
        scorers={scorer.model: scorer for scorer in scorers}.get,
    )


def params(name: str, **given: object) -> Params:
    """Return the validated parameters of an approach."""
    return get_approach(name).params.model_validate(given)


async def run(
    name: str, asked: Chat, llm: ScriptedLLM, ctx: Context | None = None, **given: object
) -> Result:
    """Return the result of the answerer `name` with the parameters `given`.

    If it leaves a final call, that is returned and not made.

    The model is metered by `ctx`, by default `context()`, as in a pipeline.
    """
    ctx = ctx or context()
    spec = get_approach(name)
    if spec.kind != "answerer":
        raise ValueError(f"{name} is a {spec.kind}, not an answerer")
    chosen = params(name, **given)
    draft_tokens = chosen.draft_tokens if isinstance(chosen, DraftingParams) else None
    with ctx.drafting(draft_tokens):
        result: Result = await spec.run(asked, MeteredLLM(llm, ctx), chosen, ctx)
    return result


async def answer(
    name: str, asked: Chat, llm: ScriptedLLM, ctx: Context | None = None, **given: object
) -> Answer:
    """Return the answer of the answerer `name`, after its final call if it leaves one."""
    ctx = ctx or context()
    result = await run(name, asked, llm, ctx, **given)
    if isinstance(result, Answer):
        return result
    final = result.llm or MeteredLLM(llm, ctx)
    whole = await final.complete(result.chat, result.sampling)
    if result.text_filter is None:
        return whole
    shown = result.text_filter()
    return replace(whole, text=shown.feed(whole.text) + shown.close())
