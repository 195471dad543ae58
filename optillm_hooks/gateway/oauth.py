"""LiteLLM's `custom_auth` for the master key and access tokens of an OAuth 2.1 server.

LiteLLM checks JWTs only with an enterprise licence; its `custom_auth` is free. A token is a JWT
that the issuer has signed (RFC 9068), its scopes grant models, and its claims say whose spend and
limits count. Refusals are those of RFC 6750.
"""

import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
import httpx
import jwt
import litellm
from fastapi import Request
from litellm.proxy._types import (
    LitellmUserRoles,
    ProxyErrorTypes,
    ProxyException,
    UserAPIKeyAuth,
)

from optillm_hooks.errors import RequestRejected
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.settings import OAuthSettings

_FETCH_TIMEOUT_S: Final = 5.0
_SIGNING_TYPES: Final = ("RSA", "EC", "OKP")
"""Types of public keys. A symmetric one would let whoever can read it sign."""

Jwk = Mapping[str, Any]
FetchKeys = Callable[[str], Awaitable[list[Jwk]]]


async def user_api_key_auth(request: Request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001
    """Return the caller that the master key or an access token stands for.

    Raises:
        ProxyException: 401 for a token that is not valid, 403 for one without a known scope, 500
            where the configuration would leave its scopes unchecked, 503 without the issuer's keys.
    """
    token = (api_key or "").removeprefix("Bearer ").strip()
    if not token:
        raise _refused(401, "no access token: send the header `Authorization: Bearer <token>`")
    if _is_master_key(token):
        return UserAPIKeyAuth(
            api_key=token,
            user_id=getattr(proxy_module(), "litellm_proxy_admin_name", None),
            user_role=LitellmUserRoles.PROXY_ADMIN,
        )
    settings = _settings()
    return caller_of(await verified_claims(token, settings, _ISSUER_KEYS), settings)


class IssuerKeys:
    """The public keys of issuers by their JWKS addresses, fetched again when they may have changed.

    While an issuer cannot be reached, the keys that it had last stay valid.
    """

    def __init__(self, fetch: FetchKeys, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, list[Jwk]] = {}
        self._fetched: dict[str, float] = {}
        self._tried: dict[str, float] = {}
        self._lock = anyio.Lock()

    async def find(self, kid: str | None, settings: OAuthSettings) -> Jwk | None:
        """Return the key `kid`, or None if the issuer has none; the only key if `kid` is None.

        A known key does not wait for a fetch that is under way: an issuer that hangs delays one
        request at a time, not all of them.

        Raises:
            ProxyException: 503, as the issuer's current keys are not known.
        """
        url = settings.jwks_url
        found = self._known(kid, url)
        if found is not None and self._lock.locked():
            return found
        async with self._lock:
            found = self._known(kid, url)
            stale = self._age(self._fetched, url) >= settings.jwks_ttl_s
            may_try = self._age(self._tried, url) >= settings.jwks_pause_s
            if may_try and (stale or found is None):
                await self._refresh(url)
                found = self._known(kid, url)
        if found is None and not self._is_current(url):
            raise _unavailable("the issuer's keys cannot be fetched; try again")
        return found

    def _is_current(self, url: str) -> bool:
        """Whether the last attempt to fetch the keys has succeeded."""
        return url in self._fetched and self._fetched[url] >= self._tried[url]

    async def _refresh(self, url: str) -> None:
        self._tried[url] = self._clock()
        try:
            self._keys[url] = await self._fetch(url)
        except (httpx.HTTPError, ValueError):
            return
        self._fetched[url] = self._clock()

    def _known(self, kid: str | None, url: str) -> Jwk | None:
        keys = self._keys.get(url, [])
        if kid is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.get("kid") == kid), None)

    def _age(self, since: Mapping[str, float], url: str) -> float:
        return self._clock() - since[url] if url in since else float("inf")


async def fetch_keys(url: str) -> list[Jwk]:
    """Return the public keys for signatures of the JWK set at `url`.

    Raises:
        httpx.HTTPError: it does not answer, or not with 200.
        ValueError: the answer is no JWK set.
    """
    async with httpx.AsyncClient(timeout=_FETCH_TIMEOUT_S) as client:
        answer = (await client.get(url)).raise_for_status()
    document = answer.json()
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise ValueError("not a JWK set")  # noqa: TRY004 (about the answer, not about an argument)
    return [key for key in keys if isinstance(key, dict) and _signs(key)]


_ISSUER_KEYS: Final = IssuerKeys(fetch_keys)


