"""The context of a run, and the metered models that spend its budget."""

import asyncio
import random
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import partial
from typing import TypeVar

from optillm_hooks.budget import Budget, Reservation
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EmptyCompletion,
    ProviderFailed,
    SampleError,
)
from optillm_hooks.llm import LLM, ModelFacts, Price, Scorer, Scores
from optillm_hooks.own_fields import after_refusal, sendable, with_room
from optillm_hooks.services import Services
from optillm_hooks.trace import CallOutcome, CallRecord, Trace
from optillm_hooks.types import (
    Answer,
    Chat,
    Completion,
    Delta,
    Fields,
    FinishReason,
    Message,
    Purpose,
    Sampling,
    Usage,
)

WhenAnswered = Callable[[str | None, bool | None], None]
"""Gets the text of the answer, if there is only one, and whether it fits the request's
`response_format`; None if that was not checked."""

A = TypeVar("A", bound=Answer)
T = TypeVar("T")

_RUN_STRIDE = 1000
"""Distance between the sample numbers of two runs, so that no two runs share one."""

_UNANSWERED = frozenset({408, 504})
"""Statuses of a call that timed out although its provider may have worked on it."""

depth_so_far: ContextVar[int] = ContextVar("depth_so_far", default=0)
"""Length of the longest chain of consecutive model calls so far, in the current task."""


def _ignore(_: str) -> None:
    return None


def _undecoded(llm: LLM) -> LLM:
    return llm


def _as_it_is(text: str) -> str:
    return text


def _no_other_models(model: str) -> LLM:
    raise LookupError(f"no model {model!r} in this context")


def _no_scorers(_: str) -> None:
    return None


