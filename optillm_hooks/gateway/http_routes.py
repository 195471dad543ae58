"""Routes of our own on the proxy's application, behind LiteLLM's authentication.

A caller reaches the rows of its own key, team and user. An admin of the proxy also reaches those of
others, by `owner`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from litellm.proxy._types import LiteLLMRoutes, LitellmUserRoles, ProxyException, UserAPIKeyAuth
from litellm.proxy.auth.user_api_key_auth import user_api_key_auth
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optillm_hooks.errors import OptiLLMError, RequestRejected
from optillm_hooks.gateway.failures import to_proxy
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.route_docs import ERRORS, in_body, in_query
from optillm_hooks.gateway.services import owner_of, store_of
from optillm_hooks.store.records import Namespace, Note, Scope, Strategy
from optillm_hooks.store.store import Store
from optillm_hooks.wrong_values import wrong_value

M = TypeVar("M", bound=BaseModel)

PREFIX: Final = "/optillm"
_MAX_BODY: Final = 10_000
_MAX_VERSION: Final = 1_000_000
_NO_NUL: Final = r"^[^\x00]*$"
"""PostgreSQL takes no text with that character."""

NOT_KEPT: Final = {"cache-control": "no-store"}
"""Headers of a caller's own data: a cache may not know each header in which LiteLLM takes keys."""


def not_kept(response: Response) -> None:
    """Tell caches not to keep what a route returns. A `Response` of its own says so itself."""
    response.headers.update(NOT_KEPT)


router: Final = APIRouter(
    prefix=PREFIX, tags=["optillm"], dependencies=[Depends(not_kept)], responses=ERRORS
)
Key = Annotated[UserAPIKeyAuth, Depends(user_api_key_auth)]


