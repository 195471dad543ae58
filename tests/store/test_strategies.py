"""Strategies: versions, rewards that count once, and counters that lose nothing."""

import asyncio
from pathlib import Path

import pytest

from optillm_hooks.store import strategy_rows
from optillm_hooks.store.records import Method, Namespace, Strategy
from optillm_hooks.store.store import Store
from tests.store.conftest import Clock

pytestmark = pytest.mark.anyio

ANNA, BEN = Namespace("key", "anna"), Namespace("key", "ben")


def method(steps: str) -> Method:
    return Method(when=f"when {steps}", keywords=f"words {steps}", steps=steps)


async def only(store: Store, owner: Namespace = ANNA) -> Strategy:
    [found] = await store.strategies(owner)
    return found


async def test_a_strategy_is_kept_once(store: Store, clock: Clock) -> None:
    assert await store.strategies(ANNA) == []
    assert await store.add_strategy(ANNA, method("one"))
    assert not await store.add_strategy(ANNA, method("one"))
    assert await store.add_strategy(BEN, method("one"))
    found = await only(store)
    assert (found.method, found.version, found.created_at) == (method("one"), 1, clock.now)
    assert (found.uses, found.rewarded, found.reward, found.last_used) == (0, 0, 0, None)
    assert found.mean == 0.5


async def test_a_request_is_rewarded_once(store: Store, clock: Clock) -> None:
    await store.add_strategy(ANNA, method("one"))
    await store.add_strategy(ANNA, method("two"))
    [one, two] = await store.strategies(ANNA)
    await store.use_strategies(ANNA, [one.id, two.id, "unknown"], "r1")
    clock.now += 1
    await store.use_strategies(ANNA, [one.id], "r2")
    assert await store.reward(ANNA, "r1", 0.75) == 2
    assert await store.reward(ANNA, "r1", 0.75) == 0
    assert await store.reward(ANNA, "unknown", 1) == 0
    assert await store.reward(BEN, "r2", 1) == 0
    [one, two] = await store.strategies(ANNA)
    assert (one.uses, one.rewarded, one.reward, one.last_used) == (2, 1, 0.75, clock.now)
    assert (two.uses, two.rewarded, two.reward, two.last_used) == (1, 1, 0.75, clock.now - 1)
    assert one.mean == 1.75 / 3


async def test_others_strategies_cannot_be_used_changed_or_deleted(store: Store) -> None:
    await store.add_strategy(ANNA, method("one"))
    mine = await only(store)
    await store.use_strategies(BEN, [mine.id], "r1")
    assert not await store.revise_strategy(BEN, mine.id, 1, method("worse"))
    assert not await store.roll_back_strategy(BEN, mine.id, 1)
    assert not await store.delete_strategy(BEN, mine.id)
    assert await only(store) == mine
    assert await store.strategies(BEN) == []


async def test_ids_that_a_database_refuses_are_unknown(store: Store) -> None:
    odd = "a\0\ud800" * 50
    await store.add_strategy(ANNA, method("one"))
    mine = await only(store)
    await store.use_strategies(ANNA, [mine.id], odd)
    assert await store.reward(ANNA, "a\0", 1) == 0
    assert await store.reward(ANNA, odd, 1) == 1
    assert await store.notes(ANNA, after=odd) == []
    assert not await store.delete_note(ANNA, odd)
    assert not await store.roll_back_strategy(ANNA, odd, 1)
    assert not await store.delete_strategy(ANNA, odd)


async def test_a_new_version_starts_anew_and_a_rollback_brings_the_old_one_back(
    store: Store,
) -> None:
    await store.add_strategy(ANNA, method("one"))
    first = await only(store)
    await store.use_strategies(ANNA, [first.id], "r1")
    await store.use_strategies(ANNA, [first.id], "r2")
    await store.reward(ANNA, "r1", 1)
    assert await store.revise_strategy(ANNA, first.id, 1, method("better"))
    assert not await store.revise_strategy(ANNA, first.id, 1, method("of a slow learner"))
    second = await only(store)
    assert (second.id, second.version, second.method) == (first.id, 2, method("better"))
    assert (second.uses, second.rewarded) == (0, 0)
    await store.reward(ANNA, "r2", 0)
    assert (await only(store)).rewarded == 0, "the reward is the old version's"
    assert await store.roll_back_strategy(ANNA, first.id, 1)
    back = await only(store)
    assert (back.version, back.method) == (1, method("one"))
    assert (back.uses, back.rewarded, back.reward) == (2, 2, 1)
    assert not await store.roll_back_strategy(ANNA, first.id, 3)
    assert await store.revise_strategy(ANNA, first.id, 1, method("another"))
    assert (await only(store)).version == 3
    assert await store.delete_strategy(ANNA, first.id)
    assert not await store.delete_strategy(ANNA, first.id)
    assert await store.strategies(ANNA) == []


async def test_only_the_last_versions_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_rows, "MAX_VERSIONS", 3)
    await store.add_strategy(ANNA, method("one"))
    uid = (await only(store)).id
    for version in range(1, 5):
        assert await store.revise_strategy(ANNA, uid, version, method(f"{version + 1}"))
    kept = [n for n in range(1, 6) if await store.roll_back_strategy(ANNA, uid, n)]
    assert kept == [3, 4, 5]


async def test_the_worst_strategy_makes_room_and_a_new_one_is_never_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_rows, "MAX_STRATEGIES", 3)
    for name in ("good", "bad", "untried"):
        await store.add_strategy(ANNA, method(name))
    good, bad, _ = await store.strategies(ANNA)
    for number in range(5):
        await store.use_strategies(ANNA, [good.id], f"g{number}")
        await store.use_strategies(ANNA, [bad.id], f"b{number}")
        await store.reward(ANNA, f"g{number}", 1)
        await store.reward(ANNA, f"b{number}", 0)
    await store.add_strategy(ANNA, method("new"))
    assert [each.method.steps for each in await store.strategies(ANNA)] == [
        "good", "untried", "new",
    ]  # fmt: skip


async def test_uses_that_never_get_a_reward_are_forgotten(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategy_rows, "MAX_USES", 2)
    await store.add_strategy(ANNA, method("one"))
    uid = (await only(store)).id
    for number in range(4):
        await store.use_strategies(ANNA, [uid], f"r{number}")
    assert [await store.reward(ANNA, f"r{n}", 1) for n in range(4)] == [0, 0, 1, 1]


async def test_fifty_learners_keep_every_counter(url: str | None, tmp_path: Path) -> None:
    """Of two stores, as two processes have: 50 learners, each of 4 requests, one strategy."""
    stores = [Store(directory=tmp_path, url=url) for _ in range(2)]
    await stores[0].add_strategy(ANNA, method("one"))
    uid = (await only(stores[0])).id

    async def learn(number: int) -> None:
        store = stores[number % 2]
        for turn in range(4):
            await store.use_strategies(ANNA, [uid], f"{number} {turn}")
            await store.add_strategy(ANNA, method(f"shared {turn}"))
            given = await store.reward(ANNA, f"{number} {turn}", 0.5)
            assert given == 1

    await asyncio.gather(*map(learn, range(50)))
    first, *others = await stores[1].strategies(ANNA)
    assert (first.uses, first.rewarded, first.reward) == (200, 200, 100.0)
    assert {other.method.steps for other in others} == {f"shared {turn}" for turn in range(4)}
    for store in stores:
        store.close()
