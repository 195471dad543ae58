"""Which of LiteLLM's budgets count, and what counts as spent."""

import asyncio
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from litellm import BudgetExceededError, Router
from litellm.proxy._types import UserAPIKeyAuth

from optillm_hooks.budget import Limits
from optillm_hooks.errors import ProviderFailed
from optillm_hooks.gateway import budgets
from optillm_hooks.gateway.budgets import Reservations, _budgets, _reserved, check_budgets, paying
from optillm_hooks.gateway.caller import CALL_ORIGIN, read_caller
from optillm_hooks.gateway.model_facts import cached_model_facts
from optillm_hooks.gateway.payments import Account, Payment
from optillm_hooks.gateway.prepared import ClientRequest, Prepared
from optillm_hooks.gateway.selection import select_deployment
from optillm_hooks.settings import Settings
from optillm_hooks.trace import CallRecord
from optillm_hooks.types import Usage

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
    limits = {"user_max_budget": 1.0, "team_max_budget": 1.0}
    key = UserAPIKeyAuth(api_key="k", user_id="u", team_id=team, **limits)
    owners = [budget.owner for budget in _budgets(key, proxy)]
    assert ("User" in owners) is user_pays
    assert ("Team" in owners) is (team is not None)


class Limiter:
    """LiteLLM's limiter of budgets for a model, which keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def is_key_within_model_budget(self, **asked: object) -> None:
        self.asked.append(asked)

    async def is_team_within_model_budget(self, **asked: object) -> None:
        self.asked.append(asked)


def _proxy(monkeypatch: pytest.MonkeyPatch, *, counted: list[float]) -> Limiter:
    """Have a proxy whose counters show `counted`, one after the other, and then the last."""

    async def get_current_spend(**_: object) -> float:
        return counted.pop(0) if len(counted) > 1 else counted[0]

    limiter, proxy = Limiter(), ModuleType("proxy_server")
    vars(proxy).update(
        general_settings={},
        get_current_spend=get_current_spend,
        model_max_budget_limiter=limiter,
    )
    monkeypatch.setattr(budgets, "proxy_module", lambda: proxy)
    return limiter


async def refuses(checked: Awaitable[object]) -> bool:
    try:
        await checked
    except BudgetExceededError:
        return True
    return False


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("counted", "reservation", "refused"),
    [
        (0.99, None, False),
        (1.0, None, True),
        (1.25, RESERVATION, False),
        (9.0, RESERVATION, False),
        (1.0, RESERVATION | {"finalized": True}, True),
    ],
    ids=["less", "all of it", "reserved", "reserved, as for others", "settled"],
)
async def test_a_request_is_refused_if_all_of_a_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch,
    counted: float,
    reservation: dict[str, Any] | None,
    refused: bool,
) -> None:
    """LiteLLM reserves of a budget only while it has room: what others hold is not spent."""
    _proxy(monkeypatch, counted=[counted])
    key = UserAPIKeyAuth(token="k", max_budget=1.0)
    assert await refuses(check_budgets("base", key, Router(), reservation)) is refused


@pytest.mark.anyio
async def test_what_litellm_holds_for_other_requests_is_not_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _proxy(monkeypatch, counted=[1.2])
    key, other = UserAPIKeyAuth(token="k", max_budget=1.0), dict(RESERVATION)
    reservations = Reservations()
    monkeypatch.setattr(budgets, "RESERVATIONS", reservations)
    reservations.add(other)
    assert not await refuses(check_budgets("base", key, Router()))
    other["finalized"] = True
    assert await refuses(check_budgets("base", key, Router()))


@pytest.mark.anyio
async def test_a_reservation_that_is_taken_back_at_once_refuses_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As LiteLLM does with that of a request which it refuses at the same time."""
    _proxy(monkeypatch, counted=[1.2, 0.1])
    key = UserAPIKeyAuth(token="k", max_budget=1.0)
    assert not await refuses(check_budgets("base", key, Router()))


def pay(
    usd: float,
    key: UserAPIKeyAuth,
    account: Account | None = None,
    reservation: dict[str, Any] | None = None,
) -> AbstractAsyncContextManager[Payment]:
    return paying("base", key, Router(), account or Account(), reservation, lambda: usd)


@pytest.mark.anyio
async def test_a_call_waits_for_those_that_may_use_up_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = [0.1]
    _proxy(monkeypatch, counted=counted)
    key, started = UserAPIKeyAuth(token="waits", max_budget=1.0), asyncio.Event()

    async def second() -> None:
        async with pay(0.5, key):
            started.set()

    async with asyncio.TaskGroup() as group:
        async with pay(0.9, key) as first:
            group.create_task(second())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not started.is_set()
            first.settle(0.3)
        counted[:] = [0.4]
        first.book()
        await asyncio.wait_for(started.wait(), 5)


@pytest.mark.anyio
async def test_a_call_that_waited_is_refused_if_the_budget_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = [0.1]
    _proxy(monkeypatch, counted=counted)
    key = UserAPIKeyAuth(token="waits in vain", max_budget=1.0)

    async def second() -> bool:
        return await refuses(pay(0.5, key).__aenter__())

    async with asyncio.TaskGroup() as group:
        async with pay(0.9, key) as first:
            waiting = group.create_task(second())
            await asyncio.sleep(0)
        counted[:] = [1.0]
        first.book()
    assert waiting.result()


