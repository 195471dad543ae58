"""The pre-call hook: selects a request's approach, admits it, and rewrites it for our provider."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from litellm import BudgetExceededError, Router
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import UserAPIKeyAuth
from litellm.types.utils import CallTypes

from optillm_hooks.errors import OptiLLMError, RequestRejected
from optillm_hooks.gateway.admission import admit
from optillm_hooks.gateway.cut_off import note_log
from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.failures import over_budget, to_proxy
from optillm_hooks.gateway.messages_route import CONVERTED
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.prepared import ClientRequest, Prepared, Route, attach, attached_to
from optillm_hooks.gateway.reports import header_values
from optillm_hooks.gateway.route_responses import completed, stream_completed
from optillm_hooks.gateway.routes import (
    ROUTES,
    check_fields_of_base,
    check_request,
    refuse_route,
    without_nulls,
)
from optillm_hooks.gateway.selection import names_approach, select
from optillm_hooks.settings import Settings
from optillm_hooks.types import Fields

_REASONING_FIELDS = ["reasoning_effort", "thinking", "verbosity"]
"""Fields that LiteLLM refuses or drops for a custom provider unless the request allows them."""

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
        route = ROUTES.get(call_type)
        if route is None:
            _check_unserved(data.get("model"), call_type, router)
            return data
        try:
            settings, invalid = _settings()
            selection = select(data, router, settings)
            if selection is None:
                attach(ClientRequest(route, str(data.get("model"))), data)
                return data
            if invalid is not None:
                raise invalid
            if not selection.passes_through:
                check_request(data, route)
            prepared = await admit(
                selection,
                settings,
                router,
                user_api_key_dict,
                n=data.get("n"),
                route=route,
                reservation=user_api_key_dict.budget_reservation,
            )
            if selection.passes_through:
                attach(ClientRequest(route, selection.base), data)
                return _passed_through(data, selection.base, route)
            check_fields_of_base(data, route, prepared.facts_of(prepared.base))
            attach(ClientRequest(route, prepared.deployment, prepared), data)
            return _rewritten(data, prepared)
        except OptiLLMError as exc:
            raise to_proxy(exc) from None
        except BudgetExceededError as exc:
            raise over_budget(exc) from None

    async def async_pre_call_deployment_hook(
        self,
        kwargs: dict[str, Any],
        call_type: CallTypes | None,  # noqa: ARG002 (LiteLLM's signature)
    ) -> dict[str, Any] | None:
        """Note LiteLLM's log of a plan's call, which is booked there if it is cut off."""
        note_log(kwargs)
        return None

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
        if client is None or client.prepared is None:
            return None
        return header_values(client.prepared, answered=response is not None)

    async def async_logging_hook(
        self,
        kwargs: dict[str, Any],
        result: Any,
        call_type: str,  # noqa: ARG002 (LiteLLM's signature)
    ) -> tuple[dict[str, Any], Any]:
        """Return what LiteLLM is about to book for a call, without numbers below zero.

        They come of a negative usage that a provider reports, and would lower the spend of a key.
        """
        for booked in (kwargs, kwargs.get("standard_logging_object")):
            for name in _BOOKED:
                if isinstance(booked, dict) and _is_below_zero(booked.get(name)):
                    booked[name] = 0
        return kwargs, result


def _is_below_zero(value: object) -> bool:
    """Return whether `value` is a negative number, or none that compares with others (NaN)."""
    return isinstance(value, int | float) and not value >= 0


def _check_unserved(model: object, call_type: str, router: Router) -> None:
    """Refuse a model name with an approach on a route that makes no chat completions.

    A call of an MCP tool calls no model; it may bear the name of the one that asked for it.

    Raises:
        ProxyException: with status 400.
    """
    if isinstance(model, str) and "mcp" not in call_type and names_approach(model, router):
        raise to_proxy(refuse_route(model))


def _settings() -> tuple[Settings, RequestRejected | None]:
    """Return the operator's settings; if they are invalid, the defaults and the error.

    Requests for plain models do not depend on them.
    """
    try:
        return read_settings(), None
    except RequestRejected as exc:
        return Settings(), exc


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


def _rewritten(data: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """Return the request for our provider; what LiteLLM would lose is kept in `prepared`."""
    prepared.user = _end_user(data, prepared.route)
    prepared.fields = _fields_lost(data, prepared)
    if prepared.route == "messages":
        prepared.body = {name: data[name] for name in CONVERTED if data.get(name) is not None}
    prepared.cache = data["cache"] if isinstance(data.get("cache"), dict) else {}
    allowed = data.get("allowed_openai_params")
    return {
        **without_nulls(data),
        "model": prepared.deployment,
        "num_retries": 0,  # a retry would run, and pay, the whole plan again
        "cache": _UNCACHED,
        "allowed_openai_params": [*(allowed or []), *_REASONING_FIELDS],
    }
