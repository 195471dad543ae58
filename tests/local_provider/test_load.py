"""Continuous batching under load: every request is answered, none starves, nothing leaks."""

import asyncio
import json
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from torch import Tensor

from optillm_hooks.decoding.cot_decoding import CotSettings
from optillm_hooks.errors import OptiLLMError, ProviderFailed, RequestRejected
from optillm_hooks.local_provider import models
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
from optillm_hooks.local_provider.kv_cache import KVCache, Row
from optillm_hooks.local_provider.request import parse_request
from optillm_hooks.local_provider.runner import Runner
from tests.local_provider import tiny

pytestmark = pytest.mark.anyio
FORMAT = tiny.chat_format()
ENDLESS = {FORMAT.encode_text("a")[0]: 90.0}
"""A letter for every token, so that each is shown immediately and none ends a reply."""


def make_request(letters: int, **fields: Any) -> EngineRequest:
    text = "".join(random.Random(letters).choices("abcdefgh ", k=letters))
    return EngineRequest(messages=[{"role": "user", "content": text}], **fields)


class Counted(Runner):
    """A runner that notes how many tokens of prompts each step feeds."""

    def __init__(self) -> None:
        self.prompt_tokens: list[int] = []
        super().__init__(tiny.model(2048))
        self.prompt_tokens.clear()

    def step(self, feeds: Sequence[tuple[Row, Sequence[int]]]) -> Tensor:
        self.prompt_tokens.append(sum(len(tokens) for _, tokens in feeds if len(tokens) > 1))
        return super().step(feeds)


@dataclass(eq=False)
class Client:
    """A request that a test adds to a batch itself, so that steps can be counted."""

    submission: Submission = field(init=False)
    events: list[tuple[int, Event]] = field(default_factory=list)
    step: int = 0

    @classmethod
    def of(cls, request: EngineRequest) -> "Client":
        client = cls()
        client.submission = Submission(
            request, lambda event: client.events.append((client.step, event))
        )
        return client

    @property
    def steps(self) -> list[int]:
        """The steps in which it was shown something."""
        return [step for step, event in self.events if isinstance(event, Piece)]

    @property
    def finished(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1][1], Finished)


def run(batch: Batch, arrivals: dict[int, Client]) -> None:
    """Take steps until all are served; each client arrives before the step of its number."""
    for step in range(5000):
        for client in arrivals.values():
            client.step = step
        if step in arrivals:
            batch.add(arrivals[step].submission)
        elif batch.idle and step > max(arrivals):
            return
        batch.step()
    raise AssertionError("not idle after 5,000 steps")


async def test_sixty_four_concurrent_streams_are_all_answered_and_nothing_leaks() -> None:
    runner = tiny.runner(2048)
    capacity = Capacity(rows=24, prefix_bytes=1 << 20)
    batches: list[Batch] = []

    def load() -> Batch:
        batches.append(Batch(runner, FORMAT, capacity))
        return batches[-1]

    engine = Engine("loaded", load)
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
    kinds: list[tuple[str, EngineRequest]] = []
    for i in range(64):
        letters = [4, 30, 120, 700, 1400][i % 5]
        match i % 8:
            case 0:
                kinds.append(
                    ("cancelled", make_request(letters, max_tokens=600, logit_bias=ENDLESS, n=2))
                )
            case 1:
                kinds.append(("several", make_request(letters, max_tokens=9, n=5, seed=i)))
            case 2:
                kinds.append(
                    ("stopped", make_request(letters, max_tokens=400, stop=("a", "b"), seed=i))
                )
            case 3:
                kinds.append(
                    ("formed", make_request(letters, max_tokens=300, schema=schema, seed=i))
                )
            case 4:
                kinds.append(("wrong", make_request(letters, schema={"not": {}})))
            case 5:
                kinds.append(("too long", make_request(3000 + letters, max_tokens=5)))
            case _:
                kinds.append(
                    (
                        "plain",
                        make_request(
                            letters, max_tokens=12, sampling=SamplingParams(temperature=0)
                        ),
                    )
                )

    async def client(kind: str, request: EngineRequest) -> str:
        choices = [Choice() for _ in range(request.n)]
        events = engine.stream(request)
        finished = None
        try:
            async for event in events:
                if isinstance(event, Finished):
                    finished = event
                    continue
                choices[event.choice].add(event)
                if kind == "cancelled" and len(choices[0].text) > 5:
                    await events.aclose()
                    return kind
        except RequestRejected:
            return "refused"
        assert finished is not None
        if kind == "several":
            assert 5 <= finished.completion_tokens <= 45
        if kind == "stopped":
            assert not {"a", "b"} & set(choices[0].text)
        if kind == "formed" and choices[0].finish_reason == "stop":
            assert len(json.loads(choices[0].text)) <= 3
        return kind

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client(kind, one)) for kind, one in kinds]
    answered = [task.result() for task in tasks]
    refused = {"wrong", "too long"}
    assert answered == ["refused" if kind in refused else kind for kind, _ in kinds]
    (batch,) = batches
    engine.close()
    assert batch.idle
    assert not list(runner.kv_cache.rows())
    assert runner.kv_cache.bytes == 0
    assert batch.bytes <= capacity.prefix_bytes
    assert engine._in_flight == 0


