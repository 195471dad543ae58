"""The custom LLM provider: runs the plan that the hook admitted, or the one in the model name."""

import asyncio
import inspect
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import httpx
import litellm
from anyio import create_memory_object_stream
from anyio.from_thread import BlockingPortal, start_blocking_portal
from anyio.streams.memory import MemoryObjectReceiveStream
from litellm import Router
from litellm.litellm_core_utils.redact_messages import should_redact_message_logging
from litellm.llms.custom_llm import CustomLLM
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.router import Deployment
from litellm.types.utils import ModelResponse, ModelResponseStream

from optillm_hooks.budget import Limits
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.errors import (
    RATE_LIMIT_EXCEEDED,
    BudgetExceeded,
    DeadlineExceeded,
    OptiLLMError,
    RequestRejected,
)
from optillm_hooks.gateway.admission import admit
from optillm_hooks.gateway.applied_limits import tell_limit
from optillm_hooks.gateway.brownout import BROWNOUT
from optillm_hooks.gateway.caller import (
    Caller,
    is_health_check,
    metadata_of,
    read_caller,
    read_reservation,
)
from optillm_hooks.gateway.convert import read_sampling, write_chunk, write_response, write_usage
from optillm_hooks.gateway.cooldowns import do_not_count
from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.estimates import dry_outcome
from optillm_hooks.gateway.failures import as_sample_errors, budgets_as_sample_errors, to_litellm
from optillm_hooks.gateway.host_limits import seconds_left
from optillm_hooks.gateway.inner_call import inner_call
from optillm_hooks.gateway.kill_switch import SWITCHED_OFF, as_plain, is_off
from optillm_hooks.gateway.local_models import LOCAL_PROVIDER
from optillm_hooks.gateway.messages_route import (
    END_OF_PROGRESS,
    for_claude,
    with_files,
    with_stand_ins,
)
from optillm_hooks.gateway.metrics import count_brownout
from optillm_hooks.gateway.observers import Started, observed
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.plain_base import PlainBase
from optillm_hooks.gateway.prepared import ClientRequest, Prepared, Route, attached
from optillm_hooks.gateway.reports import report_object, word
from optillm_hooks.gateway.router_llm import RouterLLM
from optillm_hooks.gateway.router_scorer import RouterScorer
from optillm_hooks.gateway.sampling_rules import check_client
from optillm_hooks.gateway.selection import deployment_id, on_deployment, select_deployment
from optillm_hooks.gateway.services import services_for
from optillm_hooks.messages import read_chat
from optillm_hooks.pipeline.events import Event, Models, Outcome, Piece, Progress, Report, Request
from optillm_hooks.pipeline.plan import Plan
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.running import RUNNING
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.settings import Settings
from optillm_hooks.types import Answer, Delta, FinishReason, Usage

_log = logging.getLogger(__name__)

_DEFAULT_TIMEOUT = 600.0
"""LiteLLM's timeout if none is configured: not a deadline that an operator chose."""


_OWN_LIMITS = frozenset({BudgetExceeded.code, RATE_LIMIT_EXCEEDED})
"""Errors by limits of one caller. They say nothing about the alias, which others use too."""

_CACHE_KEY = "prompt_cache_key"


