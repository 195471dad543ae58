"""How the tokens of a call count towards the rate limits of its model."""

import asyncio
from typing import Any

import pytest
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway import rates
from optillm_hooks.gateway.rates import ModelRates
from optillm_hooks.types import Usage

pytestmark = pytest.mark.anyio
EXPECTED = Usage(prompt_tokens=10, completion_tokens=30)


class Limiter:
    """The part of LiteLLM's limiter that counts tokens."""

    window_size = 60

    def __init__(self, kind: str, *, full: bool = False) -> None:
        self.kind = kind
        self.full = full
        self.reserved: list[int] = []
        self.settled: list[int] = []

    @property
    def counted(self) -> int:
        return sum(self.reserved) + sum(self.settled)

    def create_rate_limit_descriptors(self, **_: object) -> list[dict[str, Any]]:
        limit = {"tokens_per_unit": 100}
        return [{"key": "model_per_key", "value": "k:base", "rate_limit": limit}]

    def create_organization_rate_limit_descriptor(self, *_: object) -> list[dict[str, Any]]:
        return []

    def create_rate_limit_keys(self, *parts: str) -> str:
        return ":".join(parts)

    def get_rate_limit_type(self) -> str:
        return self.kind

    async def reserve_tpm_tokens(self, _limits: object, tokens: int) -> dict[str, Any]:
        if self.full:
            status = {
                "code": "OVER_LIMIT",
                "current_limit": 100,
                "rate_limit_type": "tokens",
                "descriptor_key": "model_per_key",
            }
            return {"overall_code": "OVER_LIMIT", "statuses": [status]}
        self.reserved.append(tokens)
        return {"overall_code": "OK", "statuses": []}

    async def async_increment_tokens_with_ttl_preservation(
        self, increments: list[dict[str, Any]]
    ) -> None:
        self.settled += [increment["increment_value"] for increment in increments]


def rates_of(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> ModelRates:
    monkeypatch.setattr(rates, "_limiter", lambda: limiter)
    return ModelRates("base", UserAPIKeyAuth(api_key="k"))


@pytest.mark.parametrize(
    ("kind", "reserved", "counted"), [("total", 40, 15), ("input", 10, 10), ("output", 30, 5)]
)
async def test_a_call_reserves_what_is_expected_and_counts_with_what_it_used(
    monkeypatch: pytest.MonkeyPatch, kind: str, reserved: int, counted: int
) -> None:
    limiter = Limiter(kind)
    async with rates_of(limiter, monkeypatch).counting(lambda: EXPECTED) as call:
        call.usage = Usage(prompt_tokens=10, completion_tokens=5)
    assert (limiter.reserved, limiter.counted) == ([reserved], counted)


async def test_a_call_of_unknown_length_reserves_a_token_so_that_the_limit_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = Limiter("output")
    async with rates_of(limiter, monkeypatch).counting(lambda: Usage(prompt_tokens=10)) as call:
        call.usage = Usage(prompt_tokens=10, completion_tokens=5)
    assert (limiter.reserved, limiter.counted) == ([1], 5)


@pytest.mark.parametrize(
    ("error", "counted"),
    [(asyncio.CancelledError(), 10), (ProviderFailed("busy"), 0)],
    ids=["cut off", "failed"],
)
async def test_a_call_that_is_cut_off_counts_with_its_prompt_and_a_failed_one_with_nothing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, counted: int
) -> None:
    limiter = Limiter("total")
    with pytest.raises(type(error)):
        async with rates_of(limiter, monkeypatch).counting(lambda: EXPECTED):
            raise error
    assert limiter.counted == counted


async def test_a_limit_without_room_is_a_429_that_says_when_to_try_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = Limiter("total", full=True)
    with pytest.raises(ProviderFailed, match="100 tokens per 60 s") as caught:
        async with rates_of(limiter, monkeypatch).counting(lambda: EXPECTED):
            pass
    assert (caught.value.status, caught.value.retry_after) == (429, "60")
    assert limiter.counted == 0