async def test_a_full_queue_refuses_and_answers_those_inside() -> None:
    runner = tiny.runner()
    engine = Engine("queue", lambda: Batch(runner, FORMAT, Capacity(rows=2)), max_requests=6)
    results: list[str] = []

    async def client() -> None:
        try:
            async for _ in engine.stream(make_request(5, max_tokens=4)):
                pass
            results.append("answered")
        except ProviderFailed as exc:
            results.append(str(exc.status))

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(client())
    engine.close()
    assert sorted(results) == ["503"] * 14 + ["answered"] * 6


@pytest.mark.parametrize("chunk", [64, 256])
def test_a_long_prefill_stalls_a_running_stream_by_one_chunk_per_token(chunk: int) -> None:
    runner = Counted()
    batch = Batch(runner, FORMAT, Capacity(chunk=chunk))
    running = Client.of(make_request(4, max_tokens=40, logit_bias=ENDLESS))
    long = Client.of(make_request(1500, max_tokens=2, logit_bias=ENDLESS))
    run(batch, {0: running, 10: long})
    assert max(runner.prompt_tokens) <= chunk
    assert sum(runner.prompt_tokens) > 1500
    reading = -(-1516 // chunk)
    assert long.steps[0] >= 10 + reading - 1
    # A token for every step, also while the prompt is read.
    first = running.steps[0]
    assert running.steps == list(range(first, first + 40))


@pytest.mark.parametrize("letters", [100, 230])
@pytest.mark.parametrize("common", [0, 60], ids=["other prompt", "same system prompt"])
def test_a_short_prompt_behind_a_long_one_has_its_first_token_within_two_chunks(
    letters: int, common: int
) -> None:
    batch = Batch(Counted(), FORMAT, Capacity(chunk=256))
    system = [{"role": "system", "content": "s" * common}] if common else []
    long, short = (
        Client.of(
            EngineRequest(messages=[*system, *one.messages], max_tokens=2, logit_bias=ENDLESS)
        )
        for one in (make_request(1900), make_request(letters))
    )
    run(batch, {0: long, 2: short})
    assert short.steps[0] <= 2 + 2
    assert long.steps[0] <= 12


def test_two_concurrent_prefills_share_one_chunk() -> None:
    runner = Counted()
    batch = Batch(runner, FORMAT, Capacity())
    clients = {i: Client.of(make_request(900 + i, max_tokens=2)) for i in range(3)}
    run(batch, clients)
    assert max(runner.prompt_tokens) <= 256
    assert all(client.finished for client in clients.values())


def written(client: Client) -> str:
    return "".join(event.text for _, event in client.events if isinstance(event, Piece))


@pytest.mark.parametrize("prefix_bytes", [1 << 28, 0], ids=["remembered", "not remembered"])
def test_concurrent_prompts_with_a_common_prefix_are_prefilled_once(
    prefix_bytes: int,
) -> None:
    shared = "".join(random.Random(0).choices("abcdefgh ", k=600))
    messages = [[{"role": "user", "content": f"{shared}{end}"}] for end in ("one", "two", "three")]
    runner = Counted()
    batch = Batch(runner, FORMAT, Capacity(prefix_bytes=prefix_bytes))
    clients = [Client.of(EngineRequest(messages=m, max_tokens=5, seed=1)) for m in messages]
    for client in clients:
        batch.add(client.submission)
    while not batch.idle:
        batch.step()
    assert all(client.finished for client in clients)
    cached = [e.cached_tokens for c in clients for _, e in c.events if isinstance(e, Finished)]
    if prefix_bytes:
        assert cached[0] == 0
        assert min(cached[1:]) > 600
        assert sum(runner.prompt_tokens) < 800
    else:
        assert cached == [0, 0, 0]
        assert sum(runner.prompt_tokens) > 1800
    for client, wanted in zip(clients, messages, strict=True):
        alone = Client.of(EngineRequest(messages=wanted, max_tokens=5, seed=1))
        run(Batch(Counted(), FORMAT, Capacity()), {0: alone})
        assert written(client) == written(alone)


def test_a_prompt_without_a_common_prefix_waits_for_no_other() -> None:
    batch = Batch(Counted(), FORMAT, Capacity(chunk=64))
    long, other = (
        Client.of(make_request(600, max_tokens=2)),
        Client.of(make_request(40, max_tokens=2)),
    )
    batch.add(long.submission)
    batch.add(other.submission)
    batch.step()
    assert len(list(batch._runner.kv_cache.rows())) == 2


def test_a_short_request_after_a_wide_one_gets_the_next_free_row() -> None:
    """Four rows; the wide request would fill them for 25 rounds of 8 tokens."""
    batch = Batch(Counted(), FORMAT, Capacity(rows=4))
    wide = Client.of(make_request(5, n=100, max_tokens=8, logit_bias=ENDLESS))
    short = Client.of(make_request(6, max_tokens=2, logit_bias=ENDLESS))
    run(batch, {0: wide, 3: short})
    assert short.steps[0] <= 3 + 8 + 1
    assert wide.finished
    assert len({event.choice for _, event in wide.events if isinstance(event, Piece)}) == 100


def test_requests_begin_in_the_order_of_arrival() -> None:
    batch = Batch(Counted(), FORMAT, Capacity(rows=1))
    clients = {
        i: Client.of(make_request(5 + i, max_tokens=3, logit_bias=ENDLESS)) for i in range(6)
    }
    run(batch, clients)
    begun = [client.steps[0] for client in clients.values()]
    assert begun == sorted(begun)


@pytest.mark.parametrize("at", ["waiting", "prefilling", "decoding"])
def test_a_request_that_is_cancelled_at_any_time_frees_its_rows_at_the_next_step(at: str) -> None:
    runner = Counted()
    batch = Batch(runner, FORMAT, Capacity(rows=1 if at == "waiting" else 8, prefix_bytes=0))
    other = Client.of(make_request(4, max_tokens=60, logit_bias=ENDLESS))
    gone = Client.of(make_request(1200, n=3, max_tokens=50, logit_bias=ENDLESS))
    batch.add(other.submission)
    batch.add(gone.submission)
    for _ in range({"waiting": 3, "prefilling": 2, "decoding": 12}[at]):
        batch.step()
    assert len(list(runner.kv_cache.rows())) == {"waiting": 1, "prefilling": 2, "decoding": 4}[at]
    gone.submission.cancelled = True
    batch.step()
    assert len(list(runner.kv_cache.rows())) == 1
    told = len(gone.events)
    while not batch.idle:
        batch.step()
    assert len(gone.events) == told
    assert other.finished
    assert batch.bytes == 0


def test_an_error_for_one_says_nothing_to_the_others() -> None:
    batch = Batch(Counted(), FORMAT, Capacity())
    good, bad = (
        Client.of(make_request(4, max_tokens=5)),
        Client.of(make_request(4, schema={"not": {}})),
    )
    run(batch, {0: good, 1: bad})
    assert good.finished
    assert [isinstance(event, OptiLLMError) for _, event in bad.events] == [True]


def saying(content: Any, **others: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **others}]}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "bias behind the vocabulary": ({**saying("x"), "logit_bias": {10**30: 1.0}}, "ids from 0 to"),
    "bias before the vocabulary": ({**saying("x"), "logit_bias": {-1: 1.0}}, "ids from 0 to"),
    "content a number": (saying(7), "content must be a string or a list"),
    "content an object": (saying({"secret": 1}), "content must be a string or a list"),
    "content an empty object": (saying({}), "content must be a string or a list"),
    "parts that are strings": (saying(["secret"]), "content must be a string or a list"),
    "text a number": (saying([{"type": "text", "text": 7}]), "text of a content part"),
    "tool calls a number": (saying("secret", tool_calls=5), "tool_calls must be a list"),
    "role a list": ({"messages": [{"role": ["secret"]}]}, "role is a string"),
    "message a string": ({"messages": ["secret"]}, "each message must be an object"),
}


