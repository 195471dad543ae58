"""A long prompt stalls nobody: it is prepared in other threads, and its length is refused first."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.engine import PREPARERS, Engine
from optillm_hooks.local_provider.engine_request import (
    EngineRequest,
    Event,
    Finished,
    Piece,
    PromptTooLong,
    Submission,
)
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.prompt_length import LengthBound
from tests.local_provider import tiny

pytestmark = pytest.mark.anyio
FORMAT = tiny.chat_format()
SLOW = "slow"


def make_request(text: str, **fields: Any) -> EngineRequest:
    given = {"max_tokens": 4, "logit_bias": {FORMAT.encode_text("a")[0]: 90.0}, **fields}
    return EngineRequest(messages=[{"role": "user", "content": text}], **given)


class Gate:
    """Holds up the preparation of requests that say "slow", until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Semaphore(0)
        encode = ChatFormat.encode

        def held_up(chat_format: ChatFormat, messages: Any, *others: Any) -> list[int]:
            if messages[-1]["content"] == SLOW:
                self.reached.release()
                self.open.wait()
            return encode(chat_format, messages, *others)

        monkeypatch.setattr(ChatFormat, "encode", held_up)

    async def wait_for(self, requests: int) -> None:
        """Wait until so many are being held up."""
        for _ in range(requests):
            await asyncio.to_thread(self.reached.acquire)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


@pytest.fixture
def engine() -> Iterator[Engine]:
    runner = tiny.runner()
    made = Engine("tiny", lambda: Batch(runner, FORMAT, Capacity()))
    yield made
    made.close()
    assert not list(runner.kv_cache.rows())


async def read(engine: Engine, request: EngineRequest) -> int:
    """Return the number of generated tokens."""
    *_, last = [event async for event in engine.stream(request)]
    assert isinstance(last, Finished)
    return last.completion_tokens


async def test_a_prompt_that_is_being_tokenized_delays_no_other_request(
    engine: Engine, gate: Gate
) -> None:
    running = engine.stream(make_request("x", max_tokens=200))
    assert isinstance(await anext(running), Piece)
    slow = asyncio.create_task(read(engine, make_request(SLOW)))
    await gate.wait_for(1)
    assert len([event async for event in running if isinstance(event, Piece)]) == 199
    assert await read(engine, make_request("short")) == 4
    assert not slow.done()
    gate.open.set()
    assert await slow == 4


async def test_a_request_that_is_cancelled_while_it_is_prepared_takes_no_row(
    engine: Engine, gate: Gate
) -> None:
    gone = [asyncio.create_task(read(engine, make_request(SLOW))) for _ in range(PREPARERS + 2)]
    await gate.wait_for(PREPARERS)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    gate.open.set()
    assert await read(engine, make_request("x")) == 4
    assert not gate.reached.acquire(blocking=False)  # those that waited are not prepared at all


async def test_a_model_whose_requests_are_being_prepared_is_not_unloaded(
    engine: Engine, gate: Gate
) -> None:
    slow = asyncio.create_task(read(engine, make_request(SLOW)))
    await gate.wait_for(1)
    assert not await asyncio.to_thread(engine.unload)
    gate.open.set()
    assert await slow == 4
    assert await asyncio.to_thread(engine.unload)


async def test_a_request_that_is_being_prepared_is_answered_before_the_engine_closes(
    gate: Gate,
) -> None:
    engine = Engine("closing", lambda: Batch(tiny.runner(), FORMAT, Capacity()))
    slow = asyncio.create_task(read(engine, make_request(SLOW)))
    await gate.wait_for(1)
    engine._inbox.put(None)
    gate.open.set()
    assert await slow == 4
    engine.close()
    assert not engine._thread.is_alive()


async def test_a_panic_in_a_tokenizer_is_one_request_s_error(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_args: Any) -> None:
        raise BaseException("in Rust")

    with monkeypatch.context() as patched:
        patched.setattr(ChatFormat, "encode", panic)
        for _ in range(PREPARERS + 1):
            with pytest.raises(ProviderFailed, match="could not be prepared: BaseException"):
                await read(engine, make_request("x"))
    assert await read(engine, make_request("x")) == 4


