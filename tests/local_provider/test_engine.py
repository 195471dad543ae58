"""The engine on the real model: its output, and that no request is lost and no row leaks."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from optillm_hooks.errors import ProviderFailed
from optillm_hooks.local_provider.batch import Batch, Capacity
from optillm_hooks.local_provider.chat_format import ChatFormat
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
from optillm_hooks.local_provider.loading import LoadedModel
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

pytestmark = pytest.mark.anyio
GREEDY = SamplingParams(temperature=0)


def make_request(text: str, **fields: Any) -> EngineRequest:
    return EngineRequest(messages=[{"role": "user", "content": text}], **fields)


@pytest.fixture
def engine(runner: Runner, chat_format: ChatFormat) -> Iterator[Engine]:
    batches: list[Batch] = []

    def load() -> Batch:
        batches.append(Batch(runner, chat_format, Capacity(rows=16)))
        return batches[-1]

    engine = Engine("test", load)
    yield engine
    engine.close()
    assert not list(runner.kv_cache.rows())
    assert runner.kv_cache.bytes == 0


async def answer(engine: Engine, request: EngineRequest) -> tuple[list[Choice], Finished]:
    choices = [Choice() for _ in range(request.n)]
    finished = None
    async for event in engine.stream(request):
        assert finished is None
        if isinstance(event, Piece):
            choices[event.choice].add(event)
        else:
            finished = event
    assert finished is not None
    return choices, finished


async def together(engine: Engine, *requests: EngineRequest) -> list[list[str]]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(engine, request)) for request in requests]
    return [[choice.text for choice in task.result()[0]] for task in tasks]


QUESTIONS = [f"Name {i} rivers, please." + " Think well." * (i * 7 % 23) for i in range(16)]


async def test_sixteen_concurrent_requests_write_what_the_model_alone_would(
    engine: Engine, loaded: LoadedModel, chat_format: ChatFormat, token_ids: dict[bytes, int]
) -> None:
    """Each token is the reference's likeliest where that is clear by 1e-4, with its logprob.

    The reference reads prompt and answer of one request at a time, in one independent pass.
    """
    requests = [make_request(q, sampling=GREEDY, max_tokens=5, top_logprobs=0) for q in QUESTIONS]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(engine, request)) for request in requests]
    for request, task in zip(requests, tasks, strict=True):
        ((choice,), _) = task.result()
        prompt = chat_format.encode(request.messages)
        written = [token_ids[token.token] for token in choice.tokens]
        assert written
        with torch.inference_mode():
            logits = loaded.model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 :]
        for row, token, scored in zip(logits, written, choice.tokens, strict=False):
            best, second = row.topk(2).values.tolist()
            assert token == row.argmax() or best - second < 1e-4
            assert scored.logprob == pytest.approx(row.log_softmax(-1)[token].item(), abs=1e-3)


async def test_a_seed_draws_the_same_alone_and_in_a_crowd(engine: Engine) -> None:
    seeded = make_request(
        "Tell me a joke.", seed=7, max_tokens=8, sampling=SamplingParams(1.0, 0.95, 50)
    )
    crowd = [make_request(question, max_tokens=8) for question in QUESTIONS[:8]]
    (alone,) = await together(engine, seeded)
    with_others = (await together(engine, *crowd[:4], seeded, *crowd[4:]))[4]
    assert alone == with_others


@pytest.mark.parametrize("words", [1, 90], ids=["copied prompt", "shared prompt"])
async def test_choices_of_one_request_are_those_of_single_requests(
    engine: Engine, words: int
) -> None:
    text = "Tell me more. " * words
    ((first, second, third),) = await together(
        engine, make_request(text, seed=5, n=3, max_tokens=10)
    )
    assert len({first, second, third}) == 3
    ((alone,),) = await together(engine, make_request(text, seed=5, max_tokens=10))
    assert alone == first


async def test_more_choices_than_rows_are_all_written(engine: Engine) -> None:
    choices, finished = await answer(engine, make_request("Hi", n=20, max_tokens=3))
    assert all(choice.text for choice in choices)
    assert 40 <= finished.completion_tokens <= 60


async def test_the_prefix_cache_saves_the_prefill_of_a_common_prefix(engine: Engine) -> None:
    long = "Here is a text to keep in mind. " * 40
    _, first = await answer(
        engine, make_request(long + "What is it?", sampling=GREEDY, max_tokens=4)
    )
    assert first.cached_tokens == 0
    again, second = await answer(
        engine, make_request(long + "Who wrote it?", sampling=GREEDY, max_tokens=4)
    )
    assert second.cached_tokens > 200
    fresh = Engine("fresh", engine._load)
    expected, _ = await answer(
        fresh, make_request(long + "Who wrote it?", sampling=GREEDY, max_tokens=4)
    )
    fresh.close()
    assert again[0].text == expected[0].text


async def test_a_frequency_penalty_breaks_a_repetition(engine: Engine) -> None:
    prompt = "Repeat the word yes ten times: yes yes yes yes"
    ((plain,), (penalised,)) = await together(
        engine,
        make_request(prompt, sampling=GREEDY, max_tokens=20),
        make_request(prompt, sampling=GREEDY, max_tokens=20, frequency_penalty=2.0),
    )
    assert plain.split().count("yes") > 2 * penalised.split().count("yes")


async def test_a_bias_forces_and_bans_tokens(engine: Engine, chat_format: ChatFormat) -> None:
    (forced,) = chat_format.encode_text("word")
    (banned,) = chat_format.encode_text("The")
    question = make_request("What is the capital of France?", sampling=GREEDY, max_tokens=3)
    ((one,), (other,)) = await together(
        engine,
        EngineRequest(messages=question.messages, max_tokens=3, logit_bias={forced: 100.0}),
        EngineRequest(
            messages=question.messages, sampling=GREEDY, max_tokens=3, logit_bias={banned: -100.0}
        ),
    )
    assert one == "wordwordword"
    assert not other.startswith("The")


async def test_closing_a_stream_frees_its_rows(engine: Engine, runner: Runner) -> None:
    events = engine.stream(
        make_request("Tell me a story.", n=3, max_tokens=4000, sampling=SamplingParams(1.9))
    )
    assert isinstance(await anext(events), Piece)
    await events.aclose()
    _, finished = await answer(engine, make_request("Hi", sampling=GREEDY, max_tokens=2))
    assert finished.completion_tokens == 2
    assert not list(runner.kv_cache.rows())


async def test_cancelling_the_task_frees_its_rows(engine: Engine, runner: Runner) -> None:
    begun = asyncio.Event()

    async def listen() -> None:
        async for _ in engine.stream(
            make_request("Tell me a story.", max_tokens=4000, sampling=SamplingParams(1.9))
        ):
            begun.set()

    task = asyncio.create_task(listen())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await answer(engine, make_request("Hi", sampling=GREEDY, max_tokens=2))
    assert not list(runner.kv_cache.rows())


async def test_one_bad_request_fails_alone(engine: Engine) -> None:
    bad = EngineRequest(messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    good = asyncio.create_task(answer(engine, make_request("Hi", max_tokens=3)))
    with pytest.raises(Exception, match="text content only"):
        await answer(engine, bad)
    assert (await good)[1].completion_tokens <= 3


async def test_simultaneous_first_requests_load_the_model_once(
    runner: Runner, chat_format: ChatFormat
) -> None:
    loads: list[Batch] = []

    def load() -> Batch:
        loads.append(Batch(runner, chat_format, Capacity()))
        return loads[-1]

    engine = Engine("counted", load)
    await together(engine, *(make_request("Hi", max_tokens=1) for _ in range(4)))
    assert len(loads) == 1
    engine.close()
    assert not any(thread.name == "engine-counted" for thread in threading.enumerate())


async def test_an_idle_model_is_dropped_and_loaded_again_when_asked(
    runner: Runner, chat_format: ChatFormat
) -> None:
    loads = 0

    def load() -> Batch:
        nonlocal loads
        loads += 1
        return Batch(runner, chat_format, Capacity())

    engine = Engine("idle", load, unload_after_s=0)
    for _ in range(2):
        _, finished = await answer(engine, make_request("Hi", max_tokens=1))
        assert finished.completion_tokens == 1
        while engine.loaded:  # noqa: ASYNC110 (another thread lets go of it)
            await asyncio.sleep(0)
    engine.close()
    assert loads == 2


async def test_a_failed_load_fails_its_request_and_the_next_one_tries_again() -> None:
    def load() -> Batch:
        raise OSError("no such file")

    engine = Engine("broken", load)
    for _ in range(2):
        with pytest.raises(ProviderFailed, match="broken: OSError: no such file"):
            await answer(engine, make_request("Hi"))
    engine.close()


async def test_a_failing_step_is_heard_by_all_and_the_engine_recovers(
    runner: Runner, chat_format: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = 0

    def load() -> Batch:
        nonlocal loads
        loads += 1
        return Batch(runner, chat_format, Capacity())

    engine = Engine("shaky", load)
    with monkeypatch.context() as patched:

        def step(_feeds: Any) -> Any:
            raise RuntimeError("no kernel")

        patched.setattr(runner, "step", step)
        with pytest.raises(ProviderFailed, match="no kernel"):
            await answer(engine, make_request("Hi"))
    assert (await answer(engine, make_request("Hi", max_tokens=2)))[1].completion_tokens <= 2
    assert loads == 1
    engine.close()
    assert not list(runner.kv_cache.rows())


async def test_a_model_was_last_used_when_its_last_request_ended(engine: Engine) -> None:
    events = engine.stream(make_request("Name rivers.", max_tokens=4))
    await anext(events)
    before_the_end = time.monotonic()
    async for _ in events:
        pass
    assert engine.last_used >= before_the_end


async def test_a_full_engine_says_so(runner: Runner, chat_format: ChatFormat) -> None:
    engine = Engine("full", lambda: Batch(runner, chat_format, Capacity()), max_requests=1)
    events = engine.stream(
        make_request("Tell me a story.", max_tokens=1000, sampling=SamplingParams(1.9))
    )
    await anext(events)
    with pytest.raises(ProviderFailed, match="full") as refusal:
        await answer(engine, make_request("Hi"))
    assert refusal.value.status == 503
    await events.aclose()
    await answer(engine, make_request("Hi", max_tokens=1))
    engine.close()


async def test_little_memory_makes_requests_wait_but_answers_all(
    runner: Runner, chat_format: ChatFormat
) -> None:
    two_rows = runner.kv_cache.bytes_for(2, 50)
    engine = Engine("small", lambda: Batch(runner, chat_format, Capacity(kv_bytes=two_rows)))
    requests = [make_request("Hi", max_tokens=5, n=2) for _ in range(4)]
    assert all(all(texts) for texts in await together(engine, *requests))
    engine.close()


def test_rows_of_one_long_prompt_take_its_memory_once() -> None:
    """Room for the prompt, a copy and 8 replies: 8 of 16 rows run at a time, in no more bytes."""
    runner = tiny.runner(context=4096)
    events: list[Event] = []
    endless = {tiny.END: -100.0}
    request = make_request("a" * 1100, max_tokens=20, n=16, logit_bias=endless, seed=1)
    prompt = len(tiny.chat_format().encode(request.messages))
    bytes_for, copy = runner.kv_cache.bytes_for, prompt * runner.kv_cache.shape.token_bytes
    most = bytes_for(1, prompt) + bytes_for(8, 20) + copy
    batch = Batch(runner, tiny.chat_format(), Capacity(kv_bytes=most, prefix_bytes=0))
    batch.add(Submission(request, events.append))
    crowds, used = set(), set()
    while not batch.idle:
        batch.step()
        crowds.add(len(list(runner.kv_cache.rows())))
        used.add(batch.bytes)
    assert max(crowds) == 8
    assert max(used) <= most
    assert isinstance(events[-1], Finished)
    assert events[-1].completion_tokens == 16 * 20
    assert batch.bytes == 0
