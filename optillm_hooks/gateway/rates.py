"""LiteLLM's rate limits per model (RPM, TPM), applied to the models that a plan calls.

LiteLLM's limiter looks at the requested name, but `model_rpm_limit` and `model_tpm_limit` of a key,
team or organisation name base models. So the same limiter is also applied to those: a client's
request counts once for each model of its plan, and tokens count call by call.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.errors import RATE_LIMIT_EXCEEDED, ProviderFailed, SampleError
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.types import Usage

_PER_MODEL = "model_per_"
"""Prefix of the limiter's keys for limits per model."""

_LIMITER_API = (
    "create_rate_limit_descriptors",
    "create_organization_rate_limit_descriptor",
    "should_rate_limit",
    "reserve_tpm_tokens",
    "create_rate_limit_keys",
    "async_increment_tokens_with_ttl_preservation",
    "get_rate_limit_type",
    "window_size",
)


@dataclass(slots=True)
class Counted:
    """One call, with its usage as far as it is known."""

    usage: Usage


class ModelRates:
    """The rate limits of one model for one key; none if the proxy's limiter does not support it."""

    def __init__(self, model: str, key: UserAPIKeyAuth | None) -> None:
        self._model = model
        self._limiter: Any = None if key is None else _limiter()
        self._limits = [] if key is None else _limits(self._limiter, model, key)

    async def count_request(self) -> None:
        """Count a client's request towards the RPM limit.

        Raises:
            ProviderFailed: the limit is reached; its status is 429.
        """
        if self._limits:
            self._check(await self._limiter.should_rate_limit(self._limits, skip_tpm_check=True))

    @asynccontextmanager
    async def counting(self, expected: Callable[[], Usage]) -> AsyncIterator[Counted]:
        """Reserve the estimated tokens of a call while it runs, then count its real usage.

        A call that is cut off, or whose provider reports no usage, counts with its prompt, one that
        fails with nothing. `expected` is
        called only if tokens are limited.

        Raises:
            ProviderFailed: the TPM limit leaves no room; its status is 429.
        """
        if not self._token_counters:
            yield Counted(Usage())
            return
        estimate = expected()
        reserved = max(1, self._used(estimate))
        self._check(await self._limiter.reserve_tpm_tokens(self._limits, reserved))
        call = Counted(replace(estimate, completion_tokens=0))
        try:
            yield call
        except SampleError:
            call.usage = Usage()
            raise
        finally:
            await self._settle(self._used(call.usage) - reserved)

    @property
    def _token_counters(self) -> list[str]:
        return [
            self._limiter.create_rate_limit_keys(limit["key"], limit["value"], "tokens")
            for limit in self._limits
            if limit["rate_limit"].get("tokens_per_unit") is not None
        ]

    async def _settle(self, more: int) -> None:
        window = self._limiter.window_size
        await self._limiter.async_increment_tokens_with_ttl_preservation(
            [
                {"key": counter, "increment_value": more, "ttl": window}
                for counter in self._token_counters
            ]
        )

    def _used(self, usage: Usage) -> int:
        counted: dict[str, int] = {"input": usage.prompt_tokens, "output": usage.completion_tokens}
        return counted.get(self._limiter.get_rate_limit_type(), usage.total_tokens)

    def _check(self, response: Any) -> None:
        if response["overall_code"] != "OVER_LIMIT":
            return
        over = next(s for s in response["statuses"] if s["code"] == "OVER_LIMIT")
        raise ProviderFailed(
            f"rate limit of {self._model!r} reached: {over['current_limit']} "
            f"{over['rate_limit_type']} per {self._limiter.window_size} s "
            f"({over['descriptor_key']})",
            status=429,
            retry_after=str(self._limiter.window_size),
            code=RATE_LIMIT_EXCEEDED,
        )


def _limiter() -> Any:
    """Return the proxy's rate limiter, or None if it does not support limits per model."""
    logging = getattr(proxy_module(), "proxy_logging_obj", None)
    found = None if logging is None else logging.get_proxy_hook("parallel_request_limiter")
    return found if all(hasattr(found, name) for name in _LIMITER_API) else None


def _limits(limiter: Any, model: str, key: UserAPIKeyAuth) -> list[Any]:
    if limiter is None:
        return []
    found = [
        *limiter.create_rate_limit_descriptors(
            user_api_key_dict=key,
            data={"model": model},
            rpm_limit_type=None,
            tpm_limit_type=None,
            model_has_failures=False,
        ),
        *limiter.create_organization_rate_limit_descriptor(key, model),
    ]
    return [limit for limit in found if limit["key"].startswith(_PER_MODEL)]
