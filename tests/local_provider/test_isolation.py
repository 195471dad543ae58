"""Nothing of one row reaches another: whatever fails ends the requests that it concerns."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.active_request import ActiveRequest
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
from optillm_hooks.local_provider.choice_output import ChoiceOutput
from optillm_hooks.local_provider.decoding.base import Branch, Samples
from optillm_hooks.local_provider.engine import Engine
from optillm_hooks.local_provider.engine_request import (
    Choice,
    EngineRequest,
    Event,
    Finished,
    Piece,
    SamplingParams,
    Submission,
)
from optillm_hooks.local_provider.grammar import Constraint
from optillm_hooks.local_provider.kv_cache import Pool, Row
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

pytestmark = pytest.mark.anyio
FORMAT = tiny.chat_format()
BAD = "~"
"""What marks the request that fails."""

GOOD = ["a", "bc" * 40, "d e f"]


def make_request(text: str, **fields: Any) -> EngineRequest:
    given = {"max_tokens": 12, "seed": 3, "logit_bias": {tiny.END: -100.0}, **fields}
    return EngineRequest(messages=[{"role": "user", "content": text}], **given)


def serve(batch: Batch, *requests: EngineRequest) -> list[list[Event]]:
    """Serve all together; return their events."""
    events: list[list[Event]] = [[] for _ in requests]
    for request, seen in zip(requests, events, strict=True):
        batch.add(Submission(request, seen.append))
    while not batch.idle:
        batch.step()
    return events


def texts(events: Sequence[Event], n: int = 1) -> list[str]:
    assert isinstance(events[-1], Finished)
    choices = [Choice() for _ in range(n)]
    for event in events:
        if isinstance(event, Piece):
            choices[event.choice].add(event)
    return [choice.text for choice in choices]


def failure_of(events: Sequence[Event]) -> ProviderFailed:
    """Return the last event, which is the only error, and comes after no `Finished`."""
    assert all(isinstance(event, Piece) for event in events[:-1])
    assert isinstance(events[-1], ProviderFailed)
    return events[-1]


def alone(*requests: EngineRequest, runner: type[Runner] = Runner) -> list[list[str]]:
    """Return the texts of each request when it is served alone."""
    return [
        texts(serve(Batch(runner(tiny.model()), FORMAT, Capacity()), one)[0], one.n)
        for one in requests
    ]


GOOD_REQUESTS = [make_request(text, n=2) for text in GOOD]
EXPECTED = alone(*GOOD_REQUESTS)


def assert_only_one_fails(batch: Batch, bad: EngineRequest, match: str, status: int = 500) -> None:
    """Serve `bad` among others, then all others again."""
    failed, *served = serve(batch, bad, *GOOD_REQUESTS)
    failure = failure_of(failed)
    assert match in str(failure)
    assert failure.status == status
    assert [texts(events, 2) for events in served] == EXPECTED
    assert not list(batch._runner.kv_cache.rows())
    assert batch._runner.kv_cache.bytes == 0
    assert [texts(events, 2) for events in serve(batch, *GOOD_REQUESTS)] == EXPECTED


def bad_temperature(branch: Branch, *_args: Any) -> bool:
    return branch._sampling.temperature == 0.77


def bad_stop(output: ChoiceOutput, *_args: Any) -> bool:
    return output._stop._stops == (BAD,)


def bad_samples(samples: Samples, *_args: Any) -> bool:
    return any(map(bad_temperature, samples._branches))


BREAKS: dict[str, tuple[type, str, Callable[..., bool]]] = {
    "tokens to text": (ChoiceOutput, "add", bad_stop),
    "result": (ChoiceOutput, "result", bad_stop),
    "tokens to emit": (Branch, "emit", bad_temperature),
    "sampling parameters": (Branch, "sampling_params", bad_temperature),
    "first tokens": (Samples, "begin", bad_samples),
    "next branch": (Samples, "open", bad_samples),
    "end of a branch": (Samples, "close", bad_samples),
    "outcome": (Samples, "outcome", bad_samples),
    "grammar": (Constraint, "accept", lambda *_args: True),
    "fork of the grammar": (Constraint, "fork", lambda *_args: True),
    "readiness": (
        ActiveRequest,
        "is_ready",
        lambda active, *_args: active.request.stop == (BAD,),
    ),
}


class Panic(BaseException):
    """As a panic in Rust, it is no `Exception`."""


@pytest.mark.parametrize("error", [ValueError, Panic])
@pytest.mark.parametrize("name", BREAKS)
def test_what_breaks_in_a_row_ends_its_request_only(
    name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, method, is_bad = BREAKS[name]
    works = getattr(target, method)

    def broken(*args: Any, **fields: Any) -> Any:
        if is_bad(*args):
            raise error("a secret of the conversation")
        return works(*args, **fields)

    monkeypatch.setattr(target, method, broken)
    bad = make_request(
        BAD,
        n=3,
        stop=(BAD,),
        sampling=SamplingParams(temperature=0.77),
        schema={"type": "boolean"} if "grammar" in name else None,
    )
    batch = Batch(tiny.runner(), FORMAT, Capacity())
    assert_only_one_fails(batch, bad, f"the reply failed: {error.__name__}")


def test_a_client_that_cannot_be_told_ends_alone() -> None:
    def deaf(_event: Event) -> None:
        raise OSError

    batch, seen = Batch(tiny.runner(), FORMAT, Capacity()), list[Event]()
    batch.add(Submission(make_request("x", max_tokens=50), deaf))
    batch.add(Submission(GOOD_REQUESTS[0], seen.append))
    while not batch.idle:
        batch.step()
    assert texts(seen, 2) == EXPECTED[0]
    assert not list(batch._runner.kv_cache.rows())


@pytest.fixture
def nan_batch() -> Batch:
    """A batch whose model computes NaN from one token on."""
    model = tiny.model()
    (token,) = FORMAT.encode_text(BAD)
    model.get_input_embeddings().weight.data[token] = torch.nan
    return Batch(Runner(model), FORMAT, Capacity(chunk=64))


def test_logits_that_are_not_numbers_end_their_request_only(nan_batch: Batch) -> None:
    bad = make_request(f"{'b' * 40}{BAD}{'c' * 30}", n=3)
    assert_only_one_fails(nan_batch, bad, "the model's output is not a number")
    failure_of(serve(nan_batch, bad)[0])  # nor is its prompt in the prefix cache


def test_numbers_that_are_none_do_not_reach_the_next_row_in_the_same_slot(
    nan_batch: Batch,
) -> None:
    seen: list[list[Event]] = [[], [], []]
    slots: list[int] = []
    requests = [make_request("y", max_tokens=60), make_request(BAD * 99), GOOD_REQUESTS[0]]
    for request, events in zip(requests, seen, strict=True):
        nan_batch.add(Submission(request, events.append))
        nan_batch.step()
        slots.append(list(nan_batch._runner.kv_cache.rows())[-1].slot)  # type: ignore[attr-defined]
        nan_batch.step()
    while not nan_batch.idle:
        nan_batch.step()
    assert slots == [0, 1, 1]
    failure_of(seen[1])
    assert texts(seen[2], 2) == EXPECTED[0]


def test_a_row_without_any_possible_token_ends_alone() -> None:
    banned = dict.fromkeys(range(tiny.model().config.vocab_size), -float("inf"))
    batch = Batch(tiny.runner(), FORMAT, Capacity())
    for sampling in (SamplingParams(), SamplingParams(0.0), SamplingParams(0.9, top_p=0.5)):
        bad = make_request(BAD, logit_bias=banned, sampling=sampling)
        assert_only_one_fails(batch, bad, "the probability of every token is not a number")


class Fragile(Runner):
    """A runner whose forward pass fails if it is fed a certain token, or too many of them."""

    def __init__(self, model: Any) -> None:
        self.most, self.passes = 10**6, 0
        super().__init__(model)
        (self.bad,) = FORMAT.encode_text(BAD)
        model.lm_head.register_forward_hook(self._fail)

    def _forward(self, feeds: Sequence[tuple[Row, Sequence[int]]]) -> Tensor:
        self.fed = [token for _, tokens in feeds for token in tokens]
        self.passes += 1
        return super()._forward(feeds)

    def _fail(self, *_args: Any) -> None:
        """Fail at the end of the pass, when the KV cache has been written."""
        if hasattr(self, "fed") and self.bad in self.fed:
            raise ValueError("no such token\nand more")
        if len(getattr(self, "fed", ())) > self.most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
            )


def test_a_failing_step_is_repeated_until_the_request_to_blame_is_known() -> None:
    batch = Batch(Fragile(tiny.model()), FORMAT, Capacity(chunk=1024))
    bad = make_request(BAD, n=3)
    assert_only_one_fails(batch, bad, "the model failed: ValueError: no such token")


def test_a_bad_token_that_a_reply_writes_ends_that_reply_only() -> None:
    runner = Fragile(tiny.model())
    batch = Batch(runner, FORMAT, Capacity())
    bad = make_request("x", logit_bias={runner.bad: 100.0})
    assert_only_one_fails(batch, bad, "the model failed: ValueError: no such token")


@pytest.mark.parametrize("most", [40, 2])
def test_a_step_without_enough_memory_is_done_in_parts(most: int) -> None:
    runner = Fragile(tiny.model())
    batch = Batch(runner, FORMAT, Capacity(chunk=64))
    serve(batch, make_request("z" * 100))
    assert batch._prefixes.bytes
    runner.most = most
    served = serve(batch, *GOOD_REQUESTS)
    assert [texts(events, 2) for events in served] == EXPECTED


def test_memory_that_is_not_even_there_for_one_token_is_a_503() -> None:
    runner = Fragile(tiny.model())
    batch = Batch(runner, FORMAT, Capacity())
    runner.most = 0
    (events,) = serve(batch, make_request("x"))
    assert failure_of(events).status == 503
    runner.most = 10**6
    assert_only_one_fails(batch, make_request(BAD), "no such token")


@pytest.mark.parametrize("shared", [False, True], ids=["own prompt", "shared prompt"])
def test_a_row_that_finds_no_memory_to_grow_ends_its_request_only(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of pools, and an allocation that fails between keys and values."""
    batch = Batch(tiny.runner(), FORMAT, Capacity())
    resize = Pool._resize

    def refuse(pool: Pool, slots: int) -> None:
        if pool.length > 256 and slots > (0 if shared else 1):
            raise MemoryError
        resize(pool, slots)

    monkeypatch.setattr(Pool, "_resize", refuse)
    bad = make_request("long " * 80, n=3) if shared else make_request("x", n=2, max_tokens=300)
    assert_only_one_fails(batch, bad, "out of memory", status=503)


