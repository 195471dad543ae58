"""The custom LLM provider: runs the plan that the hook admitted, or that the model name has."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import httpx
from anyio.from_thread import start_blocking_portal
from litellm import Router
from litellm.llms.custom_llm import CustomLLM
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import ModelResponse, ModelResponseStream

from optillm_hooks.budget import Limits
from optillm_hooks.caller_cache import CallerCache
from optillm_hooks.code_execution.runner import code_runner
from optillm_hooks.errors import OptiLLMError, RequestRejected
from optillm_hooks.gateway.admission import admit
from optillm_hooks.gateway.caller import Caller, metadata_of, read_caller, read_reservation
from optillm_hooks.gateway.convert import (
    read_chat,
    read_sampling,
    write_chunk,
    write_response,
    write_usage,
)
from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.failures import as_sample_errors, budgets_as_sample_errors, to_litellm
from optillm_hooks.gateway.model_facts import FactsOf
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.prepared import Prepared, Route, current, current_route
from optillm_hooks.gateway.reports import log_line, report_object, word
from optillm_hooks.gateway.router_llm import RouterLLM
from optillm_hooks.gateway.selection import select_deployment
from optillm_hooks.pipeline.events import Models, Outcome, Piece, Progress, Report, Request
from optillm_hooks.pipeline.run import run
from optillm_hooks.pipeline.stream import stream
from optillm_hooks.types import Delta, FinishReason

_log = logging.getLogger(__name__)

_SELF_TIMEOUT = 600.0
"""LiteLLM's own time limit where nobody has set one: not a deadline that an operator chose."""


class Provider(CustomLLM):
    """LiteLLM's entry in `custom_provider_map` for models named `optillm/<expression>/<base>`.

    Outside the proxy it takes what the model's name says. Its inner calls go to the router of the
    proxy; for a router of your own, say `provider.use(router)` first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._router: Router | None = None
        self._caller_cache = CallerCache()

    def use(self, router: Router | None) -> None:
        """Send inner calls through `router` where no proxy runs; None sends them to the SDK."""
        self._router = router

    async def acompletion(self, *_: Any, **call: Any) -> ModelResponse:
        """Return the answers of a plan as one response, with the usage of all its calls."""
        model = str(call["model"])
        with _as_litellm_errors(model):
            prepared, request, models = await self._request(model, call)
            with _logged(prepared):
                outcome = prepared.outcome = await run(request, models, prepared.trace)
        response = write_response(
            call["model_response"], outcome.answers, outcome.report.usage, prepared.requested
        )
        # The inner calls carry the cost; priced again here, the caller would pay twice.
        response._hidden_params["response_cost"] = 0.0
        if prepared.route == "chat":
            response.optillm = report_object(outcome.report)
        return response

    async def astreaming(self, *_: Any, **call: Any) -> AsyncIterator[ModelResponseStream]:
        """Yield the answers of a plan, chunk by chunk, with usage and report before the last."""
        model = str(call["model"])
        with _as_litellm_errors(model):
            prepared, request, models = await self._request(model, call)
            async with aclosing(_chunks(prepared, request, models)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def completion(self, *_: Any, **call: Any) -> ModelResponse:
        """Return what `acompletion` does, for the SDK's synchronous function."""
        with start_blocking_portal() as loop:
            return loop.call(partial(self.acompletion, **call))

    async def _request(
        self, model: str, call: Mapping[str, Any]
    ) -> tuple[Prepared, Request, Models]:
        litellm_params = call.get("litellm_params") or {}
        optional = call["optional_params"]
        router = proxy_router() or self._router
        prepared = await _admitted(model, litellm_params, optional, router)
        prepared.trace.call_id = word(str(litellm_params.get("litellm_call_id") or ""))
        client = read_sampling({**optional, **prepared.fields})
        timeout = Limits(deadline_s=_seconds(call.get("timeout")))
        caller = read_caller(litellm_params, prepared.user, prepared.cache)
        request = Request(
            plan=prepared.plan,
            base=prepared.base,
            chat=read_chat(call["messages"]),
            client=client,
            n=optional.get("n") or 1,
            limits=prepared.limits.lowered(timeout),
            on_error=prepared.settings.on_error,
            progress=prepared.settings.progress,
            code_runner=code_runner(prepared.settings.code_runner),
            caller_cache=self._caller_cache.of(str(caller.metadata.get("user_api_key") or "")),
        )
        return prepared, request, _models(router, caller, prepared.facts_of)


