"""Rows of namespaces: kept, found, expired, deleted, and never seen by others."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.errors import RequestRejected
from optillm_hooks.services import Owner
from optillm_hooks.store import records, rows
from optillm_hooks.store.records import Namespace, NewNote, digest
from optillm_hooks.store.store import Store
from tests.store.conftest import Clock

pytestmark = pytest.mark.anyio

ANNA, BEN = Namespace("key", "anna"), Namespace("key", "ben")


def new(*texts: str) -> list[NewNote]:
    return [NewNote(text=text) for text in texts]


async def texts(store: Store, owner: Namespace = ANNA) -> list[str]:
    return [note.text for note in await store.notes(owner)]


async def test_notes_come_back_newest_first(store: Store, clock: Clock) -> None:
    assert await texts(store) == []
    assert await store.add_notes(ANNA, [NewNote(text="one", source="a", embedding=(0.5, -2))]) == 1
    clock.now += 1
    await store.add_notes(ANNA, new("two"))
    [newest, oldest] = await store.notes(ANNA)
    assert (newest.text, newest.source, newest.embedding) == ("two", "", None)
    assert (oldest.text, oldest.source, oldest.embedding) == ("one", "a", (0.5, -2.0))
    assert oldest.created_at == clock.now - 1
    assert oldest.expires_at is None


async def test_a_note_that_is_there_becomes_the_newest_instead_of_a_second_one(
    store: Store, clock: Clock
) -> None:
    await store.add_notes(ANNA, new("one", "one"))
    clock.now += 1
    await store.add_notes(ANNA, new("two"))
    clock.now += 1
    assert await store.add_notes(ANNA, new("one")) == 0
    assert await texts(store) == ["one", "two"]
    assert await store.add_notes(ANNA, [NewNote(text="one", source="elsewhere")]) == 1


async def test_namespaces_never_mix(store: Store) -> None:
    owners = [ANNA, BEN, Namespace("team", "anna"), Namespace("user", "anna")]
    for owner in owners:
        await store.add_notes(owner, new(f"of {owner}", "the same"))
        await store.put_text(owner, "key", f"of {owner}")
    [mine, _] = await store.notes(ANNA)
    for owner in owners:
        assert sorted(await texts(store, owner)) == sorted([f"of {owner}", "the same"])
        assert await store.text(owner, "key") == f"of {owner}"
    assert not await store.delete_note(BEN, mine.id)
    assert await store.notes(BEN, after=mine.id) == []
    assert await store.clear_notes(BEN) == 2
    assert len(await texts(store)) == 2


async def test_notes_are_listed_in_pages(store: Store, clock: Clock) -> None:
    for number in range(5):
        await store.add_notes(ANNA, new(f"{number}a", f"{number}b"))
        clock.now += number % 2
    everything = await store.notes(ANNA)
    seen, after = [], None
    while page := await store.notes(ANNA, limit=3, after=after):
        seen += page
        after = page[-1].id
    assert seen == everything
    assert len(seen) == 10


async def test_what_has_expired_is_gone(store: Store, clock: Clock) -> None:
    await store.add_notes(ANNA, new("short"), ttl_s=10)
    await store.add_notes(ANNA, new("long"), ttl_s=30)
    await store.put_text(ANNA, "key", "cached", ttl_s=10)
    [_, short] = sorted(await store.notes(ANNA), key=lambda note: note.text)
    clock.now += 10
    assert await texts(store) == ["long"]
    assert await store.text(ANNA, "key") is None
    assert not await store.delete_note(ANNA, short.id)
    await store.add_notes(BEN, new("anything"))
    clock.now -= 10
    assert await texts(store) == ["long"], "the next write deletes expired rows of all"


async def test_a_note_is_deleted_once(store: Store) -> None:
    await store.add_notes(ANNA, new("one"))
    [note] = await store.notes(ANNA)
    assert await store.delete_note(ANNA, note.id)
    assert not await store.delete_note(ANNA, note.id)
    assert await texts(store) == []


async def test_a_cached_text_is_replaced(store: Store) -> None:
    assert await store.text(ANNA, "key") is None
    await store.put_text(ANNA, "key", "one")
    await store.put_text(ANNA, "key", "two")
    await store.put_text(ANNA, "another", "three")
    assert await store.text(ANNA, "key") == "two"
    assert await store.clear_texts(ANNA) == 2


async def test_a_namespace_keeps_its_newest_rows_only(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_NOTES", 3)
    monkeypatch.setattr(rows, "MAX_TEXTS", 2)
    await store.add_notes(BEN, new("kept"))
    for number in range(5):
        await store.add_notes(ANNA, new(f"{number}"))
        await store.put_text(ANNA, f"{number}", "text")
        clock.now += 1
    assert await texts(store) == ["4", "3", "2"]
    assert [await store.text(ANNA, f"{n}") for n in range(5)] == [None] * 3 + ["text"] * 2
    assert await texts(store, BEN) == ["kept"]


async def test_texts_that_a_database_refuses_are_stored_without_what_it_refuses(
    store: Store,
) -> None:
    await store.add_notes(ANNA, [NewNote(text="a\0b\ud800c 漢字 🙂", source="\0\udfff")])
    await store.put_text(ANNA, "\0\ud800", "x\0" * records.MAX_TEXT_CHARS)
    [note] = await store.notes(ANNA)
    assert (note.text, note.source) == ("ab?c 漢字 🙂", "?")
    assert await store.text(ANNA, "\0\ud800") == "x" * (records.MAX_TEXT_CHARS // 2)


async def test_long_notes_are_cut(store: Store) -> None:
    await store.add_notes(ANNA, new("漢" * (records.MAX_NOTE_CHARS + 1)))
    [text] = await texts(store)
    assert text == "漢" * records.MAX_NOTE_CHARS


async def test_fifty_writers_lose_nothing(url: str | None, tmp_path: Path) -> None:
    """Of two stores, as two processes have, and with notes in common."""
    stores = [Store(directory=tmp_path, url=url) for _ in range(2)]

    async def write(number: int) -> None:
        store = stores[number % 2]
        for turn in range(4):
            both = [f"{number} {turn}", f"shared {(number + turn) % 7}"]
            await store.add_notes(ANNA, new(*(both if turn % 2 else reversed(both))))
            await store.put_text(ANNA, f"{number}", f"{turn}")

    await asyncio.gather(*map(write, range(50)))
    own = {f"{number} {turn}" for number in range(50) for turn in range(4)}
    assert sorted(await texts(stores[0])) == sorted(own | {f"shared {n}" for n in range(7)})
    assert [await stores[1].text(ANNA, f"{n}") for n in range(50)] == ["3"] * 50
    for store in stores:
        store.close()


async def test_a_cancelled_caller_leaves_whole_transactions(store: Store) -> None:
    await store.notes(ANNA)
    for number in range(20):
        writing = asyncio.create_task(store.add_notes(ANNA, new(f"{number}a", f"{number}b")))
        await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    store.close()
    await store.add_notes(BEN, new("after"))
    found = await texts(store)
    assert {text[:-1] + "a" for text in found} == {text for text in found if text.endswith("a")}
    assert {text[:-1] + "b" for text in found} == {text for text in found if text.endswith("b")}


@given(st.lists(st.text()), st.lists(st.text()))
def test_a_digest_tells_lists_of_texts_apart(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_a_request_without_an_owner_has_no_namespace() -> None:
    owner = Owner(key="hash", team="t")
    assert owner.namespace("key") == Namespace("key", "hash")
    assert owner.namespace("team") == Namespace("team", "t")
    with pytest.raises(RequestRejected, match="has no user"):
        owner.namespace("user")
    with pytest.raises(ValueError, match="owner"):
        Namespace("key", "")