def test_a_pool_that_grows_only_in_part_is_used_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, empty, left = Batch(tiny.runner(), FORMAT, Capacity()), Pool._empty, [3]

    def refuse(pool: Pool, slots: int, heads: int, width: int) -> Tensor:
        if pool.length > 256 and slots > 1:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("CUDA out of memory")
        return empty(pool, slots, heads, width)

    monkeypatch.setattr(Pool, "_empty", refuse)
    bad = make_request("x", n=2, max_tokens=300)
    assert_only_one_fails(batch, bad, "out of memory", status=503)
    left[0] = 1000
    assert all(texts(serve(batch, bad)[0], 2))


def test_a_scheduler_with_a_bug_fails_all_requests_and_keeps_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = 0

    def load() -> Batch:
        nonlocal loads
        loads += 1
        return Batch(tiny.runner(), FORMAT, Capacity())

    engine = Engine("tiny", load)
    with monkeypatch.context() as patched:
        patched.setattr(Batch, "_next_chunks", lambda _batch: 1 / 0)
        with pytest.raises(ProviderFailed, match="ZeroDivisionError"):
            list(engine.stream_sync(make_request("x")))
    assert texts(list(engine.stream_sync(GOOD_REQUESTS[0])), 2) == EXPECTED[0]
    assert loads == 1
    engine.close()


