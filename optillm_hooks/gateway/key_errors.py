"""Clear errors where LiteLLM's authentication stumbles: over a missing database, or over the body.

Without a database, LiteLLM answers a missing key with a 500, because it looks for Prisma, which is
installed only with one, and an unknown key with a 400 about the database. A body that is JSON but
not an object is a 500 too.
"""

import inspect
from collections.abc import Awaitable, Callable
from traceback import walk_tb
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from litellm.proxy._types import ProxyErrorTypes, ProxyException
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from litellm.proxy.common_utils.http_parsing_utils import read_request_body
from starlette.middleware.exceptions import ExceptionMiddleware

_BAD_REQUEST = 400
_UNAUTHORIZED = 401
_UNKNOWN_KEY = (
    "the API key is not valid: without a database, this proxy knows its master key only "
    "(LITELLM_MASTER_KEY; `make serve` and `optillm-hooks serve` keep it in .env)"
)
_NO_KEY = "no API key: send the header `Authorization: Bearer <key>`"
_WITHOUT_KEY = ("No api key", "Malformed API Key")
"""How LiteLLM's errors for a header without a key begin."""


_AUTHENTICATION: Final = inspect.unwrap(user_api_key_auth).__code__


def refuse_clearly(app: FastAPI) -> None:
    """Have `app` answer clearly where LiteLLM's authentication stumbles.

    As handlers of what it raises, since FastAPI analyses every dependency anew for each request as
    soon as one is overridden. The application has started: its handlers are in its middleware.
    """
    theirs: Any = app.exception_handlers[ProxyException]
    layer: Any = app.middleware_stack
    while layer is not None and not isinstance(layer, ExceptionMiddleware):
        layer = getattr(layer, "app", None)
    places: list[Any] = [app] if layer is None else [app, layer]
    for kind in (ModuleNotFoundError, ProxyException, AttributeError):
        for place in places:
            place.add_exception_handler(kind, _clearly(theirs))


def _clearly(
    theirs: Callable[[Request, ProxyException], Awaitable[Response]],
) -> Callable[[Request, Exception], Awaitable[Response]]:
    """Return a handler that answers with a clear error, or else as `theirs`."""

    async def handle(request: Request, exc: Exception) -> Response:
        found = await _clear_error(request, exc) if _is_of_authentication(exc) else None
        if found is None and not isinstance(exc, ProxyException):
            raise exc
        return await theirs(request, found or exc)

    return handle


def _is_of_authentication(exc: Exception) -> bool:
    return any(frame.f_code is _AUTHENTICATION for frame, _ in walk_tb(exc.__traceback__))


async def _clear_error(request: Request, exc: Exception) -> ProxyException | None:
    """Return a clear error in place of `exc`; None if it is another than those of this module."""
    if isinstance(exc, ModuleNotFoundError) and (exc.name or "").split(".")[0] == "prisma":
        cause = str(exc.__context__ or "")
        return _unauthorized(_NO_KEY if cause.startswith(_WITHOUT_KEY) else cause)
    if isinstance(exc, ProxyException) and exc.type == ProxyErrorTypes.no_db_connection:
        return _unauthorized(_UNKNOWN_KEY)
    # The body was read before, and kept.
    if isinstance(exc, AttributeError) and not isinstance(await read_request_body(request), dict):
        return ProxyException(
            message="the body must be a JSON object",
            type=ProxyErrorTypes.bad_request_error,
            param=None,
            code=_BAD_REQUEST,
        )
    return None


def _unauthorized(reason: str) -> ProxyException:
    return ProxyException(
        message=f"Authentication Error, {reason}",
        type=ProxyErrorTypes.auth_error,
        param=None,
        code=_UNAUTHORIZED,
    )
