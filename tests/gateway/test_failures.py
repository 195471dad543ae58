"""Errors of LiteLLM to ours and back: status and Retry-After kept, no key and no traceback."""

from collections.abc import Mapping
from typing import Any

import httpx
import litellm
import openai
import pytest
from fastapi import HTTPException
from litellm.exceptions import BlockedPiiEntityError, GuardrailRaisedException
from litellm.proxy._types import ProxyException
from litellm.types.router import RouterRateLimitError, RouterRateLimitErrorBasic

from optillm_hooks.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    EmptyCompletion,
    OptiLLMError,
    ProviderFailed,
    Refused,
    RequestRejected,
    SamplesFailed,
    StageFailed,
)
from optillm_hooks.gateway.failures import as_sample_errors, to_litellm, to_proxy

REQUEST = httpx.Request("POST", "http://upstream.invalid")
ABOUT = {"model": "gpt-4o-mini", "llm_provider": "openai"}


def reply(status: int, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, headers=dict(headers or {}), request=REQUEST)


def read(exc: Exception) -> ProviderFailed:
    with pytest.raises(ProviderFailed) as caught, as_sample_errors():
        raise exc
    assert caught.value.__cause__ is exc
    return caught.value


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        (litellm.BadRequestError("m", **ABOUT), 400),
        (litellm.ContextWindowExceededError("m", **ABOUT), 400),
        (litellm.ContentPolicyViolationError("m", **ABOUT), 400),
        (litellm.UnsupportedParamsError("m", **ABOUT), 400),
        (litellm.AuthenticationError("m", **ABOUT), 401),
        (litellm.exceptions.PaymentRequiredError("m", **ABOUT), 402),
        (litellm.PermissionDeniedError("m", **ABOUT, response=reply(403)), 403),
        (litellm.NotFoundError("m", **ABOUT), 404),
        (litellm.UnprocessableEntityError("m", **ABOUT, response=reply(422)), 422),
        (litellm.RateLimitError("m", **ABOUT), 429),
        (litellm.InternalServerError("m", **ABOUT), 500),
        (litellm.BadGatewayError("m", **ABOUT), 502),
        (litellm.ServiceUnavailableError("m", **ABOUT), 503),
        (litellm.Timeout("m", **ABOUT), 504),
        (litellm.Timeout("m", **ABOUT, exception_status_code=408), 504),
        (litellm.APIError(418, "m", **ABOUT), 418),
        (litellm.APIError(302, "m", **ABOUT), 502),
        (litellm.APIConnectionError("m", **ABOUT), 500),
        (litellm.BudgetExceededError(2.0, 1.0), 429),
        (openai.APITimeoutError(REQUEST), 504),
        (openai.APIConnectionError(request=REQUEST), 502),
        (openai.RateLimitError("m", response=reply(429), body=None), 429),
        (openai.OpenAIError("the api_key must be set"), 502),
        (RouterRateLimitError("base", 5.0, False, []), 429),
        (RouterRateLimitErrorBasic("base"), 429),
        (ProxyException("m", "t", "p", 403), 403),
        (ProxyException("m", "t", "p", None), 502),
        (GuardrailRaisedException("g", "blocked"), 400),
        (BlockedPiiEntityError("EMAIL"), 400),
        (HTTPException(403, "not yours"), 403),
        (ValueError("no reply that LiteLLM can read"), 502),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_failure_keeps_its_status(exc: Exception, status: int) -> None:
    failed = read(exc)
    assert failed.status == status
    assert str(failed)
    assert len(str(failed)) <= 500


@pytest.mark.parametrize(
    "exc", [KeyError("bug"), TypeError("bug"), AssertionError(), RuntimeError()]
)
def test_a_bug_is_no_failed_call(exc: Exception) -> None:
    with pytest.raises(type(exc)), as_sample_errors():
        raise exc


