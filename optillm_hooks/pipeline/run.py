"""Runs a plan: its chains concurrently, the stages of each chain from left to right."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from optillm_hooks.answer_format import answers_fit
from optillm_hooks.answers.deltas import as_delta
from optillm_hooks.answers.extraction import without_reasoning
from optillm_hooks.answers.response_format import is_json_mode
from optillm_hooks.budget import Budget
from optillm_hooks.context import Context, MeteredLLM, WhenAnswered, depth_so_far
from optillm_hooks.errors import (
    DeadlineExceeded,
    EmptyCompletion,
    Refused,
    RequestRejected,
    SampleError,
    StageFailed,
)
from optillm_hooks.fanout import outcomes
from optillm_hooks.llm import LLM, FinalCall, Scorer
from optillm_hooks.pipeline.decoded_llm import DecodedLLM
from optillm_hooks.pipeline.events import Models, Outcome, Report, Request
from optillm_hooks.pipeline.filters import Filters
from optillm_hooks.pipeline.logs import format_traceback, logged_stage
from optillm_hooks.pipeline.plan import (
    PASS_THROUGH,
    Chain,
    Stage,
    chain_label,
    cost_of,
    stage_of,
)
from optillm_hooks.pipeline.running import RUNNING
from optillm_hooks.pipeline.sparing_llm import SparingLLM
from optillm_hooks.prompts import ask, data_notice, enclose, fence
from optillm_hooks.registry import DraftingParams, Result, Scoring, Through
from optillm_hooks.sandbox.places import tenant
from optillm_hooks.trace import Trace
from optillm_hooks.types import Answer, Chat, Delta

_log = logging.getLogger(__name__)

_GRACE_S = 1.0
"""Seconds after the deadline in which a stage may still do work that needs no model."""

T = TypeVar("T")


async def run(request: Request, models: Models, trace: Trace | None = None) -> Outcome:
    """Return the answers to `request`: one choice per chain and repetition, ordered by chain.

    A choice that failed is left out and reported. Every call is recorded in `trace`, which the
    caller can read after a failure too.

    Raises:
        SampleError: every choice failed; this is the error of the first.
    """
    return await PlanRun(request, models, trace or Trace()).outcome()


class PlanRun:
    """The run of one request's plan, which returns answers when they are complete."""

    def __init__(self, request: Request, models: Models, trace: Trace) -> None:
        self._request = request
        self._models = models
        self._trace = trace
        self._degraded: list[str] = []
        self._when_answered: list[WhenAnswered] = []
        self._budget = Budget(
            limits=request.limits,
            started=asyncio.get_running_loop().time(),
            expected_calls=request.plan.planned_calls * request.n,
        )

    async def outcome(self) -> Outcome:
        try:
            with RUNNING.plan(self._budget):
                return await self._outcome()
        finally:
            self._trace.stopped_by = self._budget.stopped_by

    async def _outcome(self) -> Outcome:
        request = self._request
        depth_so_far.set(0)  # the same task may have served another request before
        tenant.set(request.caller or object())
        root = self._context()
        chains = [chain for chain in request.plan.chains for _ in range(request.n)]
        ended = await outcomes(
            [
                partial(self._choice, chain, root.child(number, stage=chain_label(chain)), number)
                for number, chain in enumerate(chains)
            ]
        )
        failed = [answer for answer in ended if isinstance(answer, SampleError)]
        good = [
            (answer, chain_label(chain))
            for answer, chain in zip(ended, chains, strict=True)
            if not isinstance(answer, SampleError)
        ]
        if not good:
            answer = await self._plain_instead(root, failed[0], len(chains))
            good = [(answer, PASS_THROUGH)]
        self._degraded += [error.code for error in failed]
        answers = tuple(answer for answer, _ in good)
        await self._check_format(answers)
        return Outcome(answers, self._report([label for _, label in good]))

    async def _check_format(self, answers: Sequence[Answer]) -> None:
        """Report answers that do not fit the request's `response_format`, or were not checked."""
        texts = [answer.text for answer in answers if not answer.tool_calls]
        wanted = self._request.client.fields.get("response_format")
        fit = await answers_fit(texts, wanted, self._budget.deadline + _GRACE_S)
        if not fit:
            self._degraded.append("response_format:unchecked" if fit is None else "response_format")
        only = texts[0] if len(texts) == len(answers) == 1 else None
        checked = only is not None and is_json_mode(wanted)
        for tell in self._when_answered:
            tell(only, fit if checked else None)

    def _context(self) -> Context:
        return Context(
            budget=self._budget,
            rng=random.Random(self._request.client.seed),  # noqa: S311 (no secret)
            client=self._request.client,
            asked=self._request.chat,
            trace=self._trace,
            models=self._models,
            scorers=self._request.scorers,
            when_answered=self._when_answered,
            services=self._request.services,
            caller_cache=self._request.caller_cache,
        )

    async def _choice(self, chain: Chain, ctx: Context, number: int) -> Answer:
        """Return one choice; if a limit or a failure ends it early, the best answer so far.

        Without one, a reply without content is the answer.
        """
        llm = MeteredLLM(self._models(self._request.base), ctx)

        async def to_the_end() -> Answer:
            result = await self._run_chain(chain, self._request.chat, llm, ctx, _GRACE_S)
            return await self._finish(result, llm, ctx, number)

        try:
            return await self._in_time(to_the_end, ctx, _GRACE_S)
        except SampleError as exc:
            answer = ctx.best or exc.empty_reply
            if answer is None or self._shows_content(number):
                raise
            self._note_failure(exc)
            return answer

    def _shows_content(self, _number: int) -> bool:
        """Return whether the client has seen content of a choice, which nothing can replace."""
        return False

    async def _in_time(self, work: Callable[[], Awaitable[T]], ctx: Context, grace_s: float) -> T:
        """Return the result of `work`; any error is raised as a `SampleError`."""
        try:
            async with self._budget.in_time(grace_s):
                return await work()
        except SampleError:
            raise
        except RequestRejected as exc:
            raise Refused(str(exc)) from exc
        except Exception as exc:
            where = f"call_id={ctx.trace.call_id} chain={ctx.stage} choice={ctx.run}"
            _log.error("stage failed: %s error=%s", where, format_traceback(exc))
            raise StageFailed(ctx.stage) from exc

    def _note_failure(self, error: SampleError) -> None:
        """Report a failure that was worked around, unless a limit explains it."""
        if self._budget.stopped_by is None:
            self._degraded.append(error.code)

    async def _plain_instead(self, root: Context, error: SampleError, number: int) -> Answer:
        """Return the answer of one plain call if `on_error` is plain, else raise `error`.

        The wrappers of the first chain apply to it too.
        """
        if self._request.on_error != "plain":
            raise error
        ctx = root.child(0, stage=PASS_THROUGH)
        first = self._request.plan.chains[0]
        wrappers = tuple(stage for stage in first if stage.approach.kind == "wrapper")
        try:
            return await self._choice(wrappers, ctx, number)
        except SampleError:
            raise error from None

    async def _finish(self, result: Result, llm: LLM, ctx: Context, number: int) -> Answer:
        """Return the answer of an approach, after its final call if it left one."""
        if isinstance(result, Answer):
            return result
        try:
            return await self._call_final(result, llm, ctx, number)
        except SampleError as exc:
            if result.fallback is None or self._shows_content(number):
                raise
            self._note_failure(exc)
            return result.fallback

    async def _call_final(self, final: FinalCall, llm: LLM, ctx: Context, _number: int) -> Answer:
        return await call_final(final, llm, ctx)

    async def _run_chain(
        self, chain: Chain, chat: Chat, llm: LLM, ctx: Context, grace_s: float
    ) -> Result:
        """Return the result of `chain` on `chat`; without an answerer, a plain final call.

        An answerer after another one gets the conversation with the other's answer, if it has any
        text, as a draft. An answer that calls tools ends the chain: only the client can continue.
        """
        if not chain:
            return FinalCall(chat, llm=llm)
        stage, rest = chain[0], chain[1:]
        run_stage = partial(_run_stage, stage, ctx)
        match stage.approach.kind:
            case "rewriter":
                chat = await run_stage(chat, llm)
                return await self._run_chain(rest, chat, llm, ctx, grace_s)
            case "wrapper":
                aside = partial(self._aside, stage)
                models = (ctx.decoded, ctx.scorers)
                inner = _Rest(self._inside, aside, rest, llm, ctx, *models, grace_s / 2)
                result: Result = await run_stage(chat, inner, llm)
                return result
            case "decoder":
                around = ctx.decoded
                ctx.decoded = lambda inner: DecodedLLM(around(inner), stage, ctx)
                decoded = DecodedLLM(llm, stage, ctx)
                return await self._run_chain(rest, chat, decoded, ctx, grace_s)
            case "answerer":
                result = await run_stage(chat, llm)
                if not rest:
                    return _with_llm(llm, result)
                draft = (
                    await call_final(result, llm, ctx) if isinstance(result, FinalCall) else result
                )
                if draft.tool_calls:
                    return draft
                text = without_reasoning(draft.text)
                if text.strip():
                    ctx.offer(draft)
                    chat = with_draft(chat, text)
                return await self._run_chain(rest, chat, llm, ctx, grace_s)

    async def _inside(
        self, chain: Chain, chat: Chat, llm: LLM, ctx: Context, grace_s: float, *, whole: bool
    ) -> Result:
        """Return the result of the chain inside a wrapper, or its best so far if it ends early.

        So every answer that the user may get passes through the wrapper. Answers from inside are
        not kept as the best so far outside.
        """

        async def to_the_end() -> Result:
            result = await self._run_chain(chain, chat, llm, ctx, grace_s)
            return await self._whole(result, llm, ctx) if whole else result

        before, ctx.best = ctx.best, None
        try:
            result = await self._in_time(to_the_end, ctx, grace_s)
        except SampleError as exc:
            if ctx.best is None:
                raise
            self._note_failure(exc)
            return ctx.best
        else:
            if isinstance(result, FinalCall) and result.fallback is None:
                return replace(result, fallback=ctx.best)
            return result
        finally:
            ctx.best = before

    async def _aside(self, stage: Stage, chat: Chat, ctx: Context, until: float) -> Answer:
        """Return the answer of the chain inside `stage`, or its best so far if it ends early."""
        aside, params = stage.params.aside(), stage.params
        if aside is not None and aside.answers:
            beside = replace(ctx.child(ctx.run), when_answered=[])
        else:
            beside = ctx.aside(params.draft_tokens if isinstance(params, DraftingParams) else None)
        beside.decoded = lambda inner: SparingLLM(ctx.decoded(inner), ctx.budget)
        self._budget.expected_calls += cost_of(stage.inside).calls
        llm = beside.llm((aside and aside.model) or self._request.base)

        async def to_the_end() -> Answer:
            result = await self._run_chain(stage.inside, chat, llm, beside, 0.0)
            return await self._whole(result, llm, beside)

        scope = asyncio.timeout_at(until)
        try:
            async with scope:
                return await self._in_time(to_the_end, beside, 0.0)
        except TimeoutError:
            error: SampleError = DeadlineExceeded("no answer within the time for it")
        except SampleError as exc:
            error = exc
        if beside.best is None:
            raise error
        self._note_failure(error)
        return beside.best

    async def _whole(self, result: Result, llm: LLM, ctx: Context) -> Answer:
        """Return the answer of a chain inside a wrapper, after its final call or its fallback."""
        if isinstance(result, Answer):
            return result
        final = result
        try:
            return await call_final(final, llm, ctx)
        except SampleError as exc:
            if final.fallback is None:
                raise
            self._note_failure(exc)
            return final.fallback

    def _report(self, labels: Sequence[str]) -> Report:
        usage = self._budget.usage
        return Report(
            approach=self._request.plan.text,
            base=self._request.base,
            calls=usage.calls,
            calls_saved=self._trace.calls_saved,
            depth=self._trace.depth,
            usage=usage,
            seconds=asyncio.get_running_loop().time() - self._budget.started,
            stopped_by=self._budget.stopped_by,
            degraded=(*dict.fromkeys(self._degraded), *self._trace.lost),
            choices=tuple(labels),
            notes=tuple(self._trace.events),
            trace=tuple(self._trace.calls),
        )


