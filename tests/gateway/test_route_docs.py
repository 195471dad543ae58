"""The proxy's `/openapi.json` says what our routes take, and that they refuse in OpenAI's form."""

from typing import Any

import pytest
from fastapi import FastAPI

from optillm_hooks.gateway import http_routes, page_routes

WHOSE = {"scope": False, "owner": False}
"""Names of parameters, and whether they are required."""

QUERIES = {
    "get /optillm/notes": {**WHOSE, "limit": False, "after": False},
    "delete /optillm/notes": WHOSE,
    "delete /optillm/notes/{note_id}": {"note_id": True, **WHOSE},
    "get /optillm/strategies": WHOSE,
    "delete /optillm/strategies/{strategy_id}": {"strategy_id": True, **WHOSE},
    "post /optillm/strategies/{strategy_id}/rollback": {"strategy_id": True},
    "post /optillm/feedback": {},
    "get /optillm/approaches": {},
    "get /optillm/counters": {},
    "get /optillm/price": {"model": True},
    "get /optillm/plans": {"limit": False},
    "get /optillm/plans/{call_id}": {"call_id": True},
}
BODIES = {
    "post /optillm/feedback": {"request_id", "reward", "scope", "owner"},
    "post /optillm/strategies/{strategy_id}/rollback": {"version", "scope", "owner"},
}


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    app = FastAPI()
    for router in (http_routes.router, page_routes.router):
        app.include_router(router)
    paths = app.openapi()["paths"]
    return {f"{verb} {path}": told for path, verbs in paths.items() for verb, told in verbs.items()}


def test_each_route_says_what_it_takes(operations: dict[str, Any]) -> None:
    assert operations.keys() == QUERIES.keys()
    for name, told in operations.items():
        given = {each["name"]: each["required"] for each in told.get("parameters", ())}
        assert given == QUERIES[name], name
        body = told.get("requestBody", {}).get("content", {}).get("application/json", {})
        assert set(body.get("schema", {}).get("properties", ())) == BODIES.get(name, set()), name


def test_each_route_says_how_it_refuses(operations: dict[str, Any]) -> None:
    for told in operations.values():
        [refused] = told["responses"]["4XX"]["content"].values()
        assert refused["schema"]["properties"].keys() == {"error"}
