"""The SQL of notes and cached texts, within a transaction."""

import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

from optillm_hooks.store.records import (
    MAX_NOTE_CHARS,
    MAX_NOTES,
    MAX_TEXT_CHARS,
    MAX_TEXTS,
    Namespace,
    NewNote,
    Note,
    as_id,
    digest,
    storable,
)
from optillm_hooks.store.tables import cached_text, namespace, note

_MAX_SOURCE_CHARS = 500


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one transaction, at one instant."""

    connection: Connection
    now: float

    def add_notes(self, owner: Namespace, notes: Sequence[NewNote], ttl_s: float | None) -> int:
        """Add `notes` and return how many are new; one that is there already becomes the newest."""
        at, made = self.namespace_id(owner), 0
        expires = None if ttl_s is None else self.now + ttl_s
        distinct = {digest(new.source, new.text): new for new in notes}
        for key, new in distinct.items():
            fields = {"created_at": self.now, "expires_at": expires}
            uid = secrets.token_hex(16)
            stored = self.upsert(
                note,
                {
                    **fields,
                    "uid": uid,
                    "namespace_id": at,
                    "digest": key,
                    "source": storable(new.source, _MAX_SOURCE_CHARS),
                    "text": storable(new.text, MAX_NOTE_CHARS),
                    "embedding": _packed(new.embedding),
                },
                keys=("namespace_id", "digest"),
                changed=(*fields, *(() if new.embedding is None else ("embedding",))),
                returning="uid",
            )
            made += stored == uid
        self._expire(note)
        self.evict(note, at, MAX_NOTES)
        return made

    def notes(self, owner: Namespace, limit: int, after: str | None) -> list[Note]:
        """Return the newest notes, or those next to the note `after`."""
        at = self.find(owner)
        if at is None:
            return []
        found = select(note).where(note.c.namespace_id == at, self._alive(note))
        if after is not None:
            anchor = self.connection.execute(
                select(note.c.created_at, note.c.id).where(
                    note.c.namespace_id == at, note.c.uid == as_id(after)
                )
            ).first()
            if anchor is None:
                return []
            found = found.where(
                or_(
                    note.c.created_at < anchor.created_at,
                    and_(note.c.created_at == anchor.created_at, note.c.id < anchor.id),
                )
            )
        newest = found.order_by(note.c.created_at.desc(), note.c.id.desc()).limit(limit)
        return [_note(row) for row in self.connection.execute(newest)]

    def delete_note(self, owner: Namespace, uid: str) -> bool:
        at = self.find(owner)
        gone = delete(note).where(
            note.c.namespace_id == at, note.c.uid == as_id(uid), self._alive(note)
        )
        return self.connection.execute(gone).rowcount > 0

    def clear_notes(self, owner: Namespace) -> int:
        gone = delete(note).where(note.c.namespace_id == self.find(owner))
        return self.connection.execute(gone).rowcount

    def text(self, owner: Namespace, key: str) -> str | None:
        found = select(cached_text.c.text).where(
            cached_text.c.namespace_id == self.find(owner),
            cached_text.c.digest == digest(key),
            self._alive(cached_text),
        )
        text: str | None = self.connection.execute(found).scalar()
        return text

    def put_text(self, owner: Namespace, key: str, text: str, ttl_s: float | None) -> None:
        at = self.namespace_id(owner)
        self.upsert(
            cached_text,
            {
                "namespace_id": at,
                "digest": digest(key),
                "text": storable(text, MAX_TEXT_CHARS),
                "created_at": self.now,
                "expires_at": None if ttl_s is None else self.now + ttl_s,
            },
            keys=("namespace_id", "digest"),
            changed=("text", "created_at", "expires_at"),
        )
        self._expire(cached_text)
        self.evict(cached_text, at, MAX_TEXTS)

    def clear_texts(self, owner: Namespace) -> int:
        gone = delete(cached_text).where(cached_text.c.namespace_id == self.find(owner))
        return self.connection.execute(gone).rowcount

    def namespace_id(self, owner: Namespace) -> int:
        """Return the id of a namespace, which is made if it is new.

        Its row is locked: two that write rows in different orders would wait for each other.
        """
        found = self.find(owner, lock=True)
        if found is not None:
            return found
        fields = {"scope": owner.scope, "owner": owner.owner}
        made = self.upsert(
            namespace, fields, keys=("scope", "owner"), changed=("scope",), returning="id"
        )
        return int(made)

    def upsert(
        self,
        table: Table,
        fields: dict[str, Any],
        *,
        keys: Sequence[str],
        changed: Sequence[str],
        returning: str = "id",
    ) -> Any:
        """Insert a row, or change that with the same `keys`; return its column `returning`."""
        dialect = postgresql if self.connection.dialect.name == "postgresql" else sqlite
        row = dialect.insert(table).values(**fields)
        row = row.on_conflict_do_update(
            index_elements=list(keys), set_={name: row.excluded[name] for name in changed}
        )
        return self.connection.execute(row.returning(table.c[returning])).scalar_one()

    def find(self, owner: Namespace, *, lock: bool = False) -> int | None:
        """Return the id of a namespace, or None if nothing was ever stored in it."""
        found = select(namespace.c.id).where(
            namespace.c.scope == owner.scope, namespace.c.owner == owner.owner
        )
        if lock:
            found = found.with_for_update()
        at: int | None = self.connection.execute(found).scalar()
        return at

    def _alive(self, table: Table) -> ColumnElement[bool]:
        return or_(table.c.expires_at.is_(None), table.c.expires_at > self.now)

    def _expire(self, table: Table) -> None:
        """Delete the expired rows of all namespaces, but for those that others are at."""
        expired = select(table.c.id).where(table.c.expires_at <= self.now)
        gone = expired.with_for_update(skip_locked=True).scalar_subquery()
        self.connection.execute(delete(table).where(table.c.id.in_(gone)))

    def evict(self, table: Table, at: int, most: int) -> None:
        """Delete the oldest rows of a namespace beyond the `most` newest."""
        mine = table.c.namespace_id == at
        count = self.connection.execute(select(func.count()).where(mine)).scalar_one()
        if count > most:
            oldest = select(table.c.id).where(mine).order_by(table.c.created_at, table.c.id)
            gone = oldest.limit(count - most).scalar_subquery()
            self.connection.execute(delete(table).where(table.c.id.in_(gone)))


def _note(row: Row[Any]) -> Note:
    return Note(
        id=row.uid,
        text=row.text,
        source=row.source,
        created_at=row.created_at,
        expires_at=row.expires_at,
        embedding=None if row.embedding is None else tuple(array("f", row.embedding)),
    )


def _packed(vector: Sequence[float] | None) -> bytes | None:
    return None if vector is None else array("f", vector).tobytes()
