"""LiteLLM's budgets (`max_budget`, `model_max_budget`), checked for the models that a plan calls.

LiteLLM checks budgets once per request, against the requested name. A plan makes many calls to its
base model, so budgets are checked again when the plan is known, and before each call.

What counts is what is spent. LiteLLM's counters also hold what it has reserved for requests under
way, and lack the calls that it has not booked yet: the former is subtracted, and the latter
(`payments`) are added, as far as this process knows them.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import ModuleType
from typing import Any, Final, NamedTuple

from litellm import BudgetExceededError, Router
from litellm.proxy._types import UserAPIKeyAuth
from litellm.proxy.auth.auth_checks import is_model_cost_zero

from optillm_hooks.errors import SampleError
from optillm_hooks.gateway.deployments import proxy_module
from optillm_hooks.gateway.payments import PAYMENTS, Account, Payment

_SETTLING_S: Final = 0.1
"""LiteLLM takes back within it what it has reserved for a request that it then refuses."""

_MAX_WAIT_S: Final = 30.0
"""How long a call waits for others that may use up its budget."""


class _Budget(NamedTuple):
    owner: str
    counter: str
    """LiteLLM's name for its spend counter."""

    max_usd: float
    spent_before: float
    """The spend when the key was read, for a counter that is still empty."""


class _ModelBudget(NamedTuple):
    counter: str
    """Our name for it."""

    budgets: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], Awaitable[object]]
    """LiteLLM's check against such budgets, which raises `BudgetExceededError`."""


class Reservations:
    """What LiteLLM holds reserved for the requests of this process, by counter."""

    def __init__(self) -> None:
        self._of: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)

    def add(self, reservation: Mapping[str, Any] | None) -> None:
        for counter in _reserved(reservation):
            self._open(counter)
            self._of[counter].append(reservation or {})

    def held(self, counter: str) -> float:
        """Return the amount that `counter` includes for requests that are not settled."""
        return sum(_reserved(each).get(counter, 0.0) for each in self._open(counter))

    def _open(self, counter: str) -> list[Mapping[str, Any]]:
        found = [each for each in self._of.get(counter, ()) if not each.get("finalized")]
        if found:
            self._of[counter] = found
        else:
            self._of.pop(counter, None)
        return found


RESERVATIONS: Final = Reservations()
"""Those of this process."""


async def check_budgets(
    model: str,
    key: UserAPIKeyAuth | None,
    router: Router,
    reservation: Mapping[str, Any] | None = None,
) -> None:
    """Raise LiteLLM's own error if a budget that pays for `model` is used up.

    These are the budgets of the key and of its user, team, organisation and end user, and their
    budgets for this model alone. A budget of which LiteLLM has reserved a part for this request
    holds: LiteLLM has just checked it. A model that costs nothing is always allowed, as in LiteLLM.

    Raises:
        BudgetExceededError: LiteLLM's.
    """
    proxy = _proxy_of(model, key, router)
    if key is None or proxy is None:
        return
    reserved = _reserved(reservation)
    for budget in _budgets(key, proxy):
        if budget.counter not in reserved:
            await _spent(budget, proxy)
    for model_budget in _model_budgets(model, key, proxy):
        await model_budget.check(model_budget.budgets)


@asynccontextmanager
async def paying(
    model: str,
    key: UserAPIKeyAuth | None,
    router: Router | None,
    account: Account,
    reservation: Mapping[str, Any] | None,
    expected_usd: Callable[[], float],
) -> AsyncIterator[Payment]:
    """Pay for one call of `model`, once the budgets have room for it.

    A call waits for those under way that may use up one of its budgets, at their estimates. So the
    calls of this process exceed a budget by about the cost of one call. Of a budget of which
    LiteLLM has reserved a part for this request, that part is its own.

    Raises:
        BudgetExceededError: LiteLLM's; a budget is used up.
    """
    proxy = None if router is None else _proxy_of(model, key, router)
    if key is None or proxy is None:
        yield Payment()
        return
    budgets, of_model = list(_budgets(key, proxy)), list(_model_budgets(model, key, proxy))
    counters = [*(each.counter for each in budgets), *(each.counter for each in of_model)]
    if not counters:
        yield Payment()
        return
    reserved, cost = _reserved(reservation), expected_usd()

    def is_own(budget: _Budget) -> bool:
        return account.charged_usd < reserved.get(budget.counter, 0.0)

    async def room() -> bool:
        checked = [budget for budget in budgets if not is_own(budget)]
        spent = [await _spent(budget, proxy) for budget in checked]
        fits = [await _has_room(budget, model) for budget in of_model]
        return all(fits) and all(
            usd + PAYMENTS.pending(budget.counter) < budget.max_usd
            for budget, usd in zip(checked, spent, strict=True)
        )

    with suppress(TimeoutError):  # others do not end; what is spent so far leaves room
        async with asyncio.timeout(_MAX_WAIT_S):
            await _when(room)
    payment = PAYMENTS.begin(counters, cost, account)
    try:
        yield payment
    except SampleError:
        payment.settle(0.0)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        if not payment.owed:
            payment.settle(0.0)
        raise
    finally:
        payment.end()


async def _when(room: Callable[[], Awaitable[bool]]) -> None:
    """Wait until there is `room`, and nothing has changed while it was looked for."""
    while True:
        version = PAYMENTS.version
        found = await room()
        if version != PAYMENTS.version:
            continue
        if found:
            return
        await PAYMENTS.change()


def _proxy_of(model: str, key: UserAPIKeyAuth | None, router: Router) -> ModuleType | None:
    """Return the module of the proxy that counts what the key spends on `model`, if it does."""
    proxy = proxy_module()
    if key is None or proxy is None or is_model_cost_zero(model=model, llm_router=router):
        return None
    return proxy