@pytest.mark.parametrize(
    "exc",
    [
        litellm.RateLimitError("m", **ABOUT, response=reply(429, {"Retry-After": "7"})),
        litellm.RateLimitError("m", **ABOUT, headers={"Retry-After": "7"}),
        litellm.ServiceUnavailableError("m", **ABOUT, response=reply(503, {"retry-after": "7"})),
        openai.RateLimitError("m", response=reply(429, {"RETRY-AFTER": "7"}), body=None),
    ],
    ids=["response", "headers", "503", "openai"],
)
def test_retry_after_is_kept(exc: Exception) -> None:
    assert read(exc).retry_after == "7"


def test_retry_after_of_litellms_own_headers_is_kept() -> None:
    exc = litellm.RateLimitError("m", **ABOUT)
    exc.litellm_response_headers = {"Retry-After": "7"}
    assert read(exc).retry_after == "7"
    assert read(litellm.RateLimitError("m", **ABOUT)).retry_after is None


@pytest.mark.parametrize(
    "told",
    [
        "-5",
        "nan",
        "1e400",
        "\u00b2",
        "Mon, 32 Jan 2026 07:28:00 GMT",
        "Wed, 21 Oct 99999 07:28:00 GMT",
        f"Wed, 21 Oct 1{'0' * 30} 07:28:00 GMT",
        "x" * 5000,
    ],
    ids=lambda told: told[:20],
)
def test_a_pause_that_makes_no_sense_is_none(told: str) -> None:
    response = httpx.Response(429, headers={b"retry-after": told.encode()}, request=REQUEST)
    failed = read(litellm.RateLimitError("m", **ABOUT, response=response))
    assert (failed.status, failed.wait_s) == (429, None)


def test_an_error_of_half_a_surrogate_pair_can_be_sent() -> None:
    assert str(read(litellm.APIError(500, "boom \ud800", **ABOUT))) == "boom ?"


def test_a_status_that_only_looks_like_a_number_is_none() -> None:
    error = openai.OpenAIError("m")
    error.status_code = "\u0664\u00b2\u00b2"  # type: ignore[attr-defined]
    assert read(error).status == 502


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Incorrect API key provided: sk-proj-abcdefgh1.", "Incorrect API key provided: [key]."),
        ("boom\nTraceback (most recent call last):\n  File x", "boom"),
        ("\n  boom", "boom"),
        ("boom - \nTraceback (most recent call last):\n  File x", "boom"),
        ("\nTraceback (most recent call last):\n  File x", "the call failed (APIError)"),
        (" " * 9999 + "boom", "the call failed (APIError)"),
        ("boom. Received Model Group=base\nAvailable Model Group Fallbacks=None", "boom"),
        ("x" * 9999, "x" * 500),
    ],
    ids=lambda text: text[:24],
)
def test_no_key_and_no_traceback_is_shown(message: str, shown: str) -> None:
    assert str(read(litellm.APIError(500, message, **ABOUT))) == shown


def test_an_error_says_its_cause_once() -> None:
    inner = litellm.RateLimitError("RateLimitError: OpenAIException - too fast", **ABOUT)
    assert str(read(inner)).count("RateLimitError") == 0
    outer = to_litellm(read(inner), "moa-base")
    assert str(outer).count("RateLimitError") == 1


OURS: list[tuple[OptiLLMError, int]] = [
    (RequestRejected("m"), 400),
    (Refused("m"), 400),
    (BudgetExceeded("m"), 400),
    (EmptyCompletion(), 502),
    (DeadlineExceeded("m"), 504),
    (StageFailed("moa"), 500),
    (SamplesFailed([ProviderFailed("m", status=429)]), 429),
    (SamplesFailed([]), 500),
    *((ProviderFailed("m", status=status), status) for status in (400, 401, 402, 403, 404, 408)),
    *((ProviderFailed("m", status=status), status) for status in (409, 413, 418, 422, 429, 451)),
    *((ProviderFailed("m", status=status), status) for status in (500, 502, 503, 504, 529)),
]


