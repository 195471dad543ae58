"""Error mapping: LiteLLM's exceptions to ours, and ours to those that the proxy reports."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

import httpx
import litellm
import openai
from fastapi import HTTPException
from litellm.exceptions import (
    BlockedPiiEntityError,
    GuardrailRaisedException,
    MidStreamFallbackError,
    PaymentRequiredError,
)
from litellm.proxy._types import ProxyErrorTypes, ProxyException
from litellm.types.router import RouterRateLimitError, RouterRateLimitErrorBasic

from optillm_hooks.errors import (
    CONTENT_POLICY_VIOLATION,
    CONTEXT_WINDOW_EXCEEDED,
    BudgetExceeded,
    OptiLLMError,
    ProviderFailed,
    RequestRejected,
)
from optillm_hooks.gateway.masking import mask_credentials
from optillm_hooks.gateway.model_names import PROVIDER
from optillm_hooks.pauses import asked_pause_s

_MAX_CHARS = 500
_READ_CHARS = 8192
"""How much of an error's message is looked at."""

_UNREADABLE = "Invalid response object"
"""What LiteLLM says of a reply that it cannot read."""

_TRACEBACK = "Traceback (most recent call last)"
_PREFIX = re.compile(r"^((litellm\.)?\w+(Error|Timeout): )+")
_FAILURES = (
    openai.OpenAIError,
    httpx.HTTPError,  # a stream that breaks off
    litellm.BudgetExceededError,
    BlockedPiiEntityError,
    GuardrailRaisedException,
    HTTPException,
    ProxyException,
    ValueError,  # a reply that cannot be read; the router's refusals are of this kind too
)
_TYPES = {
    400: litellm.BadRequestError,
    401: litellm.AuthenticationError,
    402: PaymentRequiredError,
    403: litellm.PermissionDeniedError,
    404: litellm.NotFoundError,
    422: litellm.UnprocessableEntityError,
    429: litellm.RateLimitError,
    500: litellm.InternalServerError,
    502: litellm.BadGatewayError,
    503: litellm.ServiceUnavailableError,
}
_KINDS = {
    CONTEXT_WINDOW_EXCEEDED: litellm.ContextWindowExceededError,
    CONTENT_POLICY_VIOLATION: litellm.ContentPolicyViolationError,
}
"""Errors that the router answers with fallbacks of their own kind, by our code."""

_TEXTS = {
    CONTEXT_WINDOW_EXCEEDED: re.compile(
        r"context_length_exceeded|exceeds? the context window|maximum prompt length is"
        r"|too large for model with|reduce the length of the messages|prompt is too long",
        re.IGNORECASE,
    ),
    CONTENT_POLICY_VIOLATION: re.compile(
        r"content management policy|ResponsibleAIPolicyViolation", re.IGNORECASE
    ),
}
"""What hosts say in a bad request whose kind LiteLLM does not know."""


class _Refusal(ProxyException):
    """A request that is refused before a call is made, with its status in both places.

    LiteLLM's routes read one or the other: without `status_code`, a file that is sent to an alias
    would be answered as an error of the server's, which clients send again.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        status: int,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message=message, type=kind, param=param, code=status, headers=headers)
        self.status_code = status


class _LongPromptBeforeStream(MidStreamFallbackError, litellm.ContextWindowExceededError):
    """See `_before_stream`."""


class _BarredPromptBeforeStream(MidStreamFallbackError, litellm.ContentPolicyViolationError):
    """See `_before_stream`."""


_BEFORE_STREAM: Mapping[type[Exception], type[Exception]] = {
    litellm.ContextWindowExceededError: _LongPromptBeforeStream,
    litellm.ContentPolicyViolationError: _BarredPromptBeforeStream,
}


@contextmanager
def as_sample_errors() -> Iterator[None]:
    """Raise LiteLLM's errors of a failed call as `ProviderFailed`, with their status and kind.

    Other exceptions are bugs, and are not converted.
    """
    try:
        yield
    except _FAILURES as exc:
        failed = ProviderFailed(
            _message(exc), status=_status(exc), retry_after=_retry_after(exc), code=_kind(exc)
        )
        is_invalid = isinstance(exc, litellm.JSONSchemaValidationError)
        failed.answered = is_invalid or _UNREADABLE in str(exc)[:_READ_CHARS]
        if failed.is_overload:
            failed.wait_s = _wait_s(exc)
        raise failed from exc


@contextmanager
def budgets_as_sample_errors() -> Iterator[None]:
    """Raise LiteLLM's `BudgetExceededError` as our `BudgetExceeded`."""
    try:
        yield
    except litellm.BudgetExceededError:
        raise BudgetExceeded("a budget of the caller is used up") from None


