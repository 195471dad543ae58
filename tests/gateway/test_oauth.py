"""Access tokens through the real proxy, from an issuer on loopback whose keys change and fail."""

import base64
import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

import anyio
import httpx
import jwt
import litellm
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import Request
from jwt.algorithms import RSAAlgorithm
from litellm.proxy._types import LitellmUserRoles, ProxyException
from pydantic import ValidationError

from optillm_hooks.gateway.oauth import IssuerKeys, caller_of, user_api_key_auth, verified_claims
from optillm_hooks.settings import OAuthSettings
from tests.gateway.test_key_errors import ROUTES
from tests.proxy import Config, Proxy, alias, hooked_config, model_group, new_trace, traceparent
from tests.upstream import Upstream

ISSUER = "https://login.example.com"
AUDIENCE = "https://llm.example.com"
SCOPES = {"llm.base": ["base"], "llm.careful": ["careful", "base"]}


class SigningKey:
    def __init__(self, kid: str) -> None:
        self.kid = kid
        self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def jwk(self) -> dict[str, Any]:
        public = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": self.kid, "use": "sig"}

    @property
    def public_pem(self) -> bytes:
        public = self.private.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, **changes: object) -> str:
        """Return a token for an hour, with `changes` of its claims; None omits one."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "ada",
            "exp": int(time.time()) + 3600,
            "scope": "openid llm.base",
            **changes,
        }
        given = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(given, self.private, algorithm="RS256", headers={"kid": self.kid})


class Issuer:
    """An authorization server's JWKS: its keys may be changed, and it may be down."""

    def __init__(self) -> None:
        self.key = SigningKey("first")
        self.down = False
        self.fetches = 0

    def serve(self) -> ThreadingHTTPServer:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.fetches += 1
                # The second is no key for signatures.
                symmetric = {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"}
                content = json.dumps({"keys": [symmetric, issuer.key.jwk]}).encode()
                self.send_response(503 if issuer.down else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def jwks_url(issuer: Issuer) -> Iterator[str]:
    with issuer.serve() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/jwks"
        server.shutdown()
        thread.join()


def protected(upstream: Upstream, jwks_url: str) -> Config:
    models = [model_group("base", upstream.url), model_group("other", upstream.url)]
    oauth = {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "jwks_url": jwks_url,
        "scopes": SCOPES,
        "claims": {"team": "group", "metadata": ["optillm"]},
        "jwks_pause_s": 0,
    }
    config = hooked_config(
        [*models, alias("careful", "self_consistency(n=3)")],
        optillm_settings={"oauth": oauth},
        enable_post_custom_auth_checks=True,
    )
    config["general_settings"] |= {
        "custom_auth": "optillm_hooks.gateway.oauth.user_api_key_auth",
        "custom_auth_run_common_checks": True,
    }
    return config


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, jwks_url: str
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("oauth")
    with Proxy(protected(upstream, jwks_url), folder) as running:
        yield running


def asked(
    proxy: Proxy, token: str, *, route: str = "/v1/chat/completions", model: str = "base"
) -> httpx.Response:
    return proxy.post(route, ROUTES[route] | {"model": model}, key=token)


@pytest.fixture(scope="module", autouse=True)
def asked_too_early(proxy: Proxy, issuer: Issuer) -> httpx.Response:
    """The answer to the first token, which came before the issuer could be reached."""
    issuer.down = True
    answer = asked(proxy, issuer.key.token())
    issuer.down = False
    return answer


def refusal(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


def test_without_the_issuers_keys_a_token_is_neither_taken_nor_refused(
    asked_too_early: httpx.Response,
) -> None:
    assert "cannot be fetched" in refusal(asked_too_early, 503)
    assert asked_too_early.headers["retry-after"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_valid_token_is_taken(proxy: Proxy, issuer: Issuer, route: str) -> None:
    token = issuer.key.token(scope="openid llm.careful")
    assert asked(proxy, token, route=route, model="careful").status_code == 200


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": int(time.time()) - 600}, "expired"),
        ({"exp": None}, "lacks the claim 'exp'"),
        ({"sub": None}, "lacks the claim 'sub'"),
        ({"aud": "https://elsewhere.example.com"}, f"audience must be '{AUDIENCE}'"),
        ({"iss": f"{ISSUER}/"}, f"issuer must be '{ISSUER}'"),
    ],
)
def test_a_token_that_is_not_for_us_is_refused(
    proxy: Proxy, issuer: Issuer, changes: dict[str, object], reason: str
) -> None:
    answer = asked(proxy, issuer.key.token(**changes))
    assert reason in refusal(answer, 401)
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_refuses_an_expired_token(proxy: Proxy, issuer: Issuer, route: str) -> None:
    expired = issuer.key.token(exp=int(time.time()) - 600)
    assert asked(proxy, expired, route=route).status_code == 401


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forged(issuer: Issuer, algorithm: str, kid: str, secret: bytes) -> str:
    """Return a valid token's claims with a signature by `secret`; none without one."""
    claims = issuer.key.token().split(".")[1]
    head = part({"alg": algorithm, "typ": "JWT", "kid": kid})
    made = hmac.new(secret, f"{head}.{claims}".encode(), hashlib.sha256).digest()
    signature = base64.urlsafe_b64encode(made).rstrip(b"=").decode() if secret else ""
    return f"{head}.{claims}.{signature}"


def test_a_forged_token_is_refused(proxy: Proxy, issuer: Issuer) -> None:
    stranger = SigningKey(issuer.key.kid)
    for token in (
        forged(issuer, "none", issuer.key.kid, b""),
        forged(issuer, "HS256", issuer.key.kid, issuer.key.public_pem),
        forged(issuer, "HS256", "shared", b"secret"),
        forged(issuer, "RS256", "shared", b"secret"),
        stranger.token(),
        issuer.key.token()[:-8] + "AAAAAAAA",
        "e30.e30.",
        "sk-wrong",
    ):
        answer = asked(proxy, token)
        assert answer.status_code == 401, (token, answer.text)
        assert token not in answer.text


def test_a_missing_token_is_asked_for(proxy: Proxy) -> None:
    for headers in ({}, {"authorization": ""}, {"authorization": "Bearer"}):
        answer = httpx.post(
            f"{proxy.url}/v1/chat/completions",
            json=ROUTES["/v1/chat/completions"],
            headers=headers,
            timeout=30,
        )
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in answer.json()["error"]["message"]


def test_the_master_key_is_still_taken(proxy: Proxy) -> None:
    assert asked(proxy, proxy.master_key, model="other").status_code == 200


def test_a_token_may_call_the_models_of_its_scopes(proxy: Proxy, issuer: Issuer) -> None:
    base, careful = issuer.key.token(), issuer.key.token(scope=["llm.careful"])
    assert asked(proxy, careful, model="careful").status_code == 200
    chosen = ROUTES["/v1/chat/completions"] | {"optillm_approach": "re2"}
    assert (
        proxy.post("/v1/chat/completions", chosen, key=base).json()["optillm"]["approach"] == "re2"
    )
    for token, model in ((base, "careful"), (base, "other"), (careful, "other")):
        assert model in refusal(asked(proxy, token, model=model), 403)


def test_a_token_without_a_known_scope_is_told_which_it_needs(proxy: Proxy, issuer: Issuer) -> None:
    for scope in (None, "openid", 7):
        answer = asked(proxy, issuer.key.token(scope=scope))
        assert "llm.base, llm.careful" in refusal(answer, 403)
        assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


def test_a_token_lists_the_models_of_its_scopes(proxy: Proxy, issuer: Issuer) -> None:
    assert {model.id for model in proxy.openai(issuer.key.token()).models.list()} == {"base"}


def test_ceilings_come_from_a_signed_claim(proxy: Proxy, issuer: Issuer) -> None:
    token = issuer.key.token(scope="llm.careful", optillm={"max_calls": 1}, group="team-a")
    report = asked(proxy, token, model="careful").json()["optillm"]
    assert report["calls"] == 1


def test_calls_are_booked_on_the_user(proxy: Proxy, issuer: Issuer) -> None:
    """Whatever the token: two of one user share a key in LiteLLM, and two users do not."""

    def key_of(user: str, exp: int) -> str | None:
        token, trace = issuer.key.token(sub=user, exp=int(time.time()) + exp), new_trace()
        asked = ROUTES["/v1/chat/completions"] | {"model": "base"}
        headers = traceparent(trace)
        proxy.post("/v1/chat/completions", asked, key=token, headers=headers).raise_for_status()
        [entry] = proxy.booked(trace)
        return entry.key_hash

    eve, again, bob = key_of("eve", 100), key_of("eve", 200), key_of("bob", 100)
    assert eve == again != bob
    assert eve is not None
    assert "eve" not in eve


def test_new_keys_are_fetched_when_a_token_names_one(proxy: Proxy, issuer: Issuer) -> None:
    old, issuer.key = issuer.key, SigningKey("second")
    assert asked(proxy, issuer.key.token()).status_code == 200
    assert "no such key" in refusal(asked(proxy, old.token()), 401)


def test_while_the_issuer_is_down_its_last_keys_stay_valid(proxy: Proxy, issuer: Issuer) -> None:
    assert asked(proxy, issuer.key.token()).status_code == 200
    issuer.down = True
    assert asked(proxy, issuer.key.token()).status_code == 200
    assert "cannot be fetched" in refusal(asked(proxy, SigningKey("unknown").token()), 503)
    issuer.down = False


def test_the_log_has_no_token(proxy: Proxy, issuer: Issuer) -> None:
    token = issuer.key.token(exp=int(time.time()) - 600)
    asked(proxy, token)
    assert token not in proxy.log


@pytest.mark.anyio
async def test_scopes_that_litellm_would_not_check_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each message names the next setting."""
    proxy_server: Any = ModuleType("proxy_server")
    proxy_server.general_settings = {}
    monkeypatch.setitem(sys.modules, "litellm.proxy.proxy_server", proxy_server)
    request = Request({"type": "http"})
    with pytest.raises(ProxyException, match=r"set litellm_settings\.optillm_settings\.oauth"):
        await user_api_key_auth(request, KEY.token())
    given = {"oauth": settings().model_dump(mode="json")}
    monkeypatch.setattr(litellm, "optillm_settings", given, raising=False)
    with pytest.raises(ProxyException, match="custom_auth_run_common_checks: true"):
        await user_api_key_auth(request, KEY.token())
    proxy_server.general_settings["custom_auth_run_common_checks"] = True
    with pytest.raises(ProxyException, match="enable_post_custom_auth_checks: true"):
        await user_api_key_auth(request, KEY.token())


def settings(**changes: object) -> OAuthSettings:
    given = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": "https://x/jwks", "scopes": SCOPES}
    return OAuthSettings.model_validate(given | changes)


class Published:
    """An issuer's keys and a clock, without HTTP."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = keys
        self.fetches = 0
        self.now = 0.0
        self.fault: Exception | None = None

    async def fetch(self, url: str) -> list[Any]:
        assert url == "https://x/jwks"
        self.fetches += 1
        if self.fault is not None:
            raise self.fault
        return [key.jwk for key in self.keys]

    def cache(self) -> IssuerKeys:
        return IssuerKeys(self.fetch, lambda: self.now)


KEY = SigningKey("a")


@pytest.mark.anyio
async def test_keys_are_fetched_once_until_they_are_stale() -> None:
    published = Published(KEY)
    cache = published.cache()
    for now, fetches in ((0, 1), (299, 1), (300, 2)):
        published.now = now
        await verified_claims(KEY.token(), settings(), cache)
        assert published.fetches == fetches


@pytest.mark.anyio
async def test_tokens_with_made_up_keys_do_not_flood_the_issuer() -> None:
    published = Published(KEY)
    cache = published.cache()
    for number in range(5):
        assert await cache.find(f"made-up-{number}", settings()) is None
    assert published.fetches == 1
    published.now = 10
    assert await cache.find("made-up", settings()) is None
    assert published.fetches == 2


@pytest.mark.anyio
@pytest.mark.parametrize("fault", [httpx.ConnectError("down"), ValueError("not a JWK set")])
async def test_stale_keys_outlast_an_issuer_that_fails(fault: Exception) -> None:
    published = Published(KEY)
    cache = published.cache()
    await verified_claims(KEY.token(), settings(), cache)
    published.now, published.fault = 1000, fault
    assert await verified_claims(KEY.token(), settings(), cache)
    assert published.fetches == 2


@pytest.mark.anyio
async def test_an_issuer_that_hangs_delays_no_token_with_a_known_key_but_one() -> None:
    published = Published(KEY)
    asked, answered = anyio.Event(), anyio.Event()

    async def hanging(url: str) -> list[Any]:
        if published.now:
            asked.set()
            await answered.wait()
        return await published.fetch(url)

    cache = IssuerKeys(hanging, lambda: published.now)
    await cache.find("a", settings())
    published.now = 1000
    async with anyio.create_task_group() as group:
        group.start_soon(cache.find, "a", settings())
        await asked.wait()
        with anyio.fail_after(5):
            assert await cache.find("a", settings()) is not None
        answered.set()


@pytest.mark.parametrize("url", ["http://issuer.example/jwks", "http://localhost.evil.example/"])
def test_keys_come_by_https_or_from_this_host(url: str) -> None:
    with pytest.raises(ValidationError, match="jwks_url"):
        settings(jwks_url=url)


@pytest.mark.anyio
async def test_a_token_without_a_key_id_is_for_an_issuer_with_one_key() -> None:
    published = Published(KEY)
    assert await published.cache().find(None, settings()) is not None
    published.keys = (KEY, SigningKey("b"))
    assert await published.cache().find(None, settings()) is None


@pytest.mark.anyio
async def test_clocks_may_differ_by_the_leeway() -> None:
    late = KEY.token(exp=int(time.time()) - 60)
    cache = Published(KEY).cache()
    assert await verified_claims(late, settings(leeway_s=600), cache)
    with pytest.raises(ProxyException, match="expired"):
        await verified_claims(late, settings(leeway_s=0), cache)


@pytest.mark.anyio
async def test_an_algorithm_that_is_not_listed_is_refused() -> None:
    with pytest.raises(ProxyException, match="must be one of ES256"):
        await verified_claims(KEY.token(), settings(algorithms=["ES256"]), Published(KEY).cache())


def test_the_models_of_all_scopes_are_granted_once() -> None:
    claims = {"sub": "ada", "scp": "llm.base llm.careful"}
    assert caller_of(claims, settings()).models == ["base", "careful"]


def test_a_token_is_no_administrator() -> None:
    claims = {"sub": "ada", "scope": "llm.base", "user_role": "proxy_admin"}
    assert caller_of(claims, settings()).user_role == LitellmUserRoles.INTERNAL_USER


def test_symmetric_algorithms_cannot_be_allowed() -> None:
    for algorithm in ("none", "HS256"):
        with pytest.raises(ValueError, match="algorithms"):
            settings(algorithms=[algorithm])


def test_a_scope_without_models_is_refused() -> None:
    """In LiteLLM, an empty list of models would be all of them."""
    with pytest.raises(ValueError, match="at least one model for 'llm'"):
        settings(scopes={"llm": []})
