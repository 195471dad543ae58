"""Clear errors where LiteLLM's authentication stumbles: over a missing database, or over the body.

Without a database, LiteLLM answers a missing key with a 500, because it looks for Prisma, which is
installed only with one, and an unknown key with a 400 about the database. A body that is JSON but
not an object is a 500 too.
"""

from functools import wraps
from typing import Any

from fastapi import FastAPI, Request
from litellm.proxy._types import ProxyErrorTypes, ProxyException
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from litellm.proxy.common_utils.http_parsing_utils import read_request_body

_BAD_REQUEST = 400
_UNAUTHORIZED = 401
_UNKNOWN_KEY = (
    "the API key is not valid: without a database, this proxy knows its master key only "
    "(LITELLM_MASTER_KEY, which `make serve` keeps in .env)"
)
_NO_KEY = "no API key: send the header `Authorization: Bearer <key>`"
_WITHOUT_KEY = ("No api key", "Malformed API Key")
"""How LiteLLM's errors for a header without a key begin."""


def refuse_clearly(app: FastAPI) -> None:
    """Have `app` answer clearly where LiteLLM's authentication stumbles.

    An override that somebody else has set for LiteLLM's authentication is left alone.
    """
    app.dependency_overrides.setdefault(user_api_key_auth, _authenticated)


@wraps(user_api_key_auth)
async def _authenticated(*args: Any, request: Request, **given: Any) -> Any:
    try:
        return await user_api_key_auth(*args, request=request, **given)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] != "prisma":
            raise
        cause = str(exc.__context__ or "")
        raise _unauthorized(_NO_KEY if cause.startswith(_WITHOUT_KEY) else cause) from None
    except ProxyException as exc:
        if exc.type != ProxyErrorTypes.no_db_connection:
            raise
        raise _unauthorized(_UNKNOWN_KEY) from None
    except AttributeError:
        if isinstance(await read_request_body(request), dict):  # read before, and kept
            raise
        raise ProxyException(
            message="the body must be a JSON object",
            type=ProxyErrorTypes.bad_request_error,
            param=None,
            code=_BAD_REQUEST,
        ) from None


def _unauthorized(reason: str) -> ProxyException:
    return ProxyException(
        message=f"Authentication Error, {reason}",
        type=ProxyErrorTypes.auth_error,
        param=None,
        code=_UNAUTHORIZED,
    )