@dataclass(frozen=True, slots=True)
class _Rest:
    """The stages inside a wrapper. They have less grace time than it: it has to run after them."""

    inside: Callable[..., Awaitable[Any]]
    beside: Callable[[Chat, Context, float], Awaitable[Answer]]
    chain: Chain
    llm: LLM
    ctx: Context
    decoded: Callable[[LLM], LLM]
    """What the wrappers around have made of `ctx.decoded`: a final call is made after them."""

    scorers: Callable[[str], Scorer | None]
    """The same of `ctx.scorers`."""

    grace_s: float

    async def __call__(
        self, chat: Chat, /, *, through: Through | None = None, scoring: Scoring | None = None
    ) -> Result:
        result: Result = await self._run(chat, through, scoring, whole=False)
        return result

    async def whole(self, chat: Chat, /, *, through: Through | None = None) -> Answer:
        answer: Answer = await self._run(chat, through, None, whole=True)
        return answer

    async def pieces(self, chat: Chat, /) -> AsyncGenerator[Delta, None]:
        result = await self(chat)
        if isinstance(result, Answer):
            yield as_delta(result)
            return
        filters, shown = Filters(result), False
        try:
            llm = result.llm or self.llm
            async with aclosing(llm.stream(result.chat, result.sampling)) as pieces:
                async for piece in pieces:
                    seen = filters.feed(piece)
                    shown = shown or not seen.empty
                    yield seen
        except SampleError:
            if shown or result.fallback is None:
                raise
            yield as_delta(result.fallback)
            return
        for piece in filters.close():
            yield piece

    async def aside(self, chat: Chat, /, *, until: float) -> Answer:
        ctx = replace(self.ctx, decoded=self.decoded, scorers=self.scorers)
        return await self.beside(chat, ctx, until)

    def behind(self, name: str, /, **given: object) -> "_Rest":
        stage = stage_of(name, given, self.ctx.client.temperature)
        return replace(self, chain=(stage, *self.chain))

    async def _run(
        self, chat: Chat, through: Through | None, scoring: Scoring | None, *, whole: bool
    ) -> Any:
        ctx, llm, decoded, scorers = self.ctx, self.llm, self.decoded, self.scorers

        def scored(model: str) -> Scorer | None:
            found = scorers(model)
            return found if found is None or scoring is None else scoring(found)

        before = ctx.decoded, ctx.scorers
        ctx.decoded, ctx.scorers = decoded, scored  # for models that stages look up
        try:
            if through is not None:
                ctx.decoded = lambda inner: through(decoded(inner))
                llm = through(llm)
            return await self.inside(self.chain, chat, llm, ctx, self.grace_s, whole=whole)
        finally:
            ctx.decoded, ctx.scorers = before