@pytest.mark.anyio
async def test_a_call_that_is_not_sent_or_fails_leaves_its_room_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _proxy(monkeypatch, counted=[0.1])
    key, account = UserAPIKeyAuth(token="fails", max_budget=1.0), Account()
    for error in (ProviderFailed("no"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            async with pay(9.0, key, account):
                raise error
        assert account.charged_usd == 0
    async with asyncio.timeout(5), pay(9.0, key):
        pass


@pytest.mark.anyio
async def test_what_is_reserved_for_a_request_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    _proxy(monkeypatch, counted=[9.0])
    key, account = UserAPIKeyAuth(token="k", max_budget=1.0), Account()
    async with pay(0.2, key, account, RESERVATION), pay(0.2, key, account, RESERVATION):
        assert account.charged_usd == pytest.approx(0.4)
        assert await refuses(pay(0.2, key, account, RESERVATION).__aenter__())


@pytest.mark.anyio
async def test_a_budget_for_a_model_counts_the_calls_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = _proxy(monkeypatch, counted=[0.0])
    key = UserAPIKeyAuth(token="m", model_max_budget={"base": {"budget_limit": 1.0}})
    async with pay(0.25, key), pay(0.25, key):
        limits = [a["user_api_key_dict"].model_max_budget["base"] for a in limiter.asked]
    assert limits == [{"budget_limit": 1.0}, {"budget_limit": 1.0}, {"budget_limit": 0.75}]


@pytest.mark.anyio
async def test_a_teams_budget_for_a_model_is_checked_beside_the_keys_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limiter = _proxy(monkeypatch, counted=[0.0])
    of_key, of_team = {"base": {"budget_limit": 1.0}}, {"base": {"budget_limit": 2.0}}
    key = UserAPIKeyAuth(
        token="k", team_id="t", model_max_budget=of_key, team_model_max_budget=of_team
    )
    await check_budgets("base", key, Router())
    assert limiter.asked == [
        {"user_api_key_dict": key, "model": "base"},
        {
            "team_id": "t",
            "team_model_max_budget": of_team,
            "key_model_max_budget": of_key,  # it replaces the team's, in LiteLLM
            "model": "base",
        },
    ]


def test_inner_calls_carry_the_callers_identity_and_no_other_metadata() -> None:
    shared = {"user_api_key_alias": "a", "tags": ["t"], "spend_logs_metadata": {"team": "x"}}
    of_the_request = {"model_group": "careful", "deployment": "d", "caching_groups": []}
    caller = read_caller({"metadata": shared | of_the_request}, None, {})
    assert caller.metadata == {**shared, "internal_call_origin": CALL_ORIGIN}


def test_inner_calls_keep_their_session() -> None:
    session = {"litellm_session_id": "s", "litellm_trace_id": "t"}
    caller = read_caller(session, "u", {"no-cache": True})
    assert caller.extra == {**session, "user": "u"}
    assert caller.logged == session
    assert caller.cache == {"no-cache": True}


@pytest.mark.parametrize(("allowed", "extra"), [(False, {}), (True, {"no-log": True})])
def test_no_log_is_the_operators_to_allow(allowed: bool, extra: dict[str, object]) -> None:
    caller = read_caller({"no-log": True}, "u", {}, allow_no_log=allowed)
    assert (caller.extra, caller.logged) == ({"user": "u", **extra}, extra)
    assert read_caller({}, None, {}, allow_no_log=allowed).extra == {}


def test_a_caller_knows_what_is_reserved_for_the_outer_request() -> None:
    metadata = {"user_api_key_budget_reservation": RESERVATION}
    assert read_caller({"metadata": metadata}, None, {}).reservation == RESERVATION


def test_a_plan_that_runs_again_for_a_request_gets_what_is_left_of_its_limits() -> None:
    """As where LiteLLM's gateway of MCP has called a tool, and asks the model again."""
    info = {"optillm": {"max_calls": 5, "max_tokens_total": 1000, "max_cost_usd": 0.5}}
    selection = select_deployment("re2/base", "careful", {"model_info": info}, Settings(), None)
    selection = replace(selection, asked=Limits(max_calls=4))
    plan, other = (
        Prepared(selection=selection, facts_of=cached_model_facts(None)) for _ in range(2)
    )
    client = ClientRequest("chat", "careful", plan)
    assert client.begin(plan) == replace(plan.limits, max_calls=4)
    spent = Usage(calls=3, prompt_tokens=100, completion_tokens=800, cost_usd=0.125)
    call = CallRecord("re2", 0, "base", "answer", 1, 0.0, 1.0, "ok", spent)
    plan.trace.record(call)
    left = Limits(max_calls=1, max_tokens_total=100, max_cost_usd=0.375)
    assert client.begin(plan) == left
    plan.trace.record(call)
    spent_up = Limits(max_calls=0, max_tokens_total=0, max_cost_usd=0.25)
    assert client.begin(plan) == spent_up
    assert client.begin(other) == replace(other.limits, max_calls=0)