@dataclass(slots=True, kw_only=True)
class Context:
    """One run of one request, which an approach gets and passes on to helpers."""

    budget: Budget = field(default_factory=Budget)
    rng: random.Random
    client: Sampling = field(default_factory=Sampling)
    """The fields of the client's request, which apply where an approach sets none."""

    asked: Chat = ()
    """The conversation as the client sent it, whatever stages have made of it."""

    trace: Trace = field(default_factory=Trace)
    stage: str = ""
    """Label of the chain that runs."""

    run: int = 0
    """Number of this run within the request."""

    best: Answer | None = None
    """The best answer so far, which is returned if the request has to stop."""

    models: Callable[[str], LLM] = _no_other_models
    """Returns the unmetered LLM of a model group that the request may use."""

    scorers: Callable[[str], Scorer | None] = _no_scorers
    """Returns the unmetered scorer that a model group is, or None if its models write."""

    origins: dict[str, float] = field(default_factory=dict[str, float])
    """The score that counts as average in this request, by scorer (`judging.scoring`)."""

    services: Services = field(default_factory=Services)

    caller_cache: CallerCache = field(default_factory=CallerCache)
    """What approaches keep for later requests of the same caller."""

    decoded: Callable[[LLM], LLM] = _undecoded
    """Applies the decoder of the chain to an LLM."""

    as_shown: Callable[[str], str] = _as_it_is
    """Returns a text of an answer as the client gets it, after the wrappers around."""

    draft_tokens: int | None = None
    """Maximum tokens of each solution, draft and judgement that sets none itself."""

    when_answered: list[WhenAnswered] = field(default_factory=list[WhenAnswered])
    """Called once the request has its answers."""

    progress: Callable[[str], None] = _ignore
    """Shows the client a progress message, if it asked for progress. Never text of a model."""

    @property
    def deadline(self) -> float:
        return self.budget.deadline

    @property
    def forms_answers(self) -> bool:
        """Whether the client's request has fields that only answers get, such as a format."""
        return bool(self.client.stop) or not _FORM_FIELDS.isdisjoint(self.client.fields)

    @property
    def no_tool_calls(self) -> Fields:
        """The fields of a call of which only the text can be used, if the client defines tools."""
        return {"tool_choice": "none"} if self.client.fields.get("tools") else {}

    def reasons(self, llm: LLM, own: Fields | None = None) -> bool:
        """Return whether `llm` reasons by itself before it answers this request.

        Such a model needs no request to think step by step. `own`: the fields that the approach
        sends with its calls.
        """
        reasoning = llm.facts.reasoning
        if reasoning == "never":
            return False
        asked = _asked_reasoning({**(own or {}), **self.client.fields})
        return reasoning == "always" if asked is None else asked

    def spend(self, usage: Usage) -> None:
        """Count what a service has cost, towards the request's usage and its limits."""
        self.budget.usage += usage
        self.budget.tokens_taken += usage.total_tokens
        self.budget.cost_taken += usage.cost_usd

    def offer(self, answer: Answer) -> None:
        """Make `answer` the best so far."""
        self.best = answer

    def keep(self, answer: Answer) -> None:
        """Offer `answer` if it is the first, or the first that is not truncated."""
        if self.best is None or (self.best.truncated and not answer.truncated):
            self.offer(answer)

    @contextmanager
    def drafting(self, max_tokens: int | None) -> Iterator[None]:
        """Apply `max_tokens` as `draft_tokens` in the block."""
        before, self.draft_tokens = self.draft_tokens, max_tokens
        try:
            yield
        finally:
            self.draft_tokens = before

    def reply_limit(self, sampling: Sampling) -> int | None:
        """Return the maximum tokens of a reply, or None if it is not limited.

        The client's `max_tokens` limits its answer, not the work that leads to it.
        """
        if sampling.purpose == "answer":
            return _lower(sampling.max_tokens, self.client.max_tokens)
        if sampling.max_tokens is not None or sampling.purpose == "piece":
            return sampling.max_tokens
        return self.draft_tokens

    def keep_reply(self, reply: Answer, purpose: Purpose, facts: ModelFacts) -> None:
        """Keep a reply as `keep` does, if its purpose lets it be the user's answer."""
        if purpose == "answer":
            self.keep(reply)
        elif purpose == "solution":
            self.keep(self.bounded(reply, facts))

    def bounded(self, answer: A, facts: ModelFacts) -> A:
        """Return `answer`, cut to about the client's `max_tokens` if it is longer."""
        limit = self.client.max_tokens
        if limit is None or not answer.text:
            return answer
        tokens = facts.count_tokens((Message("assistant", answer.text),), Sampling())
        if tokens <= limit:
            return answer
        cut = answer.text[: len(answer.text) * limit // tokens]
        return replace(answer, text=cut, finish_reason="length")

    def within(self, share: float) -> float:
        """Return the instant at which `share` of the time left will have passed.

        Stages that are not the last use it as the deadline of their stragglers.
        """
        now = asyncio.get_running_loop().time()
        return now + share * (self.deadline - now)

    def child(self, run: int, stage: str | None = None) -> "Context":
        """Return the context of one of several concurrent runs: own rng and best, shared budget.

        Its rng depends only on this one's state and on `run`, not on the order of later draws.
        """
        return replace(
            self,
            rng=random.Random(f"{self.rng.getrandbits(64)}:{run}"),  # noqa: S311 (no secret)
            run=run,
            stage=self.stage if stage is None else stage,
            best=None,
        )

    def aside(self, max_tokens: int | None) -> "Context":
        """Return the context of a run beside this one, whose answer is no answer to the client.

        It has the client's sampling, but none of its tools, formats and stops, and `max_tokens`.
        """
        kept = {k: v for k, v in self.client.fields.items() if k not in _OF_ITS_ANSWER}
        client = replace(self.client, max_tokens=max_tokens, stop=None, fields=kept)
        return replace(self.child(self.run), client=client, when_answered=[])

    def llm(self, model: str) -> LLM:
        """Return the metered LLM of another model group that the request may use."""
        return self.decoded(MeteredLLM(self.models(model), self))

    def scorer(self, model: str) -> "MeteredScorer | None":
        """Return the metered scorer that a model group is, or None if its models write."""
        found = self.scorers(model)
        return None if found is None else MeteredScorer(found, self)

    def with_tools(self, chat: Chat, sampling: Sampling) -> Sampling:
        """Return a judge's `sampling` with the client's tools, if the conversation has tool calls.

        Providers refuse the conversation without their definitions. A judge may not call them,
        where a model takes that choice.
        """
        tools = self.client.fields.get("tools")
        if sampling.purpose != "judge" or not tools or not any(m.role == "tool" for m in chat):
            return sampling
        defined: Fields = {"tools": tools, "tool_choice": "none"}
        return replace(sampling, fields={**defined, **sampling.fields})

    def filled(self, sampling: Sampling) -> Sampling:
        """Return `sampling` with the client's fields that its purpose allows.

        The seed of a sample is the client's seed plus the sample's number: samples differ, and the
        same seed gives the same samples again. A judge gets nothing of the client.
        """
        client = self.client
        sampling = replace(sampling, max_tokens=self.reply_limit(sampling))
        if sampling.purpose == "judge":
            return sampling
        is_answer = sampling.purpose in ("answer", "solution")
        hidden = frozenset[str]() if is_answer else _FORM_FIELDS
        seed = client.seed if sampling.seed is None else sampling.seed
        number = sampling.sample + _RUN_STRIDE * self.run
        return replace(
            sampling,
            temperature=_first(sampling.temperature, client.temperature),
            top_p=_first(sampling.top_p, client.top_p),
            stop=sampling.stop if sampling.stop is not None or hidden else client.stop,
            seed=None if seed is None else seed + number,
            sample=number,
            fields={k: v for k, v in client.fields.items() if k not in hidden}
            | dict(sampling.fields),
        )


_FORM_FIELDS = frozenset({"response_format", "logprobs", "top_logprobs", "modalities", "audio"})

_OF_ITS_ANSWER = _FORM_FIELDS | {
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "prediction",
    "web_search_options",
}
"""Fields of the client's that only a reply to its own conversation can serve."""


def _asked_reasoning(fields: Fields) -> bool | None:
    """Return whether the client switches reasoning on or off, or None if it says neither."""
    thinking, template = fields.get("thinking"), fields.get("chat_template_kwargs")
    if isinstance(thinking, dict):
        return thinking.get("type") != "disabled"
    if (effort := fields.get("reasoning_effort")) is not None:
        return effort not in ("none", "disable")
    switches = (fields, template if isinstance(template, dict) else {})
    given = [of.get(name) for of in switches for name in ("enable_thinking", "thinking")]
    return next((switch for switch in given if isinstance(switch, bool)), None)


def _first(own: float | None, client: float | None) -> float | None:
    return client if own is None else own


def _lower(own: int | None, client: int | None) -> int | None:
    given = [limit for limit in (own, client) if limit is not None]
    return min(given) if given else None


class _Metered:
    """A model whose calls are paid for from a context's budget."""

    def __init__(self, inner: LLM | Scorer, ctx: Context) -> None:
        self.model = inner.model
        self._priced = inner
        self._ctx = ctx

    @property
    def facts(self) -> ModelFacts:
        return self._priced.facts

    def _streamed(self, call: "_Call") -> int:
        """Return the tokens received: those with log-probabilities, or else an estimate."""
        text = "".join(call.streamed)
        tokens = call.scored
        if text and not tokens:
            tokens = self.facts.count_tokens((Message("assistant", text),), Sampling())
        max_tokens = call.sampling.max_tokens
        return tokens if max_tokens is None else min(tokens, max_tokens)

    @asynccontextmanager
    async def _paying(self, chat: Chat, sampling: Sampling, choices: int) -> AsyncIterator["_Call"]:
        """Reserve one call, and when it has ended pay for it and record it.

        Once the model has rejected a prompt of this request, and taken none, it is not asked again.
        """
        if (rejection := self._ctx.budget.rejections.get(self.model)) is not None:
            raise rejection
        # Reserved before the first await, so two tasks of a fan-out cannot both take the last call.
        ctx, budget = self._ctx, self._ctx.budget

        def filled(own: Sampling) -> Sampling:
            return with_room(own, ctx.filled(own), lambda: self.facts)

        own = sendable(ctx.with_tools(chat, sampling), filled, lambda: self.facts)
        reserved = budget.take(self._priced, chat, filled(own), choices)
        call = _Call(
            reserved.sampling,
            own=own,
            filled=filled,
            depth=depth_so_far.get() + 1,
            started=asyncio.get_running_loop().time(),
            choices=choices,
        )
        try:
            async with budget.in_time(), budget.slots:
                await budget.pauses.over(self.model, ctx.deadline)
                call.usage = Usage(calls=1)  # from here on it may have been sent
                yield call
            call.outcome = "ok"
            budget.pauses.answered(self.model)
        except (TimeoutError, DeadlineExceeded):
            call.outcome = "failed"
            raise
        except BudgetExceeded:
            call.outcome, call.refused = "failed", True
            budget.stop("caller_budget")
            raise
        except SampleError as exc:
            call.outcome = "failed"
            if exc.rejects_prompt and not self._answered():
                budget.rejections[self.model] = exc
            if call.usage.calls:
                budget.pauses.note(self.model, exc)
            call.answered = isinstance(exc, ProviderFailed) and exc.answered
            call.refused = exc.status not in _UNANSWERED and not call.streamed
            raise
        finally:
            depth_so_far.set(call.depth)
            budget.usage += call.usage + Usage(calls=call.tries)
            budget.settle(reserved, self._spent(reserved, call))
            ctx.trace.record(self._record(call))

    def _answered(self) -> bool:
        """Return whether the model has answered a call of this request."""
        return any(c.model == self.model and c.outcome == "ok" for c in self._ctx.trace.calls)

    def _record(self, call: "_Call") -> CallRecord:
        return CallRecord(
            stage=self._ctx.stage,
            run=self._ctx.run,
            model=self.model,
            purpose=call.sampling.purpose,
            depth=call.depth,
            started_s=call.started - self._ctx.budget.started,
            seconds=asyncio.get_running_loop().time() - call.started,
            outcome=call.outcome,
            usage=call.usage + Usage(calls=call.tries),
            choices=call.choices,
        )

    def _spent(self, reserved: Reservation, call: "_Call") -> Usage:
        """Return the usage that counts towards the limits: the provider's, if it reports any.

        Otherwise a complete reply counts with its whole reservation, one that was cut off with its
        prompt and the tokens received, and one that was refused or never sent with nothing.
        """
        if not reserved.tokens or call.usage.total_tokens:
            return call.usage
        if call.outcome == "ok" or call.answered:
            return reserved.spent(reserved.reply)
        if call.refused or not call.usage.calls:
            return Usage()
        return reserved.spent(self._streamed(call))


class MeteredLLM(_Metered):
    """An `LLM` whose calls are paid for from a context's budget. Approaches get only this one."""

    def __init__(self, inner: LLM, ctx: Context) -> None:
        super().__init__(inner, ctx)
        self._inner = inner

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        """Return one completion that is not empty, and pay for it.

        Raises:
            BudgetExceeded, DeadlineExceeded: the request has nothing left to spend.
            EmptyCompletion: the reply has no content; the error has the reply, unless it is a
                judge's. It is paid for all the same.
            SampleError: the error of the model's provider.
        """
        async with self._paying(chat, sampling, 1) as call:
            completion = await self._sent(call, partial(self._inner.complete, chat))
            call.usage = completion.usage
            return self._kept([completion], sampling.purpose)[0]

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        """Return the non-empty completions of one call with `n`, 1 to `n` of them, and pay."""
        async with self._paying(chat, sampling, n) as call:
            completions = await self._sent(call, lambda s: self._inner.complete_n(chat, s, n))
            call.usage = sum((c.usage for c in completions), Usage(calls=0))
            return self._kept(completions, sampling.purpose)

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        """Yield the pieces of one completion, and pay for it. Errors as in `complete`.

        Providers report usage at the end of a stream. If it is closed before, its usage is counted
        from the pieces received.
        """
        async with self._paying(chat, sampling, 1) as call:
            empty: bool = sampling.purpose != "piece"
            finish_reason: FinishReason = "stop"
            try:
                async with aclosing(self._pieces(chat, call)) as pieces:
                    async for delta in pieces:
                        if delta.usage is not None:
                            call.usage = delta.usage
                        call.streamed.append(delta.text + delta.reasoning)
                        call.scored += len(delta.logprobs)
                        empty = empty and delta.empty
                        finish_reason = delta.finish_reason or finish_reason
                        yield delta
            except (GeneratorExit, asyncio.CancelledError):
                if any(call.streamed) and not call.usage.total_tokens:
                    call.usage = self._counted(chat, call)
                raise
            if empty:
                reply = Answer("", finish_reason, "".join(call.streamed).strip())
                raise EmptyCompletion(None if sampling.purpose == "judge" else reply)

    async def _sent(self, call: "_Call", send: Callable[[Sampling], Awaitable[T]]) -> T:
        """Return the result of `send`, without those of the approach's fields that are refused."""
        while True:
            try:
                result = await send(call.sampling)
            except ProviderFailed as exc:
                self._lighten(call, exc)
            else:
                self._remember(call)
                return result

    async def _pieces(self, chat: Chat, call: "_Call") -> AsyncGenerator[Delta, None]:
        """Yield the pieces of a stream, as `_sent`: a provider refuses fields before any piece."""
        begun = False
        while True:
            try:
                async with aclosing(self._inner.stream(chat, call.sampling)) as pieces:
                    async for delta in pieces:
                        begun = True
                        self._remember(call)
                        yield delta
            except ProviderFailed as exc:
                if begun:
                    raise
                self._lighten(call, exc)
            else:
                return

    def _lighten(self, call: "_Call", error: ProviderFailed) -> None:
        """Leave a field of the approach out of `call` that `error` says is refused.

        Raises:
            ProviderFailed: it is about the request itself.
        """
        own = after_refusal(call.own, error.refused)
        if own is None:
            raise error
        max_tokens = call.sampling.max_tokens  # as the budget allows
        again = replace(call.filled(own), max_tokens=max_tokens)
        if again == call.sampling:  # it is the client's field too
            raise error
        call.tries += 1
        call.refusals.append(error.refused)
        call.own, call.sampling = own, again

    def _remember(self, call: "_Call") -> None:
        """Remember what was refused, now that the call is accepted without it."""
        while call.refusals:
            self.facts.remember(call.refusals.pop())

    def _counted(self, chat: Chat, call: "_Call") -> Usage:
        prompt, tokens = self.facts.count_tokens(chat, call.sampling), self._streamed(call)
        whole = Reservation(call.sampling, prompt, tokens, self.facts.price or Price(0.0, 0.0))
        return replace(whole.spent(tokens), calls=1)

    def _kept(self, completions: Sequence[Completion], purpose: Purpose) -> Sequence[Completion]:
        """Return the completions that have content, and keep an answer as the best so far.

        So nothing already paid for is lost, whatever the approach itself offers.
        """
        if purpose == "piece":
            return completions
        kept = [completion for completion in completions if not completion.empty]
        if not kept:
            raise EmptyCompletion(None if purpose == "judge" else completions[0])
        self._ctx.keep_reply(kept[0], purpose, self.facts)
        return kept


class MeteredScorer(_Metered):
    """A `Scorer` whose calls are paid for from a context's budget, as judgements."""

    def __init__(self, inner: Scorer, ctx: Context) -> None:
        super().__init__(inner, ctx)
        self._inner = inner

    async def score(self, chat: Chat, texts: Sequence[str], /) -> Scores:
        """Return the scores of `texts`, and pay for them. Errors as in `MeteredLLM.complete`."""
        question = Message("user", "\n\n".join(message.text for message in chat))
        seen = [each for text in texts for each in (question, Message("assistant", text))]
        async with self._paying(tuple(seen), _SCORING, 1) as call:
            scores = await self._inner.score(chat, texts)
            call.usage = scores.usage
            return scores


_SCORING = Sampling(purpose="judge", max_tokens=1)
"""The sampling of a scorer's call, of which the budget takes the reply to be one token."""


@dataclass(slots=True)
class _Call:
    """One call under way."""

    sampling: Sampling
    _: KW_ONLY
    own: Sampling
    """The approach's sampling, without what the model refuses of it."""

    filled: Callable[[Sampling], Sampling]
    depth: int
    started: float
    choices: int
    usage: Usage = field(default=Usage())
    outcome: CallOutcome = "cancelled"
    answered: bool = False
    """Whether it failed because its reply is unreadable."""

    refused: bool = False
    """Whether it failed before the provider did any work."""

    refusals: list[frozenset[str]] = field(default_factory=list[frozenset[str]])
    """The fields that the provider refused, which are not remembered yet."""

    tries: int = 0
    """How often it has been refused for a field of the approach, and made again without it."""

    streamed: list[str] = field(default_factory=list[str])
    scored: int = 0
    """Tokens streamed with their log-probabilities."""
