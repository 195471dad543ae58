"""How our routes are described in the proxy's `/openapi.json`: what they take, and their errors.

They check queries and bodies themselves, to answer in OpenAI's form of an error, so FastAPI does
not know what they take.
"""

from typing import Any, Final

from pydantic import BaseModel

_ERROR: Final = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "4XX": {
        "description": "The request is refused",
        "content": {"application/json": {"schema": _ERROR}},
    }
}
"""For `responses` of a router."""


def in_query(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a route whose query is a `model`, for its `openapi_extra`."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    parameters = [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]
    return {"parameters": parameters}


def in_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a route whose JSON body is a `model`, for its `openapi_extra`."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}