@pytest.mark.parametrize(("error", "status"), OURS, ids=lambda v: f"{type(v).__name__} {v}")
def test_litellm_is_told_the_status(error: OptiLLMError, status: int) -> None:
    raised: Any = to_litellm(error, "moa-base")
    assert int(raised.status_code) == status
    assert str(error) in str(raised)
    assert type(raised).__module__.startswith("litellm")
    assert issubclass(type(raised), openai.APIError)


@pytest.mark.parametrize("status", [408, 504])
def test_a_timeout_is_litellms_timeout(status: int) -> None:
    """Its router counts timeouts apart from other failures (`TimeoutErrorRetries`)."""
    assert isinstance(to_litellm(ProviderFailed("m", status=status), "moa-base"), litellm.Timeout)


def test_a_status_survives_the_way_there_and_back() -> None:
    for status in (400, 401, 402, 403, 404, 422, 429, 500, 502, 503, 504):
        raised = to_litellm(ProviderFailed("m", status=status), "moa-base")
        assert read(raised).status == status


@pytest.mark.parametrize(
    "exc",
    [
        litellm.BadRequestError("m", **ABOUT),
        litellm.ContextWindowExceededError("m", **ABOUT),
        litellm.ContentPolicyViolationError("m", **ABOUT),
        litellm.AuthenticationError("m", **ABOUT),
        litellm.exceptions.PaymentRequiredError("m", **ABOUT),
        litellm.PermissionDeniedError("m", **ABOUT, response=reply(403)),
        litellm.NotFoundError("m", **ABOUT),
        litellm.UnprocessableEntityError("m", **ABOUT, response=reply(422)),
        litellm.RateLimitError("m", **ABOUT),
        litellm.InternalServerError("m", **ABOUT),
        litellm.BadGatewayError("m", **ABOUT),
        litellm.ServiceUnavailableError("m", **ABOUT),
        litellm.Timeout("m", **ABOUT),
    ],
    ids=lambda exc: type(exc).__name__,
)
def test_the_kind_survives_the_way_there_and_back(exc: Exception) -> None:
    """The router chooses fallbacks and retries by it, also if all samples of an approach failed."""
    error = read(exc)
    assert type(to_litellm(error, "moa-base")) is type(exc)
    assert type(to_litellm(SamplesFailed([error, error]), "moa-base")) is type(exc)


def test_the_kind_of_an_error_at_the_start_of_a_stream_is_that_of_its_cause() -> None:
    cause = litellm.ContextWindowExceededError("m", **ABOUT)
    raised = litellm.exceptions.MidStreamFallbackError("m", "gpt-4o-mini", "openai", cause)
    assert isinstance(to_litellm(read(raised), "moa-base"), litellm.ContextWindowExceededError)


def test_a_refused_request_is_openais_error_object() -> None:
    refused = to_proxy(RequestRejected("say what to change", param="model"))
    assert refused.to_dict() == {
        "message": "say what to change",
        "type": "invalid_request_error",
        "param": "model",
        "code": "400",
    }


def test_a_request_refused_for_now_says_when_to_try_again() -> None:
    refused = to_proxy(ProviderFailed("limit reached", status=429, retry_after="60"))
    assert (refused.headers, refused.type) == ({"retry-after": "60"}, "rate_limit_error")


def test_an_unreadable_reply_has_been_answered() -> None:
    with pytest.raises(ProviderFailed) as found, as_sample_errors():
        raise ValueError("Invalid response object Traceback")
    assert found.value.answered


def test_of_a_long_error_only_the_beginning_is_read() -> None:
    long = "x" * 10_000_000
    for told, code in (("prompt is too long", "context_length_exceeded"), ("", "provider_failed")):
        error = litellm.BadRequestError(f"{told} {long} prompt is too long", **ABOUT)
        with pytest.raises(ProviderFailed) as found, as_sample_errors():
            raise error
        assert found.value.code == code
