"""A damaged, foreign or newer store is refused and left as it is; a killed writer damages none."""

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, create_engine, make_url, text

from optillm_hooks.store import opening
from optillm_hooks.store.records import Namespace, NewNote, StoreFailed, StoreUnusable
from optillm_hooks.store.store import FILE, Store
from tests.proxy import ROOT

pytestmark = pytest.mark.anyio

ANNA = Namespace("key", "anna")


def cut(share: float) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


@pytest.mark.parametrize(
    "damage",
    [
        cut(0),
        cut(0.001),
        cut(0.3),
        cut(0.99),
        overwrite,
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(os.urandom(5000)),
    ],
)
async def test_a_damaged_file_is_refused_and_never_overwritten(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(directory=tmp_path)
    await store.add_notes(ANNA, [NewNote(text=f"{n} " * 200) for n in range(50)])
    store.close()
    path = tmp_path / FILE
    damage(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreFailed):
            await store.notes(ANNA)
        with pytest.raises(StoreFailed):
            await store.add_notes(ANNA, [NewNote(text="new")])
    assert path.read_bytes() == before
    assert "damaged or not a store" in caplog.text
    assert os.listdir(tmp_path) == [FILE]
    path.unlink()
    assert await store.add_notes(ANNA, [NewNote(text="new")]) == 1


async def test_a_file_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as theirs:
        theirs.execute("CREATE TABLE optillm_store (version INTEGER)")
    theirs.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StoreUnusable, match="is not a store"):
        opening.open_file(tmp_path / FILE)
    assert (tmp_path / FILE).read_bytes() == before


async def test_a_log_without_its_file_is_not_applied_to_a_new_one(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}-wal").write_bytes(b"left over")
    with pytest.raises(StoreUnusable, match="is gone"):
        opening.open_file(tmp_path / FILE)
    assert os.listdir(tmp_path) == [f"{FILE}-wal"]


async def test_only_its_owner_may_read_a_store(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    store = Store(directory=folder)
    await store.add_notes(ANNA, [NewNote(text="secret")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    store.close()


async def test_a_deleted_note_does_not_stay_in_the_file(tmp_path: Path) -> None:
    store = Store(directory=tmp_path)
    await store.add_notes(ANNA, [NewNote(text="my secret " * 20), NewNote(text="kept note")])
    notes = await store.notes(ANNA)
    await store.delete_note(ANNA, next(note.id for note in notes if "secret" in note.text))
    store.close()
    assert b"kept note" in (tmp_path / FILE).read_bytes()
    assert os.listdir(tmp_path) == [FILE]
    assert b"my secret" not in (tmp_path / FILE).read_bytes()


LATER = Table("optillm_later", MetaData(), Column("id", Integer))


async def test_an_old_store_is_migrated_and_a_newer_one_is_refused(
    url: str | None, tmp_path: Path
) -> None:
    def opened(migrations: tuple[opening.Migration, ...]) -> None:
        engine = (
            opening.open_file(tmp_path / FILE, migrations)
            if url is None
            else opening.open_url(url, migrations)
        )
        with engine.connect() as connection:
            version = connection.execute(text("SELECT version FROM optillm_store")).scalars().all()
        engine.dispose()
        assert version == [len(migrations)]

    def fails(connection: Connection) -> None:
        LATER.create(connection)
        raise RuntimeError("half way")

    store = Store(directory=tmp_path, url=url)
    await store.add_notes(ANNA, [NewNote(text="old")])
    store.close()
    first = tuple(opening.MIGRATIONS)
    with pytest.raises(RuntimeError, match="half way"):
        opened((*first, fails))
    assert [note.text for note in await store.notes(ANNA)] == ["old"]
    store.close()
    opened((*first, LATER.create, lambda _: None))
    opened((*first, LATER.create, lambda _: None))
    with pytest.raises(StoreFailed):
        await store.notes(ANNA)
    with pytest.raises(StoreUnusable, match="install a newer one"):
        opened(first)


async def test_a_store_of_two_openers_at_once_is_made_once(tmp_path: Path) -> None:
    stores = [Store(directory=tmp_path) for _ in range(8)]
    await asyncio.gather(*(s.add_notes(ANNA, [NewNote(text=f"{n}")]) for n, s in enumerate(stores)))
    assert len(await stores[0].notes(ANNA)) == 8
    for store in stores:
        store.close()
    assert os.listdir(tmp_path) == [FILE]


WRITER = """
import asyncio, sys
from pathlib import Path
from optillm_hooks.store.records import Namespace, NewNote
from optillm_hooks.store.store import Store

async def main():
    store = Store(directory=Path(sys.argv[1]))
    for number in range(10**6):
        pair = [NewNote(text=f"{sys.argv[2]} {number} {half}") for half in "ab"]
        await store.add_notes(Namespace("key", "anna"), pair)
        print(number, flush=True)

asyncio.run(main())
"""


def test_two_killed_writers_leave_a_readable_store_with_all_that_they_wrote(
    tmp_path: Path,
) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), name],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for name in ("x", "y")
    ]
    told = {}
    for name, writer in zip("xy", writers, strict=True):
        assert writer.stdout is not None
        told[name] = 0
        while told[name] < 30:
            told[name] = int(writer.stdout.readline())
    for name, writer in zip("xy", writers, strict=True):
        writer.kill()
        assert writer.stdout is not None
        told[name] = max([told[name], *map(int, writer.stdout.read().split())])
        writer.wait()
        writer.stdout.close()
    store = Store(directory=tmp_path)
    found = {note.text for note in asyncio.run(store.notes(ANNA, limit=100_000))}
    store.close()
    for name, last in told.items():
        assert {f"{name} {n} {half}" for n in range(last + 1) for half in "ab"} <= found
    assert all(text[:-1] + other in found for text in found for other in "ab"), "half a pair"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("mysql://host/x", "must begin with postgresql://"),
        ("not a url", "is not a URL"),
        ("sqlite:///x.db", "must begin with postgresql://"),
    ],
)
def test_a_bad_url_is_refused_with_what_to_write(bad: str, words: str) -> None:
    with pytest.raises(StoreUnusable, match=words):
        opening.open_url(bad)


async def test_a_database_that_cannot_be_reached_is_an_error_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"postgresql://anna:geheim@/nothing?host={tmp_path}"
    with pytest.raises(StoreFailed) as caught:
        await Store(directory=tmp_path, url=url).notes(ANNA)
    assert caught.value.status == 503
    assert "geheim" not in caplog.text + str(caught.value)
    assert str(tmp_path) not in str(caught.value)


async def test_a_database_that_is_away_is_not_asked_by_every_request() -> None:
    """Each attempt may take seconds, and they would wait for each other."""
    attempts = []

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(1)
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = Store(directory=Path("unused"), url=f"postgresql://x@127.0.0.1:{port}/x")
        asked = (store.notes(ANNA) for _ in range(20))
        ended = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(error) for error in ended} == {StoreFailed}
    assert len(attempts) <= 2, "psycopg tries again without TLS"
    store.close()


async def test_a_store_goes_on_after_its_connections_were_cut(database: str) -> None:
    store = Store(directory=Path("unused"), url=database)
    await store.add_notes(ANNA, [NewNote(text="before")])
    admin = create_engine(make_url(database).set(drivername="postgresql+psycopg"))
    with admin.connect() as connection:
        others = "datname = current_database() AND pid != pg_backend_pid()"
        cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"  # noqa: S608
        connection.execute(text(cut))
    admin.dispose()
    assert [note.text for note in await store.notes(ANNA)] == ["before"]
    store.close()