async def _spent(budget: _Budget, proxy: ModuleType) -> float:
    """Return what is spent of a budget, which is read again if it seems to be all of it.

    LiteLLM may hold a reservation for a request that it is about to refuse.

    Raises:
        BudgetExceededError: all of it is spent.
    """
    spent = await _counted(budget, proxy)
    if spent >= budget.max_usd:
        await asyncio.sleep(_SETTLING_S)
        spent = await _counted(budget, proxy)
    if spent >= budget.max_usd:
        raise BudgetExceededError(
            current_cost=spent,
            max_budget=budget.max_usd,
            message=f"Budget has been exceeded! {budget.owner}: current cost: {spent}, "
            f"max budget: {budget.max_usd}",
        )
    return spent


async def _counted(budget: _Budget, proxy: ModuleType) -> float:
    counted: float = await proxy.get_current_spend(
        counter_key=budget.counter,
        fallback_spend=budget.spent_before,
        max_budget=budget.max_usd,
    )
    return counted - RESERVATIONS.held(budget.counter)


async def _has_room(budget: _ModelBudget, model: str) -> bool:
    """Return whether a budget for a model has room beside the calls that are not booked yet.

    Raises:
        BudgetExceededError: it is used up.
    """
    await budget.check(budget.budgets)
    pending = PAYMENTS.pending(budget.counter)
    if not pending:
        return True
    left = _lowered(budget.budgets, model, pending)
    if left is None:
        return False
    try:
        await budget.check(left)
    except BudgetExceededError:
        return False
    return True


def _lowered(budgets: Mapping[str, Any], model: str, pending: float) -> Mapping[str, Any] | None:
    """Return `budgets` with what is left of the model's beside `pending`; None if nothing is."""
    for name in (model, model.rsplit("/", 1)[-1]):
        entry = budgets.get(name)
        if not isinstance(entry, Mapping):
            continue
        limits = {
            field: float(entry[field]) - pending
            for field in ("max_budget", "budget_limit")
            if isinstance(entry.get(field), int | float)
        }
        if any(limit <= 0 for limit in limits.values()):
            return None
        return {**budgets, name: {**entry, **limits}}
    return budgets


def _budgets(key: UserAPIKeyAuth, proxy: ModuleType) -> Iterator[_Budget]:
    """Yield the budgets that pay for the calls of `key`."""
    for owner, counter, max_usd, spent_before in _owners(key, proxy):
        if max_usd is not None and max_usd > 0:
            yield _Budget(owner, counter, max_usd, spent_before)


def _owners(
    key: UserAPIKeyAuth, proxy: ModuleType
) -> Iterator[tuple[str, str, float | None, float]]:
    yield "Key", f"spend:key:{key.token}", key.max_budget, key.spend or 0.0
    shared = (proxy.general_settings or {}).get("apply_user_budget_to_team_keys") is True
    if key.user_id is not None and (key.team_id is None or shared):
        yield "User", f"spend:user:{key.user_id}", key.user_max_budget, key.user_spend or 0.0
    if key.team_id is not None:
        yield "Team", f"spend:team:{key.team_id}", key.team_max_budget, key.team_spend or 0.0
    if key.org_id is not None:
        yield "Organization", f"spend:org:{key.org_id}", key.organization_max_budget, 0.0
    if key.end_user_id is not None:
        yield "End user", f"spend:end_user:{key.end_user_id}", key.end_user_max_budget, 0.0


def _reserved(reservation: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the amount that each counter includes for a reservation not yet settled."""
    if not reservation or reservation.get("finalized"):
        return {}
    whole = reservation.get("reserved_cost") or 0.0
    return {
        entry["counter_key"]: float(entry.get("reserved_cost", whole))
        for entry in reservation.get("entries") or ()
    }


def _model_budgets(model: str, key: UserAPIKeyAuth, proxy: ModuleType) -> Iterator[_ModelBudget]:
    """Yield the budgets for single models that pay for the calls of `key`."""
    limiter = getattr(proxy, "model_max_budget_limiter", None)
    if limiter is None:
        return
    if key.model_max_budget:

        async def check_key(budgets: Mapping[str, Any]) -> object:
            own = budgets is key.model_max_budget
            asked = key if own else key.model_copy(update={"model_max_budget": dict(budgets)})
            return await limiter.is_key_within_model_budget(user_api_key_dict=asked, model=model)

        yield _ModelBudget(f"{model}:key:{key.token}", key.model_max_budget, check_key)
    if key.user_id is not None and key.user_model_max_budget:
        check = partial(limiter.is_user_within_model_budget, user_id=key.user_id, model=model)
        yield _ModelBudget(
            f"{model}:user:{key.user_id}",
            key.user_model_max_budget,
            lambda budgets: check(user_model_max_budget=budgets),
        )
    if key.team_id is not None and key.team_model_max_budget:
        check_team = partial(
            limiter.is_team_within_model_budget,
            team_id=key.team_id,
            key_model_max_budget=key.model_max_budget,
            model=model,
        )
        yield _ModelBudget(
            f"{model}:team:{key.team_id}",
            key.team_model_max_budget,
            lambda budgets: check_team(team_model_max_budget=budgets),
        )
    if key.end_user_id is not None and key.end_user_model_max_budget:
        check_end_user = partial(
            limiter.is_end_user_within_model_budget, end_user_id=key.end_user_id, model=model
        )
        yield _ModelBudget(
            f"{model}:end_user:{key.end_user_id}",
            key.end_user_model_max_budget,
            lambda budgets: check_end_user(end_user_model_max_budget=budgets),
        )
