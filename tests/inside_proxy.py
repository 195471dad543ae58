"""What runs inside a proxy under test: virtual keys without a database, and a ledger of spend.

Its YAML names `authenticate`, `ledger` and `spend_counters` of this module, and `holds` if it is to
measure how long its event loop is held.
"""

import asyncio
import gc
import json
import os
import time
from pathlib import Path
from typing import Any

from fastapi import HTTPException, Request
from litellm.integrations.custom_logger import CustomLogger
from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER
from litellm.proxy import proxy_server
from litellm.proxy._types import LitellmUserRoles, UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import is_model_cost_zero, virtual_key_max_budget_check
from litellm.proxy.hooks.proxy_track_cost_callback import ProxyDBLogger

MARK = "mark"
"""A model whose entry in the ledger follows those of all calls before."""

KEYS = json.loads(Path(os.environ["TEST_KEYS"]).read_text()) or {}


_COUNTERS = 100_000


def keep_all_counters() -> None:
    """Let LiteLLM keep the counters of all keys of a module.

    By default it keeps 200 entries in memory: the limits and the spend of the other keys are lost.
    """
    usage = proxy_server.proxy_logging_obj.internal_usage_cache.dual_cache
    for cache in (usage, proxy_server.spend_counter_cache):
        cache.update_in_memory_max_size(_COUNTERS)


keep_all_counters()


async def authenticate(request: Request, api_key: str) -> UserAPIKeyAuth:
    """Return what the table of keys grants to `api_key`; the master key may do everything.

    A copy of a key, as `tests.proxy.copy_of` makes it, may do what the key may.
    LiteLLM reads a key's spent budget only where it reads keys from a database, unless it waives
    all budget checks for a model whose price is zero: the same is done here.
    """
    if api_key == os.environ["LITELLM_MASTER_KEY"]:
        return UserAPIKeyAuth(api_key=api_key, user_role=LitellmUserRoles.PROXY_ADMIN)
    fields = KEYS.get(api_key.partition("+")[0])
    if fields is None:
        raise HTTPException(401, "unknown key")
    key = UserAPIKeyAuth(api_key=api_key, **fields)
    charged = await proxy_server.get_current_spend(f"spend:key:{key.token}", fallback_spend=0.0)
    _append("TEST_CHARGED", {"key": api_key, "charged": charged})
    model = (await request.json()).get("model") if await request.body() else None
    if not is_model_cost_zero(model, proxy_server.llm_router):
        await virtual_key_max_budget_check(key, proxy_server.proxy_logging_obj)
    return key


def _append(file: str, entry: dict[str, Any]) -> None:
    with Path(os.environ[file]).open("a") as lines:
        lines.write(json.dumps(entry) + "\n")


class Ledger(CustomLogger):  # type: ignore[misc]
    """Writes a line of JSON for each call that LiteLLM logs, both outer and inner calls."""

    _marking: asyncio.Task[None] | None = None
    """The last one; the loop alone would not keep it alive."""

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
        if payload["model_group"] == MARK:
            self._marking = asyncio.get_running_loop().create_task(self._mark(entry))
        else:
            _append("TEST_LEDGER", entry)

    async def _mark(self, entry: dict[str, Any]) -> None:
        """Write `entry` once LiteLLM has done with all that it had to log and to charge.

        It logs several calls at a time, and charges keys after the ledger has been called.
        """
        await GLOBAL_LOGGING_WORKER.flush()
        _append("TEST_LEDGER", entry)


ledger = Ledger()

spend_counters = ProxyDBLogger(None)
"""LiteLLM registers this if there is a database: it charges keys and settles reservations."""


class Holds(CustomLogger):  # type: ignore[misc]
    """Writes a line of JSON whenever the event loop was held, from the first request on.

    A hold is measured in CPU time of the process: other processes cannot make it longer. Time of
    the garbage collector is left out. It depends on what LiteLLM has loaded, not on a text.
    """

    _TICK_S = 0.005
    _LEAST_S = 0.02

    def __init__(self) -> None:
        super().__init__()
        self._watching: asyncio.Task[None] | None = None
        self._collecting = 0.0
        self._collected = 0.0

    async def async_pre_call_hook(
        self,
        user_api_key_dict: UserAPIKeyAuth,  # noqa: ARG002 (LiteLLM's signature)
        cache: Any,  # noqa: ARG002
        data: dict[str, Any],
        call_type: str,  # noqa: ARG002
    ) -> dict[str, Any]:
        if self._watching is None:
            gc.callbacks.append(self._count)
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        return data

    def _count(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.process_time()
        else:
            self._collected += time.process_time() - self._collecting

    async def _watch(self) -> None:
        while True:
            started, cpu, collected = time.monotonic(), time.process_time(), self._collected
            await asyncio.sleep(self._TICK_S)
            held = time.process_time() - cpu
            if held > self._LEAST_S:
                hold = {
                    "started": started,
                    "ended": time.monotonic(),
                    "cpu": held - (self._collected - collected),
                    "collecting": self._collected - collected,
                }
                _append("TEST_HOLDS", hold)


holds = Holds()