class Provider(CustomLLM):
    """LiteLLM's entry in `custom_provider_map` for models named `optillm/<expression>/<base>`.

    Outside a proxy, the plan is taken from the model's name. Inner calls go through the proxy's
    router; to use a router of your own, call `provider.use(router)` first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._router: Router | None = None
        self._caller_cache = CallerCache()

    def use(self, router: Router | None) -> None:
        """Send inner calls through `router` if no proxy runs; with None they go to the SDK."""
        self._router = router

    async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:
        """Return the answers of a plan as one response, with the usage of all its calls.

        A health check of LiteLLM gets an empty answer if the plan can run. It calls no model:
        plans cost money, and LiteLLM checks the models that they call by themselves.
        """
        with _as_litellm_errors(call):
            if (plain := await self._plain_base(call)) is not None:
                n = call["optional_params"].get("n") or 1
                return await plain.reply(call["model_response"], n)
            started, models = await self._request(call, stream=False)
            prepared, request = started.prepared, started.request
            if _client(call) is None and is_health_check(metadata_of(call["litellm_params"])):
                return write_response(call["model_response"], (Answer(""),), Usage(), request.base)
            with observed(started):
                if prepared.selection.dry_run:
                    outcome = prepared.outcome = dry_outcome(prepared)
                else:
                    outcome = prepared.outcome = await run(request, models, prepared.trace)
            _tell(_client(call), outcome)
        response = write_response(
            call["model_response"], outcome.answers, outcome.report.usage, prepared.requested
        )
        # The inner calls are billed. If this one had a price too, the caller would pay twice.
        response._hidden_params["response_cost"] = 0.0
        if prepared.route == "chat":
            response.optillm = report_object(outcome.report)
        return response

    async def astreaming(self, *_: Any, **call: Any) -> AsyncGenerator[ModelResponseStream, None]:
        """Yield the chunks of a plan's answers; usage and report come near the end."""
        begun = False
        with _as_litellm_errors(call, before_stream=lambda: not begun):
            if (plain := await self._plain_base(call)) is not None:
                made = plain.chunks()
            else:
                made = _chunks(*await self._request(call, stream=True), _client(call))
            async with aclosing(made) as chunks:
                async for chunk in chunks:
                    begun = True
                    yield chunk

    def completion(self, *_: Any, **call: Any) -> ModelResponse:
        """Return the response of `acompletion`, for the SDK's synchronous `completion`."""
        with _loop_in_a_thread() as loop:
            return loop.call(partial(self.acompletion, **call))

    def streaming(self, *_: Any, **call: Any) -> Iterator[ModelResponseStream]:
        """Yield the chunks of `astreaming`, for the SDK's synchronous `completion`.

        Closing the iterator cancels the calls.
        """
        send, receive = create_memory_object_stream[ModelResponseStream]()

        async def pump() -> None:
            async with send, aclosing(self.astreaming(**call)) as chunks:
                async for chunk in chunks:
                    await send.send(chunk)

        with _loop_in_a_thread() as loop, receive:
            # One task runs the whole stream: its cancel scopes may not change tasks.
            pumping = loop.start_task_soon(pump)
            try:
                while (chunk := loop.call(_next, receive)) is not None:
                    yield chunk
                pumping.result()
            finally:
                pumping.cancel()

    async def _plain_base(self, call: Mapping[str, Any]) -> PlainBase | None:
        """Return the model that answers a call of another plan; None if a client made the call."""
        inner = inner_call(metadata_of(call.get("litellm_params") or {}))
        if inner is None:
            return None
        return await PlainBase.read(call, inner, proxy_router() or self._router)

    async def _request(self, call: Mapping[str, Any], *, stream: bool) -> tuple[Started, Models]:
        litellm_params = call.get("litellm_params") or {}
        optional = call["optional_params"]
        router = proxy_router() or self._router
        prepared = await _admitted(str(call["model"]), litellm_params, optional, router)
        prepared.trace.call_id = word(str(litellm_params.get("litellm_call_id") or ""))
        made = _made_for_base(prepared)
        messages = made.get("messages", call["messages"])
        fields = _of_client(optional, prepared)
        if "thinking" in made:
            fields = {name: value for name, value in fields.items() if name != "reasoning_effort"}
        client = read_sampling({**fields, **prepared.fields, **made})
        with as_sample_errors():
            check_client(
                prepared.facts_of(prepared.base).deployments,
                client,
                drop_params=bool(litellm_params.get("drop_params")),
            )
        timeout = Limits(deadline_s=_seconds(call.get("timeout")))
        host = timeout.lowered(Limits(deadline_s=seconds_left(stream=stream)))
        prepared.host_s = host.deadline_s
        of_client = _client(call)
        limits = prepared.limits if of_client is None else of_client.begin(prepared)
        settings = read_settings()
        caller = read_caller(
            litellm_params,
            prepared.user,
            prepared.cache,
            needs_price=prepared.limits.max_cost_usd is not None,
            allow_no_log=settings.allow_no_log,
        )
        key = str(caller.metadata.get("user_api_key") or "")
        request = Request(
            plan=_within_width(prepared, settings),
            base=prepared.base,
            chat=read_chat(with_files(messages) if prepared.route == "messages" else messages),
            client=client,
            n=optional.get("n") or 1,
            limits=limits.lowered(host),
            on_error=prepared.settings.on_error,
            progress=prepared.settings.progress,
            scorers=_scorers(router, caller, prepared),
            services=services_for(prepared.settings, settings, router, caller),
            caller=key,
            caller_cache=self._caller_cache.for_caller(key),
        )
        started = Started(
            prepared=prepared,
            request=request,
            caller=caller,
            stream=stream,
            hides_texts=_hides_texts(call),
        )
        return started, _models(router, caller, prepared)