async def verified_claims(token: str, settings: OAuthSettings, keys: IssuerKeys) -> dict[str, Any]:
    """Return the claims of `token` after its signature, issuer, audience and times are checked.

    Raises:
        ProxyException: 401, or 503 as in `IssuerKeys.find`.
    """
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError:
        raise _invalid("it is not a signed JWT") from None
    algorithm = header.get("alg")
    if algorithm not in settings.algorithms:
        raise _invalid(f"its algorithm must be one of {', '.join(settings.algorithms)}")
    key = await keys.find(header.get("kid"), settings)
    if key is None:
        raise _invalid("the issuer has no such key")
    try:
        return jwt.decode(
            token,
            jwt.PyJWK(dict(key), algorithm=key.get("alg", algorithm)),
            algorithms=[algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            leeway=settings.leeway_s,
            options={"require": ["iss", "aud", "exp", settings.claims.user]},
        )
    except jwt.ExpiredSignatureError:
        raise _invalid("it has expired") from None
    except jwt.InvalidAudienceError:
        raise _invalid(f"its audience must be {settings.audience!r}") from None
    except jwt.InvalidIssuerError:
        raise _invalid(f"its issuer must be {settings.issuer!r}") from None
    except jwt.MissingRequiredClaimError as exc:
        raise _invalid(f"it lacks the claim {exc.claim!r}") from None
    except jwt.PyJWTError:
        raise _invalid("its signature or a claim is not valid") from None


def caller_of(claims: Mapping[str, Any], settings: OAuthSettings) -> UserAPIKeyAuth:
    """Return the caller whom verified `claims` describe, with the models of its scopes.

    Its key in LiteLLM is made from issuer and user: spend, limits and caches outlast a token.

    Raises:
        ProxyException: 403, as no scope grants a model.
    """
    granted = scopes_of(claims)
    models = [model for scope in granted for model in settings.scopes.get(scope, ())]
    if not models:
        raise _refused(
            403,
            f"the access token needs one of the scopes {', '.join(settings.scopes)}",
            error="insufficient_scope",
            scope=" ".join(settings.scopes),
        )
    user = str(claims[settings.claims.user])
    team = claims.get(settings.claims.team) if settings.claims.team else None
    identity = hashlib.sha256(f"{settings.issuer}\n{user}".encode()).hexdigest()
    return UserAPIKeyAuth(
        api_key=f"oauth-{identity}",
        key_alias=f"oauth-{identity[:12]}",
        user_id=user,
        team_id=None if team is None else str(team),
        user_role=LitellmUserRoles.INTERNAL_USER,
        models=list(dict.fromkeys(models)),
        metadata={name: claims[name] for name in settings.claims.metadata if name in claims},
    )


def scopes_of(claims: Mapping[str, Any]) -> list[str]:
    """Return the scopes of `scope` (RFC 9068) or `scp`: words with spaces between, or a list."""
    given = claims.get("scope", claims.get("scp", ""))
    if isinstance(given, str):
        return given.split()
    return [each for each in given if isinstance(each, str)] if isinstance(given, list) else []


def _settings() -> OAuthSettings:
    try:
        settings = read_settings().oauth
    except RequestRejected as exc:
        raise _misconfigured(str(exc)) from None
    if settings is None:
        raise _misconfigured("set litellm_settings.optillm_settings.oauth")
    # Without both, LiteLLM does not look at the models that the scopes grant.
    general = getattr(proxy_module(), "general_settings", {})
    if general.get("custom_auth_run_common_checks") is not True:
        raise _misconfigured("set general_settings.custom_auth_run_common_checks: true")
    if getattr(litellm, "enable_post_custom_auth_checks", None) is not True:
        raise _misconfigured("set litellm_settings.enable_post_custom_auth_checks: true")
    return settings


def _signs(key: Jwk) -> bool:
    return key.get("kty") in _SIGNING_TYPES and key.get("use", "sig") == "sig"


def _is_master_key(token: str) -> bool:
    master = getattr(proxy_module(), "master_key", None)
    return isinstance(master, str) and secrets.compare_digest(token.encode(), master.encode())


def _invalid(reason: str) -> ProxyException:
    message = f"the access token is not valid: {reason}"
    return _refused(401, message, error="invalid_token", error_description=reason)


def _refused(status: int, message: str, **parameters: str) -> ProxyException:
    """Return a refusal with the challenge of RFC 6750."""
    quoted = ", ".join(
        f'{name}="{value.translate(_UNQUOTABLE)}"' for name, value in parameters.items()
    )
    return ProxyException(
        message=message,
        type=ProxyErrorTypes.auth_error,
        param=None,
        code=status,
        headers={"WWW-Authenticate": f"Bearer {quoted}".rstrip()},
    )


_UNQUOTABLE: Final = {ord('"'): "'", ord("\\"): "/"}


def _misconfigured(cure: str) -> ProxyException:
    message = f"access tokens are not set up: {cure}"
    return ProxyException(
        message=message, type=ProxyErrorTypes.internal_server_error, param=None, code=500
    )


def _unavailable(message: str) -> ProxyException:
    return ProxyException(
        message=message,
        type=ProxyErrorTypes.internal_server_error,
        param=None,
        code=503,
        headers={"Retry-After": "10"},
    )
