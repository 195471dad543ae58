"""Opening a store: it is made if it is new, migrated if it is old, and refused if it is damaged."""

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, DatabaseError

from optillm_hooks.store.records import StoreUnusable
from optillm_hooks.store.tables import metadata, store

Migration = Callable[[Connection], None]

MIGRATIONS: Final[Sequence[Migration]] = (metadata.create_all,)
"""Each leads to the next version. One that has been released is never changed."""

WAIT_S: Final = 10.0
"""Maximum seconds that a transaction waits for another."""

_APPLICATION_ID: Final = 0x4F4C484B
"""Marks a file of SQLite as ours, in its header."""

_LOCK: Final = 0x4F4C484B
"""PostgreSQL's advisory lock that one process holds while it migrates."""

_CONNECTIONS: Final = 4
_CONNECT_S: Final = 3
_HEADER_BYTES: Final = 100
_AT_APPLICATION_ID: Final = 68


def open_file(path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> Engine:
    """Return the store in the file `path`, which is made if there is none.

    Raises:
        StoreUnusable: the file is not a store, is damaged, or a newer version has written it.
        OSError: the folder cannot be used.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _make_file(path, migrations)
    _check_header(path)
    engine = _file_engine(path)
    try:
        _check_content(engine, path)
        _migrate(engine, migrations, str(path))
    except DatabaseError as exc:
        engine.dispose()
        raise StoreUnusable(_damaged(path, str(exc.orig))) from None
    except BaseException:
        engine.dispose()
        raise
    return engine


def open_url(url: str, migrations: Sequence[Migration] = MIGRATIONS) -> Engine:
    """Return the store in the PostgreSQL database at `url`.

    Raises:
        StoreUnusable: the URL is not one of PostgreSQL, its driver is missing, or a newer version
            has written the tables.
        sqlalchemy.exc.DBAPIError: the database cannot be reached.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StoreUnusable("store.url is not a URL; write postgresql://user@host/name") from None
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise StoreUnusable(f"store.url must begin with postgresql://, not {parsed.drivername}://")
    try:
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            # A pooler between may give each transaction another connection.
            connect_args={"connect_timeout": _CONNECT_S, "prepare_threshold": None},
        )
    except ModuleNotFoundError:
        raise StoreUnusable(
            "store.url needs the extra 'postgres': pip install 'optillm-hooks[postgres]'"
        ) from None

    @event.listens_for(engine, "begin")
    def _limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(WAIT_S * 1000)}")

    try:
        _migrate(engine, migrations, parsed.render_as_string(hide_password=True))
    except BaseException:
        engine.dispose()
        raise
    return engine


def _make_file(path: Path, migrations: Sequence[Migration]) -> None:
    """Make a complete store beside `path` first: a process that is killed leaves no half of one."""
    log = path.with_name(f"{path.name}-wal")
    if log.exists():
        raise StoreUnusable(
            f"{path} is gone, but its log {log.name} is there: restore or move both"
        )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    draft.touch(mode=0o600)
    try:
        engine = _file_engine(draft, journal="DELETE")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.commit()
        _migrate(engine, migrations, str(path))
        engine.dispose()
        try:
            os.link(draft, path)
        except FileExistsError:  # another process was faster
            return
    finally:
        draft.unlink()


def _check_header(path: Path) -> None:
    """Refuse a file that is not ours, before SQLite opens it.

    SQLite would take an empty file for a new database, and change the header of another program's.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES or not header.startswith(b"SQLite format 3\0"):
        raise StoreUnusable(_damaged(path, "it has no header of SQLite"))
    if int.from_bytes(header[_AT_APPLICATION_ID : _AT_APPLICATION_ID + 4]) != _APPLICATION_ID:
        raise StoreUnusable(f"{path} is not a store of optillm_hooks; it is left as it is")


def _check_content(engine: Engine, path: Path) -> None:
    with engine.connect() as connection:
        said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if said != "ok":
        raise StoreUnusable(_damaged(path, str(said)))


def _damaged(path: Path, said: str) -> str:
    return (
        f"{path} is damaged or not a store ({said}); it is left as it is. Restore a backup, or "
        "move the file away to begin with an empty store"
    )


def _file_engine(path: Path, journal: str = "WAL") -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=_CONNECTIONS,
        max_overflow=0,
        connect_args={"timeout": WAIT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the transactions are SQLAlchemy's
        cursor = connection.cursor()
        for pragma in (
            f"journal_mode = {journal}",
            "synchronous = NORMAL",
            "foreign_keys = ON",
            "secure_delete = ON",  # what is deleted does not stay in the file
            "trusted_schema = OFF",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and writes later could fail, whatever it waits.
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _migrate(engine: Engine, migrations: Sequence[Migration], where: str) -> None:
    """Bring the tables to the newest version, all in one transaction."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        version = _version(connection)
        if version > len(migrations):
            raise StoreUnusable(
                f"{where} has version {version} of the store, but this optillm_hooks knows only up "
                f"to {len(migrations)}: install a newer one"
            )
        if version == len(migrations):
            return
        for migration in migrations[version:]:
            migration(connection)
        connection.execute(store.delete())
        connection.execute(store.insert().values(version=len(migrations)))


def _version(connection: Connection) -> int:
    if not inspect(connection).has_table(store.name):
        return 0
    return connection.execute(select(store.c.version)).scalar() or 0