def test_requests_keep_their_order_of_arrival_however_long_their_preparation_takes() -> None:
    batch, begun = Batch(tiny.runner(), FORMAT, Capacity(rows=1)), list[int]()

    def deliver(number: int, event: Event) -> None:
        if isinstance(event, Finished):
            begun.append(number)

    submissions = [Submission(make_request("x"), partial(deliver, number)) for number in range(4)]
    prepared = [batch.prepare(submission) for submission in submissions]
    for active in reversed(prepared):
        assert active is not None
        batch.join(active)
    while not batch.idle:
        batch.step()
    assert begun == [0, 1, 2, 3]


async def test_a_prompt_of_megabytes_is_refused_before_it_is_tokenized(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tiny.tokenizer()
    chat_format, encode = ChatFormat(tokenizer, {tiny.END}), tokenizer.encode

    def short_only(text: str, **options: Any) -> Any:
        assert len(text) < 100_000
        return encode(text, **options)

    monkeypatch.setattr(tokenizer, "encode", short_only)
    engine = Engine("tiny", lambda: Batch(tiny.runner(), chat_format, Capacity()))
    with pytest.raises(PromptTooLong, match=r"at least \d{6} tokens; this model's context of"):
        await read(engine, make_request("word " * 400_000))
    with pytest.raises(PromptTooLong, match=r"has 20\d\d tokens"):
        await read(engine, make_request("x" * 2000))
    assert await read(engine, make_request(" " * 900)) == 4
    engine.close()


def byte_level(normalizer: Any = None, blanks: str = "isolated") -> PreTrainedTokenizerFast:
    """Return one that lacks a byte, and has long tokens and one that swallows blanks."""
    letters = sorted({*pre_tokenizers.ByteLevel.alphabet()} - {"\u00c3"})
    pieces = [*letters, "ab", "abab", "\u0120\u0120", "\u0120ab"]
    merges = [("a", "b"), ("ab", "ab"), ("\u0120", "\u0120"), ("\u0120", "ab")]
    backend = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    split = pre_tokenizers.Split(" ", blanks)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.normalizer = normalizer
    fast = PreTrainedTokenizerFast(tokenizer_object=backend)
    fast.add_tokens([AddedToken("<|x|>", lstrip=True, rstrip=True, special=True)])
    return fast


def words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


BOUNDED = {
    "byte-level": byte_level(),
    "NFC": byte_level(normalizers.NFC()),
    "byte fallback": tiny.byte_fallback_tokenizer(["a", "b", "\u2581"]),
}
UNBOUNDED = {
    "drops blanks": byte_level(blanks="removed"),
    "strips": byte_level(normalizers.Sequence([normalizers.Strip(), normalizers.NFKC()])),
    "shortens": byte_level(normalizers.Replace("ab", "")),
    "unknown words": words(),
}
PARTS = [*"abx \n\t\x1f\u3000\u2581éÃ中😀ὢ", "e\u0301", "abab" * 9, "<|x|>", " " * 9]


@pytest.mark.parametrize("name", [*BOUNDED, *UNBOUNDED])
@given(text=st.lists(st.sampled_from(PARTS), max_size=60).map("".join))
def test_the_bound_is_never_above_the_number_of_tokens(name: str, text: str) -> None:
    tokenizer = {**BOUNDED, **UNBOUNDED}[name]
    bound = LengthBound(tokenizer).of(text)
    assert bound <= len(tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("name", [*BOUNDED, *UNBOUNDED])
def test_there_is_a_bound_where_all_text_becomes_tokens(name: str) -> None:
    tokenizer = {**BOUNDED, **UNBOUNDED}[name]
    assert (LengthBound(tokenizer).of("ab " * 1000) > 100) == (name in BOUNDED)


def test_the_embedded_model_refuses_megabytes_at_once(loaded: LoadedModel) -> None:
    bound = LengthBound(loaded.tokenizer)
    text = "The river shapes the land. " * 3000
    assert 500 < bound.of(text) < len(loaded.tokenizer.encode(text))
    assert bound.of("word " * 400_000) > loaded.model.config.max_position_embeddings


def test_threads_can_share_a_tokenizer_that_came_with_truncation_and_padding() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(9)
    tokenizer.backend_tokenizer.enable_padding(length=700)
    chat_format = ChatFormat(tokenizer, {tiny.END})
    conversations = [
        [{"role": "user", "content": "ab<|im_end|>" * (i % 7) + "c" * i}] for i in range(60)
    ]
    expected = [tiny.chat_format().encode(messages) for messages in conversations]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(chat_format.encode, conversations)) == expected