@contextmanager
def _as_litellm_errors(model: str) -> Iterator[None]:
    """Raise our errors as LiteLLM's, and keep them for the headers."""
    try:
        yield
    except OptiLLMError as exc:
        prepared = current.get()
        if prepared is not None:
            prepared.error = exc
        # LiteLLM blames the request if there is an AttributeError anywhere in the chain.
        exc.__cause__ = exc.__context__ = None
        raise to_litellm(exc, model) from None


@contextmanager
def _logged(prepared: Prepared) -> Iterator[None]:
    """Log one INFO line when the plan ends: with an answer or an error, or cancelled."""
    started = time.monotonic()
    error = ""
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        error = "cancelled"
        raise
    except Exception as exc:
        error = exc.code if isinstance(exc, OptiLLMError) else type(exc).__name__
        raise
    finally:
        seconds = time.monotonic() - started
        _log.info("%s", log_line(prepared, seconds=seconds, error=error))


def _models(router: Router | None, caller: Caller, facts_of: FactsOf) -> Models:
    def model(name: str) -> RouterLLM:
        return RouterLLM(name, router, caller, facts_of)

    return cache(model)


async def _admitted(
    model: str,
    litellm_params: Mapping[str, Any],
    optional: Mapping[str, Any],
    router: Router | None,
) -> Prepared:
    """Return the plan that the hook admitted for this deployment, else admit that of its name.

    A router's fallback may lead from one alias to another, which has its own plan.

    Raises:
        RequestRejected: the plan cannot run, or a client wrote it past the hook.
        SampleError: the caller may not use one of its models.
    """
    metadata = metadata_of(litellm_params)
    group = str(metadata.get("model_group") or model)
    prepared = current.get()
    if prepared is not None and group == prepared.deployment:
        return prepared
    _check_no_wildcard(litellm_params)
    key = metadata.get("user_api_key_auth")
    settings = read_settings()
    selection = select_deployment(
        model, group, litellm_params, settings, optional.get("temperature")
    )
    with as_sample_errors(), budgets_as_sample_errors():
        return await admit(
            selection,
            settings,
            router,
            key if isinstance(key, UserAPIKeyAuth) else None,
            n=optional.get("n"),
            route=current_route.get(),
            reservation=read_reservation(metadata),
        )


def _check_no_wildcard(litellm_params: Mapping[str, Any]) -> None:
    """Refuse a plan that a proxy's client wrote as a fallback or after a comma, past the hook.

    Raises:
        RequestRejected: the deployment is `optillm/*`, which stands for any plan.
    """
    router = proxy_router()
    info = litellm_params.get("model_info") or {}
    deployment = None if router is None else router.get_deployment(model_id=str(info.get("id")))
    if deployment is not None and "*" in deployment.litellm_params.model:
        raise RequestRejected(
            "an approach before a model can only be asked for by itself: not as a fallback, nor as "
            "one of several models",
            param="model",
        )


def _seconds(timeout: object) -> float | None:
    value = timeout.read if isinstance(timeout, httpx.Timeout) else timeout
    if not isinstance(value, int | float) or value >= _SELF_TIMEOUT:
        return None
    return float(value)


async def _chunks(
    prepared: Prepared, request: Request, models: Models
) -> AsyncGenerator[ModelResponseStream, None]:
    """Yield the chunks of a stream, in an order that LiteLLM's wrapper keeps.

    The wrapper ends a stream at the first finish reason of choice 0, for which it makes the last
    chunk itself. It counts usage by its own tokenizer unless an earlier chunk has it. So all finish
    reasons wait for the end: first usage and report, then the finish reasons of the other choices
    in a chunk whose choice 0 has none, then that of choice 0.
    """
    stream_id = f"chatcmpl-{uuid.uuid4().hex}"
    ends: dict[int, FinishReason] = {}
    spoken: set[int] = set()

    def chunk(pieces: Mapping[int, Delta]) -> ModelResponseStream:
        role = not spoken.issuperset(pieces)
        spoken.update(pieces)
        return write_chunk(pieces, stream_id=stream_id, model=prepared.requested, role=role)

    with _logged(prepared):
        async with aclosing(stream(request, models, prepared.trace)) as events:
            async for event in events:
                match event:
                    case Progress(text):
                        yield chunk({0: Delta(reasoning=f"{text}\n" if text else "")})
                    case Piece(choice, delta):
                        if delta.finish_reason is not None:
                            ends[choice] = delta.finish_reason
                        piece = replace(delta, finish_reason=None, usage=None)
                        if piece != Delta():
                            yield chunk({choice: piece})
                    case Outcome():
                        prepared.outcome = event
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
        # Without a field of the provider's own, the proxy takes a chunk without text for one that
        # only carries usage, and drops it where no usage was asked for.
        chunk.provider_specific_fields = {}
    return chunk