async def _run_stage(stage: Stage, ctx: Context, *args: Any) -> Any:
    """Return the result of one stage; `args` are the arguments of its kind before `params`."""
    params = stage.params
    draft_tokens = params.draft_tokens if isinstance(params, DraftingParams) else None
    with logged_stage(stage.approach.name, ctx), ctx.drafting(draft_tokens):
        return await stage.approach.run(*args, params, ctx)


def _with_llm(llm: LLM, result: Result) -> Result:
    if isinstance(result, FinalCall) and result.llm is None:
        return replace(result, llm=llm)
    return result


async def call_final(final: FinalCall, llm: LLM, ctx: Context) -> Answer:
    """Return the answer of a final call that is not streamed.

    A reply without content is the answer too, unless there is a better one. A reply of which the
    filter leaves nothing is a failure, unless it was cut off.
    """
    best = ctx.best
    with logged_stage("final_call", ctx):
        try:
            reply: Answer = await (final.llm or llm).complete(final.chat, final.sampling)
        except EmptyCompletion as exc:
            if exc.empty_reply is None:
                raise
            reply = exc.empty_reply
    shown = reply = _with_thinking(reply, final.thinking_tag)
    if filters := Filters(final):
        ctx.best = best  # the unfiltered reply is not for the user
        shown = filters.whole(reply)
    if shown.empty and (final.fallback or best) is not None:
        raise EmptyCompletion(shown)
    if shown.empty and not (reply.empty or reply.truncated):
        raise EmptyCompletion
    return shown


def _with_thinking(reply: Answer, tag: str) -> Answer:
    """Return `reply` with its reasoning as a section `tag` of its text, unless it has one."""
    if not tag or not reply.reasoning or reply.empty or f"<{tag}>" in reply.text:
        return reply
    return replace(reply, text=f"<{tag}>{reply.reasoning}</{tag}>{reply.text}", reasoning="")


def with_draft(chat: Chat, draft: str) -> Chat:
    """Return `chat` with a draft of its answer, as data, after the question that it answers."""
    mark = fence(chat, [draft])
    return ask(
        chat,
        f"{data_notice('draft', mark)}\n\n{enclose([draft], 'draft', mark)}\n\n"
        "The draft above is an earlier attempt at answering this conversation. It may be wrong. "
        "Use what is right in it and give a complete answer of your own, without mentioning it.",
    )