def _within_width(prepared: Prepared, settings: Settings) -> Plan:
    """Return the plan to run: in a brown-out, one with fewer samples, which the report says."""
    width = BROWNOUT.width(settings.brownout)
    if width is None or prepared.selection.dry_run:
        return prepared.plan
    plan = prepared.plan.narrowed(width)
    if plan == prepared.plan:
        return plan
    prepared.trace.doubt(f"brownout:{width}")
    count_brownout(prepared, width)
    return plan


def _made_for_base(prepared: Prepared) -> dict[str, Any]:
    """Return fields that LiteLLM has made of Anthropic's as for another model.

    Claude gets all of them. A local model gets the budget of thinking, of which LiteLLM has made an
    effort.
    """
    deployments = prepared.facts_of(prepared.base).deployments
    if deployments and all(each.provider == LOCAL_PROVIDER for each in deployments):
        return {k: v for k, v in prepared.body.items() if k == "thinking"}
    if not prepared.body or not deployments or not all(each.is_claude for each in deployments):
        return {}
    return for_claude(prepared.body, deployments[0].model, deployments[0].provider)


def _hides_texts(call: Mapping[str, Any]) -> bool:
    """Return whether LiteLLM leaves the texts of a call out of its logs."""
    log = call.get("logging_obj")
    return log is not None and bool(should_redact_message_logging(log.model_call_details))


def _of_client(optional: Mapping[str, Any], prepared: Prepared) -> Mapping[str, Any]:
    """Return a request's fields without one that LiteLLM has made, if a model would refuse it.

    From the session in Anthropic's `metadata`, as Claude Code sends it, LiteLLM makes a key for
    OpenAI's prompt cache.
    """
    models = prepared.selection.models
    if prepared.route != "messages" or all(
        prepared.facts_of(model).supports(_CACHE_KEY) for model in models
    ):
        return optional
    return {name: value for name, value in optional.items() if name != _CACHE_KEY}


@contextmanager
def _loop_in_a_thread() -> Iterator[BlockingPortal]:
    """Yield an event loop that runs in a thread. LiteLLM's clients of the loop close with it."""
    with start_blocking_portal() as loop:
        try:
            yield loop
        finally:
            loop.call(close_clients)


async def close_clients() -> None:
    """Close the clients that LiteLLM keeps for the running event loop."""
    kept = litellm.in_memory_llm_clients_cache.cache_dict
    loop = f"-{id(asyncio.get_running_loop())}"
    for key in [key for key in kept if key.endswith(loop)]:
        client = kept.pop(key)
        if inspect.iscoroutinefunction(getattr(client, "close", None)):
            await client.close()
    await asyncio.sleep(0)  # a transport closes in the loop's next step


async def _next(chunks: MemoryObjectReceiveStream[ModelResponseStream]) -> Any:
    """Return the next chunk, or None at the end."""
    return await anext(chunks, None)


def _client(call: Mapping[str, Any]) -> ClientRequest | None:
    """Return the client's request that `call` answers; None for a call of another plan."""
    metadata = metadata_of(call.get("litellm_params") or {})
    return None if inner_call(metadata) is not None else attached(metadata)


def _tell(client: ClientRequest | None, outcome: Outcome) -> None:
    if client is not None:
        client.outcome = outcome