async def test_bad_requests_beside_a_stream_are_each_refused_and_the_stream_goes_on() -> None:
    runner = tiny.runner()
    batches: list[Batch] = []

    def load() -> Batch:
        batches.append(Batch(runner, FORMAT, Capacity()))
        return batches[-1]

    engine = Engine("bad", load)
    good = make_request(9, max_tokens=200, seed=5, logit_bias={tiny.END: -100.0})
    alone, beside = Choice(), Choice()
    async for event in engine.stream(good):
        if isinstance(event, Piece):
            alone.add(event)
    events = engine.stream(good)
    first = await anext(events)
    assert isinstance(first, Piece)
    beside.add(first)
    for bad, reason in BAD.values():
        with pytest.raises(RequestRejected, match=reason) as refusal:
            await anext(engine.stream(EngineRequest(**bad)))
        assert refusal.value.status == 400
        assert refusal.value.param in ("logit_bias", "messages")
        assert "secret" not in str(refusal.value)
    async for event in events:
        if isinstance(event, Piece):
            beside.add(event)
    assert beside == alone
    assert len(alone.text) > 100
    assert len(batches) == 1
    engine.close()


def test_a_top_k_that_is_no_number_for_torch_is_refused() -> None:
    with pytest.raises(RequestRejected, match="top_k"):
        parse_request(saying("x")["messages"], {"top_k": 10**400})


