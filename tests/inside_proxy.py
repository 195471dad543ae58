"""What runs inside a proxy under test: virtual keys without a database, and a ledger of spend.

Named in its YAML as `tests.inside_proxy.authenticate` and `tests.inside_proxy.ledger`.
"""

import json
import os
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth

KEYS = json.loads(Path(os.environ["TEST_KEYS"]).read_text()) or {}


async def authenticate(request: Request, api_key: str) -> UserAPIKeyAuth:  # noqa: ARG001
    """Return what the table of keys grants to `api_key`; the master key may do everything."""
    if api_key == os.environ["LITELLM_MASTER_KEY"]:
        return UserAPIKeyAuth(api_key=api_key, user_role=LitellmUserRoles.PROXY_ADMIN)
    granted = KEYS.get(api_key)
    if granted is None:
        raise HTTPException(401, "unknown key")
    return UserAPIKeyAuth(api_key=api_key, **granted)


class Ledger(CustomLogger):  # type: ignore[misc]
    """Writes a line of JSON for each call that LiteLLM logs, the outer ones and the inner ones."""

    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: object,  # noqa: ARG002
        start_time: object,  # noqa: ARG002
        end_time: object,  # noqa: ARG002
    ) -> None:
        self._write(kwargs)

    async def async_log_failure_event(
        self,
        kwargs: dict[str, Any],
        response_obj: object,  # noqa: ARG002
        start_time: object,  # noqa: ARG002
        end_time: object,  # noqa: ARG002
    ) -> None:
        self._write(kwargs)

    def _write(self, kwargs: dict[str, Any]) -> None:
        payload = kwargs["standard_logging_object"]
        params = kwargs.get("litellm_params") or {}
        metadata = (params.get("metadata") or {}) | (params.get("litellm_metadata") or {})
        entry = {
            "status": payload["status"],
            "key_hash": payload["metadata"]["user_api_key_hash"],
            "key_alias": payload["metadata"]["user_api_key_alias"],
            "model": payload["model"],
            "model_group": payload["model_group"],
            "provider": payload["custom_llm_provider"],
            "call_type": payload["call_type"],
            "stream": bool(payload["stream"]),
            "cost": payload["response_cost"],
            "prompt_tokens": payload["prompt_tokens"],
            "completion_tokens": payload["completion_tokens"],
            "call_id": payload["litellm_call_id"],
            "trace_id": payload["trace_id"],
            "origin": metadata.get("internal_call_origin"),
            "tags": payload["request_tags"],
            "end_user": payload["end_user"],
            "error": payload["error_str"],
        }
        with Path(os.environ["TEST_LEDGER"]).open("a") as file:
            file.write(json.dumps(entry) + "\n")


ledger = Ledger()