def _status(exc: Exception) -> int:
    if isinstance(exc, openai.APITimeoutError):
        return 504
    if isinstance(
        exc, RouterRateLimitError | RouterRateLimitErrorBasic | litellm.BudgetExceededError
    ):
        return 429
    for name in ("status_code", "code"):
        value = getattr(exc, name, None)
        if re.fullmatch("[45][0-9]{2}", str(value)):
            return int(str(value))
    return 502


def _kind(exc: Exception) -> str | None:
    # A stream that fails at its start is raised as an error that contains the provider's.
    cause = getattr(exc, "original_exception", None) or exc
    known = (code for code, kind in _KINDS.items() if isinstance(cause, kind))
    said = str(exc)[:_READ_CHARS] if _status(exc) == 400 else ""
    told = (code for code, text in _TEXTS.items() if text.search(said))
    return next(chain(known, told), None)


def _message(exc: Exception) -> str:
    """Return the first line of an error, without credentials and LiteLLM's additions.

    LiteLLM appends a traceback, which is all that there is if the error has no message.
    """
    text = str(getattr(exc, "message", "") or exc)[:_READ_CHARS].partition(_TRACEBACK)[0]
    text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be sent
    line = _PREFIX.sub("", text).strip().split("\n", 1)[0]
    line = line.partition(". Received Model Group=")[0].rstrip(" -:")
    return mask_credentials(line)[:_MAX_CHARS] or f"the call failed ({type(exc).__name__})"


def _retry_after(exc: Exception) -> str | None:
    response = getattr(exc, "response", None)
    for headers in (
        getattr(exc, "litellm_response_headers", None),
        getattr(exc, "headers", None),
        getattr(response, "headers", None),
    ):
        found = httpx.Headers(headers).get("retry-after")
        if found is not None:
            return str(found)
    return None


def _wait_s(exc: Exception) -> float | None:
    """Return the seconds until the next call may succeed; None if none are told."""
    if isinstance(exc, RouterRateLimitError):
        return float(exc.cooldown_time)
    return asked_pause_s(_retry_after(exc)) or None


def is_of_whole_group(error: ProviderFailed) -> bool:
    """Return whether the router has no deployment left for the call, so that none was made."""
    return isinstance(error.__cause__, RouterRateLimitError)


def to_litellm(error: OptiLLMError, model: str, *, before_stream: bool = False) -> Exception:
    """Return LiteLLM's exception for `error`, with the same kind, status and message.

    `before_stream`: whether a router waits for a stream that has not begun, so that it may still
    look for a fallback.
    """
    about = {"message": str(error), "model": model, "llm_provider": PROVIDER}
    raised: Exception
    if error.code in _KINDS:
        raised = _KINDS[error.code](**about, response=_response(400))
    elif error.status in (408, 504):
        raised = litellm.Timeout(**about, exception_status_code=error.status)
    elif error.status in _TYPES:
        raised = _TYPES[error.status](**about, response=_response(error.status))
    else:
        raised = litellm.APIError(**about, status_code=error.status)
    return _before_stream(raised, model) if before_stream else raised


def _before_stream(error: Exception, model: str) -> Exception:
    """Return `error` in the form in which it leads to a fallback although a stream was asked for.

    The router gets a custom provider's stream before the plan runs. It looks for a fallback only
    if the stream raises a `MidStreamFallbackError`, and for one of a kind only if that error is of
    the kind. Given an original exception, LiteLLM makes another error of it, without the kind.
    """
    kind = next((made for known, made in _BEFORE_STREAM.items() if isinstance(error, known)), None)
    raised: Exception = MidStreamFallbackError(
        str(error),
        model,
        PROVIDER,
        original_exception=error if kind is None else None,
        is_pre_first_chunk=True,
    )
    if kind is None:
        return raised
    of_kind: Exception = kind.__new__(kind)  # its base classes have no common __init__
    of_kind.__dict__ |= raised.__dict__ | error.__dict__
    return of_kind


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("POST", "http://optillm.invalid"))


def to_proxy(error: OptiLLMError) -> ProxyException:
    """Return the proxy's exception for a request that the hook refuses."""
    return _Refusal(
        str(error),
        kind="rate_limit_error" if error.status == 429 else "invalid_request_error",
        status=error.status,
        param=error.param if isinstance(error, RequestRejected) else None,
        headers=None if error.retry_after is None else {"retry-after": error.retry_after},
    )


def over_budget(error: litellm.BudgetExceededError) -> ProxyException:
    """Return the exception that the proxy's own checks raise for an exceeded budget."""
    return _Refusal(str(error), kind=ProxyErrorTypes.budget_exceeded, status=error.status_code)
