"""The page at `/optillm`: its files, which hold no data, and the routes that it reads data from.

The data need a key, as LiteLLM checks it. A key sees its own plans; an admin of the proxy sees
those of all, and the counters.
"""

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Depends, Request, Response
from litellm.proxy._types import ProxyException
from prometheus_client import REGISTRY, CollectorRegistry
from pydantic import BaseModel, Field

from optillm_hooks.approach_docs import bounds, good_for, summary, type_name, worth
from optillm_hooks.errors import OptiLLMError
from optillm_hooks.gateway.caller import check_access
from optillm_hooks.gateway.deployments import proxy_router
from optillm_hooks.gateway.failures import to_proxy
from optillm_hooks.gateway.http_routes import (
    NOT_KEPT,
    PREFIX,
    Given,
    Key,
    is_admin,
    missing,
    not_kept,
    query_of,
)
from optillm_hooks.gateway.model_facts import model_facts
from optillm_hooks.gateway.operator_settings import read_settings
from optillm_hooks.gateway.recent_plans import PLANS, whose_of
from optillm_hooks.gateway.route_docs import ERRORS, in_query
from optillm_hooks.pipeline.plan import cost_of, stage_of
from optillm_hooks.registry import Approach, all_approaches
from optillm_hooks.settings import variable
from optillm_hooks.types import Json

_FILES: Final = Path(__file__).parent / "page"
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
_OURS: Final = "optillm_"


def _served() -> None:
    """Refuse every route of the page if the operator has switched it off."""
    try:
        enabled = read_settings().page.enabled
    except OptiLLMError as exc:
        raise to_proxy(exc) from None
    if not enabled:
        raise missing("page: optillm_settings.page.enabled is false")


router: Final = APIRouter(
    prefix=PREFIX,
    tags=["optillm"],
    dependencies=[Depends(_served), Depends(not_kept)],
    responses=ERRORS,
)


class _Listed(Given):
    limit: int = Field(default=50, ge=1, le=500)


class _Priced(Given):
    model: str = Field(max_length=256)


@router.get("", include_in_schema=False)
def page() -> Response:
    """Return the page. It holds no data, so it needs no key."""
    return _file("index.html")


@router.get("/page/{name}", include_in_schema=False)
def page_file(name: str) -> Response:
    """Return a style sheet, a script or the icon of the page."""
    return _file(name)


@router.get("/approaches")
def list_approaches(_key: Key) -> dict[str, Any]:
    """Return the approaches with their parameters, and their cost at the defaults of these."""
    return {"object": "list", "data": [*map(_approach, all_approaches())]}


@router.get("/price", openapi_extra=in_query(_Priced))
async def price(request: Request, key: Key) -> dict[str, Any]:
    """Return a model's price in US dollars per token, or null if it is not known. Query: `model`.

    LiteLLM tells nobody what a streamed plain call has cost.
    """
    model, models = query_of(_Priced, request).model, proxy_router()
    if models is None:
        raise missing("router")
    await check_access(model, key, models)
    found = model_facts(models, model, key).price
    return {"object": "optillm.price", "model": model, "usd": found and asdict(found)}


@router.get("/counters")
def counters(key: Key) -> dict[str, Any]:
    """Return our series of `/metrics` as JSON: of all workers, for admins only."""
    if not is_admin(key):
        raise ProxyException(
            message="only an admin of the proxy sees the counters of all keys",
            type="permission_error",
            param=None,
            code=403,
        )
    samples = [
        {"name": sample.name, "labels": sample.labels, "value": sample.value}
        for family in _registry().collect()
        if family.name.startswith(_OURS)
        for sample in family.samples
        if not sample.name.endswith(("_created", "_bucket"))
    ]
    return {"object": "list", "data": samples}


@router.get("/plans", openapi_extra=in_query(_Listed))
async def list_plans(request: Request, key: Key) -> dict[str, Any]:
    """Return summaries of the plans that this worker keeps, the latest first. Query: `limit`."""
    limit = query_of(_Listed, request).limit
    plans = PLANS.summaries(whose_of(key), everyones=is_admin(key), limit=limit)
    return {"object": "list", "data": plans}


@router.get("/plans/{call_id}")
async def get_plan(call_id: str, key: Key) -> Response:
    """Return a plan: its stages, model calls and notes. Its id is the `x-litellm-call-id`."""
    found = PLANS.find(call_id, whose_of(key), everyones=is_admin(key))
    if found is None:
        raise missing("plan in this worker")
    return Response(found, media_type="application/json", headers=NOT_KEPT)


def _file(name: str) -> Response:
    found = _files().get(name)
    if found is None:
        raise missing("file")
    return Response(found, media_type=_TYPES[Path(name).suffix], headers=_HEADERS)


@cache
def _files() -> dict[str, bytes]:
    """Return the page's files by name."""
    return {path.name: path.read_bytes() for path in _FILES.iterdir() if path.suffix in _TYPES}


def _registry() -> CollectorRegistry:
    """Return what LiteLLM's `/metrics` serves: the registry of all workers."""
    if (shared := variable("PROMETHEUS_MULTIPROC_DIR")) is None:
        return REGISTRY
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry, shared)  # type: ignore[no-untyped-call]
    return registry


def _approach(approach: Approach) -> dict[str, Json]:
    chain = (stage_of(approach.name, {}, None),)
    cost = cost_of(chain)
    return {
        "name": approach.name,
        "kind": approach.kind,
        "summary": summary(approach),
        "good_for": good_for(approach),
        "worth_it_when": worth(approach),
        "needs": [*sorted(approach.needs)],
        "calls": cost.calls,
        "depth": cost.depth,
        "remote_calls": chain[0].cost.remote_calls,
        "parameters": [*_parameters(approach.params)],
    }


def _parameters(params: type[BaseModel]) -> list[Json]:
    return [
        {
            "name": name,
            "type": type_name(field),
            "default": repr(field.get_default(call_default_factory=True)),
            "bounds": bounds(field),
            "description": field.description or "",
        }
        for name, field in params.model_fields.items()
    ]
