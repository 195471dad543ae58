"""LiteLLM's hooks: a request's plan is made, and the request rewritten for our provider."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from litellm import BudgetExceededError, Router
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import CallTypes

from optillm_hooks.errors import OptiLLMError, RequestRejected
from optillm_hooks.gateway.budgets import RESERVATIONS
from optillm_hooks.gateway.caller import metadata_of
from optillm_hooks.gateway.convert import is_amount
from optillm_hooks.gateway.cut_off import note_log
from optillm_hooks.gateway.dear_fallbacks import within_held_cost
from optillm_hooks.gateway.deployments import alias_model, proxy_router
from optillm_hooks.gateway.estimates import count_prompt
from optillm_hooks.gateway.failures import over_budget, to_proxy
from optillm_hooks.gateway.inner_call import inner_call
from optillm_hooks.gateway.listed_prices import without_listed_prices, without_prices
from optillm_hooks.gateway.local_models import allowing_reasoning, for_local, is_local
from optillm_hooks.gateway.messages_route import CONVERTED
from optillm_hooks.gateway.metrics import count_switched_off
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.planning import plan_request
from optillm_hooks.gateway.prepared import (
    ClientRequest,
    Prepared,
    Route,
    attach,
    attached,
    attached_to,
)
from optillm_hooks.gateway.reports import header_values, headers_of_plain
from optillm_hooks.gateway.route_responses import completed, stream_completed
from optillm_hooks.gateway.routes import ROUTES, refuse_route, without_nulls
from optillm_hooks.gateway.selection import deployment_id, names_approach, on_deployment
from optillm_hooks.gateway.shadow import SHADOWS, seconds_between
from optillm_hooks.types import Fields

_UNCACHED = {"no-cache": True, "no-store": True}
"""Keeps the outer call out of LiteLLM's cache, whose keys include neither the base model nor the
parameters. The inner calls are cached as usual."""

_BOOKED = ("response_cost", "prompt_tokens", "completion_tokens", "total_tokens")
"""Entries of what LiteLLM logs for a call that counters of spend add up."""


class Hook(CustomLogger):
    """LiteLLM's entry in `callbacks`; see `async_pre_call_hook`."""

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,
        cache: Any,  # noqa: ARG002 (LiteLLM's signature)
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any]:
        """Return `data` unchanged if it names no approach, else rewritten for our provider.

        The plan is parsed, checked and authorised here, before any call is paid for.

        Raises:
            ProxyException: the request is refused, with status 400, or with LiteLLM's own if the
                caller may not use a model.
        """
        router = proxy_router()
        if router is None:
            return data
        RESERVATIONS.add(user_api_key_dict.budget_reservation)
        route = ROUTES.get(call_type)
        if route is None:
            _check_unserved(data.get("model"), call_type, router, user_api_key_dict)
            return data
        try:
            planned = await plan_request(data, route, router, user_api_key_dict)
        except OptiLLMError as exc:
            raise to_proxy(exc) from None
        except BudgetExceededError as exc:
            raise over_budget(exc) from None
        request, prepared = planned.request, planned.prepared
        client = ClientRequest(
            route,
            str(request.get("model")),
            refused_deployments=planned.refused_deployments,
            ignores_tag=planned.ignores_tag,
        )
        client.shadowed.task = asyncio.current_task()
        attach(client, request)
        if planned.switched_off:
            client.instead = client.model if prepared is None else prepared.base
            count_switched_off(client.instead)
        if prepared is None:
            return request
        if prepared.selection.passes_through:
            client.model = prepared.base
            return _passed_through(request, prepared.base, route)
        client.model, client.prepared = prepared.deployment, prepared
        return _rewritten(request, prepared)

    async def async_pre_call_deployment_hook(
        self,
        kwargs: dict[str, Any],
        call_type: CallTypes | None,
    ) -> dict[str, Any] | None:
        """Note the deployment that the router has chosen for a client, or for a plan's own call.

        The headers of a stream tell of the deployment's plan. LiteLLM's log of a plan's call is
        where it is booked if it is cut off. An alias that answers it may get fields of reasoning,
        and so may a local model. An alias has no price. Prices that LiteLLM knows are not told
        again.
        """
        metadata = metadata_of(kwargs)
        client, router = attached(metadata), proxy_router()
        is_alias = alias_model({"litellm_params": kwargs}) is not None
        if (inner := inner_call(metadata)) is not None:
            note_log(kwargs)
            if is_alias:
                return without_prices(allowing_reasoning(kwargs, "verbosity"))
            kwargs = within_held_cost(kwargs, inner, str(metadata.get("model_group"))) or kwargs
        elif client is not None and router and metadata.get("model_group") == client.model:
            _note_deployment(client, router, metadata, kwargs.get("temperature"))
            SHADOWS.draw(client, metadata, kwargs, call_type)
        if is_alias:
            return without_prices(kwargs)
        made = for_local(kwargs) if is_local(kwargs) else kwargs
        return without_listed_prices(made) if call_type is CallTypes.acompletion else made

    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: object,
        start_time: object,
        end_time: object,
    ) -> None:
        """Note that a plan's call is booked, once this task has called all other callbacks too.

        A client's request may have a shadow from now on.
        """
        metadata = metadata_of(kwargs.get("litellm_params") or {})
        call, client = inner_call(metadata), attached(metadata)
        if call is None and client is not None and client.shadowed.settings is not None:
            seconds = seconds_between(start_time, end_time)
            SHADOWS.answered(client, metadata, kwargs, response_obj, seconds)
        task = asyncio.current_task()
        if call is not None and task is not None:
            task.add_done_callback(lambda _: call.payment.book())

    def async_post_call_streaming_iterator_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 (LiteLLM's signature)
        response: AsyncIterator[Any],
        request_data: dict[str, Any],
    ) -> AsyncIterator[Any]:
        """Return the stream, with what LiteLLM loses when it converts it to the client's route."""
        client = attached_to(request_data)
        return response if client is None else stream_completed(response, client)

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 (LiteLLM's signature)
        response: Any,
    ) -> Any:
        """Return the response, with what LiteLLM loses when it converts it to the route."""
        client = attached_to(data)
        return response if client is None else completed(response, client)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 (LiteLLM's signature)
        response: Any,
        request_headers: Mapping[str, str] | None = None,  # noqa: ARG002
        **_: Any,
    ) -> dict[str, str] | None:
        """Return the `x-optillm-*` headers. A stream sends them first, before there are results."""
        client = attached_to(data)
        if client is None:
            return None
        headers = {"x-optillm-tag": "ignored"} if client.ignores_tag else {}
        if client.instead is not None:
            headers |= headers_of_plain(client.instead)
        if client.answering is not None:
            headers |= header_values(client.answering, answered=response is not None)
        return headers or None

    async def async_filter_deployments(
        self,
        model: str,  # noqa: ARG002 (LiteLLM's signature)
        healthy_deployments: list[Any],
        messages: list[Any] | None,  # noqa: ARG002
        request_kwargs: dict[str, Any] | None = None,
        parent_otel_span: Any = None,  # noqa: ARG002
    ) -> list[Any]:
        """Return the deployments that the router may choose, without those that may not serve.

        `async_pre_call_hook` has checked a client's request for each deployment of its model.
        """
        metadata = metadata_of(request_kwargs or {})
        client = attached(metadata)
        if client is None or not client.refused_deployments or inner_call(metadata):
            return healthy_deployments
        refused = client.refused_deployments
        return [each for each in healthy_deployments if deployment_id(each) not in refused]

    async def async_logging_hook(
        self,
        kwargs: dict[str, Any],
        result: Any,
        call_type: str,  # noqa: ARG002 (LiteLLM's signature)
    ) -> tuple[dict[str, Any], Any]:
        """Return what LiteLLM is about to book for a call, without negative or absurd numbers.

        They come of the usage that a provider reports: one below zero would lower a key's spend.
        """
        for booked in (kwargs, kwargs.get("standard_logging_object")):
            for name in _BOOKED:
                if isinstance(booked, dict) and not is_amount(booked.get(name) or 0):
                    booked[name] = 0
        return kwargs, result


