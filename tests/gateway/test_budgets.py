"""Which of LiteLLM's budgets count, and what counts as spent."""

from types import ModuleType
from typing import Any

import pytest
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.gateway.budgets import _budgets, _reserved
from optillm_hooks.gateway.caller import CALL_ORIGIN, read_caller

RESERVATION: dict[str, Any] = {
    "reserved_cost": 0.5,
    "entries": [
        {"counter_key": "spend:key:k", "reserved_cost": 0.25},
        {"counter_key": "spend:user:u"},
    ],
}


@pytest.mark.parametrize(
    ("reservation", "held"),
    [
        (None, {}),
        ({}, {}),
        (RESERVATION, {"spend:key:k": 0.25, "spend:user:u": 0.5}),
        (RESERVATION | {"finalized": True}, {}),
    ],
    ids=["none", "empty", "open", "settled"],
)
def test_only_a_reservation_that_is_not_settled_counts_as_not_spent(
    reservation: dict[str, Any] | None, held: dict[str, float]
) -> None:
    assert _reserved(reservation) == held


@pytest.mark.parametrize(
    ("team", "settings", "user_pays"),
    [
        (None, {}, True),
        ("t", {}, False),
        ("t", {"apply_user_budget_to_team_keys": False}, False),
        ("t", {"apply_user_budget_to_team_keys": True}, True),
    ],
    ids=["no team", "team", "team, switched off", "team, switched on"],
)
def test_a_users_budget_holds_for_team_keys_where_litellm_applies_it(
    team: str | None, settings: dict[str, Any], user_pays: bool
) -> None:
    proxy = ModuleType("proxy_server")
    vars(proxy)["general_settings"] = settings
    key = UserAPIKeyAuth(api_key="k", user_id="u", team_id=team, user_max_budget=1.0)
    owners = [budget.owner for budget in _budgets(key, proxy)]
    assert ("User" in owners) is user_pays
    assert ("Team" in owners) is (team is not None)


def test_inner_calls_carry_the_callers_identity_and_nothing_else_of_its_metadata() -> None:
    shared = {"user_api_key_alias": "a", "tags": ["t"], "spend_logs_metadata": {"team": "x"}}
    of_the_request = {"model_group": "careful", "deployment": "d", "caching_groups": []}
    caller = read_caller({"metadata": shared | of_the_request}, None, {})
    assert caller.metadata == {**shared, "internal_call_origin": CALL_ORIGIN}