BYTE_FALLBACK = ChatFormat(
    tiny.byte_fallback_tokenizer(["\u2581", "l", "\u2581l", "a", "\u2581a", "\u4e2d"]), {2}
)
SPELLED = range(4, 4 + 256 + 6)


def hostile(rng: random.Random) -> EngineRequest:
    """Return a request that writes bad bytes, or whatever a client can make of its fields."""
    biases: list[dict[int, float]] = [
        {},
        dict.fromkeys(rng.sample(SPELLED, 3), 40.0),  # a few bytes, mostly bad ones
        dict.fromkeys([4 + 0x28, 4 + 0xDE, SPELLED[-5]], 100.0),
        dict.fromkeys(range(274), -100.0),
        dict.fromkeys(range(274), 100.0),
        dict.fromkeys(range(274), -float("inf")),
    ]
    return EngineRequest(
        messages=[{"role": "user", "content": rng.choice(["l", "\U0001f600 a", "\u4e2d" * 30])}],
        sampling=SamplingParams(1.0, top_p=rng.choice([1.0, 0.9])),
        logit_bias={2: -100.0} | rng.choice(biases),
        frequency_penalty=rng.choice([0.0, 2.0, -2.0]),
        repetition_penalty=rng.choice([1.0, 1.5]),
        stop=rng.choice([(), ("\ufffd",), ("l", " a")]),
        n=rng.choice([1, 1, 3]),
        max_tokens=rng.randint(5, 25),
        seed=rng.randrange(100),
        top_logprobs=rng.choice([None, 2]),
    )


async def read(engine: Engine, request: EngineRequest, limit: int | None) -> list[str] | str:
    """Return the texts of a request, or its error; a client with a limit leaves after it."""
    choices, events = [Choice() for _ in range(request.n)], engine.stream(request)
    try:
        async for event in events:
            if isinstance(event, Piece):
                choices[event.choice].add(event)
            limit = None if limit is None else limit - 1
            if limit == 0:
                await events.aclose()
                return "left"
    except ProviderFailed as exc:
        return str(exc)
    return [choice.text for choice in choices]


async def test_sixty_four_streams_of_bad_bytes_are_each_written_as_alone() -> None:
    loads = 0
    runner = tiny.runner()

    def load() -> Batch:
        nonlocal loads
        loads += 1
        return Batch(runner, BYTE_FALLBACK, Capacity(rows=40))

    rng, engine = random.Random(0), Engine("bytes", load)
    requests = [hostile(rng) for _ in range(64)]
    leaves = [rng.choice([None, None, None, rng.randint(1, 12)]) for _ in requests]
    together = await asyncio.gather(*map(read, [engine] * 64, requests, leaves))
    for request, limit, found in zip(requests, leaves, together, strict=True):
        if found == "left":
            assert limit is not None
            continue
        assert found == await read(engine, request, None)
        no_token = -float("inf") in request.logit_bias.values()
        assert (found == "the probability of every token is not a number") == no_token
    assert any("\ufffd" in text for found in together for text in found)
    assert "left" in together
    assert loads == 1
    engine.close()
    assert not list(runner.kv_cache.rows())
    assert runner.kv_cache.bytes == 0