def _note_deployment(
    client: ClientRequest, router: Router, metadata: Mapping[str, Any], temperature: float | None
) -> None:
    """Note the deployment that serves a request for an alias of several."""
    prepared = client.prepared
    chosen = router.get_deployment(model_id=str(deployment_id(metadata)))
    if prepared is None or prepared.is_final or chosen is None:
        return
    deployment = {**chosen.model_dump(exclude_none=True), "model_info": metadata["model_info"]}
    model = alias_model(deployment)
    client.is_plain = model is None
    if model is not None:
        with suppress(RequestRejected):  # the provider tells the client
            selection = on_deployment(
                prepared.selection, model, deployment, read_settings(), temperature
            )
            client.prepared = replace(prepared, selection=selection)


def _check_unserved(model: object, call_type: str, router: Router, key: UserAPIKeyAuth) -> None:
    """Refuse a model name with an approach on a route that makes no chat completions.

    A call of an MCP tool calls no model; it may bear the name of the one that asked for it.

    Raises:
        ProxyException: with status 400.
    """
    if isinstance(model, str) and "mcp" not in call_type and names_approach(model, router, key):
        raise to_proxy(refuse_route(model))


def _passed_through(data: dict[str, Any], base: str, route: Route) -> dict[str, Any]:
    """Return the request for the base model itself.

    LiteLLM bills a stream by its usage, which it requests only for models known to report it. It
    has checked that for the requested name, so usage is requested here, and hidden from the client.
    """
    options = data.get("stream_options") or {}
    asked = not isinstance(options, dict) or options.get("include_usage") is True
    if route != "chat" or data.get("stream") is not True or asked:
        return {**data, "model": base}
    return {
        **data,
        "model": base,
        "stream_options": {**options, "include_usage": True},
        "_litellm_strip_stream_usage": True,
    }


