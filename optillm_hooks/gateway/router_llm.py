"""Models over LiteLLM's router, which does retries, fallbacks, cooldowns and load balancing."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import litellm
from litellm import Router
from litellm.router_utils.add_retry_fallback_headers import get_fallback_errors_from_headers
from litellm.types.utils import ModelResponse, ModelResponseStream

from optillm_hooks.answers.deltas import DeltaAccumulator
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway.budgets import check_budgets, paying
from optillm_hooks.gateway.call_queue import QUEUE, Whose
from optillm_hooks.gateway.caller import Caller, span_metadata
from optillm_hooks.gateway.convert import is_amount, read_completions, read_delta, write_sampling
from optillm_hooks.gateway.cut_off import book, cut_reply
from optillm_hooks.gateway.failures import (
    as_sample_errors,
    budgets_as_sample_errors,
    is_of_whole_group,
)
from optillm_hooks.gateway.inner_call import INNER_CALL_KEY, Held, InnerCall
from optillm_hooks.gateway.model_facts import FactsOf, GroupFacts
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.rates import Counted, ModelRates
from optillm_hooks.gateway.refusals import (
    REFUSALS,
    SEVERAL,
    WHOLE,
    may_be_quoted,
    refused_fields,
    refuses_n,
    refuses_whole,
)
from optillm_hooks.gateway.turns import wait_for_turn
from optillm_hooks.messages import write_chat
from optillm_hooks.trace import Trace
from optillm_hooks.types import Chat, Completion, Delta, Message, Sampling, Usage

_FALLBACKS_HEADER = "x-litellm-attempted-fallbacks"
_LONGEST_REPLY = 16_384
"""Tokens that LiteLLM reserves for a reply of unknown length."""

_BAD_REQUEST, _UNAVAILABLE = 400, 503


@dataclass(slots=True)
class _Received:
    """What has arrived of a reply."""

    pieces: list[str] = field(default_factory=list[str])
    usage: Usage | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def add(self, delta: Delta) -> None:
        self.pieces += [delta.reasoning, delta.text]
        self.usage = delta.usage or self.usage


class RouterModel:
    """A model group, called on a caller's account; without a router, through LiteLLM's SDK."""

    def __init__(
        self, model: str, router: Router | None, caller: Caller, facts_of: FactsOf
    ) -> None:
        self.model = model
        self._router = router
        self._caller = caller
        self._facts_of = facts_of
        self._rates = ModelRates(model, caller.key)

    @property
    def facts(self) -> GroupFacts:
        return self._facts_of(self.model)

    @asynccontextmanager
    async def _on_account(
        self, chat: Chat, sampling: Sampling, choices: int, inner: InnerCall
    ) -> AsyncIterator[Counted]:
        """Make one call in its turn, under the caller's budgets and rate limits.

        Raises:
            BudgetExceeded: one of the caller's budgets is used up.
            ProviderFailed: one of the caller's rate limits for this model is reached.
        """

        def expected() -> Usage:
            prompt = self.facts.count_tokens(chat, sampling)
            return Usage(
                prompt_tokens=prompt, completion_tokens=choices * (sampling.max_tokens or 0)
            )

        caller = self._caller
        if self._router is not None:
            await wait_for_turn(caller.share)
        async with AsyncExitStack() as stack:
            with as_sample_errors(), budgets_as_sample_errors():
                await stack.enter_async_context(self._paying(chat, sampling, choices, inner))
            if caller.call is None and self._router is not None:  # others have a place already
                limit = read_settings().max_inner_calls
                whose = Whose(caller.share, id(caller.account))
                await stack.enter_async_context(QUEUE.place(whose, limit))
            yield await stack.enter_async_context(self._rates.counting(expected))

    @asynccontextmanager
    async def _paying(
        self, chat: Chat, sampling: Sampling, choices: int, inner: InnerCall
    ) -> AsyncIterator[None]:
        """Make one call under the caller's budgets.

        Raises:
            BudgetExceededError: LiteLLM's.
        """
        caller, router = self._caller, self._router

        def most() -> float:
            """Return what the call may cost, by the same rules as LiteLLM's reservations."""
            price = self.facts.price
            if price is None:
                return 0.0
            longest = self.facts.max_output_tokens or _LONGEST_REPLY
            reply = choices * min(sampling.max_tokens or _LONGEST_REPLY, longest)
            prompt = self.facts.count_tokens(chat, sampling)
            return prompt * price.prompt + reply * price.completion

        if caller.call is not None:  # the call that this one answers is paid for
            if router is not None:
                await check_budgets(self.model, caller.key, router, caller.reservation)
            yield
            return
        async with paying(
            self.model, caller.key, router, caller.account, caller.reservation, most
        ) as inner.payment:
            yield

    @contextmanager
    def _errors(self, inner: InnerCall) -> Iterator[None]:
        """Raise LiteLLM's errors of a failed call as ours."""
        try:
            with as_sample_errors():
                yield
        except ProviderFailed as exc:
            if inner.refused and exc.status == _BAD_REQUEST:
                exc.status = _UNAVAILABLE  # it was not the client's, and may be served later
            if len(self.facts.deployments) > 1 and not is_of_whole_group(exc):
                exc.wait_s = None  # the router sends the next call to another deployment
            raise

    def _common(self, inner: InnerCall) -> dict[str, Any]:
        """Return the arguments that every call gets."""
        request = {
            **self._caller.extra,
            "model": self.model,
            "metadata": {
                **self._caller.metadata,
                **span_metadata(),
                **self._caller.tags.metadata(each.params for each in self.facts.deployments),
                INNER_CALL_KEY: inner,
            },
        }
        if self._router is not None:
            request["failure_callback"] = [self._caller.failures]
        return request