def test_the_last_logit_can_be_biased() -> None:
    runner = Counted()
    client = Client.of(make_request(4, max_tokens=3, logit_bias={runner.vocabulary - 1: 100.0}))
    run(Batch(runner, FORMAT, Capacity()), {0: client})
    assert client.finished


def test_whatever_breaks_while_a_request_is_prepared_breaks_it_alone() -> None:
    """The error's own message is withheld: it may quote the prompt."""
    good, bad = (
        Client.of(make_request(4, max_tokens=5)),
        Client.of(EngineRequest(messages=cast(Any, 5))),
    )
    run(Batch(Counted(), FORMAT, Capacity()), {0: good, 1: bad})
    assert good.finished
    ((_, failure),) = bad.events
    assert isinstance(failure, ProviderFailed)
    assert str(failure) == "the request could not be prepared: TypeError"
    assert failure.status == 500


async def test_first_requests_that_come_together_share_one_failed_load() -> None:
    runner = tiny.runner()
    together, loads = threading.Event(), 0

    def load() -> Batch:
        nonlocal loads
        loads += 1
        together.wait()
        if loads == 1:
            raise OSError("no such file")
        return Batch(runner, FORMAT, Capacity())

    engine = Engine("broken", load)
    tasks = [
        asyncio.create_task(anext(engine.stream(make_request(4, max_tokens=2)))) for _ in range(8)
    ]
    while engine._in_flight < 8:  # noqa: ASYNC110 (they come one by one)
        await asyncio.sleep(0)
    together.set()
    failures = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(failure) for failure in failures] == ["broken: OSError: no such file"] * 8
    assert all(isinstance(failure, ProviderFailed) for failure in failures)
    assert loads == 1
    assert [event async for event in engine.stream(make_request(4, max_tokens=2))]
    assert loads == 2
    engine.close()