def _end_user(data: Mapping[str, Any], route: Route) -> str | None:
    """Return the end user that the client names, in OpenAI's field or in Anthropic's."""
    metadata = data.get("metadata")
    if route == "messages" and isinstance(metadata, dict):
        user = metadata.get("user_id")
    else:
        user = data.get("user")
    return user if isinstance(user, str) else None


def _fields_lost(data: Mapping[str, Any], prepared: Prepared) -> Fields:
    """Return the fields that LiteLLM loses when it converts a route to chat completions.

    The base model has a responses route of its own if it knows the field.
    """
    text = data.get("text")
    verbosity = text.get("verbosity") if isinstance(text, dict) else None
    if prepared.route != "responses" or verbosity is None:
        return {}
    known = prepared.facts_of(prepared.base).supports("verbosity")
    return {"verbosity": verbosity} if known else {}


def _may_not_fall_back(prepared: Prepared) -> bool:
    """Return whether a fallback would send a model what the plan keeps from it, or a dry run."""
    return prepared.plan.is_confidential or prepared.selection.dry_run


def _rewritten(data: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """Return the request for our provider; what LiteLLM would lose is kept in `prepared`."""
    prepared.user = _end_user(data, prepared.route)
    prepared.fields = _fields_lost(data, prepared)
    if prepared.route == "messages":
        prepared.body = {name: data[name] for name in CONVERTED if data.get(name) is not None}
    if prepared.selection.dry_run or prepared.has_known_prices:
        prepared.prompt_tokens = count_prompt(data)
    prepared.cache = data["cache"] if isinstance(data.get("cache"), dict) else {}
    return {
        **allowing_reasoning(without_nulls(data), "verbosity"),
        "model": prepared.deployment,
        "num_retries": 0,  # a retry would run, and pay, the whole plan again
        "cache": _UNCACHED,
        **({"disable_fallbacks": True} if _may_not_fall_back(prepared) else {}),
    }