class Given(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Whose(Given):
    """Whose rows: `owner` is the id of a key (its hash), a team or a user."""

    scope: Scope = "key"
    owner: str | None = Field(default=None, min_length=1, max_length=500, pattern=_NO_NUL)


class _Page(_Whose):
    limit: int = Field(default=100, ge=1, le=1000)
    after: str | None = Field(default=None, max_length=100)


class _Feedback(Given):
    request_id: str = Field(min_length=1, max_length=200)
    reward: float = Field(ge=0, le=1, allow_inf_nan=False)
    scope: Scope | None = None
    owner: str | None = Field(default=None, min_length=1, max_length=500)


class _Rollback(_Whose):
    version: int = Field(ge=1, le=_MAX_VERSION)


@router.get("/notes", openapi_extra=in_query(_Page))
async def list_notes(request: Request, key: Key) -> dict[str, Any]:
    """Return a page of notes, newest first; `after` is the id of the last note of the page before.

    Query: `scope` (key, team or user), `owner`, `limit`, `after`.
    """
    asked = query_of(_Page, request)
    with _refusals():
        namespace = _namespace(asked, key)
        notes = await _store().notes(namespace, limit=asked.limit + 1, after=asked.after)
    page = notes[: asked.limit]
    return {"object": "list", "data": [*map(_note, page)], "has_more": len(notes) > len(page)}


@router.delete("/notes", openapi_extra=in_query(_Whose))
async def delete_notes(request: Request, key: Key) -> dict[str, Any]:
    """Delete all notes and cached texts. Query: `scope`, `owner`."""
    asked = query_of(_Whose, request)
    with _refusals():
        namespace = _namespace(asked, key)
        notes = await _store().clear_notes(namespace)
        texts = await _store().clear_texts(namespace)
    return {"object": "optillm.notes.deleted", "notes": notes, "cached_texts": texts}


@router.delete("/notes/{note_id}", openapi_extra=in_query(_Whose))
async def delete_note(note_id: str, request: Request, key: Key) -> dict[str, Any]:
    """Delete a note. Query: `scope`, `owner`."""
    asked = query_of(_Whose, request)
    with _refusals():
        found = await _store().delete_note(_namespace(asked, key), note_id)
    return _deleted("optillm.note", note_id, found)


@router.post("/feedback", openapi_extra=in_body(_Feedback))
async def give_feedback(request: Request, key: Key) -> dict[str, Any]:
    """Reward the strategies that a request used. Only the first reward of a request counts.

    Body: `request_id` (the response header `x-litellm-call-id`), `reward` (0 to 1), and `scope` and
    `owner`. Without these two, the strategies of the caller's key, team and user are rewarded: who
    rates an answer need not know which of them the request has learnt for.
    """
    given = await _body(_Feedback, request)
    with _refusals():
        if given.scope is None and given.owner is None:
            namespaces = owner_of(key).namespaces()
        else:
            whose = _Whose(scope=given.scope or "key", owner=given.owner)
            namespaces = [_namespace(whose, key)]
        rewarded = sum(
            [await _store().reward(each, given.request_id, given.reward) for each in namespaces]
        )
    return {"object": "optillm.feedback", "request_id": given.request_id, "strategies": rewarded}


@router.get("/strategies", openapi_extra=in_query(_Whose))
async def list_strategies(request: Request, key: Key) -> dict[str, Any]:
    """Return the strategies with their counts. Query: `scope`, `owner`."""
    asked = query_of(_Whose, request)
    with _refusals():
        found = await _store().strategies(_namespace(asked, key))
    return {"object": "list", "data": [*map(_strategy, found)], "has_more": False}


@router.delete("/strategies/{strategy_id}", openapi_extra=in_query(_Whose))
async def delete_strategy(strategy_id: str, request: Request, key: Key) -> dict[str, Any]:
    """Delete a strategy with all its versions. Query: `scope`, `owner`."""
    asked = query_of(_Whose, request)
    with _refusals():
        found = await _store().delete_strategy(_namespace(asked, key), strategy_id)
    return _deleted("optillm.strategy", strategy_id, found)


@router.post("/strategies/{strategy_id}/rollback", openapi_extra=in_body(_Rollback))
async def roll_back_strategy(strategy_id: str, request: Request, key: Key) -> dict[str, Any]:
    """Make an earlier version the current one. Body: `version`, `scope`, `owner`."""
    given = await _body(_Rollback, request)
    with _refusals():
        namespace = _namespace(given, key)
        found = await _store().roll_back_strategy(namespace, strategy_id, given.version)
    if not found:
        raise missing("strategy or version")
    return {"object": "optillm.strategy", "id": strategy_id, "version": given.version}


def mount(app: FastAPI, routers: Iterable[APIRouter] = (router,)) -> str | None:
    """Add routes to LiteLLM's application; return what it lacks for virtual keys to call them.

    LiteLLM keeps routes that it does not know for admins. Its `self_managed_routes` are those that
    check by themselves what a caller may do.
    """
    routers = list(routers)
    for each in routers:
        app.include_router(each)
    managed = getattr(getattr(LiteLLMRoutes, "self_managed_routes", None), "value", None)
    if not isinstance(managed, list):
        return (
            "this version of LiteLLM has no list of self-managed routes: only admins can call "
            f"{PREFIX}/..."
        )
    paths = [getattr(route, "path", "") for each in routers for route in each.routes]
    managed.extend(path for path in dict.fromkeys(paths) if path not in managed)
    return None


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise our errors as the proxy's, which it answers in OpenAI's form."""
    try:
        yield
    except OptiLLMError as exc:
        raise to_proxy(exc) from None


def _store() -> Store:
    return store_of(read_settings().store)


def _namespace(asked: _Whose, key: UserAPIKeyAuth) -> Namespace:
    """Return the caller's namespace, or the one that an admin names.

    Raises:
        RequestRejected: the caller has no such namespace.
        ProxyException: with status 403, it names another's and is no admin.
    """
    if asked.owner is None:
        return owner_of(key).namespace(asked.scope)
    if not is_admin(key):
        raise ProxyException(
            message="only an admin of the proxy may name an owner",
            type="permission_error",
            param="owner",
            code=403,
        )
    return Namespace(asked.scope, asked.owner)


def is_admin(key: UserAPIKeyAuth) -> bool:
    """Return whether a key is an admin's of the proxy."""
    return bool(key.user_role == LitellmUserRoles.PROXY_ADMIN)


def query_of(model: type[M], request: Request) -> M:
    return _valid(model, dict(request.query_params))


async def _body(model: type[M], request: Request) -> M:
    if request.query_params:
        field = next(iter(request.query_params))
        raise to_proxy(RequestRejected(f"send {field!r} in the body", param=field))
    body = await request.body()
    if len(body) > _MAX_BODY:
        raise to_proxy(RequestRejected(f"the body has more than {_MAX_BODY} bytes"))
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        raise to_proxy(_rejected(exc)) from None


def _valid(model: type[M], given: Mapping[str, object]) -> M:
    try:
        return model.model_validate(given)
    except ValidationError as exc:
        raise to_proxy(_rejected(exc)) from None


def _rejected(error: ValidationError) -> RequestRejected:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return RequestRejected(f"{field or 'body'}: {wrong_value(first)}", param=field or None)


def _deleted(kind: str, row_id: str, found: bool) -> dict[str, Any]:
    if not found:
        raise missing(kind.removeprefix("optillm."))
    return {"object": kind, "id": row_id, "deleted": True}


def missing(what: str) -> ProxyException:
    """Return the error of something that is not there, or not for this caller."""
    return ProxyException(
        message=f"no such {what}", type="invalid_request_error", param=None, code=404
    )


def _note(note: Note) -> dict[str, Any]:
    return {
        "object": "optillm.note",
        "id": note.id,
        "text": note.text,
        "source": note.source,
        "created_at": int(note.created_at),
        "expires_at": None if note.expires_at is None else int(note.expires_at),
    }


def _strategy(strategy: Strategy) -> dict[str, Any]:
    return {
        "object": "optillm.strategy",
        "id": strategy.id,
        "version": strategy.version,
        "when": strategy.method.when,
        "keywords": strategy.method.keywords,
        "steps": strategy.method.steps,
        "uses": strategy.uses,
        "rewarded": strategy.rewarded,
        "reward": strategy.reward,
        "created_at": int(strategy.created_at),
        "last_used": None if strategy.last_used is None else int(strategy.last_used),
    }