async def test_an_engine_that_is_closed_while_a_load_fails_ends() -> None:
    together = threading.Event()

    def load() -> Batch:
        together.wait()
        raise OSError("no such file")

    engine = Engine("closed", load)
    task = asyncio.create_task(anext(engine.stream(make_request(4))))
    while not engine._in_flight:  # noqa: ASYNC110 (it comes in a while)
        await asyncio.sleep(0)
    engine._inbox.put(None)
    together.set()
    with pytest.raises(ProviderFailed, match="no such file"):
        await task
    engine.close()
    assert not engine._thread.is_alive()


def test_an_unknown_adapter_is_refused_with_the_known_ones() -> None:
    client = Client.of(make_request(4, adapter="x"))
    run(Batch(Counted(), FORMAT, Capacity()), {0: client})
    ((_, failure),) = client.events
    assert isinstance(failure, RequestRejected)
    assert str(failure) == "no adapter 'x'; this model has: none"


def served(batch: Batch, clients: Sequence[Client]) -> tuple[int, int, int]:
    """Serve all; return the maximum of rows, bytes filled and bytes allocated after any step.

    Filled are slots that have a row, and prompts that are kept outside of the prefix cache.
    """
    kept = batch._runner.kv_cache
    assert isinstance(kept, KVCache)
    crowds, filled, allocated = [0], [0], [0]
    for client in clients:
        batch.add(client.submission)
    while not batch.idle:
        batch.step()
        pools = kept._pools + kept._prefix_pools
        slots = sum(kept.bytes_for(len(pool.rows), pool.length) for pool in pools)
        apart = batch.bytes - batch._prefixes.bytes - kept.bytes
        assert kept.bytes <= 2 * slots
        crowds.append(len(list(kept.rows())))
        filled.append(slots + apart)
        allocated.append(kept.bytes + apart)
    assert all(client.finished for client in clients)
    assert kept.bytes == 0
    return max(crowds), max(filled), max(allocated)


def test_memory_for_five_rows_is_filled_by_five_rows() -> None:
    runner = Counted()
    most = runner.kv_cache.bytes_for(5, 1200)
    batch = Batch(runner, FORMAT, Capacity(kv_bytes=most, prefix_bytes=0))
    clients = [
        Client.of(make_request(1100 + i, max_tokens=50, logit_bias=ENDLESS)) for i in range(7)
    ]
    crowd, filled, allocated = served(batch, clients)
    assert (crowd, filled) == (5, most)
    assert most < allocated <= 2 * most


@pytest.mark.parametrize("prefix_bytes", [0, 150_000], ids=["none", "few"])
def test_any_mix_of_requests_keeps_to_the_kv_cache_limit(prefix_bytes: int) -> None:
    runner, rng = Counted(), random.Random(0)
    most = runner.kv_cache.bytes_for(5, 500)
    batch = Batch(runner, FORMAT, Capacity(kv_bytes=most, prefix_bytes=prefix_bytes))
    kinds: list[dict[str, Any]] = [{}, {"n": 2}, {"n": 5}, {"decoding": CotSettings(k=3)}]
    clients = [
        Client.of(
            make_request(
                rng.choice([4, 90, 400]) + i,
                max_tokens=rng.choice([3, 12, 40]),
                logit_bias=ENDLESS,
                **kinds[i % len(kinds)],
            )
        )
        for i in range(12)
    ]
    crowd, filled, allocated = served(batch, clients)
    assert crowd > 3
    assert most / 2 < filled <= most
    assert allocated <= 2 * most


