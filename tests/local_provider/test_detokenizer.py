"""Incremental detokenization: the text shown is that of all tokens at once."""

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

from optillm_hooks.local_provider.chat_format import ChatFormat
from tests.local_provider import tiny

WORDS = ["\u2581", "\u2581\u2581", "l", "\u2581l", "a\u2581", "é", "\u2581中", "\ufffd", "'s", "."]
SPECIAL = ["<unk>", "<s>", "</s>", "<think>"]


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": ["<s>"]})
    made.add_tokens(["<think>"], special_tokens=True)
    return made


def word_piece() -> PreTrainedTokenizerFast:
    pieces = [*SPECIAL, "do", "##ing", "not", "n't", ",", "'s", "'", "##\u4e2d", "x"]
    backend = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.decoder = decoders.WordPiece()
    return fast(backend)


def metaspace() -> PreTrainedTokenizerFast:
    pieces = {piece: i for i, piece in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(BPE(pieces, [], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace()
    return fast(backend)


STRIPPING = tiny.byte_fallback_tokenizer(WORDS)
PLAIN = tiny.byte_fallback_tokenizer(WORDS, tiny.LLAMA[:3])
WHOLE_WORDS, BARRED, BYTE_LEVEL = word_piece(), metaspace(), tiny.tokenizer()


def shown(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    """Return the text that is shown token by token."""
    detokenizer = ChatFormat(tokenizer, {2}).detokenizer()
    return "".join([detokenizer.feed(token) for token in ids] + [detokenizer.close()])


def ids_of(tokenizer: PreTrainedTokenizerFast) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, len(tokenizer) + 2), max_size=24)


def spelled_in_bytes(text: str) -> list[int]:
    return [STRIPPING.convert_tokens_to_ids(tiny.BYTES[byte]) for byte in text.encode()]


texts = st.text(st.sampled_from(" aé中😀\n\ufffd"), min_size=1, max_size=3)
ends = st.just([SPECIAL.index("</s>")])
words = st.lists(
    st.sampled_from([STRIPPING.convert_tokens_to_ids(word) for word in WORDS]), max_size=3
)


@pytest.mark.parametrize("tokenizer", [STRIPPING, PLAIN], ids=["Llama 2", "Gemma"])
@given(parts=st.lists(st.one_of(texts.map(spelled_in_bytes), ends, words), max_size=8))
def test_characters_spelled_in_bytes_are_those_of_the_whole_text(
    tokenizer: PreTrainedTokenizerFast, parts: list[list[int]]
) -> None:
    ids = [token for part in parts for token in part]
    assert shown(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


RUN = re.compile("(?:<0x..>)+")


def lossy(run: re.Match[str]) -> str:
    """Return the text of a run of byte tokens, in which only the bad bytes are replaced."""
    return bytes.fromhex(run[0].replace("<0x", "").replace(">", "")).decode(errors="replace")


@given(ids=ids_of(STRIPPING))
def test_a_bad_byte_costs_no_text_and_never_raises(ids: list[int]) -> None:
    visible = [token for token in ids if token >= len(SPECIAL)]
    pieces = [STRIPPING.convert_ids_to_tokens(token) or "" for token in visible]
    expected = RUN.sub(lossy, "".join(pieces).replace("\u2581", " ")).removeprefix(" ")
    assert shown(STRIPPING, visible) == expected


def test_a_stream_that_tokenizers_cannot_continue_goes_on() -> None:
    """`DecodeStream` raises at the third token: "(" has been shown, and is no prefix of "��l"."""
    pieces = ["<0x28>", "<0xDE>", "l", "\u2581l", "<0x28>", "<0xE4>", "<0xB8>", "<0xAD>"]
    detokenizer = ChatFormat(STRIPPING, {2}).detokenizer()
    ids = STRIPPING.convert_tokens_to_ids(pieces)
    assert [detokenizer.feed(token) for token in ids] == [
        "(",
        "",
        "\ufffdl",
        " l",
        "(",
        "",
        "",
        "中",
    ]


def test_bad_bytes_are_not_held_back() -> None:
    detokenizer = ChatFormat(STRIPPING, {2}).detokenizer()
    (bad,) = spelled_in_bytes("\u00e9")[:1]
    assert [detokenizer.feed(token) for token in [bad] * 4] == ["", *["\ufffd"] * 3]
    assert detokenizer.close() == "\ufffd"


@pytest.mark.parametrize(
    "tokenizer", [BYTE_LEVEL, BARRED, WHOLE_WORDS], ids=["byte-level", "metaspace", "word piece"]
)
@given(data=st.data())
def test_the_text_of_other_vocabularies_is_that_of_the_whole(
    tokenizer: PreTrainedTokenizerFast, data: st.DataObject
) -> None:
    kept = set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    ids = [token for token in data.draw(ids_of(tokenizer)) if token not in kept]
    whole = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=True)
    assert shown(tokenizer, ids) == whole


@pytest.mark.parametrize("tokenizer", [STRIPPING, BARRED], ids=["byte fallback", "metaspace"])
def test_a_special_token_that_is_kept_ends_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.convert_tokens_to_ids(["l", "<think>", "\u2581l"])
    assert shown(tokenizer, ids) == "l<think> l"
    if tokenizer is STRIPPING:
        assert shown(tokenizer, [ids[0], *spelled_in_bytes("é")[:1], ids[1]]) == "l\ufffd<think>"
