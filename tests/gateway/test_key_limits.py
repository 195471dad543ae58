"""The ceilings of a key: one for a request and all of its fallbacks, and whose deadline it is."""

import time
from dataclasses import replace

import litellm
import pytest
from fastapi import HTTPException
from litellm.proxy._types import (
    GenerateKeyRequest,
    KeyManagementRoutes,
    LitellmUserRoles,
    UserAPIKeyAuth,
)
from litellm.proxy.management_endpoints.key_management_endpoints import key_generation_check

from optillm_hooks.budget import Limits
from optillm_hooks.gateway.custom_llm import _hurries
from optillm_hooks.gateway.key_limits import key_limits
from optillm_hooks.gateway.model_facts import cached_model_facts
from optillm_hooks.gateway.operator_settings import CallLimit
from optillm_hooks.gateway.prepared import METADATA_KEY, ClientRequest, Prepared
from optillm_hooks.gateway.selection import Selection
from optillm_hooks.pipeline.expression import parse
from optillm_hooks.pipeline.plan import resolve
from optillm_hooks.settings import RunSettings
from optillm_hooks.trace import CallRecord
from optillm_hooks.types import Usage

FREE = Limits()


def prepared(*, own: Limits = FREE, of_key: Limits = FREE, asked: Limits = FREE) -> Prepared:
    selection = Selection(
        plan=resolve(parse("bon(n=2)")),
        base="base",
        source="alias",
        settings=RunSettings(),
        limits=own.lowered(of_key).lowered(asked),
        calls=CallLimit(64, "plan_calls.alias"),
        requested="alias",
        asked=asked,
        of_key=of_key,
        on_alias=True,
    )
    return Prepared(selection=selection, facts_of=cached_model_facts(None, None))


def spend(plan: Prepared, usage: Usage) -> None:
    plan.trace.record(CallRecord("bon", 0, "base", "answer", 1, 0.0, 1.0, "ok", usage))


def test_a_ceiling_of_a_key_holds_for_a_request_with_its_fallbacks() -> None:
    of_key = Limits(max_calls=5, max_tokens_total=1000, max_cost_usd=0.5)
    client = ClientRequest("chat", "alias")
    first = prepared(own=Limits(max_calls=4), of_key=of_key)
    assert client.begin(first) == replace(of_key, max_calls=4)
    spend(first, Usage(calls=3, prompt_tokens=500, completion_tokens=100, cost_usd=0.2))
    fallback = prepared(own=Limits(max_calls=4), of_key=of_key)
    left = client.begin(fallback)
    assert (left.max_calls, left.max_tokens_total) == (2, 400)
    assert left.max_cost_usd == pytest.approx(0.3)
    spend(fallback, Usage(calls=9, prompt_tokens=900, cost_usd=0.9))
    last = client.begin(prepared(of_key=of_key))
    assert (last.max_calls, last.max_tokens_total, last.max_cost_usd) == (0, 0, 0)


def test_a_limit_of_an_alias_is_for_its_own_plan() -> None:
    client = ClientRequest("chat", "alias")
    first = prepared(own=Limits(max_calls=4))
    client.begin(first)
    spend(first, Usage(calls=4))
    assert client.begin(prepared(own=Limits(max_calls=4))).max_calls == 4
    assert client.begin(first).max_calls == 0  # it goes on where it was


def test_a_deadline_is_for_the_request_with_its_fallbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    client = ClientRequest("chat", "alias", began=100.0)
    now = 102.0  # a plain model has failed
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert client.begin(prepared(of_key=Limits(deadline_s=10))).deadline_s == 8
    assert client.is_hurried
    now = 103.0
    assert client.begin(prepared(own=Limits(deadline_s=4))).deadline_s == 4
    assert not client.is_hurried
    now = 106.0
    assert client.begin(prepared(own=Limits(deadline_s=9))).deadline_s == 1
    assert client.is_hurried
    now = 109.0
    assert client.begin(prepared()).deadline_s == 0


@pytest.mark.parametrize(
    ("limits", "hurries"),
    [
        ({"of_key": Limits(deadline_s=3)}, True),
        ({"asked": Limits(deadline_s=3)}, True),
        ({"own": Limits(deadline_s=3)}, False),
    ],
)
def test_a_deadline_of_a_key_says_nothing_about_the_alias(
    limits: dict[str, Limits], hurries: bool
) -> None:
    """It does not count towards the alias's cooldown, unlike the alias's own."""
    client = ClientRequest("chat", "alias", prepared=prepared(**limits))
    call = {"litellm_params": {"metadata": {METADATA_KEY: client}}}
    assert _hurries(call) is hurries


@pytest.mark.parametrize("name", ["deadline_s", "max_calls", "max_tokens_total", "max_parallel"])
def test_the_stricter_of_key_and_team_holds(name: str) -> None:
    for low, high in (("metadata", "team_metadata"), ("team_metadata", "metadata")):
        key = UserAPIKeyAuth.model_validate(
            {low: {"optillm": {name: 2}}, high: {"optillm": {name: 9}}}
        )
        assert getattr(key_limits(key), name) == 2


def test_litellm_can_forbid_users_the_keys_that_no_teams_ceiling_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So docs/limits.md tells operators to."""
    user = UserAPIKeyAuth(user_id="ada", user_role=LitellmUserRoles.INTERNAL_USER)
    asked = None, user, GenerateKeyRequest(user_id="ada"), KeyManagementRoutes.KEY_GENERATE
    assert key_generation_check(*asked)
    rule = {"personal_key_generation": {"allowed_user_roles": ["proxy_admin"]}}
    monkeypatch.setattr(litellm, "key_generation_settings", rule)
    with pytest.raises(HTTPException, match="restricted by admin"):
        key_generation_check(*asked)