class RouterLLM(RouterModel):
    """An `LLM`."""

    def __init__(
        self,
        model: str,
        router: Router | None,
        caller: Caller,
        facts_of: FactsOf,
        trace: Trace,
    ) -> None:
        super().__init__(model, router, caller, facts_of)
        self._ask: Any = litellm.acompletion if router is None else router.acompletion
        self._trace = trace
        self._refused_n: list[Chat] = []

    @property
    def facts(self) -> GroupFacts:
        facts = self._facts_of(self.model)
        return facts if REFUSALS.takes_n(self.model) else replace(facts, max_n=1)

    async def complete(self, chat: Chat, sampling: Sampling, /) -> Completion:
        return (await self.complete_n(chat, sampling, 1))[0]

    async def complete_n(self, chat: Chat, sampling: Sampling, n: int, /) -> Sequence[Completion]:
        """Return the choices of one call; of a host that only streams, the one of a stream."""
        if not REFUSALS.only_streams(self.model):
            try:
                return await self._whole(chat, sampling, n)
            except ProviderFailed as exc:
                if not refuses_whole(exc, chat):
                    raise
            REFUSALS.add(self.model, WHOLE)
            REFUSALS.add(self.model, SEVERAL)
        return [await self._from_stream(chat, sampling)]

    async def _from_stream(self, chat: Chat, sampling: Sampling) -> Completion:
        reply, end = DeltaAccumulator(), Delta(finish_reason="stop", usage=Usage(calls=1))
        async with aclosing(self.stream(chat, sampling)) as pieces:
            async for delta in pieces:
                reply.add(delta)
                end = replace(
                    delta,
                    finish_reason=delta.finish_reason or end.finish_reason,
                    usage=delta.usage or end.usage,
                    facts=delta.facts or end.facts,
                )
        answer = reply.answer(end.finish_reason or "stop")
        given = {each.name: getattr(answer, each.name) for each in fields(answer)}
        return Completion(**given, usage=end.usage or Usage(calls=1), facts=end.facts)

    def _new_call(self, chat: Chat, sampling: Sampling, choices: int) -> InnerCall:
        inner = self._caller.new_call(self.model)
        outer = self._caller.call
        if outer is not None:
            inner.held = outer.held
        elif inner.needs_price and (price := self.facts.price_of(sampling)) is not None:
            prompt = self.facts.count_tokens(chat, sampling)
            reply = choices * (sampling.max_tokens or 0)
            usd = prompt * price.prompt + reply * price.completion
            inner.held = Held(self.model, usd, prompt)
        return inner

    async def _whole(self, chat: Chat, sampling: Sampling, n: int) -> Sequence[Completion]:
        inner = self._new_call(chat, sampling, n)
        async with self._on_account(chat, sampling, n, inner) as call:
            request = self._request(chat, sampling, inner)
            with (
                self._provider_errors(chat, sampling, n, inner),
                self._booked_if_cut_off(chat, sampling, inner, _Received()),
            ):
                response = await self._ask(**request, **({"n": n} if n > 1 else {}))
            if n == 1 and chat in self._refused_n:
                REFUSALS.add(self.model, SEVERAL)
            self._note_fallback(response, sampling, request)
            if not isinstance(response, ModelResponse) or not response.choices:
                raise ProviderFailed("the provider's reply has no choices")
            self._count_fallback(response, inner)
            completions = read_completions(response, self._cost(response) + inner.cost_usd)
            call.usage = completions[0].usage
            inner.payment.settle(call.usage.cost_usd)
            return completions

    async def stream(self, chat: Chat, sampling: Sampling, /) -> AsyncGenerator[Delta, None]:
        inner, received = self._new_call(chat, sampling, 1), _Received()
        async with self._on_account(chat, sampling, 1, inner) as call:
            request = self._request(chat, sampling, inner)
            with (
                self._provider_errors(chat, sampling, 1, inner),
                self._booked_if_cut_off(chat, sampling, inner, received),
            ):
                chunks = await self._ask(
                    **request, stream=True, stream_options={"include_usage": True}
                )
                self._note_fallback(chunks, sampling, request)
                try:
                    async for chunk in chunks:
                        delta = self._priced(read_delta(chunk, 0.0), chunk, chunks, inner)
                        received.add(delta)
                        if received.usage is not None and received.usage.total_tokens:
                            call.usage = received.usage
                        yield delta
                        await asyncio.sleep(0)  # others get a turn even if the next piece is here
                    self._count_fallback(chunks, inner)
                    if received.usage is not None:
                        inner.payment.settle(received.usage.cost_usd)
                finally:
                    await chunks.aclose()

    @contextmanager
    def _provider_errors(
        self, chat: Chat, sampling: Sampling, n: int, inner: InnerCall
    ) -> Iterator[None]:
        """Raise LiteLLM's errors of a failed call as ours, with the fields that are refused.

        Single calls make up for several choices that are refused. If one succeeds, the refusal is
        remembered; otherwise the error was about the prompt, which it may quote.
        """
        try:
            with self._errors(inner):
                yield
        except ProviderFailed as exc:
            exc.refused = refused_fields(exc, sampling)
            if n > 1 and refuses_n(exc):
                self._refused_n.append(chat)
            raise

    @contextmanager
    def _booked_if_cut_off(
        self, chat: Chat, sampling: Sampling, inner: InnerCall, received: "_Received"
    ) -> Iterator[None]:
        """Book the call if it is cut off: the usage that its provider told, or an estimate."""

        def usage() -> Usage:
            if received.usage is not None:
                return received.usage
            count, reply = self.facts.count_tokens, 0
            if text := received.text:
                reply = count((Message("assistant", text),), Sampling())
            return Usage(prompt_tokens=count(chat, sampling), completion_tokens=reply)

        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            book(inner, lambda model: cut_reply(model, received.text, usage()))
            raise

    def _request(self, chat: Chat, sampling: Sampling, inner: InnerCall) -> dict[str, Any]:
        request = {
            **self._common(inner),
            **write_sampling(sampling),
            "messages": write_chat(chat),
        }
        if self._router is not None and self._router.fallbacks:
            request["include_fallback_errors"] = True
        if litellm.cache is not None:
            cache = request["cache"] = dict(self._caller.cache)
            if sampling.sample:
                spaces = (cache.get("namespace") or litellm.cache.namespace, "optillm-sample")
                cache["namespace"] = f"{':'.join(filter(None, spaces))}-{sampling.sample}"
        return request

    def _note_fallback(
        self, response: object, sampling: Sampling, request: Mapping[str, Any]
    ) -> None:
        """Remember fields whose refusal has made the router fall back to another model."""
        hidden = getattr(response, "_hidden_params", None) or {}
        errors = get_fallback_errors_from_headers(hidden.get("additional_headers") or {})
        for error in errors[:1]:  # the group's own; the others are those of its fallbacks
            code = str(error.get("code"))
            status = int(code) if code.isdigit() else 0
            told = ProviderFailed(str(error.get("message")), status=status)
            refused = refused_fields(told, sampling)
            if refused and not may_be_quoted(refused, request):
                REFUSALS.add(self.model, refused)

    def _count_fallback(self, response: object, inner: InnerCall) -> None:
        """Count an answered call, which is lost if another model group has answered it.

        The router counts as a fallback, too, that another deployment of the group has answered.
        """
        hidden = getattr(response, "_hidden_params", None) or {}
        headers = hidden.get("additional_headers") or {}
        fell = bool(headers.get(_FALLBACKS_HEADER)) and (
            hidden.get("model_id") not in self.facts.prices
        )
        self._trace.count("fallbacks", lost=int(fell or inner.answered_by_alias), of=1)

    @staticmethod
    def _cost(response: ModelResponse) -> float:
        hidden = getattr(response, "_hidden_params", None) or {}
        return float(hidden.get("response_cost") or 0.0)

    def _priced(
        self, delta: Delta, chunk: ModelResponseStream, stream: object, inner: InnerCall
    ) -> Delta:
        """Return the delta with its usage priced by the deployment that answered."""
        usage = delta.usage
        if usage is None or not usage.total_tokens:
            return delta
        if inner.answered_by_alias:
            return replace(delta, usage=usage + Usage(cost_usd=inner.cost_usd))
        deployment = (getattr(chunk, "_hidden_params", None) or {}).get("model_id")
        told = stream_cost(chunk, stream, deployment)
        if told is not None and is_amount(told):
            return replace(delta, usage=usage + Usage(cost_usd=told))
        price = self.facts.price_at(deployment)
        if price is None:
            return delta
        cost = usage.prompt_tokens * price.prompt + usage.completion_tokens * price.completion
        return replace(delta, usage=usage + Usage(cost_usd=cost))


def stream_cost(chunk: ModelResponseStream, stream: object, deployment: object) -> float | None:
    """Return what a stream costs by its last chunk: the provider's word, or LiteLLM's price of it.

    LiteLLM prices cached tokens and the like, as in the spend that it logs. None if it does not
    know the price, or if another deployment than the stream's first answered.
    """
    usage = getattr(chunk, "usage", None)
    told: Any = getattr(usage, "cost", None)
    if is_amount(told):
        return float(told)
    log: Any = getattr(stream, "logging_obj", None)
    if log is None or log.get_router_model_id() != deployment:
        return None
    whole = ModelResponse(model=chunk.model, usage=usage)
    cost: float | None = log.response_cost_calculator(result=whole, router_model_id=deployment)
    return cost
