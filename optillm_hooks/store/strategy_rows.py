"""The SQL of strategies, within a transaction."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, select, update

from optillm_hooks.store.records import (
    MAX_METHOD_CHARS,
    MAX_STRATEGIES,
    MAX_USES,
    MAX_VERSIONS,
    Method,
    Namespace,
    Strategy,
    as_id,
    digest,
    storable,
)
from optillm_hooks.store.rows import Rows
from optillm_hooks.store.tables import strategy, strategy_use, strategy_version

_TRIED = 5
"""Rewards from which on a strategy's mean says something."""


@dataclass(frozen=True, slots=True)
class AllRows(Rows):
    """All rows of one transaction. Counters change in SQL, so that none is lost."""

    def strategies(self, owner: Namespace) -> list[Strategy]:
        found = self._current(owner).order_by(strategy.c.id)
        return [_strategy(row) for row in self.connection.execute(found)]

    def add_strategy(self, owner: Namespace, method: Method) -> bool:
        at = self.namespace_id(owner)
        uid = secrets.token_hex(16)
        stored = self.upsert(
            strategy,
            {
                "uid": uid,
                "namespace_id": at,
                "digest": digest(method.when, method.steps),
                "version": 1,
                "created_at": self.now,
            },
            keys=("namespace_id", "digest"),
            changed=("digest",),
            returning="uid",
        )
        if stored != uid:
            return False
        self._write_version(self._id(owner, uid), 1, method)
        self._evict_strategies(owner)
        return True

    def revise_strategy(self, owner: Namespace, uid: str, seen: int, method: Method) -> bool:
        self.namespace_id(owner)
        at = self._id(owner, uid)
        if at is None:
            return False
        latest = self._latest(at) + 1
        if self._set_version(at, seen, latest) == 0:
            return False
        self._write_version(at, latest, method)
        gone = delete(strategy_version).where(
            strategy_version.c.strategy_id == at,
            strategy_version.c.version <= latest - MAX_VERSIONS,
        )
        self.connection.execute(gone)
        return True

    def roll_back_strategy(self, owner: Namespace, uid: str, version: int) -> bool:
        self.namespace_id(owner)
        at = self._id(owner, uid)
        there = select(strategy_version.c.id).where(
            strategy_version.c.strategy_id == at, strategy_version.c.version == version
        )
        if at is None or self.connection.execute(there).first() is None:
            return False
        self._set_version(at, None, version)
        return True

    def delete_strategy(self, owner: Namespace, uid: str) -> bool:
        gone = delete(strategy).where(strategy.c.id == self._id(owner, uid))
        return self.connection.execute(gone).rowcount > 0

    def use_strategies(self, owner: Namespace, uids: Sequence[str], request: str) -> None:
        at, now = self.namespace_id(owner), self.now
        used = [
            row.version_id
            for row in self.connection.execute(self._current(owner))
            if row.uid in uids
        ]
        if not used:
            return
        self.connection.execute(
            update(strategy_version)
            .where(strategy_version.c.id.in_(used))
            .values(uses=strategy_version.c.uses + 1, last_used=now)
        )
        fields = {"namespace_id": at, "request": as_id(request), "created_at": now}
        self.connection.execute(
            insert(strategy_use), [{**fields, "version_id": version} for version in used]
        )
        self.evict(strategy_use, at, MAX_USES)

    def reward(self, owner: Namespace, request: str, reward: float) -> int:
        at = self.find(owner, lock=True)
        if at is None:
            return 0
        waiting = delete(strategy_use).where(
            strategy_use.c.namespace_id == at, strategy_use.c.request == as_id(request)
        )
        used = self.connection.execute(waiting.returning(strategy_use.c.version_id)).scalars()
        versions = sorted(set(used))
        self.connection.execute(
            update(strategy_version)
            .where(strategy_version.c.id.in_(versions))
            .values(
                rewarded=strategy_version.c.rewarded + 1,
                reward=strategy_version.c.reward + reward,
            )
        )
        return len(versions)

    def _current(self, owner: Namespace) -> Select[Any]:
        """Return the query of the strategies with their current versions."""
        version = strategy_version
        return (
            select(strategy.c.uid, version, version.c.id.label("version_id"))
            .join(
                version,
                (version.c.strategy_id == strategy.c.id)
                & (version.c.version == strategy.c.version),
            )
            .where(strategy.c.namespace_id == self.find(owner))
        )

    def _id(self, owner: Namespace, uid: str) -> Any:
        found = select(strategy.c.id).where(
            strategy.c.namespace_id == self.find(owner), strategy.c.uid == as_id(uid)
        )
        return self.connection.execute(found).scalar()

    def _latest(self, at: int) -> int:
        newest = select(func.max(strategy_version.c.version))
        found = newest.where(strategy_version.c.strategy_id == at)
        return int(self.connection.execute(found).scalar_one())

    def _set_version(self, at: int, seen: int | None, version: int) -> int:
        changed = update(strategy).where(strategy.c.id == at)
        if seen is not None:
            changed = changed.where(strategy.c.version == seen)
        return self.connection.execute(changed.values(version=version)).rowcount

    def _write_version(self, at: int, version: int, method: Method) -> None:
        row = insert(strategy_version).values(
            strategy_id=at,
            version=version,
            applies_to=storable(method.when, MAX_METHOD_CHARS),
            keywords=storable(method.keywords, MAX_METHOD_CHARS),
            steps=storable(method.steps, MAX_METHOD_CHARS),
            uses=0,
            rewarded=0,
            reward=0.0,
            created_at=self.now,
        )
        self.connection.execute(row)

    def _evict_strategies(self, owner: Namespace) -> None:
        """Delete the strategy that does worst, or else the oldest, if there are too many."""
        found = self.strategies(owner)
        for _ in range(len(found) - MAX_STRATEGIES):
            tried = [each for each in found[:-1] if each.rewarded >= _TRIED]
            worst = min(tried, key=lambda each: each.mean) if tried else found[0]
            found.remove(worst)
            self.delete_strategy(owner, worst.id)


def _strategy(row: Row[Any]) -> Strategy:
    return Strategy(
        id=row.uid,
        version=row.version,
        method=Method(when=row.applies_to, keywords=row.keywords, steps=row.steps),
        uses=row.uses,
        rewarded=row.rewarded,
        reward=row.reward,
        created_at=row.created_at,
        last_used=row.last_used,
    )