def test_a_prefix_is_dropped_when_no_further_row_will_begin_from_it() -> None:
    runner = Counted()
    for prefix_bytes, n, copies in [(0, 1, 0), (0, 3, 1), (1 << 28, 3, 0)]:
        batch = Batch(runner, FORMAT, Capacity(rows=2, prefix_bytes=prefix_bytes))
        client = Client.of(make_request(30, n=n, max_tokens=20, logit_bias=ENDLESS))
        batch.add(client.submission)
        for _ in range(5):
            batch.step()
        (active,) = batch._active
        prompt = len(active.prompt) * runner.kv_cache.shape.token_bytes
        assert (active.prefix is None) == (n == 1)
        assert batch.bytes == runner.kv_cache.bytes + batch._prefixes.bytes + copies * prompt
        while active.decoding.wanted:
            batch.step()
        assert active.prefix is None
        assert batch.bytes == runner.kv_cache.bytes + batch._prefixes.bytes
        while not batch.idle:
            batch.step()
        assert batch.bytes == batch._prefixes.bytes == (prompt if prefix_bytes else 0)


def test_slots_are_freed_as_rows_leave_and_the_last_row_keeps_its_content() -> None:
    runner = Counted()
    rows = [runner.begin(None, 0) for _ in range(9)]
    runner.step([(row, [5 + i, 40, 41]) for i, row in enumerate(rows)])
    while len(rows) > 1:
        runner.free(rows.pop(0))
        assert runner.kv_cache.bytes <= 2 * runner.kv_cache.bytes_for(len(rows), 1)
    (found,) = runner.step([(rows[0], [9])])
    fresh = runner.begin(None, 0)
    (wanted,) = runner.step([(fresh, [13, 40, 41, 9])])
    assert (found - wanted).abs().max() < 1e-4


def reply(batch: Batch, request: EngineRequest) -> tuple[list[Choice], Finished]:
    client = Client.of(request)
    run(batch, {0: client})
    choices = [Choice() for _ in range(request.n)]
    for _, event in client.events:
        if isinstance(event, Piece):
            choices[event.choice].add(event)
    finished = client.events[-1][1]
    assert isinstance(finished, Finished)
    return choices, finished


def test_more_tokens_than_the_context_has_are_cut_to_it() -> None:
    batch = Batch(tiny.runner(64), FORMAT, Capacity())
    ((choice,), finished) = reply(batch, make_request(9, max_tokens=9999, logit_bias=ENDLESS))
    assert choice.finish_reason == "length"
    assert finished.prompt_tokens + finished.completion_tokens == 64
    assert choice.text == "a" * finished.completion_tokens


def test_each_choice_ends_at_its_own_stop_string() -> None:
    batch = Batch(Counted(), FORMAT, Capacity())
    end, think = {tiny.END: -100.0}, {FORMAT.encode_text("<think>")[0]: -100.0}
    often = {FORMAT.encode_text(letter)[0]: 5.0 for letter in "ab"}
    fields: dict[str, Any] = {"n": 4, "seed": 1, "max_tokens": 40}
    fields["logit_bias"] = {**end, **think, **often}
    whole, _ = reply(batch, make_request(9, **fields))
    stopped, _ = reply(batch, make_request(9, **fields, stop=("ab",)))
    assert [choice.text for choice in stopped] == [one.text.partition("ab")[0] for one in whole]
    reasons = ["stop" if "ab" in one.text else "length" for one in whole]
    assert [choice.finish_reason for choice in stopped] == reasons
    assert len({choice.text for choice in stopped}) == 4
    assert "stop" in reasons


@pytest.mark.parametrize("end", [tiny.END, 40, 50])
def test_a_reply_ends_at_any_of_several_end_tokens(end: int) -> None:
    loaded = models.LoadedModel(tiny.model(), tiny.tokenizer())
    loaded.model.generation_config.eos_token_id = [40, 50]
    chat_format = ChatFormat(loaded.tokenizer, models.end_ids(loaded))
    batch = Batch(Runner(loaded.model), chat_format, Capacity())
    ((choice,), finished) = reply(batch, make_request(9, max_tokens=5, logit_bias={end: 90.0}))
    assert (choice.text, choice.finish_reason) == ("", "stop")
    assert finished.completion_tokens == 1
