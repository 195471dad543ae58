"""Chunks fit, lose nothing, and cut where a reader would."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optillm_hooks.retrieval.chunks import Chunk, split

pytestmark = pytest.mark.anyio


def bytes_as_tokens(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def words(text: str) -> int:
    return len(text.split())


def check(text: str, found: list[Chunk], size: int) -> None:
    end = 0
    for chunk in found:
        assert chunk.text == text[chunk.start : chunk.end]
        assert not text[end : chunk.start].strip(), "lost"
        assert bytes_as_tokens(chunk.text) <= size or len(chunk.text) <= 65
        end = chunk.end
    assert not text[end:].strip(), "lost"
    assert all(one.start < other.start for one, other in pairwise(found))


@given(
    st.text(st.sampled_from("ab\n .\u3002\u6f22\U0001f600\u0301\u200d\r"), max_size=300),
    st.integers(1, 40),
    st.integers(0, 60),
)
def test_every_text_is_cut_without_loss(text: str, size: int, overlap: int) -> None:
    check(text, asyncio.run(split(text, bytes_as_tokens, size, overlap)), size)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        pytest.param("One two.\nThree.\n\nFour five. Six seven", "\n\n", id="paragraph"),
        pytest.param("One two three.\nFour five. Six seven eight nine", "\n", id="line"),
        pytest.param("One two three. Four five six seven eight nine", ". ", id="sentence"),
        pytest.param("\u6f22\u5b57\u6f22\u3002" * 9, "\u3002", id="Chinese sentence"),
        pytest.param("one two three four five six seven", " ", id="word"),
    ],
)
async def test_a_chunk_ends_at_the_best_place(text: str, ends: str) -> None:
    first, *_ = await split(text, bytes_as_tokens, 22)
    assert first.text.endswith(ends)


@pytest.mark.parametrize(
    "character",
    [
        "e\u0301",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\U0001f44d\U0001f3fd",
        "\u0928\u093f",
    ],
    ids=["accent", "family", "skin tone", "vowel sign"],
)
@pytest.mark.parametrize("size", [9, 30, 31])
async def test_a_written_character_is_never_cut(character: str, size: int) -> None:
    found = await split(character * 40, bytes_as_tokens, size, 3)
    assert all(set(chunk.text.split(character)) == {""} for chunk in found)


async def test_a_pair_of_surrogates_is_not_split() -> None:
    """JSON can hold the halves of a character one by one."""
    found = await split("\ud83d\ude00" * 20, len, 5)
    assert all(len(chunk.text) % 2 == 0 for chunk in found)


async def test_chunks_overlap() -> None:
    text = " ".join(f"w{number}" for number in range(1000))
    found = await split(text, words, 100, 20)
    shared = [words(text[after.start : before.end]) for before, after in pairwise(found)]
    assert all(8 <= count <= 24 for count in shared)
    assert max(words(chunk.text) for chunk in found) <= 100


async def test_chunks_are_filled() -> None:
    text = " ".join(f"w{number}" for number in range(10_000))
    assert len(await split(text, words, 100)) <= 125


async def test_others_get_a_turn_between_chunks() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    found = await split("some words " * 2000, words, 100)
    beside.cancel()
    assert turns >= len(found) - 1


@pytest.mark.parametrize("text", ["", " \n\t"])
async def test_a_blank_text_has_no_chunks(text: str) -> None:
    assert await split(text, words, 10) == []


async def test_a_text_that_fits_is_one_chunk() -> None:
    text = "some words " * 490
    assert len(await split(text, lambda t: len(t) // 4, len(text) // 4)) == 1