@contextmanager
def _as_litellm_errors(
    call: Mapping[str, Any], before_stream: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Raise our errors as LiteLLM's, and keep them for the headers and against retries."""
    client = _client(call)
    deployment = deployment_id(metadata_of(call.get("litellm_params") or {}))
    try:
        if client is not None and deployment in client.failed:
            raise client.failed[deployment]
        yield
    except OptiLLMError as exc:
        if client is not None and exc.status >= 429:  # LiteLLM may ask again with a shorter prompt
            client.failed[deployment] = exc
        if client is not None and client.prepared is not None:
            client.prepared.error = exc
            tell_limit(exc, client.prepared)
        # LiteLLM reports a bad request if the chain of exceptions contains an AttributeError.
        exc.__cause__ = exc.__context__ = None
        routed = before_stream() and "model_group" in metadata_of(call.get("litellm_params") or {})
        raised = to_litellm(exc, str(call["model"]), before_stream=routed)
        if exc.code in _OWN_LIMITS or (exc.code == DeadlineExceeded.code and _hurries(call)):
            do_not_count(raised)
        raise raised from None


def _hurries(call: Mapping[str, Any]) -> bool:
    """Return whether the deadline is not the alias's own: the client's, or its key's, is."""
    client = _client(call)
    if RUNNING.are_hurried or (client is not None and client.is_hurried):
        return True
    prepared = None if client is None else client.prepared
    deadline = None if prepared is None else prepared.of_whole_request.deadline_s
    return bool(deadline or (call.get("litellm_params") or {}).get("client_side_timeout"))


def _models(router: Router | None, caller: Caller, prepared: Prepared) -> Models:
    def model(name: str) -> RouterLLM:
        called = prepared.selection.called.get(name, name)
        return RouterLLM(called, router, caller, prepared.facts_of, prepared.trace)

    return cache(model)


def _scorers(
    router: Router | None, caller: Caller, prepared: Prepared
) -> Callable[[str], RouterScorer | None]:
    def scorer(name: str) -> RouterScorer | None:
        called = prepared.selection.called.get(name, name)
        found = RouterScorer(called, router, caller, prepared.facts_of)
        return found if found.facts.max_scored else None

    return cache(scorer)


async def _admitted(
    model: str,
    litellm_params: Mapping[str, Any],
    optional: Mapping[str, Any],
    router: Router | None,
) -> Prepared:
    """Return the request that the hook admitted for this deployment, or admit the plan in its name.

    The router may choose another deployment of the alias than the hook has read. A fallback may
    lead from one alias to another, which has its own plan.

    Raises:
        RequestRejected: the plan cannot run, or it is a client's and has bypassed the hook.
        SampleError: the caller may not use one of its models.
        OptiLLMError: the hook's result for this request is lost.
    """
    metadata = metadata_of(litellm_params)
    group = str(metadata.get("model_group") or model)
    client = attached(metadata)
    before = None if client is None else client.prepared
    temperature = optional.get("temperature")
    of_client = client is not None and client.model == group
    if of_client and before is not None:
        selection = on_deployment(
            before.selection, model, litellm_params, read_settings(), temperature
        )
        if before.is_final and selection is before.selection:
            return before
    else:
        _check_hook(client, group, litellm_params)
        _check_no_wildcard(litellm_params)
        selection = select_deployment(model, group, litellm_params, read_settings(), temperature)
        if before is not None:
            asked = before.asked
            selection = replace(selection, asked=asked, limits=selection.limits.lowered(asked))
    found = metadata.get("user_api_key_auth")
    key = found if isinstance(found, UserAPIKeyAuth) else None
    if switched_off := is_off(key):
        selection = as_plain(selection)
    with as_sample_errors(), budgets_as_sample_errors():
        prepared = await admit(
            selection,
            read_settings(),
            router,
            key,
            n=optional.get("n"),
            route="chat" if client is None else client.route,
            reservation=read_reservation(metadata),
            before=before,
        )
    if switched_off:
        prepared.trace.note(SWITCHED_OFF)
    if of_client and client is not None:
        client.prepared = prepared
    return prepared


def _check_hook(
    client: ClientRequest | None, group: str, litellm_params: Mapping[str, Any]
) -> None:
    """Refuse a proxy's request without the plan that the hook has prepared for it.

    The plan in the deployment's name would ignore what the client asked for. It is used only where
    another model of the request leads to it: by a fallback, after a comma, or by one of LiteLLM's
    routers over model groups.

    Raises:
        OptiLLMError: the hook did not run, or LiteLLM has not passed on what it prepared.
    """
    if client is None:
        lost = bool(litellm_params.get("proxy_server_request"))
    elif client.prepared is None:
        lost = client.model == group and not _is_routed(group, litellm_params)
    else:
        lost = not metadata_of(litellm_params).get("attempted_fallbacks")
    if lost:
        raise OptiLLMError(
            f"{group!r} was called without the plan of the request: our hook must be one of "
            "litellm_settings.callbacks"
        )


def _is_routed(group: str, litellm_params: Mapping[str, Any]) -> bool:
    """Return whether LiteLLM has chosen the deployment of another group than the client's."""
    deployment = _deployment(litellm_params)
    return deployment is not None and deployment.model_name != group


def _deployment(litellm_params: Mapping[str, Any]) -> Deployment | None:
    router = proxy_router()
    info = litellm_params.get("model_info") or {}
    return None if router is None else router.get_deployment(model_id=str(info.get("id")))


def _check_no_wildcard(litellm_params: Mapping[str, Any]) -> None:
    """Refuse a client's own plan that bypassed the hook: as a fallback, or after a comma.

    Raises:
        RequestRejected: the deployment is `optillm/*`, which matches any plan.
    """
    deployment = _deployment(litellm_params)
    if deployment is not None and "*" in deployment.litellm_params.model:
        raise RequestRejected(
            "a model name with an approach must be the only model of a request: it cannot be a "
            "fallback or one of several models",
            param="model",
        )


def _seconds(timeout: object) -> float | None:
    value = timeout.read if isinstance(timeout, httpx.Timeout) else timeout
    if not isinstance(value, int | float) or value >= _DEFAULT_TIMEOUT:
        return None
    return float(value)


async def _events(
    prepared: Prepared, request: Request, models: Models
) -> AsyncGenerator[Event, None]:
    """Yield the events of the plan's stream; of a dry run, its answer and its outcome."""
    if not prepared.selection.dry_run:
        async with aclosing(stream(request, models, prepared.trace)) as events:
            async for event in events:
                yield event
        return
    outcome = dry_outcome(prepared)
    yield Piece(0, Delta(text=outcome.answers[0].text))
    yield outcome


async def _chunks(
    started: Started, models: Models, client: ClientRequest | None
) -> AsyncGenerator[ModelResponseStream, None]:
    """Yield the chunks of a stream, in the order that LiteLLM's stream wrapper requires.

    The wrapper ends the stream at the first finish reason of choice 0 and makes the final chunk
    itself. Unless an earlier chunk has the usage, it counts tokens with its own tokenizer. So a
    stream ends with usage and report, then the finish reasons of the other choices (in a chunk
    whose choice 0 has none), then that of choice 0.
    """
    prepared, request = started.prepared, started.request
    stream_id = f"chatcmpl-{uuid.uuid4().hex}"
    ends: dict[int, FinishReason] = {}
    begun: set[int] = set()
    shows_progress = seen_piece = False

    def chunk(pieces: Mapping[int, Delta]) -> ModelResponseStream:
        role = not begun.issuperset(pieces)
        begun.update(pieces)
        return write_chunk(pieces, stream_id=stream_id, model=prepared.requested, role=role)

    with observed(started) as show:
        async with aclosing(_events(prepared, request, models)) as events:
            async for event in events:
                match event:
                    case Progress(text):
                        shows_progress = shows_progress or bool(text)
                        yield chunk({0: Delta(reasoning=f"{text}\n" if text else "")})
                    case Piece(choice, delta):
                        if not seen_piece:
                            seen_piece = True
                            prepared.trace.first_piece()
                        show(choice, delta)
                        if delta.finish_reason is not None:
                            ends[choice] = delta.finish_reason
                        piece = replace(delta, finish_reason=None, usage=None)
                        if prepared.route == "messages":
                            if shows_progress:
                                shows_progress = False
                                yield chunk({choice: END_OF_PROGRESS})
                            piece = with_stand_ins(piece)
                        if piece != Delta():
                            yield chunk({choice: piece})
                    case Outcome():
                        prepared.outcome = event
                        _tell(client, event)
    if prepared.outcome is None:
        return
    yield _with_report(chunk({0: Delta()}), prepared.outcome.report, prepared.route)
    others = {choice: Delta(finish_reason=end) for choice, end in ends.items() if choice != 0}
    if others:
        yield chunk({0: Delta(), **others})
    yield chunk({0: Delta(finish_reason=ends.get(0, "stop"))})


def _with_report(chunk: ModelResponseStream, report: Report, route: Route) -> ModelResponseStream:
    """Return `chunk` with the usage of all calls, and on the chat route with the report."""
    chunk.usage = write_usage(report.usage)
    if route == "chat":
        chunk.optillm = report_object(report)
        # Without provider-specific fields, the proxy treats a chunk without text as a usage chunk,
        # and drops it if the client did not ask for usage.
        chunk.provider_specific_fields = {}
    return chunk
